"""Ops that move entries without computing: each is linear, so its jvp is itself behind the stack axis.

Statics are normalised by the handlers: shapes without -1, axes non-negative.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from ..op import Op, normalize_axes, normalize_axis, shape_of, unbroadcast
from ..precision import is_floating
from ..trace import HANDLERS
from .batching import UNKNOWN, Mixed, Tag, same_axes_batch
from .nondiff import concrete


def linear_map(name: str, move: Callable[..., Any], back: Callable[..., Any], **rules: Any) -> Op:
    """Op y = move(xp, x, lead, **static), linear in x, acting behind `lead` extra axes; `back` is its transpose.

    `back(xp, dy, shape, **static)` gets the stack and the shape of x.
    """

    def forward(xp: Any, x: Any, **static: Any) -> tuple:
        return move(xp, x, 0, **static), (x,)

    def vjp(xp: Any, saved: tuple, dy: Any, need: tuple, **static: Any) -> tuple:
        return (back(xp, dy, saved[0].shape, **static),)

    def jvp(xp: Any, saved: tuple, dx: tuple, **static: Any) -> Any:
        return move(xp, dx[0], 1, **static)

    return Op(name, forward=forward, vjp=vjp, jvp=jvp, reads=((),), module="shape", **rules)


def _stack(x: Any, lead: int) -> tuple[int, ...]:
    return x.shape[:lead]


def _reshape_batch(tags: tuple, shapes: tuple, static: dict) -> Any:
    """The batch axis keeps its place among the entries before it; the axes behind it may merge into its rows."""
    tag, old, new = tags[0], shapes[0], static["shape"]
    if tag is None:
        return None
    at = len(old) + tag.axis
    before, samples = prod(old[:at]), old[at] // tag.rows
    lead = 1
    for i, n in enumerate(new):
        if lead == before and n and samples and n % samples == 0 and (n > 1 or samples == 1):
            return Tag(i - len(new), n // samples)
        lead *= n
    return UNKNOWN


def _transpose_batch(tags: tuple, shapes: tuple, static: dict) -> Any:
    tag, ndim = tags[0], len(shapes[0])
    return tag and Tag(static["axes"].index(ndim + tag.axis) - ndim, tag.rows)


def _broadcast_batch(tags: tuple, shapes: tuple, static: dict) -> Any:
    tag = tags[0]
    if tag and shapes[0][tag.axis] != static["shape"][tag.axis]:
        return Mixed("broadcast_to", "repeats the one sample")
    return tag


def _back_axes(axes: tuple[int, ...]) -> tuple[int, ...]:
    return (0, *(int(a) + 1 for a in np.argsort(axes)))


_reshape = linear_map(
    "reshape",
    lambda xp, x, lead, *, shape: xp.reshape(x, (*_stack(x, lead), *shape)),
    lambda xp, dy, old, *, shape: xp.reshape(dy, (dy.shape[0], *old)),
    batch=_reshape_batch,
)
_transpose = linear_map(
    "transpose",
    lambda xp, x, lead, *, axes: xp.transpose(x, (*range(lead), *(a + lead for a in axes))),
    lambda xp, dy, old, *, axes: xp.transpose(dy, _back_axes(axes)),
    batch=_transpose_batch,
)


def _broadcast_move(xp: Any, x: Any, lead: int, *, shape: tuple) -> Any:
    if lead:
        x = xp.reshape(x, (x.shape[0], *(1,) * (len(shape) - x.ndim + 1), *x.shape[1:]))
    return xp.broadcast_to(x, (*_stack(x, lead), *shape))


_broadcast_to = linear_map(
    "broadcast_to",
    _broadcast_move,
    lambda xp, dy, old, *, shape: unbroadcast(xp, dy, old),
    batch=_broadcast_batch,
)
_flip = linear_map(
    "flip",
    lambda xp, x, lead, *, axis: xp.flip(x, axis=tuple(a + lead for a in axis)),
    lambda xp, dy, old, *, axis: xp.flip(dy, axis=tuple(a + 1 for a in axis)),
    batch=lambda tags, shapes, static: (
        Mixed("flip", "reverses the batch axis")
        if tags[0] and len(shapes[0]) + tags[0].axis in static["axis"]
        else tags[0]
    ),
)
_roll = linear_map(
    "roll",
    lambda xp, x, lead, *, shift, axis: xp.roll(x, shift, axis=axis + lead),
    lambda xp, dy, old, *, shift, axis: xp.roll(dy, -shift, axis=axis + 1),
    batch=same_axes_batch("roll", lambda static: static["axis"]),
)
_astype = linear_map(
    "astype",
    lambda xp, x, lead, *, dtype: x.astype(dtype),
    lambda xp, dy, old, *, dtype: dy,  # the sweep casts to the dtype of x
    batch=lambda tags, shapes, static: tags[0],
)


def reshape(a: Any, /, shape: Any = None, order: str = "C", *, newshape: Any = None, copy: Any = None) -> Any:
    shape = newshape if shape is None else shape
    shape = tuple(int(n) for n in shape) if isinstance(shape, (tuple, list)) else (int(shape),)
    size = prod(shape_of(a))
    if shape.count(-1) == 1:
        known = -prod(shape)
        if known <= 0 or size % known:
            raise ValueError(f"reshape: cannot reshape {shape_of(a)} into {shape}")
        shape = tuple(size // known if n == -1 else n for n in shape)
    if prod(shape) != size or any(n < 0 for n in shape):
        raise ValueError(f"reshape: cannot reshape {shape_of(a)} into {shape}")
    if order != "C" and _memory_order("reshape", a, order) == "F":
        return transpose(_reshape(transpose(a), shape=shape[::-1]))
    return _reshape(a, shape=shape)


def ravel(a: Any, order: str = "C") -> Any:
    if order == "K":
        strides = concrete(a, _ORDER).strides
        a = transpose(a, sorted(range(len(strides)), key=lambda i: -abs(strides[i])))
    elif order != "C" and _memory_order("ravel", a, order) == "F":
        a = transpose(a)
    return _reshape(a, shape=(prod(shape_of(a)),))


_ORDER = "the order of an array in memory, order=,"


def _memory_order(name: str, a: Any, order: str) -> str:
    """ "C" or "F"; "A" is that of an array that lies so in memory, which no capture could record."""
    if order not in ("C", "F", "A"):
        raise ValueError(f'{name}: expected order "C", "F" or "A", got {order!r}')
    if order != "A":
        return order
    flags = concrete(a, _ORDER).flags
    return "F" if flags.f_contiguous and not flags.c_contiguous else "C"


def transpose(a: Any, axes: Any = None) -> Any:
    ndim = len(shape_of(a))
    if axes is None:
        order = tuple(range(ndim))[::-1]
    else:
        order = tuple(normalize_axis("transpose", x, ndim) for x in axes)
        if sorted(order) != list(range(ndim)):
            raise ValueError(f"transpose: axes {tuple(axes)} are not a permutation of {ndim} axes")
    return _transpose(a, axes=order)


def matrix_transpose(x: Any) -> Any:
    return swapaxes(x, -1, -2)


def swapaxes(a: Any, axis1: int, axis2: int) -> Any:
    order = list(range(len(shape_of(a))))
    i, j = (normalize_axis("swapaxes", x, len(order)) for x in (axis1, axis2))
    order[i], order[j] = order[j], order[i]
    return _transpose(a, axes=tuple(order))


def moveaxis(a: Any, source: Any, destination: Any) -> Any:
    ndim = len(shape_of(a))
    listed = [x if isinstance(x, (tuple, list)) else (x,) for x in (source, destination)]
    src, dst = ([normalize_axis("moveaxis", x, ndim) for x in axes] for axes in listed)
    if len(src) != len(dst):
        raise ValueError("moveaxis: source and destination must have the same length")
    order = [n for n in range(ndim) if n not in src]
    for d, s in sorted(zip(dst, src, strict=True)):
        order.insert(d, s)
    return _transpose(a, axes=tuple(order))


def expand_dims(a: Any, axis: Any) -> Any:
    axes = axis if isinstance(axis, (tuple, list)) else (axis,)
    ndim = len(shape_of(a)) + len(axes)
    at = {normalize_axis("expand_dims", x, ndim) for x in axes}
    old = iter(shape_of(a))
    return _reshape(a, shape=tuple(1 if i in at else next(old) for i in range(ndim)))


def squeeze(a: Any, axis: Any = None) -> Any:
    shape = shape_of(a)
    drop = [i for i, n in enumerate(shape) if n == 1] if axis is None else normalize_axes("squeeze", axis, len(shape))
    for i in drop:
        if shape[i] != 1:
            raise ValueError(f"squeeze: axis {i} of shape {shape} has size {shape[i]}, expected 1")
    return _reshape(a, shape=tuple(n for i, n in enumerate(shape) if i not in drop))


def broadcast_to(array: Any, shape: Any, subok: bool = False) -> Any:
    shape = tuple(shape) if isinstance(shape, (tuple, list)) else (shape,)
    try:
        fits = np.broadcast_shapes(shape_of(array), shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"broadcast_to: {shape_of(array)} does not broadcast to {shape}")
    return _broadcast_to(array, shape=shape)


def flip(m: Any, axis: Any = None) -> Any:
    return _flip(m, axis=normalize_axes("flip", axis, len(shape_of(m))))


def roll(a: Any, shift: Any, axis: Any = None) -> Any:
    if axis is None:
        return reshape(roll(ravel(a), shift, 0), shape_of(a))
    shifts, axes = ([s] if np.ndim(s) == 0 else list(s) for s in (shift, axis))
    for i, x in enumerate(axes):
        a = _roll(a, shift=int(shifts[i % len(shifts)]), axis=normalize_axis("roll", x, len(shape_of(a))))
    return a


def atleast_2d(a: Any) -> Any:
    return a if len(shape_of(a)) >= 2 else expand_dims(a, tuple(range(2 - len(shape_of(a)))))


def atleast_1d(a: Any) -> Any:
    return a if shape_of(a) else reshape(a, (1,))


HANDLERS.update(
    {
        np.reshape: reshape,
        np.ravel: ravel,
        np.transpose: transpose,
        np.matrix_transpose: matrix_transpose,
        np.swapaxes: swapaxes,
        np.moveaxis: moveaxis,
        np.expand_dims: expand_dims,
        np.squeeze: squeeze,
        np.broadcast_to: broadcast_to,
        np.flip: flip,
        np.roll: roll,
        np.atleast_1d: atleast_1d,
        np.atleast_2d: atleast_2d,
        np.shape: lambda a: a.shape,
        np.ndim: lambda a: a.ndim,
        np.size: lambda a, axis=None: a.size if axis is None else a.shape[axis],
        np.ascontiguousarray: lambda a, dtype=None: a,  # for rules; NumPy's own does not dispatch
        np.copy: lambda a, order="K", subok=False: a,
    }
)


def astype(x: Any, dtype: Any, *, copy: bool = True, device: Any = None) -> Any:
    """Cast; to integers or booleans no derivative passes."""
    from .nondiff import cast

    dtype = np.dtype(dtype)
    if is_floating(dtype):
        return _astype(x, dtype=dtype)
    if dtype.kind not in "biu":
        raise TypeError(f"astype: expected a real dtype, got {dtype}")
    return cast(x, dtype=dtype)


HANDLERS[np.astype] = astype
