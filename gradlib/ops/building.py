"""Building arrays out of arrays: tile, append, select, rot90 and their kin, composed of joins, moves and indexing.

Lists of numbers and of traced values are taken where NumPy takes them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..device import array_module
from ..op import describe, normalize_axis, shape_of
from ..trace import HANDLERS, Traced, module_of, raw
from .arithmetic import add, divide, multiply, power, subtract, where
from .index import getitem, places
from .join import as_array, concatenate, holds_traced, split, taking_lists
from .nondiff import concrete, floor
from .picking import take
from .reduce import refuse
from .shape import (
    astype,
    atleast_1d,
    atleast_2d,
    broadcast_to,
    expand_dims,
    flip,
    moveaxis,
    ravel,
    reshape,
    swapaxes,
)


# --- repeating -----------------------------------------------------------------------------------------
def tile(A: Any, reps: Any) -> Any:
    reps = tuple(int(n) for n in reps) if isinstance(reps, (tuple, list, np.ndarray)) else (int(reps),)
    if any(n < 0 for n in reps):
        raise ValueError(f"tile: expected counts of at least 0, got {reps}")
    ndim = max(len(reps), len(shape_of(A)))
    shape = (1,) * (ndim - len(shape_of(A))) + shape_of(A)
    reps = (1,) * (ndim - len(reps)) + reps
    apart = reshape(A, tuple(n for size in shape for n in (1, size)))
    repeated = broadcast_to(apart, tuple(n for pair in zip(reps, shape, strict=True) for n in pair))
    return reshape(repeated, tuple(m * n for m, n in zip(reps, shape, strict=True)))


def full_like(a: Any, fill_value: Any, dtype: Any = None, order: str = "K", subok: bool = True, **others: Any) -> Any:
    """An array of the shape and dtype of `a` that repeats `fill_value`, traced or not."""
    shape = others.pop("shape", None)
    refuse("full_like", None, {k: v for k, v in others.items() if k != "device"})
    shape = shape_of(a) if shape is None else (shape,) if isinstance(shape, int) else tuple(shape)
    dtype = np.dtype(raw(a).dtype if dtype is None else dtype)
    if type(fill_value) is not Traced:
        return module_of(raw(a)).full(shape, fill_value, dtype)
    return broadcast_to(fill_value if fill_value.dtype == dtype else astype(fill_value, dtype), shape)


def linspace(
    start: Any, stop: Any, num: int = 50, endpoint: bool = True, retstep: bool = False, dtype: Any = None,
    axis: int = 0, **others: Any,
) -> Any:  # fmt: skip
    """Evenly spaced values between traced ends."""
    refuse("linspace", None, {k: v for k, v in others.items() if k != "device"})
    like = start if type(start) is Traced else stop
    start, stop = (as_array(end, like) if isinstance(end, (list, tuple)) else end for end in (start, stop))
    width = subtract(stop, start)
    intervals = num - 1 if endpoint else num
    step = divide(width, intervals) if intervals else multiply(width, np.nan)
    t = module_of(raw(width)).arange(num, dtype=width.dtype).reshape((num,) + (1,) * len(shape_of(width)))
    y = add(multiply(t / max(intervals, 1), width), start)
    y = moveaxis(y, 0, axis) if axis else y
    if dtype is not None:  # to integers it rounds down
        y = astype(y if np.dtype(dtype).kind not in "iu" else floor(y), dtype)
    return (y, step) if retstep else y


def logspace(
    start: Any, stop: Any, num: int = 50, endpoint: bool = True, base: Any = 10.0, dtype: Any = None, axis: int = 0
) -> Any:
    """base to the power of evenly spaced numbers."""
    spaced = linspace if holds_traced([start, stop]) else module_of(raw(base)).linspace
    exponents = spaced(start, stop, num, endpoint, axis=axis)
    y = power(expand_dims(base, axis) if shape_of(base) else base, exponents)
    return y if dtype is None else astype(y, dtype)


def geomspace(start: Any, stop: Any, num: int = 50, endpoint: bool = True, dtype: Any = None, axis: int = 0) -> Any:
    """start (stop / start)^t for evenly spaced t."""
    like = start if type(start) is Traced else stop
    start, stop = (as_array(end, like) if isinstance(end, (list, tuple)) else end for end in (start, stop))
    ratio = divide(stop, start)
    t = module_of(raw(ratio)).arange(num, dtype=ratio.dtype) / max(num - 1 if endpoint else num, 1)
    y = multiply(power(ratio, t.reshape((num,) + (1,) * len(shape_of(ratio)))), start)
    y = moveaxis(y, 0, axis) if axis else y
    return y if dtype is None else astype(y, dtype)


# --- choosing ------------------------------------------------------------------------------------------------------
def select(condlist: Any, choicelist: Any, default: Any = 0) -> Any:
    """The first choice whose condition holds, else `default`."""
    if len(condlist) != len(choicelist) or not len(condlist):
        raise ValueError(f"select: expected as many conditions as choices, got {len(condlist)} and {len(choicelist)}")
    like = next((x for x in (*choicelist, default) if type(x) is Traced), None)
    result = default
    for condition, choice in zip(reversed(condlist), reversed(choicelist), strict=True):
        condition = as_array(condition, like) if isinstance(condition, list) else condition
        if getattr(condition, "dtype", None) != np.bool_ and not isinstance(condition, bool):
            raise TypeError(f"select: expected conditions of booleans, got {describe(condition)}")
        result = where(condition, as_array(choice, like), result)
    return result


def delete(arr: Any, obj: Any, axis: Any = None) -> Any:
    if axis is None:
        arr, axis = ravel(arr), 0
    axis = normalize_axis("delete", axis, len(shape_of(arr)))
    steps = np.arange(shape_of(arr)[axis])
    (kept,) = places("np.delete", lambda obj: (np.delete(steps, obj),), concrete(obj, "the places in delete"))
    return take(arr, kept, axis)


def compress(condition: Any, a: Any, axis: Any = None, out: Any = None) -> Any:
    refuse("compress", out, {})
    held = concrete(as_array(condition, a), "the condition of compress")
    return take(a, places("the condition of np.compress", array_module(held).nonzero, held)[0], axis)


def extract(condition: Any, arr: Any) -> Any:
    return compress(reshape(as_array(condition, arr), (-1,)), ravel(arr))


# --- turning -------------------------------------------------------------------------------------------------------
def rot90(m: Any, k: int = 1, axes: Any = (0, 1)) -> Any:
    ndim = len(shape_of(m))
    first, second = (normalize_axis("rot90", a, ndim) for a in axes)
    if first == second:
        raise ValueError(f"rot90: expected two different axes, got {axes}")
    turns = int(k) % 4
    if turns == 2:
        return flip(m, (first, second))
    if turns == 1:
        return swapaxes(flip(m, second), first, second)
    return flip(swapaxes(m, first, second), second) if turns else m


def rollaxis(a: Any, axis: int, start: int = 0) -> Any:
    ndim = len(shape_of(a))
    axis = normalize_axis("rollaxis", axis, ndim)
    start = normalize_axis("rollaxis", start, ndim + 1)
    return moveaxis(a, axis, start - 1 if axis < start else start)


def _at_least(ndim: int, flipped: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def call(m: Any) -> Any:
        if len(shape_of(m)) < ndim:
            raise ValueError(f"flip: expected an array of at least {ndim} dimensions, got {describe(m)}")
        return flipped(m)

    return call


def _atleast_3d(a: Any) -> Any:
    ndim = len(shape_of(a))
    return a if ndim >= 3 else expand_dims(atleast_2d(a), 2) if ndim else reshape(a, (1, 1, 1))


def _each(change: Callable[[Any], Any]) -> Callable[..., Any]:
    """np.atleast_1d and its kin: of several arrays a tuple."""

    def call(*arys: Any) -> Any:
        like = next((x for x in arys if type(x) is Traced), None)
        found = tuple(change(as_array(x, like)) for x in arys)
        return found[0] if len(found) == 1 else found

    return call


# --- joining and splitting -----------------------------------------------------------------------------------------
def append(arr: Any, values: Any, axis: Any = None) -> Any:
    like = arr if type(arr) is Traced else values
    return concatenate([as_array(arr, like), as_array(values, like)], axis)


def dstack(tup: Any, **others: Any) -> Any:
    return concatenate([_atleast_3d(as_array(x)) for x in tup], 2, **others)


def unstack(x: Any, /, *, axis: int = 0) -> tuple:
    axis = normalize_axis("unstack", axis, len(shape_of(x)))
    return tuple(getitem(x, (*[slice(None)] * axis, i)) for i in range(shape_of(x)[axis]))


def _splitter(name: str, axis: int, ndim: int) -> Callable[..., Any]:
    def call(ary: Any, indices_or_sections: Any) -> list[Any]:
        if len(shape_of(ary)) < ndim:
            raise ValueError(f"{name}: expected at least {ndim} dimensions, got {describe(ary)}")
        return split(ary, indices_or_sections, 0 if len(shape_of(ary)) == 1 else axis)

    return call


def block(arrays: Any) -> Any:
    """np.block: nested lists, the innermost joined along the last axis."""

    def depth(x: Any) -> int:
        return 1 + max(map(depth, x)) if isinstance(x, list) else 0

    levels = depth(arrays)

    def widen(x: Any) -> int:
        return max(map(widen, x)) if isinstance(x, list) else len(shape_of(x))

    ndim = max(levels, widen(arrays))

    def join(x: Any, level: int) -> Any:
        if not isinstance(x, list):
            x = as_array(x)
            return reshape(x, (1,) * (ndim - len(shape_of(x))) + shape_of(x))
        return concatenate([join(part, level + 1) for part in x], ndim - levels + level)

    return join(arrays, 0)


def meshgrid(*xi: Any, copy: bool = True, sparse: bool = False, indexing: str = "xy") -> tuple:
    if indexing not in ("xy", "ij"):
        raise ValueError(f'meshgrid: expected indexing "xy" or "ij", got {indexing!r}')
    n = len(xi)
    place = [1, 0, *range(2, n)] if indexing == "xy" and n > 1 else list(range(n))
    grids = [reshape(x, tuple(-1 if place[i] == j else 1 for j in range(n))) for i, x in enumerate(xi)]
    return tuple(grids) if sparse else broadcast_arrays(*grids)


def broadcast_arrays(*args: Any, subok: bool = False) -> tuple:
    shape = np.broadcast_shapes(*map(shape_of, args))
    return tuple(broadcast_to(x, shape) for x in args)


HANDLERS.update(
    {
        np.tile: tile,
        np.full_like: full_like,
        np.linspace: linspace,
        np.logspace: logspace,
        np.geomspace: geomspace,
        np.select: select,
        np.diagflat: lambda v, k=0: HANDLERS[np.diag](ravel(v), k),
        np.delete: delete,
        np.compress: compress,
        np.extract: extract,
        np.rot90: rot90,
        np.rollaxis: rollaxis,
        np.fliplr: _at_least(2, lambda m: flip(m, 1)),
        np.flipud: _at_least(1, lambda m: flip(m, 0)),
        np.atleast_1d: _each(atleast_1d),
        np.atleast_2d: _each(atleast_2d),
        np.atleast_3d: _each(_atleast_3d),
        np.append: append,
        np.dstack: dstack,
        np.hsplit: _splitter("hsplit", 1, 1),
        np.vsplit: _splitter("vsplit", 0, 2),
        np.dsplit: _splitter("dsplit", 2, 3),
        np.block: block,
        np.meshgrid: taking_lists(meshgrid),
        np.broadcast_arrays: taking_lists(broadcast_arrays),
    }
)
if hasattr(np, "unstack"):  # NumPy 2.1
    HANDLERS[np.unstack] = unstack
