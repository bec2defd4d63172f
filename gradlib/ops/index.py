"""Indexing: x[index] with slices, integers, None, Ellipsis, integer arrays and boolean masks; take, take_along_axis.

    y = x[index]                dx = zeros, dx[index] += dy (repeated entries add up)

The index is normalised once: a static template with one entry an axis (slice, int, None, or ARRAY where an integer
array stands), and the arrays as further arguments of the op. `scatter` is the transpose, an op of its own.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from ..device import array_module
from ..jacobian.factors import Gathered, by_sample
from ..op import Op, describe, normalize_axis, shape_of
from ..trace import HANDLERS, Namespace, Traced, module_of
from .batching import UNKNOWN, Mixed, Tag
from .nondiff import concrete
from .shape import _transpose, ravel, reshape

ARRAY = "array"


def _fill(template: tuple, arrays: tuple) -> tuple:
    """The template with its arrays back in their places."""
    left = iter(arrays)
    return tuple(next(left) if entry is ARRAY else entry for entry in template)


def _separated(template: tuple) -> bool:
    """Whether NumPy moves the indexed axes to the front: a slice or None stands between arrays or ints."""
    at = [i for i, e in enumerate(template) if e is ARRAY or isinstance(e, int)]
    return ARRAY in template and at[-1] - at[0] + 1 != len(at)


def _gather_stack(xp: Any, d: Any, index: tuple, template: tuple) -> Any:
    """d[v][index] for every v of a stack."""
    if not _separated(template):
        return d[(slice(None), *index)]
    return xp.moveaxis(xp.moveaxis(d, 0, -1)[index], -1, 0)


def _scatter_stack(xp: Any, dy: Any, index: tuple, template: tuple, shape: tuple, unique: bool) -> Any:
    v, size = dy.shape[0], prod(shape)
    out = xp.zeros((v, *shape), dy.dtype)
    if ARRAY not in template or (unique and not _separated(template)):
        out[(slice(None), *index)] = dy
        return out
    # Each entry of y names a flat position of x; equal positions are summed in a fixed order.
    flat = xp.arange(size).reshape(shape)[index].reshape(-1)
    return _segment_sum(xp, dy.reshape(v, flat.size), flat, out.reshape(v, size)).reshape(out.shape)


def _segment_sum(xp: Any, dy: Any, at: Any, out: Any) -> Any:
    """out[:, at[i]] += dy[:, i] without atomics: sort by position, then sum each run."""
    if not at.size or not dy.shape[0]:
        return out
    order = xp.argsort(at, kind="stable")
    sorted_at = at[order]
    first = xp.concatenate([xp.ones(1, bool), sorted_at[1:] != sorted_at[:-1]])
    starts = xp.nonzero(first)[0]
    out[:, sorted_at[starts]] = xp.add.reduceat(dy[:, order], starts, axis=1)
    return out


def _getitem_forward(xp: Any, x: Any, *arrays: Any, template: tuple, aligned: tuple = ()) -> tuple:
    return x[_fill(template, arrays) if arrays else template], (x, *arrays)


def _getitem_vjp(xp: Any, saved: tuple, dy: Any, need: tuple, *, template: tuple, aligned: tuple = ()) -> tuple:
    x, *arrays = saved
    unique = _distinct(arrays, aligned)
    return (scatter(dy, *arrays, template=template, shape=x.shape, unique=unique), *[None] * len(arrays))


def _distinct(arrays: list[Any], aligned: tuple) -> bool:
    """Whether no entry of x is picked twice: one index array counts 0, 1, 2, … and the others do not widen it."""
    if True not in aligned:
        return False
    counting = arrays[aligned.index(True)]
    return all([a.shape == counting.shape or a.size == 1 for a in arrays])


def _getitem_vjp_each(
    xp: Any, saved: tuple, dy: Any, need: tuple, axis: int, *, template: tuple, aligned: tuple = ()
) -> tuple | None:
    """Per-sample cotangents of a table of which whole rows are picked by one array of numbers."""
    x, *arrays = saved
    if template != (ARRAY, *(slice(None),) * (x.ndim - 1)) or not need[0]:
        return None
    ids = by_sample(arrays[0] % max(x.shape[0], 1), axis + x.ndim - 1, 0)
    d = by_sample(dy, axis, 1)
    (v, b), r, n = d.shape[:2], prod(ids.shape[1:]), prod(x.shape[1:])

    def add_up(tall: Any, rows: Any, count: int) -> Any:
        return scatter(rows, tall, template=(ARRAY, slice(None)), shape=(count, n))

    return Gathered(ids.reshape((b, r)), d.reshape((v, b, r, n)), x.shape, add_up), *[None] * len(arrays)


def _getitem_jvp(xp: Any, saved: tuple, dx: tuple, *, template: tuple, aligned: tuple = ()) -> Any:
    return gather(dx[0], *saved[1:], template=template)


def _scatter_forward(xp: Any, dy: Any, *arrays: Any, template: tuple, shape: tuple, unique: bool = False) -> tuple:
    if type(xp) is Namespace:  # traced one level down: recorded there as itself
        return scatter(dy, *arrays, template=template, shape=shape, unique=unique), arrays
    return _scatter_stack(xp, dy, _fill(template, arrays), template, shape, unique), arrays


def _scatter_vjp(
    xp: Any, saved: tuple, d: Any, need: tuple, *, template: tuple, shape: tuple, unique: bool = False
) -> tuple:
    v, w = d.shape[:2]  # a stack of stacks: both lead
    dx = gather(xp.reshape(d, (v * w, *d.shape[2:])), *saved, template=template)
    return (xp.reshape(dx, (v, w, *dx.shape[1:])), *[None] * len(saved))


def _scatter_jvp(xp: Any, saved: tuple, dx: tuple, *, template: tuple, shape: tuple, unique: bool = False) -> Any:
    v, w = dx[0].shape[:2]
    dy = scatter(xp.reshape(dx[0], (v * w, *dx[0].shape[2:])), *saved, template=template, shape=shape, unique=unique)
    return xp.reshape(dy, (v, w, *shape))


def _gather_forward(xp: Any, d: Any, *arrays: Any, template: tuple) -> tuple:
    return _gather_stack(xp, d, _fill(template, arrays), template), (d, *arrays)


def _gather_vjp(xp: Any, saved: tuple, dy: Any, need: tuple, *, template: tuple) -> tuple:
    d, *arrays = saved
    v, w = dy.shape[:2]
    dx = scatter(xp.reshape(dy, (v * w, *dy.shape[2:])), *arrays, template=template, shape=d.shape[1:])
    return (xp.reshape(dx, (v, w, *dx.shape[1:])), *[None] * len(arrays))


def _gather_jvp(xp: Any, saved: tuple, dx: tuple, *, template: tuple) -> Any:
    v, w = dx[0].shape[:2]
    dy = gather(xp.reshape(dx[0], (v * w, *dx[0].shape[2:])), *saved[1:], template=template)
    return xp.reshape(dy, (v, w, *dy.shape[1:]))


def _getitem_batch(tags: tuple, shapes: tuple, static: dict) -> Any:
    """The batch axis survives a full slice, or an array that picks row b of x for sample b."""
    template, aligned = static["template"], static["aligned"]
    tag, arrays = tags[0], tags[1:]
    if _separated(template):
        return UNKNOWN
    index_shape = np.broadcast_shapes(*shapes[1:]) if arrays else ()
    index_tag = next((t for t in arrays if t is not None), None)
    if any(t is not None and t != index_tag for t in arrays) or (index_tag and index_tag.rows != 1):
        return UNKNOWN
    place = _result_axes(template, len(index_shape))
    axis_of_x = 0
    at = None if tag is None else len(shapes[0]) + tag.axis
    for i, entry in enumerate(template):
        if entry is None:
            continue
        if axis_of_x == at:
            if entry == slice(None) and index_tag is None:
                return Tag(place[i] - place["ndim"], tag.rows)
            k = template[:i].count(ARRAY)
            own = entry is ARRAY and aligned[k] and shapes[1 + k] == (shapes[0][at], *(1,) * (len(index_shape) - 1))
            if own and tag.rows == 1 and (index_tag is None or index_tag.axis == -len(index_shape)):
                return Tag(place["first"] - place["ndim"], 1)
            return UNKNOWN if index_tag else Mixed("indexing", "picks or reorders entries along the batch axis")
        axis_of_x += 1
    if index_tag is None:
        return None
    return Tag(place["first"] + len(index_shape) + index_tag.axis - place["ndim"], 1)


def _result_axes(template: tuple, index_ndim: int) -> dict[Any, int]:
    """Where each template entry's axis stands in the result, "first" of the arrays' axes, and "ndim"."""
    place: dict[Any, int] = {}
    n = 0
    for i, entry in enumerate(template):
        if entry is ARRAY:
            if "first" not in place:
                place["first"], n = n, n + index_ndim
        elif not isinstance(entry, int):
            place[i], n = n, n + 1
    place["ndim"] = n
    place.setdefault("first", 0)
    return place


_getitem = Op(
    "getitem",
    forward=_getitem_forward,
    vjp=_getitem_vjp,
    jvp=_getitem_jvp,
    vjp_each=_getitem_vjp_each,
    batch=_getitem_batch,
)
gather = Op("gather", forward=_gather_forward, vjp=_gather_vjp, jvp=_gather_jvp)
scatter = Op("scatter", forward=_scatter_forward, vjp=_scatter_vjp, jvp=_scatter_jvp)


def getitem(x: Any, index: Any) -> Any:
    """x[index], recorded."""
    template, arrays = _normalize(x, index if isinstance(index, tuple) else (index,))
    return _getitem(x, *arrays, template=template, aligned=tuple(_is_arange(a, x.shape) for a in arrays))


def _is_arange(a: Any, shape: tuple[int, ...]) -> bool:
    """Whether an index array is 0, 1, 2, … along its first axis: it then picks its own row for each sample."""
    while type(a) is Traced:
        if a.owner.unit is not None:  # a replay may bring other indices
            return False
        a = a.value
    if not a.ndim or a.shape[0] not in shape or a.size != a.shape[0]:
        return False
    return bool((a.reshape(-1) == array_module(a).arange(a.shape[0])).all())


def _normalize(x: Any, index: tuple) -> tuple[tuple, tuple]:
    """A template with one entry an axis of x (plus Nones), and the integer arrays it names."""
    module = module_of(x)
    expanded: list[Any] = []
    for entry in index:
        if isinstance(entry, (list, np.ndarray, Traced)) or array_module(entry) is not None:
            expanded += _as_indices(entry, module)
        elif entry is None or entry is Ellipsis or isinstance(entry, slice):
            expanded.append(entry)
        elif isinstance(entry, bool):
            raise TypeError("indexing: expected slices, ints, None, Ellipsis or arrays, got a Python bool")
        elif hasattr(entry, "__index__"):
            expanded.append(int(entry))
        else:
            raise TypeError(
                f"indexing: expected slices, ints, None, Ellipsis or arrays of ints or bools, got {describe(entry)}"
            )
    used = sum(e is not None and e is not Ellipsis for e in expanded)
    if used > x.ndim:
        raise IndexError(f"indexing: {used} indices for an array of {x.ndim} dimensions")
    rest = [slice(None)] * (x.ndim - used)
    dots = next((i for i, e in enumerate(expanded) if e is Ellipsis), len(expanded))
    full = expanded[:dots] + rest + expanded[dots + 1 :]
    arrays = tuple(e for e in full if array_module(e) is not None or type(e) is Traced)
    return tuple(ARRAY if array_module(e) is not None or type(e) is Traced else e for e in full), arrays


def _as_indices(entry: Any, module: Any) -> list[Any]:
    """An integer array as it is; a mask as the positions of its True entries."""
    if isinstance(entry, list):
        entry = module.asarray(entry, dtype=int if not entry else None)
    kind = entry.dtype.kind
    if kind == "b":
        return list(module.nonzero(concrete(entry, "a mask as an index")))
    if kind not in "iu":
        raise TypeError(f"indexing: expected arrays of ints or bools, got {describe(entry)}")
    if type(entry) is not Traced and not shape_of(entry):
        return [int(entry)]
    return [entry]


def take(a: Any, indices: Any, axis: Any = None, out: Any = None, mode: str = "raise") -> Any:
    if out is not None or mode != "raise":
        raise NotImplementedError("take: out= and mode= are not supported on a traced array")
    if axis is None:
        a, axis = ravel(a), 0
    axis = normalize_axis("take", axis, len(shape_of(a)))
    indices = indices if hasattr(indices, "dtype") else module_of(a).asarray(indices)
    return getitem(a, (*[slice(None)] * axis, indices))


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
    if out is not None or dtype is not None:
        raise NotImplementedError("trace: dtype= and out= are not supported on a traced array")
    return diagonal(a, offset, axis1, axis2).sum(axis=-1)


def repeat(a: Any, repeats: Any, axis: Any = None) -> Any:
    if axis is None:
        a, axis = ravel(a), 0
    axis = normalize_axis("repeat", axis, len(shape_of(a)))
    return take(a, module_of(a).repeat(module_of(a).arange(a.shape[axis]), repeats), axis)


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
