"""Indexing: x[index] with slices, integers, None, Ellipsis, integer arrays and boolean masks.

    y = x[index]                dx = zeros, dx[index] += dy (repeated entries add up)

The index is normalised once: a static template with one entry an axis (slice, int, None, or ARRAY where an integer
array stands), and the arrays as further arguments of the op. `scatter` is the transpose, an op of its own.

Inside gl.capture an index that f holds may change in place between replays: what is known of its values is looked at
anew there.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from ..capture import effect, recorded
from ..device import adopt, array_module
from ..jacobian.factors import Gathered, by_sample
from ..kept import form_of
from ..op import Op, describe, shape_of
from ..segment_sum import segment_sum
from ..trace import RECORDER, Namespace, Traced, module_of, raw
from .batching import UNKNOWN, Mixed, Tag
from .nondiff import concrete
from .shape import expand_dims

ARRAY = "array"
HELD = "held"  # of an index array that counts 0, 1, 2, … while a capture is recorded, which holds it by reference


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


def _scatter_stack(xp: Any, dy: Any, index: tuple, template: tuple, shape: tuple, unique: Any) -> Any:
    v, size = dy.shape[0], prod(shape)
    out = xp.zeros((v, *shape), dy.dtype)
    if unique is HELD:
        unique, dy = _still_unique(xp, dy, [i for i, e in zip(index, template, strict=True) if e is ARRAY])
    if ARRAY not in template or (unique and not _separated(template)):
        out[(slice(None), *index)] = dy
        return out
    # Each entry of y names a flat position of x; equal positions are summed in a fixed order.
    flat = xp.arange(size).reshape(shape)[index].reshape(-1)
    return segment_sum(xp, dy.reshape(v, flat.size), flat, out.reshape(v, size)).reshape(out.shape)


def _getitem_forward(xp: Any, x: Any, *arrays: Any, template: tuple, aligned: tuple = ()) -> tuple:
    return x[_fill(template, arrays) if arrays else template], (form_of(x), *arrays)


def _getitem_vjp(xp: Any, saved: tuple, dy: Any, need: tuple, *, template: tuple, aligned: tuple = ()) -> tuple:
    x, *arrays = saved
    unique = _distinct(arrays, aligned)
    return (scatter(dy, *arrays, template=template, shape=x.shape, unique=unique), *[None] * len(arrays))


def _still_unique(xp: Any, dy: Any, arrays: list[Any]) -> tuple[bool, Any]:
    """(whether an index array counts as it did, dy); on a GPU, which is not waited for, dy is NaN if none does."""
    widest = max([a.size for a in arrays])
    counts = [_counts(a) for a in arrays if a.size == widest]
    if xp is np:
        return any(counts), dy
    return True, xp.where(sum(counts) > 0, dy, np.nan).astype(dy.dtype)


def _distinct(arrays: list[Any], aligned: tuple) -> Any:
    """Whether no entry of x is picked twice: one index array counts 0, 1, 2, … and the others do not widen it."""
    at = next((i for i, a in enumerate(aligned) if a), None)
    if at is None or not all([a.shape == arrays[at].shape or a.size == 1 for a in arrays]):
        return False
    return aligned[at]


def _each_takes(shapes: tuple, need: tuple, axis: int, static: dict) -> bool:
    return need[0] and static["template"] == (ARRAY, *(slice(None),) * (len(shapes[0]) - 1))


def _getitem_vjp_each(
    xp: Any, saved: tuple, dy: Any, need: tuple, axis: int, *, template: tuple, aligned: tuple = ()
) -> tuple:
    """Per-sample cotangents of a table of which whole rows are picked by one array of numbers."""
    x, *arrays = saved
    ids = by_sample(arrays[0] % max(x.shape[0], 1), axis + x.ndim - 1, 0)
    d = by_sample(dy, axis, 1)
    (v, b), r, n = d.shape[:2], prod(ids.shape[1:]), prod(x.shape[1:])

    def add_up(tall: Any, rows: Any, count: int) -> Any:
        return scatter(rows, tall, template=(ARRAY, slice(None)), shape=(count, n))

    return Gathered(ids.reshape((b, r)), d.reshape((v, b, r, n)), x.shape, add_up), *[None] * len(arrays)


def _getitem_jvp(xp: Any, saved: tuple, dx: tuple, *, template: tuple, aligned: tuple = ()) -> Any:
    return gather(dx[0], *saved[1:], template=template)


def _scatter_forward(xp: Any, dy: Any, *arrays: Any, template: tuple, shape: tuple, unique: Any = False) -> tuple:
    if type(xp) is Namespace:  # traced one level down: recorded there as itself
        return scatter(dy, *arrays, template=template, shape=shape, unique=unique), arrays
    return _scatter_stack(xp, dy, _fill(template, arrays), template, shape, unique), arrays


def _scatter_vjp(
    xp: Any, saved: tuple, d: Any, need: tuple, *, template: tuple, shape: tuple, unique: Any = False
) -> tuple:
    v, w = d.shape[:2]  # a stack of stacks: both lead
    dx = gather(xp.reshape(d, (v * w, *d.shape[2:])), *saved, template=template)
    return (xp.reshape(dx, (v, w, *dx.shape[1:])), *[None] * len(saved))


def _scatter_jvp(xp: Any, saved: tuple, dx: tuple, *, template: tuple, shape: tuple, unique: Any = False) -> Any:
    v, w = dx[0].shape[:2]
    dy = scatter(xp.reshape(dx[0], (v * w, *dx[0].shape[2:])), *saved, template=template, shape=shape, unique=unique)
    return xp.reshape(dy, (v, w, *shape))


def _gather_forward(xp: Any, d: Any, *arrays: Any, template: tuple) -> tuple:
    return _gather_stack(xp, d, _fill(template, arrays), template), (form_of(d), *arrays)


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
    each_takes=_each_takes,
    batch=_getitem_batch,
)
gather = Op("gather", forward=_gather_forward, vjp=_gather_vjp, jvp=_gather_jvp)
scatter = Op("scatter", forward=_scatter_forward, vjp=_scatter_vjp, jvp=_scatter_jvp)


_BASIC = frozenset({int, slice, type(None), type(Ellipsis)})


def getitem(x: Any, index: Any) -> Any:
    """x[index], recorded."""
    index = index if isinstance(index, tuple) else (index,)
    if _BASIC.issuperset(map(type, index)):
        return _getitem(x, template=_filled_up(x, list(index), len(index) - index.count(None)), aligned=())
    x, template, arrays = _normalize(x, index)
    aligned = tuple([_is_arange(a, x.shape) for a in arrays])
    if HELD in aligned and _by_samples(x):
        effect(_expect_counting, *[raw(a) for a, counts in zip(arrays, aligned, strict=True) if counts is HELD])
    return _getitem(x, *arrays, template=template, aligned=aligned)


def _filled_up(x: Any, entries: list[Any], used: int) -> tuple:
    """An entry for each axis of x, of which `used` have one (an Ellipsis counts): the others get a full slice."""
    dots = next((i for i, e in enumerate(entries) if e is Ellipsis), None)
    if dots is None:
        dots = len(entries)
    else:
        used -= 1
    if used > x.ndim:
        raise IndexError(f"indexing: {used} indices for an array of {x.ndim} dimensions")
    entries[dots : dots + 1] = [slice(None)] * (x.ndim - used)
    return tuple(entries)


def _is_arange(a: Any, shape: tuple[int, ...]) -> Any:
    """Whether an index array is 0, 1, 2, … along its first axis: it then picks its own row for each sample."""
    while type(a) is Traced:
        if a.owner.unit is not None:  # a replay may bring other indices
            return False
        a = a.value
    if not a.ndim or a.shape[0] not in shape or a.size != a.shape[0] or not bool(_counts(a)):
        return False
    return True if RECORDER.get() is None else HELD


def _counts(a: Any) -> Any:
    """0-d: whether the entries of an array are 0, 1, 2, …"""
    return (a.reshape(-1) == array_module(a).arange(a.size)).all()


def _by_samples(x: Any) -> bool:
    """Whether a trace of samples follows the batch axis of x."""
    while type(x) is Traced:
        if x.owner.batch is not None:
            return True
        x = x.value
    return False


def _expect_counting(*arrays: Any) -> None:
    if not all(map(_counts, arrays)):
        raise ValueError(
            "indexing: an index that gave each sample its own row when gl.capture recorded it was changed in place; "
            "capture the function anew"
        )


def _normalize(x: Any, index: tuple) -> tuple[Any, tuple, tuple]:
    """x, a template with one entry an axis of it (plus Nones), and the integer arrays it names.

    x has a new axis of size 1 for each single bool in the index.
    """
    module = module_of(x)
    entries = [e if type(e) in _BASIC else _entry(e, module) for e in index]
    used = sum([len(e.shape) if _is_mask(e) else e is not None for e in entries])
    template: list[Any] = []
    arrays: list[Any] = []
    axis = 0
    for e in _filled_up(x, entries, used):
        if type(e) in _BASIC:
            template.append(e)
            axis += e is not None
            continue
        if _is_mask(e):
            x = x if e.shape else expand_dims(x, axis)
            found = _from_mask(concrete(e, "a mask as an index"), x.shape[axis:], module)
        else:
            found = [e]
        template += [ARRAY] * len(found)
        arrays += found
        axis += len(found)
    return x, tuple(template), tuple(arrays)


def _entry(e: Any, module: Any) -> Any:
    """An entry of an index as None, Ellipsis, a slice, an int, or an array of ints or bools."""
    if type(e) is not np.ndarray:
        if isinstance(e, (list, tuple, range, bool)):
            e = module.asarray(e, dtype=None if isinstance(e, bool) or len(e) else int)
        elif not hasattr(e, "dtype") and hasattr(e, "__index__"):
            return int(e)
        e = adopt(e)
    kind = getattr(getattr(e, "dtype", None), "kind", "")
    if kind not in ("b", "i", "u"):
        raise TypeError(
            f"indexing: expected slices, ints, None, Ellipsis or arrays of ints or bools, got {describe(e)}"
        )
    return int(e) if kind != "b" and type(e) is not Traced and not shape_of(e) else e


def _is_mask(e: Any) -> bool:
    return type(e) not in _BASIC and e.dtype.kind == "b"


def _from_mask(mask: Any, shape: tuple[int, ...], module: Any) -> list[Any]:
    """The positions of the True entries of a mask of the leading axes of `shape`."""
    if not mask.shape:
        return [module.zeros(int(mask), int)]
    if mask.shape != shape[: mask.ndim]:
        raise IndexError(f"indexing: expected a mask of shape {shape[: mask.ndim]}, got {describe(mask)}")
    return places("the mask of an index", array_module(mask).nonzero, mask)


def places(what: str, find: Any, *args: Any) -> list[Any]:
    """The index arrays find(*args), of plain arrays; inside gl.capture found anew at every replay.

    A replay that finds more or fewer than the recorded call raises ValueError: shapes are recorded.
    """
    if RECORDER.get() is None:
        return list(find(*args))
    count = len(find(*args)[0])

    def again(*args: Any) -> tuple:
        found = find(*args)
        if len(found[0]) != count:
            raise ValueError(
                f"{what} picks {len(found[0])} entries, {count} when gl.capture recorded it; give it as many, or "
                "capture the function anew"
            )
        return tuple(found)

    return list(recorded(again, *args))
