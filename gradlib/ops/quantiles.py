"""Medians and quantiles, composed of sorting and indexing.

Quantile q of the sorted entries x_0 … x_{n-1} stands at a place p(q), by the method, and between entries

    y = x_i + (p - i) (x_{i+1} - x_i)        i = ⌊p⌋        dy/dq = (x_{i+1} - x_i) dp/dq

Source of the methods: Hyndman & Fan 1996, "Sample quantiles in statistical packages".
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, floor
from typing import Any

import numpy as np

from ..op import describe, normalize_axes, shape_of
from ..trace import HANDLERS, Traced, lose_trace
from .arithmetic import add, multiply, subtract, where
from .index import getitem
from .join import as_array, stack
from .nondiff import concrete
from .picking import take
from .reduce import mean
from .shape import expand_dims, ravel, reshape, transpose
from .sorting import sort

_isnan = HANDLERS[np.isnan]

#: Method -> (α, β) of p = n q + α + q (1 - α - β) - 1.
_LINES = {
    "linear": (1.0, 1.0),
    "hazen": (0.5, 0.5),
    "weibull": (0.0, 0.0),
    "median_unbiased": (1 / 3, 1 / 3),
    "normal_unbiased": (3 / 8, 3 / 8),
    "interpolated_inverted_cdf": (0.0, 1.0),
}
#: Method -> p(n, q), constant but for jumps.
_STEPS: dict[str, Callable[[int, float], float]] = {
    "lower": lambda n, q: floor((n - 1) * q),
    "higher": lambda n, q: ceil((n - 1) * q),
    "midpoint": lambda n, q: 0.5 * (floor((n - 1) * q) + ceil((n - 1) * q)),
    "nearest": lambda n, q: round((n - 1) * q),
    "inverted_cdf": lambda n, q: ceil(n * q - 1),
    "averaged_inverted_cdf": lambda n, q: n * q - 0.5 if n * q == floor(n * q) else ceil(n * q - 1),
    "closest_observation": lambda n, q: round(n * q) - 1,
}


def _rows(name: str, a: Any, axis: Any) -> tuple[Any, tuple[int, ...]]:
    """a with the reduced axes merged into its last one, sorted along it; and these axes."""
    shape = shape_of(a)
    axes = normalize_axes(name, axis, len(shape))
    keep = [i for i in range(len(shape)) if i not in axes]
    count = int(np.prod([shape[i] for i in axes]))
    if not count:
        raise ValueError(f"{name}: expected at least one entry along axis {axis}, got {describe(a)}")
    rows = reshape(transpose(a, (*keep, *axes)), (*[shape[i] for i in keep], count))
    return sort(rows), axes


def _finish(name: str, y: Any, axes: tuple[int, ...], keepdims: bool, out: Any, first: int = 0) -> Any:
    if out is not None:
        raise lose_trace(f"{name}: out=", "use the result instead")
    return expand_dims(y, tuple(i + first for i in axes)) if keepdims else y


def _nan_if_any(rows: Any, y: Any) -> Any:
    """y, and nan where a row holds one: it is sorted last."""
    return where(_isnan(getitem(rows, (Ellipsis, -1))), np.nan, y)


def median(a: Any, axis: Any = None, out: Any = None, overwrite_input: bool = False, keepdims: bool = False) -> Any:
    rows, axes = _rows("median", a, axis)
    n = shape_of(rows)[-1]
    middle = mean(getitem(rows, (Ellipsis, slice((n - 1) // 2, n // 2 + 1))), -1)
    return _finish("median", _nan_if_any(rows, middle), axes, keepdims, out)


def quantile(
    a: Any, q: Any, axis: Any = None, out: Any = None, overwrite_input: bool = False, method: str = "linear",
    keepdims: bool = False, **others: Any,
) -> Any:  # fmt: skip
    """The quantiles q in [0, 1] by any of NumPy's methods; where p(q) is continuous, q may be traced."""
    if others:
        raise NotImplementedError(f"quantile: {', '.join(others)} is not supported on a traced array; sort it instead")
    if method not in _LINES and method not in _STEPS:
        raise ValueError(f"quantile: expected a method of {', '.join([*_LINES, *_STEPS])}, got {method!r}")
    if not isinstance(q, (int, float)):  # as in NumPy, an array of quantiles has a say in the dtype, a number has not
        q = as_array(q)
        dtype = np.result_type(a.dtype, q.dtype, 0.0)
        a = a if a.dtype == dtype else a.astype(dtype)
    values = np.asarray(concrete(q, "a quantile"), dtype=np.float64)
    if not bool(((values >= 0) & (values <= 1)).all()):
        raise ValueError("quantile: expected quantiles in [0, 1]")
    rows, axes = _rows("quantile", a, axis)
    each = [getitem(ravel(q), i) for i in range(values.size)] if type(q) is Traced else values.ravel()
    flat = [_nan_if_any(rows, _at(rows, each[i], float(v), method)) for i, v in enumerate(values.flat)]
    if not values.ndim:
        return _finish("quantile", flat[0], axes, keepdims, out)
    y = _finish("quantile", stack(flat), axes, keepdims, out, first=1)
    return reshape(y, (*values.shape, *shape_of(y)[1:]))


def _at(rows: Any, q: Any, value: float, method: str) -> Any:
    """The quantile q, a number or traced, of value `value`, of each row."""
    n = shape_of(rows)[-1]
    if method in _STEPS:
        p = _STEPS[method](n, value)
    else:
        p = _place(n, value, *_LINES[method])
    i = min(max(floor(p), 0), max(n - 2, 0))
    if type(q) is not Traced or method in _STEPS or not 0 <= p <= n - 1 or n == 1:
        t: Any = min(max(p - i, 0.0), 1.0)
        if t in (0, 1) or n == 1:
            return take(rows, i + (n > 1 and t == 1), -1)
    else:
        t = subtract(_place(n, q, *_LINES[method]), i)
    low, high = take(rows, i, -1), take(rows, i + 1, -1)
    return add(low, multiply(subtract(high, low), t))


def _place(n: int, q: Any, alpha: float, beta: float) -> Any:
    return (n - 1) * q if alpha == beta == 1 else n * q + (alpha + q * (1 - alpha - beta)) - 1


def percentile(a: Any, q: Any, *args: Any, **kwargs: Any) -> Any:
    """`quantile` of q / 100."""
    return quantile(a, q / 100 if isinstance(q, (int, float)) else as_array(q) / 100, *args, **kwargs)


HANDLERS.update({np.median: median, np.quantile: quantile, np.percentile: percentile})
