"""Averages, ranges, and the reductions that pass over nan: composed of `where` and the plain reductions."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import numpy as np

from ..op import describe, normalize_axes, shape_of
from ..trace import HANDLERS
from .arithmetic import divide, multiply, subtract, where
from .cumulative import cumprod
from .elementwise import square
from .join import as_array
from .masked import max_, mean, min_, prod, sum_
from .nondiff import equal, greater
from .reduce import cumsum, refuse, safe_root
from .shape import broadcast_to, reshape

_UNSET: Any = np._NoValue  # type: ignore[attr-defined]
_isnan = HANDLERS[np.isnan]


def average(a: Any, axis: Any = None, weights: Any = None, returned: bool = False, *, keepdims: Any = _UNSET) -> Any:
    """Σ w a / Σ w; w has the shape of a, or of its reduced axes in their order."""
    keep = keepdims is not _UNSET and bool(keepdims)
    a = as_array(a, weights)
    axes = normalize_axes("average", axis, len(shape_of(a)))
    if weights is None:
        y = mean(a, axes, keepdims=keep)
        total = int(np.prod([shape_of(a)[i] for i in axes]))
    else:
        weights = as_array(weights, a)
        if shape_of(weights) != shape_of(a):
            listed = axes if not isinstance(axis, (tuple, list)) else tuple(i % len(shape_of(a)) for i in axis)
            weights = _lined_up(weights, a, listed)
        total = sum_(weights, axes, keepdims=keep)
        y = divide(sum_(multiply(a, weights), axes, keepdims=keep), total)
    if not returned:
        return y
    return y, broadcast_to(as_array(total, a), shape_of(y))


def _lined_up(weights: Any, a: Any, axes: tuple[int, ...]) -> Any:
    sizes = tuple(shape_of(a)[i] for i in axes)
    if shape_of(weights) != sizes or list(axes) != sorted(axes):
        raise ValueError(f"average: expected weights of the shape of a, or {sizes}, got {describe(weights)}")
    return broadcast_to(reshape(weights, tuple(n if i in axes else 1 for i, n in enumerate(shape_of(a)))), shape_of(a))


def ptp(a: Any, axis: Any = None, out: Any = None, keepdims: Any = _UNSET) -> Any:
    refuse("ptp", out, {})
    return subtract(max_(a, axis, keepdims=keepdims), min_(a, axis, keepdims=keepdims))


def _without_nan(name: str, reduce: Callable[..., Any], instead: float) -> Callable[..., Any]:
    def call(a: Any, axis: Any = None, *args: Any, **kwargs: Any) -> Any:
        return reduce(where(_isnan(a), instead, a), axis, *args, **kwargs)

    call.__name__ = name
    return call


def _nan_extremum(name: str, reduce: Callable[..., Any], instead: float) -> Callable[..., Any]:
    """nan where all entries are nan."""

    def call(a: Any, axis: Any = None, out: Any = None, keepdims: Any = _UNSET, **others: Any) -> Any:
        y = reduce(where(_isnan(a), instead, a), axis, out, keepdims, **others)
        if others.get("initial", _UNSET) not in (_UNSET, None):
            return y
        return where(equal(_count(a, axis, keepdims, True), 0), np.nan, y)

    return call


def _count(a: Any, axis: Any, keepdims: Any, mask: Any) -> Any:
    """How many entries are numbers, of those in the mask."""
    return sum_(equal(a, a).astype(a.dtype), axis, keepdims=keepdims, where=mask)


def _running(reduce: Callable[..., Any], instead: float) -> Callable[..., Any]:
    return lambda a, axis=None, dtype=None, out=None: reduce(where(_isnan(a), instead, a), axis, dtype, out)


nansum = _without_nan("nansum", sum_, 0.0)
nanprod = _without_nan("nanprod", prod, 1.0)
nanmax, nanmin = _nan_extremum("nanmax", max_, -inf), _nan_extremum("nanmin", min_, inf)


def nanmean(a: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: Any = _UNSET, **others: Any) -> Any:
    mask = _mask_of("nanmean", others)
    a = a if dtype is None else a.astype(dtype)
    return divide(nansum(a, axis, None, out, keepdims, where=mask), _count(a, axis, keepdims, mask))


def nanvar(
    a: Any, axis: Any = None, dtype: Any = None, out: Any = None, ddof: float = 0, keepdims: Any = _UNSET, *,
    mean: Any = _UNSET, correction: Any = _UNSET, **others: Any,
) -> Any:  # fmt: skip
    mask = _mask_of("nanvar", others)
    a = a if dtype is None else a.astype(dtype)
    missing, free = _isnan(a), ddof if correction is _UNSET else correction
    center = nanmean(a, axis, keepdims=True, where=mask) if mean is _UNSET else mean
    deviation = where(missing, 0.0, subtract(where(missing, 0.0, a), center))
    total = sum_(square(deviation), axis, None, out, keepdims, where=mask)
    degrees = _count(a, axis, keepdims, mask) - free
    return divide(total, where(greater(degrees, 0), degrees, np.nan))


def _mask_of(name: str, others: dict[str, Any]) -> Any:
    mask = others.pop("where", _UNSET)
    refuse(name, None, others)
    return True if mask is _UNSET else mask


def nanstd(a: Any, *args: Any, **kwargs: Any) -> Any:
    return safe_root(nanvar(a, *args, **kwargs))


HANDLERS.update(
    {
        np.average: average,
        np.ptp: ptp,
        np.nansum: nansum,
        np.nanprod: nanprod,
        np.nanmax: nanmax,
        np.nanmin: nanmin,
        np.nanmean: nanmean,
        np.nanvar: nanvar,
        np.nanstd: nanstd,
        np.nancumsum: _running(cumsum, 0.0),
        np.nancumprod: _running(cumprod, 1.0),
    }
)
