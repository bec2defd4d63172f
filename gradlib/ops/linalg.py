"""Linear algebra without a decomposition to return: solve, inv, det, slogdet, pinv, and what is composed of them.

    x = a⁻¹ b          db = a⁻ᵀ dx                     da = -db xᵀ
    y = a⁻¹            da = -yᵀ dy yᵀ
    y = det a          da = dy cof(a), cof(a) = y a⁻ᵀ  (polynomial in a: finite for singular a too)
    y = log|det a|     da = dy a⁻ᵀ
    p = a⁺             dp = -p da p + p pᵀ daᵀ (1 - a p) + (1 - p a) daᵀ pᵀ p     where the rank stays the same

Matrices stand on the last two axes, in float32 or float64. Sources: Giles 2008, "Collected matrix derivative results
for forward and reverse mode algorithmic differentiation"; Golub & Pereyra 1973 (pseudoinverse).
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from ..op import Op, describe, lift, normalize_axis, shape_of, unbroadcast
from ..trace import HANDLERS, Namespace, module_of
from .join import taking_lists
from .matmul import matmul
from .matrices import check_lapack, check_matrix, from_lower, matrices_batch, mt, result_class
from .nondiff import concrete
from .reduce import sum_
from .shape import expand_dims, reshape, squeeze, transpose


# --- solve ---------------------------------------------------------------------------------------------------------
def _solve_arrays(xp: Any, a: Any, b: Any) -> Any:
    """a (..., N, N), b (..., N, K), broadcasting. Leading axes that only b has become columns: one factorisation."""
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    n, k, own = b.shape[-2], b.shape[-1], a.ndim - 2
    if not (b.size and a.size):
        return xp.zeros((*lead, n, k), np.result_type(a.dtype, b.dtype))
    more = len(lead) - own
    if more <= 0:
        return xp.linalg.solve(xp.broadcast_to(a, (*lead, n, n)), xp.broadcast_to(b, (*lead, n, k)))
    b = xp.broadcast_to(b, (*lead, n, k))
    a = xp.broadcast_to(a, (*lead[more:], n, n))
    last = tuple(range(more))
    order = (*range(more, len(lead) + 1), *last, len(lead) + 1)  # [v, …, n, k] -> [..., n, v, …, k]
    columns = xp.transpose(b, order).reshape((*lead[more:], n, -1))
    x = xp.linalg.solve(a, columns).reshape((*lead[more:], n, *lead[:more], k))
    return xp.transpose(x, tuple(int(i) for i in np.argsort(order)))


def _solve_check(a: Any, b: Any) -> None:
    check_matrix("solve", a, square=True)
    check_lapack("solve", b)
    x, y = shape_of(a), shape_of(b)
    if len(y) < 2 or x[-1] != y[-2]:
        raise ValueError(f"solve: expected (..., N, N) and (..., N, K) or (N,), got {describe(a)} and {describe(b)}")
    try:
        np.broadcast_shapes(x[:-2], y[:-2])
    except ValueError:
        raise ValueError(f"solve: leading axes do not broadcast: {describe(a)} and {describe(b)}") from None


def _solve_forward(xp: Any, a: Any, b: Any) -> tuple:
    x = _solve(a, b) if type(xp) is Namespace else _solve_arrays(xp, a, b)
    return x, (a, b, x)


def _solve_vjp(xp: Any, saved: tuple, dx: Any, need: tuple) -> tuple:
    a, b, x = saved
    db = _solve(mt(xp, a), dx)
    da = unbroadcast(xp, -xp.matmul(db, mt(xp, x)), a.shape) if need[0] else None
    return da, unbroadcast(xp, db, b.shape) if need[1] else None


def _solve_jvp(xp: Any, saved: tuple, dx: tuple) -> Any:
    a, _, x = saved
    right = 0
    if dx[1] is not None:
        right = lift(xp, dx[1], x.ndim)
    if dx[0] is not None:
        right = right - xp.matmul(lift(xp, dx[0], x.ndim), x)
    return _solve(a, right)


_solve = Op(
    "solve",
    check=_solve_check,
    forward=_solve_forward,
    vjp=_solve_vjp,
    jvp=_solve_jvp,
    batch=matrices_batch("solve", 2),
)


def solve(a: Any, b: Any) -> Any:
    """x with a @ x = b; b is (N,) or (..., N, K)."""
    return squeeze(_solve(a, expand_dims(b, 1)), -1) if len(shape_of(b)) == 1 else _solve(a, b)


# --- inv -----------------------------------------------------------------------------------------------------------
def _inv_forward(xp: Any, a: Any) -> tuple:
    y = _inv(a) if type(xp) is Namespace else xp.linalg.inv(a)
    return y, (y,)


def _inv_vjp(xp: Any, saved: tuple, dy: Any, need: tuple) -> tuple:
    yt = mt(xp, saved[0])
    return (-xp.matmul(yt, xp.matmul(dy, yt)),)


def _inv_jvp(xp: Any, saved: tuple, dx: tuple) -> Any:
    return -xp.matmul(saved[0], xp.matmul(dx[0], saved[0]))


_inv = Op(
    "inv",
    check=lambda a: check_matrix("inv", a, square=True),
    forward=_inv_forward,
    vjp=_inv_vjp,
    jvp=_inv_jvp,
    batch=matrices_batch("inv", 2),
)


# --- det and slogdet -----------------------------------------------------------------------------------------------
def _det_forward(xp: Any, a: Any) -> tuple:
    y = _det(a) if type(xp) is Namespace else xp.asarray(xp.linalg.det(a))
    return y, (a, y)


def _cofactors(xp: Any, a: Any, y: Any) -> Any:
    """cof(a) = y a⁻ᵀ; by Faddeev and LeVerrier's recursion where some determinant is 0 (Gantmacher 1959, ch. IV)."""
    if bool(xp.all(xp.not_equal(y, 0))):
        return xp.reshape(y, (*y.shape, 1, 1)) * mt(xp, _inv(a))
    n = a.shape[-1]
    one = xp.eye(n, dtype=a.dtype)
    m = xp.zeros_like(a) + one  # m_1 = 1, m_{k+1} = a m_k - tr(a m_k)/k, and then cof(a)ᵀ = (-1)^(n-1) m_n
    for k in range(1, n):
        am = xp.matmul(a, m)
        m = am - xp.expand_dims(xp.trace(am, 0, am.ndim - 2, am.ndim - 1) / k, (-1, -2)) * one
    return mt(xp, m) if n % 2 else -mt(xp, m)


def _det_vjp(xp: Any, saved: tuple, dy: Any, need: tuple) -> tuple:
    return (xp.expand_dims(dy, (-1, -2)) * _cofactors(xp, *saved),)


def _det_jvp(xp: Any, saved: tuple, dx: tuple) -> Any:
    return xp.sum(dx[0] * _cofactors(xp, *saved), axis=(-1, -2))


_det = Op(
    "det",
    check=lambda a: check_matrix("det", a, square=True),
    forward=_det_forward,
    vjp=_det_vjp,
    jvp=_det_jvp,
    batch=matrices_batch("det", 0),
)


def _slogdet_forward(xp: Any, a: Any) -> tuple:
    parts = _slogdet(a) if type(xp) is Namespace else tuple(map(xp.asarray, xp.linalg.slogdet(a)))
    return tuple(parts), (a,)


def _slogdet_vjp(xp: Any, saved: tuple, dy: tuple, need: tuple) -> tuple:
    return (xp.expand_dims(dy[1], (-1, -2)) * mt(xp, _inv(saved[0])),)  # the sign is constant


def _slogdet_jvp(xp: Any, saved: tuple, dx: tuple) -> tuple:
    d = xp.sum(dx[0] * mt(xp, _inv(saved[0])), axis=(-1, -2))
    return xp.zeros(d.shape, d.dtype), d


_slogdet = Op(
    "slogdet",
    check=lambda a: check_matrix("slogdet", a, square=True),
    forward=_slogdet_forward,
    vjp=_slogdet_vjp,
    jvp=_slogdet_jvp,
    batch=matrices_batch("slogdet", 0, 0),
)


# --- pinv ----------------------------------------------------------------------------------------------------------
def _pinv_forward(xp: Any, a: Any, *, rcond: float) -> tuple:
    p = _pinv(a, rcond=rcond) if type(xp) is Namespace else xp.linalg.pinv(a, rcond)
    return p, (a, p)


def _rest(xp: Any, p: Any, a: Any) -> Any:
    """1 - p a: the projection onto what p a leaves out."""
    return xp.eye(p.shape[-2], dtype=p.dtype) - xp.matmul(p, a)


def _pinv_vjp(xp: Any, saved: tuple, dp: Any, need: tuple, *, rcond: float) -> tuple:
    a, p = saved
    pt, dt = mt(xp, p), mt(xp, dp)
    da = xp.matmul(xp.matmul(_rest(xp, a, p), dt), xp.matmul(p, pt))
    da = da + xp.matmul(xp.matmul(pt, p), xp.matmul(dt, _rest(xp, p, a)))
    return (da - xp.matmul(pt, xp.matmul(dp, pt)),)


def _pinv_jvp(xp: Any, saved: tuple, dx: tuple, *, rcond: float) -> Any:
    a, p = saved
    pt, dt = mt(xp, p), mt(xp, dx[0])
    dp = xp.matmul(xp.matmul(p, pt), xp.matmul(dt, _rest(xp, a, p)))
    dp = dp + xp.matmul(xp.matmul(_rest(xp, p, a), dt), xp.matmul(pt, p))
    return dp - xp.matmul(p, xp.matmul(dx[0], p))


_pinv = Op(
    "pinv",
    check=lambda a, *, rcond: check_matrix("pinv", a),
    forward=_pinv_forward,
    vjp=_pinv_vjp,
    jvp=_pinv_jvp,
    batch=matrices_batch("pinv", 2),
)
_UNSET: Any = np._NoValue  # type: ignore[attr-defined]


def pinv(a: Any, rcond: Any = None, hermitian: bool = False, *, rtol: Any = _UNSET) -> Any:
    """The pseudoinverse; the derivative holds while no singular value crosses the cut-off."""
    cut = rcond if rtol is _UNSET else rtol
    if cut is None:
        cut = 1e-15 if rtol is _UNSET else max(shape_of(a)[-2:]) * float(np.finfo(a.dtype).eps)
    if np.ndim(cut):
        raise NotImplementedError(f"pinv: expected one number as rcond, got {describe(cut)}")
    return _pinv(from_lower(module_of(a), a) if hermitian else a, rcond=float(cut))


# --- composed ------------------------------------------------------------------------------------------------------
def lstsq(a: Any, b: Any, rcond: Any = None) -> tuple:
    """(x, residuals, rank, singular values) of least squares, x = a⁺ b; a (M, N), b (M,) or (M, K)."""
    from .svd import svdvals

    check_matrix("lstsq", a)
    (m, n), eps = shape_of(a), float(np.finfo(a.dtype).eps)
    cut = max(m, n) * eps if rcond is None else eps if rcond == -1 else float(rcond)
    s = svdvals(a)
    x = matmul(pinv(a, cut), b)
    values = concrete(s, "the rank in lstsq")
    rank = int((values > cut * values.max()).sum()) if values.size else 0
    residuals = sum_((matmul(a, x) - b) ** 2, 0) if rank == n < m else module_of(s).zeros(0, s.dtype)
    return x, reshape(residuals, (-1,)), rank, s


def tensorsolve(a: Any, b: Any, axes: Any = None) -> Any:
    """x with tensordot(a, x, x.ndim) = b."""
    if axes is not None:
        moved = [normalize_axis("tensorsolve", i, len(shape_of(a))) for i in axes]
        a = transpose(a, [i for i in range(len(shape_of(a))) if i not in moved] + moved)
    shape = shape_of(a)[len(shape_of(b)) :]
    if prod(shape) != prod(shape_of(b)):
        raise np.linalg.LinAlgError(f"tensorsolve: expected as many unknowns as equations, got {describe(a)}")
    return reshape(solve(reshape(a, (-1, prod(shape))), reshape(b, (-1,))), shape)


def tensorinv(a: Any, ind: int = 2) -> Any:
    """The inverse of tensordot(a, x, a.ndim - ind) as a map of x."""
    shape = shape_of(a)
    if ind <= 0 or prod(shape[:ind]) != prod(shape[ind:]):
        raise np.linalg.LinAlgError(f"tensorinv: expected equal sizes before and after axis {ind}, got {describe(a)}")
    return reshape(_inv(reshape(a, (prod(shape[:ind]), -1))), (*shape[ind:], *shape[:ind]))


HANDLERS.update(
    {
        np.linalg.solve: taking_lists(solve),
        np.linalg.inv: lambda a: _inv(a),
        np.linalg.det: lambda a: _det(a),
        np.linalg.slogdet: lambda a: result_class("slogdet")(*_slogdet(a)),
        np.linalg.pinv: pinv,
        np.linalg.lstsq: taking_lists(lstsq, 2),
        np.linalg.tensorsolve: taking_lists(tensorsolve, 2),
        np.linalg.tensorinv: tensorinv,
    }
)
