"""Clipping of gradients by their global norm.

    norm = √Σ g²  over all entries of all gradients        g · min(1, max_norm / norm)

Source: Pascanu, Mikolov & Bengio 2013, "On the difficulty of training recurrent neural networks".
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import tree
from ..capture import recorded
from ..device import SIMULATING, array_module
from ..op import describe
from ..precision import is_floating, working
from ..trace import RECORDER, Traced, namespace, raw

_CHUNK = 1 << 12  # entries whose squares are summed at once in their own dtype: a long sum in float32 loses digits


def clip_by_global_norm(grads: Any, max_norm: float) -> tuple[Any, Any]:
    """(clipped, norm): all gradients times the one factor that brings their joint norm down to `max_norm`, or 1.

    grads: a pytree of floating-point arrays on one device, which are left as they are; `clipped` has its structure,
    shapes and dtypes. norm: before clipping, a 0-d array on that device (float32, or float64 if a gradient is). Neither
    NumPy nor a GPU waits for the other, so read it seldom: `float(norm)` does wait.

    Squares are summed in float32 for all but float64: entries beyond 1e19 give an infinite norm. An infinite norm
    makes finite entries 0 and others NaN, a NaN makes all NaN; no error is raised, as in optax, and in torch with
    error_if_nonfinite=False. Where all entries are 0, so is the norm, and the derivative through it. max_norm may be
    infinite: the norm is then only measured.

    Raises TypeError for leaves that are not floating-point arrays of one device, ValueError unless max_norm >= 0.

    >>> import gradlib as gl, numpy as np
    >>> clipped, norm = gl.optim.clip_by_global_norm({"w": np.array([3.0, 0.0]), "b": np.array([4.0])}, 1.0)
    >>> clipped["w"], clipped["b"], float(norm)
    (array([0.6, 0. ]), array([0.8]), 5.0)
    """
    if not isinstance(max_norm, (int, float, np.number)) or not max_norm >= 0:
        raise ValueError(f"clip_by_global_norm: expected max_norm >= 0, got {max_norm!r}")
    leaves, structure = tree.flatten(grads)
    if not leaves:
        return grads, np.zeros(())
    xp = _module(grads, leaves)
    if any(type(g) is Traced and g.owner is not RECORDER.get() for g in leaves):
        clipped, norm = _rule(namespace(xp), leaves, float(max_norm))
    else:
        clipped, norm = recorded(_clip, tuple(leaves), float(max_norm))
    return tree.unflatten(structure, clipped), norm


def _module(grads: Any, leaves: list[Any]) -> Any:
    """The array module of the leaves; TypeError naming the first that is no floating-point array, or elsewhere."""
    first = array_module(raw(leaves[0]))
    for i, g in enumerate(leaves):
        xp = array_module(raw(g))
        if xp is not None and is_floating(g.dtype) and xp is first:
            continue
        path = tree.paths(grads)[i] or "grads"
        if xp is None or not is_floating(g.dtype):
            raise TypeError(f"clip_by_global_norm: expected floating-point arrays, got {describe(g)} at {path}")
        raise TypeError(
            f"clip_by_global_norm: {path} lives on {xp.__name__}, others on {first.__name__}; use gl.to_device"
        )
    return first


def _clip(leaves: tuple, max_norm: float) -> tuple[Any, Any]:
    """Of arrays of numbers: by the kernel on a GPU, in array code there and on the CPU."""
    xp = array_module(leaves[0])
    if xp is not np or SIMULATING.get():
        from ..kernels import clipping as kernels

        result = kernels.clip_by_global_norm(xp, leaves, max_norm)
        return _rule(xp, leaves, max_norm) if result is NotImplemented else result
    with np.errstate(over="ignore", invalid="ignore"):
        norm = math.sqrt(sum(map(_squares, leaves)))
        scale = 1.0 if norm <= max_norm else max_norm / norm
        return tuple([_scaled(g, working(g.dtype).type(scale)) for g in leaves]), np.array(norm, _widest(leaves))


def _widest(leaves: Any) -> Any:
    """The dtype of the norm."""
    return np.result_type(*[working(g.dtype) for g in leaves])


def _squares(g: Any) -> float:
    """Σ g² of a NumPy array."""
    flat = np.ascontiguousarray(g, working(g.dtype)).reshape(-1)
    parts = (flat[at : at + _CHUNK] for at in range(0, flat.size, _CHUNK))
    return sum(float(np.dot(part, part)) for part in parts)


def _scaled(g: Any, scale: Any) -> Any:
    """g · scale in the dtype of g, computed in that of `scale`, which is as wide or wider."""
    return np.asarray(g * scale).astype(g.dtype, copy=False)


def _rule(xp: Any, leaves: Any, max_norm: float) -> tuple[Any, Any]:
    """In array code, which may be traced: no derivative of √ at 0, nor of 1 / norm where nothing is clipped."""
    wide = _widest(leaves)
    total = xp.zeros((), wide)
    for g in leaves:
        total = total + xp.sum(xp.square(g.astype(working(g.dtype)))).astype(wide)
    zero = xp.equal(total, 0)
    norm = xp.where(zero, 0.0, xp.sqrt(xp.where(zero, 1.0, total)))
    inside = xp.less_equal(norm, max_norm)
    scale = xp.where(inside, 1.0, min(max_norm, float(np.finfo(wide).max)) / xp.where(inside, 1.0, norm))
    return tuple([(g * scale.astype(working(g.dtype))).astype(g.dtype) for g in leaves]), norm
