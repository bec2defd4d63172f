"""Entries by place: take, take_along_axis, diagonals, traces and repetitions, composed of indexing."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..capture import recorded
from ..device import array_module
from ..op import describe, normalize_axis, shape_of
from ..trace import HANDLERS, Traced, module_of, raw
from .index import ARRAY, getitem, places, scatter
from .nondiff import concrete
from .reduce import refuse, sum_
from .shape import _transpose, ravel, reshape


def take(a: Any, indices: Any, axis: Any = None, out: Any = None, mode: str = "raise") -> Any:
    refuse("take", out, {})
    if axis is None:
        a, axis = ravel(a), 0
    axis = normalize_axis("take", axis, len(shape_of(a)))
    indices = indices if hasattr(indices, "dtype") else module_of(a).asarray(indices)
    if mode != "raise":
        indices = _moved_inside(indices, shape_of(a)[axis], mode)
    return getitem(a, (*[slice(None)] * axis, indices))


def _moved_inside(indices: Any, n: int, mode: str) -> Any:
    """Indices that all name one of n entries; of an array that a capture holds, anew at every replay."""
    xp = module_of(indices)
    if mode == "wrap":
        return recorded(xp.remainder, indices, n) if type(indices) is not Traced else xp.remainder(indices, n)
    if mode != "clip":
        raise ValueError(f'take: expected mode "raise", "wrap" or "clip", got {mode!r}')
    if type(indices) is Traced:
        return xp.clip(indices, 0, n - 1)
    return recorded(xp.clip, indices, 0, n - 1)


def take_along_axis(arr: Any, indices: Any, axis: Any = -1) -> Any:
    if axis is None:
        arr, axis = ravel(arr), 0
    ndim = len(shape_of(arr))
    axis = normalize_axis("take_along_axis", axis, ndim)
    if len(shape_of(indices)) != ndim:
        raise ValueError(f"take_along_axis: expected indices of {ndim} dimensions, got {describe(indices)}")
    xp, shape = module_of(arr), list(np.broadcast_shapes(arr.shape[:axis], indices.shape[:axis]))
    shape += [indices.shape[axis], *np.broadcast_shapes(arr.shape[axis + 1 :], indices.shape[axis + 1 :])]
    grids = [xp.arange(n).reshape(*(n if j == i else 1 for j in range(ndim))) for i, n in enumerate(shape)]
    return getitem(arr, tuple(indices if i == axis else g for i, g in enumerate(grids)))


def diagonal(a: Any, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Any:
    ndim = len(shape_of(a))
    i, j = (normalize_axis("diagonal", x, ndim) for x in (axis1, axis2))
    moved = _transpose(a, axes=(*[n for n in range(ndim) if n not in (i, j)], i, j))
    rows, columns = moved.shape[-2:]
    n = max(min(rows + min(offset, 0), columns - max(offset, 0)), 0)
    steps = module_of(a).arange(n)
    return getitem(moved, (Ellipsis, steps - min(offset, 0), steps + max(offset, 0)))


def trace(a: Any, offset: int = 0, axis1: int = 0, axis2: int = 1, dtype: Any = None, out: Any = None) -> Any:
    refuse("trace", out, {})
    return sum_(diagonal(a, offset, axis1, axis2), -1, dtype)


def repeat(a: Any, repeats: Any, axis: Any = None) -> Any:
    if axis is None:
        a, axis = ravel(a), 0
    axis = normalize_axis("repeat", axis, len(shape_of(a)))
    counts, module = concrete(repeats, "the counts in np.repeat"), array_module(raw(a))
    steps = module.arange(a.shape[axis])
    if isinstance(counts, (int, np.integer)):
        return take(a, steps.repeat(counts), axis)
    return take(a, places("np.repeat", lambda counts: (module.repeat(steps, counts),), counts)[0], axis)


HANDLERS.update(
    {
        np.take: take,
        np.take_along_axis: take_along_axis,
        np.diagonal: diagonal,
        np.trace: trace,
        np.repeat: repeat,
        np.diag: lambda v, k=0: diagonal(v, k) if v.ndim == 2 else _diagflat(v, k),
    }
)


def _diagflat(v: Any, k: int) -> Any:
    """A matrix with the vector v on its k-th diagonal."""
    n, steps = v.shape[0] + abs(k), module_of(v).arange(v.shape[0])
    stack = scatter(reshape(v, (1, -1)), steps - min(k, 0), steps + max(k, 0), template=(ARRAY, ARRAY), shape=(n, n))
    return reshape(stack, (n, n))
