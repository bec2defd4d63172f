"""Running products, and the newer names of running sums.

    y_k = Π_{j≤k} x_j      dx_i = Σ_{k≥i} dy_k Π_{j≤k, j≠i} x_j

Without zeros this is Σ_{k≥i} dy_k y_k / x_i; with them λ_k = dy_k + x_{k+1} λ_{k+1}, dx_k = λ_k y_{k-1}.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..op import Op, describe, normalize_axis, shape_of
from ..trace import HANDLERS, Namespace, module_of, raw
from .batching import same_axes_batch
from .join import concatenate
from .reduce import cumsum, refuse
from .shape import reshape


def _forward(xp: Any, x: Any, *, axis: int) -> tuple:
    y = _cumprod(x, axis=axis) if type(xp) is Namespace else xp.cumprod(x, axis=axis)
    return y, (x, y)


def _reversed_cumsum(xp: Any, d: Any, axis: int) -> Any:
    return xp.flip(xp.cumsum(xp.flip(d, axis=axis), axis=axis), axis=axis)


def _divides(xp: Any, y: Any) -> bool:
    """Whether there are no zeros. Traced rules take the recurrence always: a choice by value would not be recorded."""
    return not y.size or (type(xp) is not Namespace and bool(xp.all(xp.not_equal(y, 0))))


def _vjp(xp: Any, saved: tuple, dy: Any, need: tuple, *, axis: int) -> tuple:
    x, y = saved
    if _divides(xp, y):
        return (_reversed_cumsum(xp, dy * y, axis + 1) / x,)
    n = x.shape[axis]
    at = [_entries(x.ndim, axis, k) for k in range(n)]
    rows, flow = [], 0
    for k in range(n - 1, -1, -1):
        flow = dy[(slice(None), *at[k])] + (flow * x[at[k + 1]] if k + 1 < n else 0)
        rows.append(flow * y[at[k - 1]] if k else flow)
    return (xp.concatenate(rows[::-1], axis=axis + 1),)


def _jvp(xp: Any, saved: tuple, dx: tuple, *, axis: int) -> Any:
    x, y = saved
    if _divides(xp, y):
        return xp.cumsum(dx[0] / x, axis=axis + 1) * y
    n = x.shape[axis]
    at = [_entries(x.ndim, axis, k) for k in range(n)]
    rows: list[Any] = []
    for k in range(n):
        d = dx[0][(slice(None), *at[k])]
        rows.append(d * y[at[k - 1]] + rows[-1] * x[at[k]] if k else d)
    return xp.concatenate(rows, axis=axis + 1)


def _entries(ndim: int, axis: int, k: int) -> tuple:
    """The index of entry k along an axis, which stays with size 1."""
    return (*[slice(None)] * axis, slice(k, k + 1), *[slice(None)] * (ndim - axis - 1))


_cumprod = Op(
    "cumprod",
    forward=_forward,
    vjp=_vjp,
    jvp=_jvp,
    batch=same_axes_batch("cumprod", lambda static: static["axis"]),
)


def cumprod(a: Any, axis: Any = None, dtype: Any = None, out: Any = None) -> Any:
    refuse("cumprod", out, {})
    a = a if dtype is None else a.astype(dtype)
    if axis is None:
        a, axis = reshape(a, (-1,)), 0
    return _cumprod(a, axis=normalize_axis("cumprod", axis, len(shape_of(a))))


def _cumulative(name: str, call: Any, start: float) -> Any:
    """The array API's form: the axis is needed for more than one dimension; it may begin with the empty result."""

    def cumulative(
        x: Any, /, *, axis: Any = None, dtype: Any = None, out: Any = None, include_initial: bool = False
    ) -> Any:
        ndim = len(shape_of(x))
        if ndim != 1 and (axis is None or not ndim):
            raise ValueError(f"{name}: expected one dimension, or an axis, got {describe(x)}")
        axis = normalize_axis(name, 0 if axis is None else axis, ndim)
        y = call(x, axis, dtype, out)
        if not include_initial:
            return y
        edge = (*shape_of(x)[:axis], 1, *shape_of(x)[axis + 1 :])
        return concatenate([module_of(raw(x)).zeros(edge, y.dtype) + start, y], axis)

    return cumulative


def _accumulate(call: Any) -> Any:
    return lambda array, axis=0, dtype=None: call(array, axis, dtype)


HANDLERS.update(
    {
        np.cumprod: cumprod,
        (np.add, "accumulate"): _accumulate(cumsum),
        (np.multiply, "accumulate"): _accumulate(cumprod),
    }
)
if hasattr(np, "cumulative_sum"):  # NumPy 2.1
    HANDLERS[np.cumulative_sum] = _cumulative("cumulative_sum", cumsum, 0)
    HANDLERS[np.cumulative_prod] = _cumulative("cumulative_prod", cumprod, 1)
