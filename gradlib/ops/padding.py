"""Padding: np.pad in all its modes but "empty", axis by axis, composed of joins, indexing and reductions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..op import normalize_axis, shape_of
from ..trace import HANDLERS, Traced, module_of, raw
from .arithmetic import multiply, subtract
from .building import linspace
from .index import getitem
from .join import arrays_of, as_array, concatenate, holds_traced
from .masked import max_, mean, min_
from .picking import take
from .quantiles import median
from .shape import astype, broadcast_to, flip, squeeze

#: Mode -> the option it takes and what that is by default.
_OPTIONS: dict[str, tuple[str, Any]] = {
    "constant": ("constant_values", 0),
    "linear_ramp": ("end_values", 0),
    **dict.fromkeys(("mean", "median", "maximum", "minimum"), ("stat_length", None)),
    **dict.fromkeys(("reflect", "symmetric"), ("reflect_type", "even")),
    **dict.fromkeys(("edge", "wrap"), ("", None)),
}
_STATISTICS: dict[str, Callable[..., Any]] = {"mean": mean, "median": median, "maximum": max_, "minimum": min_}


def pad(array: Any, pad_width: Any, mode: Any = "constant", **options: Any) -> Any:
    """np.pad in all modes but "empty" and functions."""
    array = as_array(array)
    ndim = len(shape_of(array))
    if isinstance(pad_width, dict):
        given = {normalize_axis("pad", axis, ndim): w for axis, w in pad_width.items()}
        pad_width = [given.get(axis, 0) for axis in range(ndim)]
        pad_width = [w if isinstance(w, (tuple, list)) else (w, w) for w in pad_width]
    widths = _pairs("pad_width", pad_width, ndim)
    if any(n < 0 for pair in widths for n in pair):
        raise ValueError(f"pad: expected widths of at least 0, got {pad_width}")
    if not isinstance(mode, str) or mode not in _OPTIONS:
        raise NotImplementedError(
            f"pad: expected one of the modes {', '.join(_OPTIONS)} on a traced array, got {mode!r}; join your own "
            "entries with np.concatenate"
        )
    name, option = _OPTIONS[mode]
    option = options.pop(name, option)
    if options:
        raise ValueError(f"pad: mode {mode!r} takes no {', '.join(options)}")
    each = [option] * ndim if mode in ("reflect", "symmetric", "edge", "wrap") else _pairs(name, option, ndim)
    for axis, (pair, given) in enumerate(zip(widths, each, strict=True)):
        if any(pair):
            array = _pad_axis(array, axis, pair, mode, given)
    return array


def _pairs(what: str, x: Any, ndim: int) -> list[Any]:
    """(before, after) for each axis, of numbers or of traced values."""
    if type(x) is Traced or holds_traced(x):
        values = broadcast_to(as_array(x), (ndim, 2))
        return [(getitem(values, (i, 0)), getitem(values, (i, 1))) for i in range(ndim)]
    try:
        return [tuple(pair) for pair in np.broadcast_to(np.asarray(x), (ndim, 2)).tolist()]
    except ValueError:
        raise ValueError(
            f"pad: expected {what} as a number, a pair or a pair for each of {ndim} axes, got {x}"
        ) from None


def _pad_axis(array: Any, axis: int, pair: tuple, mode: str, given: Any) -> Any:
    if mode in ("edge", "wrap") or (mode in ("reflect", "symmetric") and given == "even"):
        places: Any = np.pad(np.arange(shape_of(array)[axis]), pair, mode)  # type: ignore[call-overload]
        return take(array, places, axis)
    if mode in ("reflect", "symmetric"):
        return _pad_odd(array, axis, pair, mode)
    make = {"constant": _constant, "linear_ramp": _ramp}.get(mode, _statistic)
    blocks = [make(array, axis, side, n, given[side], mode) if n else None for side, n in enumerate(pair)]
    return _between(blocks[0], array, blocks[1], axis)


def _between(before: Any, array: Any, after: Any, axis: int) -> Any:
    parts = [x for x in (before, array, after) if x is not None]
    return concatenate([x if x.dtype == array.dtype else astype(x, array.dtype) for x in arrays_of(parts)], axis)


def _part(array: Any, axis: int, start: int | None, stop: int | None) -> Any:
    return getitem(array, (*[slice(None)] * axis, slice(start, stop)))


def _edge_shape(array: Any, axis: int, n: int) -> tuple[int, ...]:
    shape = shape_of(array)
    return (*shape[:axis], n, *shape[axis + 1 :])


def _constant(array: Any, axis: int, side: int, n: int, value: Any, mode: str) -> Any:
    shape = _edge_shape(array, axis, n)
    if type(value) is Traced:
        return broadcast_to(value, shape)
    return module_of(raw(array)).full(shape, value, array.dtype)


def _ramp(array: Any, axis: int, side: int, n: int, end: Any, mode: str) -> Any:
    """From the end value to the edge, which is not repeated."""
    edge = _part(array, axis, *((0, 1) if side == 0 else (-1, None)))
    block = linspace(end, squeeze(edge, axis), n, endpoint=False, axis=axis)
    return block if side == 0 else flip(block, axis)


def _statistic(array: Any, axis: int, side: int, n: int, length: int | None, mode: str) -> Any:
    """A statistic of the `length` entries next to the edge, or of all."""
    size = shape_of(array)[axis]
    length = size if length is None else min(length, size)
    if length < 1:
        raise ValueError(f"pad: expected at least one entry for mode {mode!r}, got stat_length={length}")
    near = _part(array, axis, *((0, length) if side == 0 else (size - length, None)))
    return broadcast_to(_STATISTICS[mode](near, axis=axis, keepdims=True), _edge_shape(array, axis, n))


def _pad_odd(array: Any, axis: int, pair: tuple, mode: str) -> Any:
    """Twice the edge less the reflected entries; more entries than there are by reflecting again."""
    before, after = pair
    first = 1 if mode == "reflect" else 0  # whether the edge itself is left out
    period = shape_of(array)[axis] - first
    if period < 1:
        return take(array, np.pad(np.arange(shape_of(array)[axis]), pair, mode="edge"), axis)
    while before or after:
        size = shape_of(array)[axis]
        blocks: list[Any] = [None, None]
        m, n = (min(width, (size - first) // period * period) for width in (before, after))  # whole reflections
        if m:
            mirrored = flip(_part(array, axis, first, first + m), axis)
            blocks[0] = subtract(multiply(_part(array, axis, 0, 1), 2), mirrored)
        if n:
            mirrored = flip(_part(array, axis, size - first - n, size - first), axis)
            blocks[1] = subtract(multiply(_part(array, axis, -1, None), 2), mirrored)
        array = _between(blocks[0], array, blocks[1], axis)
        before, after = before - m, after - n
    return array


HANDLERS[np.pad] = pad
