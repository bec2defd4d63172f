"""The keywords `where=`, `initial=` and `mean=` of NumPy's reductions, composed of np.where and the plain reductions.

Entries that `where` leaves out are replaced by what does not change the result, and get no derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..op import normalize_axes, shape_of
from ..trace import HANDLERS, module_of, raw
from . import reduce
from .arithmetic import add, divide, maximum, minimum, multiply, subtract, where
from .building import full_like
from .elementwise import square
from .shape import broadcast_to

_UNSET: Any = np._NoValue  # type: ignore[attr-defined]
Reduction = Callable[..., Any]


def _masked(name: str, plain: Reduction, combine: Callable[..., Any], neutral: float | None) -> Reduction:
    """`plain` with the two keywords; without a neutral value (max, min), `where` needs `initial` to take its place."""

    def reduction(a: Any, axis: Any = None, *args: Any, initial: Any = _UNSET, **others: Any) -> Any:
        mask = others.pop("where", _UNSET)
        given = initial is not _UNSET and initial is not None
        if mask is not _UNSET and mask is not True:
            if neutral is None and not given:
                raise ValueError(f"{name}: where= needs initial=, the result of no entries")
            a = where(mask, a, initial if neutral is None else neutral)
        if given and neutral is None and not a.size:
            return _of_nothing(name, a, axis, initial, *args, **others)
        y = plain(a, axis, *args, **others)
        return combine(y, initial) if given else y

    return reduction


def _of_nothing(
    name: str, a: Any, axis: Any, initial: Any, out: Any = None, keepdims: Any = _UNSET, **others: Any
) -> Any:
    """The largest or smallest of no entries: `initial`."""
    reduce.refuse(name, out, others)
    axes, keep = normalize_axes(name, axis, len(shape_of(a))), keepdims is not _UNSET and bool(keepdims)
    shape = tuple(1 if i in axes else n for i, n in enumerate(shape_of(a)) if keep or i not in axes)
    return full_like(a, initial, shape=shape)


sum_ = _masked("sum", reduce.sum_, add, 0.0)
prod = _masked("prod", reduce.prod, multiply, 1.0)
max_ = _masked("max", reduce.max_, maximum, None)
min_ = _masked("min", reduce.min_, minimum, None)


def mean(a: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: Any = _UNSET, **others: Any) -> Any:
    mask = others.pop("where", _UNSET)
    if mask is _UNSET or mask is True:
        return reduce.mean(a, axis, dtype, out, keepdims, **others)
    a = a if dtype is None else a.astype(dtype)
    return divide(sum_(a, axis, None, out, keepdims, where=mask), _count(a, axis, keepdims, mask))


def _count(a: Any, axis: Any, keepdims: Any, mask: Any) -> Any:
    """How many entries the mask has."""
    ones = where(mask, module_of(raw(a)).ones((), a.dtype), 0.0)
    return sum_(broadcast_to(ones, shape_of(a)), axis, keepdims=keepdims)


def var(
    a: Any, axis: Any = None, dtype: Any = None, out: Any = None, ddof: float = 0, keepdims: Any = _UNSET, *,
    correction: Any = _UNSET, **others: Any,
) -> Any:  # fmt: skip
    """reduce.var, with `where` and a given `mean`."""
    a = a if dtype is None else a.astype(dtype)
    mask, center = others.pop("where", _UNSET), others.pop("mean", _UNSET)
    free = ddof if correction is _UNSET else correction
    if (mask is _UNSET or mask is True) and center is _UNSET:
        return reduce.var(a, axis, None, out, free, keepdims, **others)
    reduce.refuse("var", out, others)
    mask = True if mask is _UNSET else mask
    squares = square(subtract(a, mean(a, axis, keepdims=True, where=mask) if center is _UNSET else center))
    count = maximum(_count(a, axis, keepdims, mask) - free, 0)
    return divide(sum_(squares, axis, keepdims=keepdims, where=mask), count)


def std(a: Any, *args: Any, **kwargs: Any) -> Any:
    """The square root of `var`."""
    return reduce.safe_root(var(a, *args, **kwargs))


def _along_first(reduction: Reduction) -> Reduction:
    """ufunc.reduce, whose axis is the first one if it is not given."""
    return lambda a, axis=0, **others: reduction(a, axis, **others)


HANDLERS.update({np.sum: sum_, np.prod: prod, np.max: max_, np.amax: max_, np.min: min_, np.amin: min_, np.mean: mean})
HANDLERS.update({np.var: var, np.std: std})
HANDLERS.update(
    {
        (np.add, "reduce"): _along_first(sum_),
        (np.multiply, "reduce"): _along_first(prod),
        (np.maximum, "reduce"): _along_first(max_),
        (np.minimum, "reduce"): _along_first(min_),
    }
)
