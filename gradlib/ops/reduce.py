"""Reductions: sum, mean, prod, max, min, cumsum, and var and std composed of them.

Statics: `axis`, a sorted tuple of non-negative axes, and `keepdims`. Ties of max and min share the derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod as product
from typing import Any

import numpy as np

from ..jacobian.blocks import RowGradient
from ..op import Op, describe, normalize_axes, normalize_axis, shape_of, total
from ..precision import is_narrow, narrow, wide, working
from ..trace import HANDLERS, lose_trace
from .arithmetic import multiply, subtract, where
from .batching import reduction_batch, same_axes_batch
from .elementwise import sqrt, square
from .nondiff import equal, known

Axes = tuple[int, ...]


def spread(xp: Any, dy: Any, axis: Axes, keepdims: bool) -> Any:
    """The reduced axes of a stack [V, *y] put back with size 1."""
    if keepdims or not axis:
        return dy
    shape = list(dy.shape)
    for a in axis:
        shape.insert(a + 1, 1)
    return dy.reshape(tuple(shape))


def repeated(xp: Any, dy: Any, shape: tuple[int, ...]) -> Any:
    """dy broadcast to `shape`: a view, or a copy where that is cheaper than NumPy's way to the view."""
    if xp is not np or product(shape) > 4096:
        return xp.broadcast_to(dy, shape)
    out = np.empty(shape, dy.dtype)
    out[...] = dy
    return out


def _behind(axis: Axes) -> Axes:
    return tuple(a + 1 for a in axis)


def _sum_forward(xp: Any, x: Any, *, axis: Axes, keepdims: bool) -> tuple:
    return total(xp, x, axis, keepdims), (x,)


def _sum_vjp(xp: Any, saved: tuple, dy: Any, need: tuple, *, axis: Axes, keepdims: bool) -> tuple:
    return (repeated(xp, spread(xp, dy, axis, keepdims), (dy.shape[0], *saved[0].shape)),)


def _sum_jvp(xp: Any, saved: tuple, dx: tuple, *, axis: Axes, keepdims: bool) -> Any:
    return total(xp, dx[0], _behind(axis), keepdims)


def _sum_block(xp: Any, saved: tuple, i: int, *, axis: Axes, keepdims: bool) -> Any:
    x = saved[0]
    return RowGradient(xp.broadcast_to(xp.ones((), x.dtype), x.shape), axis, keepdims)


def _mean_forward(xp: Any, x: Any, *, axis: Axes, keepdims: bool) -> tuple:
    if x.dtype.itemsize == 2 and is_narrow(x.dtype):
        return xp.mean(wide(x), axis=axis, keepdims=keepdims).astype(x.dtype), (x,)
    return xp.mean(x, axis=axis, keepdims=keepdims), (x,)


def _count(x: Any, axis: Axes) -> int:
    return max(product(x.shape[a] for a in axis), 1)


def _mean_vjp(xp: Any, saved: tuple, dy: Any, need: tuple, *, axis: Axes, keepdims: bool) -> tuple:
    return _sum_vjp(xp, saved, dy / _count(saved[0], axis), need, axis=axis, keepdims=keepdims)


def _mean_jvp(xp: Any, saved: tuple, dx: tuple, *, axis: Axes, keepdims: bool) -> Any:
    return _sum_jvp(xp, saved, dx, axis=axis, keepdims=keepdims) / _count(saved[0], axis)


def _mean_block(xp: Any, saved: tuple, i: int, *, axis: Axes, keepdims: bool) -> Any:
    x = saved[0]
    return RowGradient(xp.broadcast_to(xp.ones((), x.dtype) / _count(x, axis), x.shape), axis, keepdims)


def _extremum_rules(name: str, reduce: Callable[..., Any]) -> dict[str, Any]:
    """y = max(x): ∂y/∂x is 1/k at each of the k entries equal to y."""

    def forward(xp: Any, x: Any, *, axis: Axes, keepdims: bool) -> tuple:
        y = reduce(x, axis, keepdims=True) if xp is np else getattr(xp, name)(x, axis=axis, keepdims=True)
        return (y if keepdims or not axis else y.squeeze(axis)), (x, y)

    def share(xp: Any, saved: tuple, axis: Axes) -> tuple:
        """Which entries are the extremum, and how many of them share it."""
        x, y = saved
        hit, dtype = xp.equal(x, y), working(x.dtype)
        if xp is np:
            return hit, np.maximum(np.add.reduce(hit, axis, dtype, keepdims=True), 1)  # 0 where x holds nan
        return hit, xp.maximum(xp.sum(hit, axis=axis, keepdims=True, dtype=dtype), 1)

    def vjp(xp: Any, saved: tuple, dy: Any, need: tuple, *, axis: Axes, keepdims: bool) -> tuple:
        hit, count = share(xp, saved, axis)
        return (narrow(spread(xp, dy, axis, keepdims) / count * hit, dy.dtype),)

    def jvp(xp: Any, saved: tuple, dx: tuple, *, axis: Axes, keepdims: bool) -> Any:
        hit, count = share(xp, saved, axis)
        return narrow(total(xp, dx[0] * hit / count, _behind(axis), keepdims), dx[0].dtype)

    def block(xp: Any, saved: tuple, i: int, *, axis: Axes, keepdims: bool) -> Any:
        hit, count = share(xp, saved, axis)
        return RowGradient(narrow(hit / count, saved[0].dtype), axis, keepdims)

    return {"forward": forward, "vjp": vjp, "jvp": jvp, "block": block}


def _prod_forward(xp: Any, x: Any, *, axis: Axes, keepdims: bool) -> tuple:
    return xp.prod(x, axis=axis, keepdims=keepdims), (x,)


def _products_of_others(xp: Any, x: Any, axis: Axes) -> Any:
    """Π_{j≠i} x_j over the reduced axes: y / x, or with zeros as below."""
    if known(xp.not_equal(x, 0)):
        return xp.prod(x, axis=axis, keepdims=True) / x
    return _products_around(xp, x, axis)


def _products_around(xp: Any, x: Any, axis: Axes) -> Any:
    """The same as the products of what stands before and after x_i, whatever the entries are."""
    keep = tuple(a for a in range(x.ndim) if a not in axis)
    order = (*keep, *axis)
    moved = xp.transpose(x, order)
    flat = xp.reshape(moved, (*[x.shape[a] for a in keep], -1 if x.size else _count(x, axis)))
    n = flat.shape[-1]
    before = after = flat[..., :1] * 0 + 1
    left, right = [before], [after]
    for i in range(n - 1):
        before = before * flat[..., i : i + 1]
        after = after * flat[..., n - 1 - i : n - i]
        left.append(before)
        right.append(after)
    rows = [a * b for a, b in zip(left, reversed(right), strict=True)]
    others = xp.reshape(xp.concatenate(rows, axis=-1), moved.shape)
    return xp.transpose(others, tuple(int(a) for a in np.argsort(order)))


def _prod_vjp(xp: Any, saved: tuple, dy: Any, need: tuple, *, axis: Axes, keepdims: bool) -> tuple:
    x = saved[0]
    if not x.size:
        return (xp.zeros((dy.shape[0], *x.shape), x.dtype),)
    return (spread(xp, dy, axis, keepdims) * _products_of_others(xp, x, axis),)


def _prod_jvp(xp: Any, saved: tuple, dx: tuple, *, axis: Axes, keepdims: bool) -> Any:
    x = saved[0]
    if not x.size:
        return xp.sum(dx[0], axis=_behind(axis), keepdims=keepdims)
    return total(xp, dx[0] * _products_of_others(xp, x, axis), _behind(axis), keepdims)


def _prod_block(xp: Any, saved: tuple, i: int, *, axis: Axes, keepdims: bool) -> Any:
    x = saved[0]  # in one way for all entries: it is the same code, recorded, that serves the next call
    return RowGradient(_products_around(xp, x, axis), axis, keepdims) if x.size else None


def _cumsum_forward(xp: Any, x: Any, *, axis: int) -> tuple:
    return xp.cumsum(x, axis=axis), ()


def _cumsum_vjp(xp: Any, saved: tuple, dy: Any, need: tuple, *, axis: int) -> tuple:
    return (xp.flip(xp.cumsum(xp.flip(dy, axis=axis + 1), axis=axis + 1), axis=axis + 1),)


def _cumsum_jvp(xp: Any, saved: tuple, dx: tuple, *, axis: int) -> Any:
    return xp.cumsum(dx[0], axis=axis + 1)


def _check_nonempty(name: str) -> Callable[..., None]:
    def check(x: Any, *, axis: Axes, keepdims: bool) -> None:
        if any(x.shape[a] == 0 for a in axis):
            raise ValueError(f"{name}: expected at least one entry along axis {axis}, got shape {x.shape}")

    return check


_sum = Op(
    "sum",
    forward=_sum_forward,
    vjp=_sum_vjp,
    jvp=_sum_jvp,
    block=_sum_block,
    batch=reduction_batch("sum"),
    reads=((),),
)
_mean = Op(
    "mean",
    check=_check_nonempty("mean"),
    forward=_mean_forward,
    vjp=_mean_vjp,
    jvp=_mean_jvp,
    block=_mean_block,
    batch=reduction_batch("mean"),
    reads=((),),
)
_prod = Op(
    "prod", forward=_prod_forward, vjp=_prod_vjp, jvp=_prod_jvp, block=_prod_block, batch=reduction_batch("prod")
)
_max = Op(
    "max", check=_check_nonempty("max"), batch=reduction_batch("max"), **_extremum_rules("max", np.maximum.reduce)
)
_min = Op(
    "min", check=_check_nonempty("min"), batch=reduction_batch("min"), **_extremum_rules("min", np.minimum.reduce)
)
_cumsum = Op(
    "cumsum",
    forward=_cumsum_forward,
    vjp=_cumsum_vjp,
    jvp=_cumsum_jvp,
    batch=same_axes_batch("cumsum", lambda static: static["axis"]),
)

_UNSET: Any = np._NoValue  # type: ignore[attr-defined]


def _reduction(op: Op) -> Callable[..., Any]:
    def reduce(
        a: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: Any = _UNSET, **others: Any
    ) -> Any:
        refuse(op.name, out, others)
        if dtype is not None:
            a = a.astype(dtype)
        axes = normalize_axes(op.name, axis, len(shape_of(a)))
        return op(a, axis=axes, keepdims=bool(keepdims is not _UNSET and keepdims))

    return reduce


def refuse(name: str, out: Any, others: dict[str, Any]) -> None:
    """Raise for `out=` and for NumPy keywords that the traced function does not take."""
    if out is not None:
        raise lose_trace(f"{name}: out=", "use the result instead")
    given = [k for k, v in others.items() if v is not _UNSET and v is not None]
    if given:
        raise NotImplementedError(f"{name}: keyword {', '.join(given)} is not supported on a traced array")


sum_, mean, prod = map(_reduction, (_sum, _mean, _prod))


def _extremum(op: Op) -> Callable[..., Any]:
    def reduce(a: Any, axis: Any = None, out: Any = None, keepdims: Any = _UNSET, **others: Any) -> Any:
        refuse(op.name, out, others)
        axes = normalize_axes(op.name, axis, len(shape_of(a)))
        return op(a, axis=axes, keepdims=bool(keepdims is not _UNSET and keepdims))

    return reduce


max_, min_ = map(_extremum, (_max, _min))


def cumsum(a: Any, axis: Any = None, dtype: Any = None, out: Any = None) -> Any:
    refuse("cumsum", out, {})
    a = a if dtype is None else a.astype(dtype)
    if axis is None:
        a, axis = a.reshape(-1), 0
    return _cumsum(a, axis=normalize_axis("cumsum", axis, len(shape_of(a))))


def var(
    a: Any,
    axis: Any = None,
    dtype: Any = None,
    out: Any = None,
    ddof: float = 0,
    keepdims: Any = _UNSET,
    *,
    correction: Any = _UNSET,
    **others: Any,
) -> Any:
    """mean((a - mean(a))²), with n - ddof in the denominator."""
    refuse("var", out, {"dtype": dtype, **others})
    axes = normalize_axes("var", axis, len(shape_of(a)))
    n, free = _count(a, axes), ddof if correction is _UNSET else correction
    deviation = subtract(a, mean(a, axes, keepdims=True))
    total = mean(square(deviation), axes, keepdims=keepdims)
    if not free:
        return total
    if n <= free:
        raise ValueError(f"var: expected more than ddof = {free} entries along axis {axes}, got {describe(a)}")
    return multiply(total, n / (n - free))


def std(a: Any, *args: Any, **kwargs: Any) -> Any:
    """The square root of `var`."""
    return safe_root(var(a, *args, **kwargs))


def safe_root(v: Any) -> Any:
    """√v with derivative 0 at 0, as a norm has."""
    zero = equal(v, 0)
    return where(zero, 0.0, sqrt(where(zero, 1.0, v)))


HANDLERS.update(
    {
        np.sum: sum_,
        np.mean: mean,
        np.prod: prod,
        np.max: max_,
        np.min: min_,
        np.amax: max_,
        np.amin: min_,
        np.cumsum: cumsum,
    }
)
