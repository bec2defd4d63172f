"""Norms of vectors and matrices, all orders of np.linalg.norm.

    y = (Σ |x|^p)^(1/p)        ∂y/∂x = sign(x) (|x| / y)^(p-1)

Conventions: the derivative of a norm at 0 is 0; entries that are 0 get 0; ties of the largest entry share.
"""

from __future__ import annotations

from math import inf
from typing import Any

import numpy as np

from ..jacobian.blocks import RowGradient
from ..op import Op, describe, normalize_axes, normalize_axis, shape_of, total
from ..precision import is_narrow, narrow, wide
from ..trace import HANDLERS, Namespace
from .batching import reduction_batch
from .elementwise import absolute
from .masked import max_, min_
from .nondiff import not_equal
from .reduce import Axes, spread, sum_
from .shape import expand_dims, moveaxis, reshape
from .svd import svdvals


def _forward(xp: Any, x: Any, *, p: float, axis: Axes, keepdims: bool) -> tuple:
    if type(xp) is Namespace:
        y = _p_norm(x, p=p, axis=axis, keepdims=True)
    elif x.dtype.itemsize == 2 and is_narrow(x.dtype):
        y = narrow(_forward(xp, wide(x), p=p, axis=axis, keepdims=True)[0], x.dtype)
    elif p == 2:
        y = xp.sqrt(xp.sum(x * x, axis=axis, keepdims=True))
    else:
        y = xp.sum(xp.abs(x) ** p, axis=axis, keepdims=True) ** (1 / p)
    return (y if keepdims or not axis else xp.squeeze(y, axis=axis)), (x, y)


def _slope(xp: Any, saved: tuple, p: float) -> Any:
    x, y = saved
    zero = xp.equal(y, 0)
    ratio = x / xp.where(zero, 1, y)
    if p % 2 == 0 and p > 0:  # a polynomial: right at entries of 0 at every order
        g = ratio if p == 2 else ratio * xp.power(ratio * ratio, p / 2 - 1)
    else:
        none = xp.equal(x, 0)
        g = xp.where(none, 0, xp.sign(x) * xp.power(xp.where(none, 1, xp.abs(ratio)), p - 1))
    return xp.where(zero, 0, g)


def _vjp(xp: Any, saved: tuple, dy: Any, need: tuple, *, p: float, axis: Axes, keepdims: bool) -> tuple:
    if dy.dtype.itemsize == 2:
        d = spread(xp, wide(dy), axis, keepdims) * _slope(xp, tuple(map(wide, saved)), p)
        return (narrow(d, dy.dtype),)
    return (spread(xp, dy, axis, keepdims) * _slope(xp, saved, p),)


def _jvp(xp: Any, saved: tuple, dx: tuple, *, p: float, axis: Axes, keepdims: bool) -> Any:
    behind, d = tuple(a + 1 for a in axis), dx[0]
    if d.dtype.itemsize == 2:
        return narrow(total(xp, wide(d) * _slope(xp, tuple(map(wide, saved)), p), behind, keepdims), d.dtype)
    return total(xp, d * _slope(xp, saved, p), behind, keepdims)


def _block(xp: Any, saved: tuple, i: int, *, p: float, axis: Axes, keepdims: bool) -> Any:
    return RowGradient(narrow(_slope(xp, tuple(map(wide, saved)), p), saved[0].dtype), axis, keepdims)


_p_norm = Op("p_norm", forward=_forward, vjp=_vjp, jvp=_jvp, block=_block, batch=reduction_batch("norm"))


def _of_vectors(name: str, x: Any, p: Any, axis: Axes, keepdims: bool) -> Any:
    if p is None:
        p = 2
    if not isinstance(p, (int, float, np.integer, np.floating)):
        raise ValueError(f"{name}: expected a number as order of a vector norm, got {p!r}")
    if p == 0:
        return sum_(not_equal(x, 0).astype(x.dtype), axis, keepdims=keepdims)
    if p == 1:
        return sum_(absolute(x), axis, keepdims=keepdims)
    if p == inf:
        return max_(absolute(x), axis, keepdims=keepdims, **({} if x.size else {"initial": 0.0}))
    if p == -inf:
        return min_(absolute(x), axis, keepdims=keepdims)
    return _p_norm(x, p=float(p), axis=axis, keepdims=keepdims)


def _of_matrices(name: str, x: Any, order: Any, rows: int, columns: int, keepdims: bool) -> Any:
    """The norms over the axes `rows` and `columns`."""
    if order is None or order == "fro":
        return _p_norm(x, p=2.0, axis=tuple(sorted((rows, columns))), keepdims=keepdims)
    if order in (1, -1, inf, -inf):
        first, then = (rows, columns) if abs(order) == 1 else (columns, rows)
        totals = sum_(absolute(x), first, keepdims=True)
        y = (max_ if order > 0 else min_)(totals, then, keepdims=True)
    elif order in ("nuc", 2, -2):
        # |s| = s, but its derivative at 0 is 0
        s = absolute(svdvals(moveaxis(x, (rows, columns), (-2, -1))))
        y = sum_(s, -1) if order == "nuc" else (max_ if order > 0 else min_)(s, -1)
        y = expand_dims(y, tuple(sorted((rows, columns))))
    else:
        raise ValueError(f'{name}: expected ±1, ±2, ±inf, "fro" or "nuc" as order of a matrix norm, got {order!r}')
    if keepdims:
        return y
    return reshape(y, tuple(n for i, n in enumerate(shape_of(y)) if i not in (rows, columns)))


def norm(x: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Any:
    """np.linalg.norm: vectors along one axis, matrices over two, or all entries of x."""
    ndim, keepdims = len(shape_of(x)), bool(keepdims)
    if axis is None:
        if ord is None:
            return _of_vectors("norm", x, 2, tuple(range(ndim)), keepdims)
        if ndim not in (1, 2):
            raise ValueError(f"norm: with an order expected 1 or 2 dimensions, or an axis, got {describe(x)}")
        axis = tuple(range(ndim))
    axes = [normalize_axis("norm", a, ndim) for a in (axis if isinstance(axis, (tuple, list)) else (axis,))]
    if len(axes) > 2 or len(set(axes)) != len(axes):
        raise ValueError(f"norm: expected one axis or two different ones, got {axis}")
    if len(axes) == 2:
        return _of_matrices("norm", x, ord, axes[0], axes[1], keepdims)
    return _of_vectors("norm", x, ord, tuple(axes), keepdims)


def vector_norm(x: Any, /, *, axis: Any = None, keepdims: bool = False, ord: Any = 2) -> Any:
    """The p-norm of all entries along one axis, several, or all."""
    axes = normalize_axes("vector_norm", axis, len(shape_of(x)))
    return _of_vectors("vector_norm", x, ord, axes, bool(keepdims))


def matrix_norm(x: Any, /, *, keepdims: bool = False, ord: Any = "fro") -> Any:
    """The norm of the matrices on the last two axes."""
    ndim = len(shape_of(x))
    if ndim < 2:
        raise ValueError(f"matrix_norm: expected an array of at least two dimensions, got {describe(x)}")
    return _of_matrices("matrix_norm", x, ord, ndim - 2, ndim - 1, bool(keepdims))


HANDLERS.update({np.linalg.norm: norm, np.linalg.vector_norm: vector_norm, np.linalg.matrix_norm: matrix_norm})
