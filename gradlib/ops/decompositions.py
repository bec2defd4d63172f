"""Decompositions of matrices: cholesky, eigh, svd, qr. Matrices stand on the last two axes, in float32 or float64.

    a = l lᵀ        dl = l Φ(l⁻¹ da l⁻ᵀ), Φ the lower triangle with half of the diagonal          Murray 2016
    a = v w vᵀ      s = vᵀ da v,  dw = diag s,  dv = v (E ∘ s),  E_ij = 1 / (w_j - w_i)            Giles 2008
    a = u s vᵀ      see `_svd_jvp`                                                                Townsend 2016
    a = q r         c = qᵀ da r⁻¹,  dq = da r⁻¹ - q (c - Ω),  dr = (c - Ω) r,  Ω = tril(c, -1) - tril(c, -1)ᵀ
                                                                                 Walter & Lehmann 2010

Conventions: cholesky and eigh read one triangle of a, as LAPACK does, and the derivative is with respect to that
triangle; the other has derivative 0. Eigenvectors of (nearly) equal eigenvalues, and singular vectors likewise, are
not determined: the terms that would turn them into each other are 0, so that first derivatives of whatever does not
depend on the choice of these vectors are right, and those of higher order leave these terms out.

Sources: Murray 2016, arXiv:1602.07527; Giles 2008, "Collected matrix derivative results"; Townsend 2016,
"Differentiating the singular value decomposition"; Walter & Lehmann 2010, arXiv:1001.1654.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..op import Op
from ..trace import HANDLERS, Namespace, module_of, raw
from .elementwise import absolute
from .index import getitem, take_along_axis
from .join import concatenate
from .linalg import _solve
from .matmul import matmul
from .matrices import (
    check_matrix,
    diagonal_of,
    from_lower,
    half_lower,
    matrices_batch,
    mt,
    on_diagonal,
    onto_lower,
)
from .shape import flip, swapaxes


# --- cholesky ------------------------------------------------------------------------------------------------------
def _cholesky_forward(xp: Any, a: Any) -> tuple:
    l = _cholesky(a) if type(xp) is Namespace else xp.linalg.cholesky(a)
    return l, (l,)


def _cholesky_vjp(xp: Any, saved: tuple, dl: Any, need: tuple) -> tuple:
    lt = mt(xp, saved[0])
    m = half_lower(xp, xp.matmul(lt, dl))
    g = _solve(lt, mt(xp, _solve(lt, mt(xp, m))))  # l⁻ᵀ m l⁻¹
    return (onto_lower(xp, g),)


def _cholesky_jvp(xp: Any, saved: tuple, dx: tuple) -> Any:
    l = saved[0]
    p = _solve(l, mt(xp, _solve(l, from_lower(xp, dx[0]))))  # l⁻¹ da l⁻ᵀ
    return xp.matmul(l, half_lower(xp, p))


_cholesky = Op(
    "cholesky",
    check=lambda a: check_matrix("cholesky", a, square=True),
    forward=_cholesky_forward,
    vjp=_cholesky_vjp,
    jvp=_cholesky_jvp,
    batch=matrices_batch("cholesky", 2),
)


def cholesky(a: Any, /, *, upper: bool = False) -> Any:
    """The lower triangular l with l lᵀ = a, from the lower triangle of a; `upper`: lᵀ, from the upper one."""
    return swapaxes(_cholesky(swapaxes(a, -1, -2)), -1, -2) if upper else _cholesky(a)


# --- eigh ----------------------------------------------------------------------------------------------------------
def _inverse_gaps(xp: Any, w: Any, sign: int = -1) -> Any:
    """E_ij = 1 / (w_j ± w_i), and 0 where that is 0 but for rounding. w (..., N) -> (..., N, N)."""
    n = w.shape[-1]
    gap = xp.expand_dims(w, -2) + sign * xp.expand_dims(w, -1)
    if not n:
        return gap
    noise = n * float(np.finfo(w.dtype).eps) * xp.max(xp.abs(w), axis=-1, keepdims=True)
    equal = xp.less_equal(xp.abs(gap), xp.expand_dims(noise, -1))
    return xp.where(equal, 0, 1 / xp.where(equal, 1, gap))


def _eigh_forward(xp: Any, a: Any) -> tuple:
    w, v = _eigh(a) if type(xp) is Namespace else xp.linalg.eigh(a)
    return (w, v), (w, v)


def _eigh_vjp(xp: Any, saved: tuple, dy: tuple, need: tuple) -> tuple:
    w, v = saved
    vt = mt(xp, v)
    m = on_diagonal(xp, dy[0]) + _inverse_gaps(xp, w) * xp.matmul(vt, dy[1])
    return (onto_lower(xp, xp.matmul(v, xp.matmul(m, vt))),)


def _eigh_jvp(xp: Any, saved: tuple, dx: tuple) -> tuple:
    w, v = saved
    s = xp.matmul(mt(xp, v), xp.matmul(from_lower(xp, dx[0]), v))
    return diagonal_of(xp, s), xp.matmul(v, _inverse_gaps(xp, w) * s)


_eigh = Op(
    "eigh",
    check=lambda a: check_matrix("eigh", a, square=True),
    forward=_eigh_forward,
    vjp=_eigh_vjp,
    jvp=_eigh_jvp,
    batch=matrices_batch("eigh", 1, 2),
)
EighResult: Any = type(np.linalg.eigh(np.ones((1, 1))))


def eigh(a: Any, UPLO: str = "L") -> Any:
    """Eigenvalues (ascending) and eigenvectors (columns) of the symmetric matrices given by one triangle."""
    if str(UPLO).upper() not in ("L", "U"):
        raise ValueError(f'eigh: expected UPLO "L" or "U", got {UPLO!r}')
    return EighResult(*_eigh(swapaxes(a, -1, -2) if UPLO.upper() == "U" else a))


def eigvalsh(a: Any, UPLO: str = "L") -> Any:
    return eigh(a, UPLO)[0]


# --- svd -----------------------------------------------------------------------------------------------------------
def _svd_forward(xp: Any, a: Any) -> tuple:
    y = tuple(_svd(a) if type(xp) is Namespace else xp.linalg.svd(a, full_matrices=False))
    return y, y


def _svd_parts(xp: Any, saved: tuple) -> tuple:
    """u, uᵀ, vᵀ, v, E, H and 1/s (0 for s = 0): E_ij = 1 / (s_j - s_i), H_ij = 1 / (s_j + s_i)."""
    u, s, vt = saved
    zero = xp.equal(s, 0)
    inverse = xp.where(zero, 0, 1 / xp.where(zero, 1, s))
    return u, mt(xp, u), vt, mt(xp, vt), _inverse_gaps(xp, s), _inverse_gaps(xp, s, 1), inverse


def _outside(xp: Any, u: Any, ut: Any, x: Any) -> Any:
    """(1 - u uᵀ) x."""
    return x - xp.matmul(u, xp.matmul(ut, x))


def _svd_jvp(xp: Any, saved: tuple, dx: tuple) -> tuple:
    """With p = uᵀ da v = p⁺ + p⁻ (symmetric, antisymmetric):  ds = diag p,
    du = u (E ∘ p⁺ + H ∘ p⁻) + (1 - u uᵀ) da v / s,   dv = v (E ∘ p⁺ - H ∘ p⁻) + (1 - v vᵀ) daᵀ u / s."""
    u, ut, vt, v, e, h, inverse = _svd_parts(xp, saved)
    da = dx[0]
    av, atu = xp.matmul(da, v), xp.matmul(mt(xp, da), u)
    p = xp.matmul(ut, av)
    even, odd = 0.5 * e * (p + mt(xp, p)), 0.5 * h * (p - mt(xp, p))
    row = xp.expand_dims(inverse, -2)
    du = xp.matmul(u, even + odd)
    dv = xp.matmul(v, even - odd)
    if u.shape[-2] > u.shape[-1]:
        du = du + _outside(xp, u, ut, av) * row
    if v.shape[-2] > v.shape[-1]:
        dv = dv + _outside(xp, v, vt, atu) * row
    return du, diagonal_of(xp, p), mt(xp, dv)


def _svd_vjp(xp: Any, saved: tuple, dy: tuple, need: tuple) -> tuple:
    u, ut, vt, v, e, h, inverse = _svd_parts(xp, saved)
    du, ds, dv = dy[0], dy[1], mt(xp, dy[2])
    x, y = xp.matmul(ut, du), xp.matmul(vt, dv)
    even, odd = e * (x + y), h * (x - y)
    m = on_diagonal(xp, ds) + 0.5 * (even + mt(xp, even) + odd - mt(xp, odd))
    left, column = xp.matmul(u, m), xp.expand_dims(inverse, -2)
    if u.shape[-2] > u.shape[-1]:
        left = left + _outside(xp, u, ut, du) * column
    da = xp.matmul(left, vt)
    if v.shape[-2] > v.shape[-1]:
        da = da + xp.matmul(u, mt(xp, _outside(xp, v, vt, dv) * column))
    return (da,)


_svd = Op(
    "svd",
    check=lambda a: check_matrix("svd", a),
    forward=_svd_forward,
    vjp=_svd_vjp,
    jvp=_svd_jvp,
    batch=matrices_batch("svd", 2, 1, 2),
)
SVDResult: Any = type(np.linalg.svd(np.ones((1, 1))))


# The columns that complete q to an orthogonal matrix are determined up to a rotation among themselves. They are given
# as `rest`; dq moves them by d rest = -q dqᵀ rest, without rotation.
def _complement_forward(xp: Any, q: Any, rest: Any) -> tuple:
    y = _complement(q, rest) if type(xp) is Namespace else xp.asarray(rest)
    return y, (q, y)


def _complement_vjp(xp: Any, saved: tuple, dy: Any, need: tuple) -> tuple:
    q, rest = saved
    return -xp.matmul(rest, xp.matmul(mt(xp, dy), q)), None


def _complement_jvp(xp: Any, saved: tuple, dx: tuple) -> Any:
    q, rest = saved
    return -xp.matmul(q, xp.matmul(mt(xp, dx[0]), rest))


_complement = Op(
    "complement",
    forward=_complement_forward,
    vjp=_complement_vjp,
    jvp=_complement_jvp,
    batch=matrices_batch("complement", 2),
)


def completed(q: Any, full: Any) -> Any:
    """q (..., M, K), completed by the last columns of `full` (..., M, M)."""
    k = q.shape[-1]
    return q if full.shape[-1] == k else concatenate([q, _complement(q, full[..., k:])], -1)


def svd(a: Any, full_matrices: bool = True, compute_uv: bool = True, hermitian: bool = False) -> Any:
    """(u, s, vᵀ), or s alone; `hermitian`: by the eigenvalues of the lower triangle."""
    check_matrix("svd", a, square=hermitian)
    if hermitian:
        return _svd_hermitian(a, compute_uv)
    u, s, vt = _svd(a)
    if not compute_uv:
        return s
    m, n = a.shape[-2:]
    if full_matrices and m != n:
        full = module_of(raw(a)).linalg.svd(raw(a), full_matrices=True)
        u, vt = completed(u, full[0]), swapaxes(completed(swapaxes(vt, -1, -2), full[2].swapaxes(-1, -2)), -1, -2)
    return SVDResult(u, s, vt)


def _svd_hermitian(a: Any, compute_uv: bool) -> Any:
    w, v = eigh(a)
    xp = module_of(raw(a))
    order = xp.flip(xp.argsort(abs(raw(w)), axis=-1), axis=-1)
    w, s = take_along_axis(w, order), take_along_axis(absolute(w), order)
    if not compute_uv:
        return s
    u = take_along_axis(v, order[..., None, :])
    return SVDResult(u, s, swapaxes(u * xp.sign(raw(w))[..., None, :], -1, -2))


def svdvals(x: Any, /) -> Any:
    return svd(x, compute_uv=False)


# --- qr ------------------------------------------------------------------------------------------------------------
def _qr_forward(xp: Any, a: Any) -> tuple:
    y = tuple(_qr(a) if type(xp) is Namespace else xp.linalg.qr(a))
    return y, y


def _right_divide(xp: Any, x: Any, r: Any) -> Any:
    """x r⁻¹."""
    return mt(xp, _solve(mt(xp, r), mt(xp, x)))


def _qr_vjp(xp: Any, saved: tuple, dy: tuple, need: tuple) -> tuple:
    """da = (dq + q from_lower(m)) r⁻ᵀ with m = r drᵀ - dqᵀ q."""
    (q, r), (dq, dr) = saved, dy
    m = xp.matmul(r, mt(xp, dr)) - xp.matmul(mt(xp, dq), q)
    return (_right_divide(xp, dq + xp.matmul(q, from_lower(xp, m)), mt(xp, r)),)


def _qr_jvp(xp: Any, saved: tuple, dx: tuple) -> tuple:
    q, r = saved
    ar = _right_divide(xp, dx[0], r)
    c = xp.matmul(mt(xp, q), ar)
    low = xp.tril(c, -1)
    rest = c - low + mt(xp, low)  # c - Ω, upper triangular
    return ar - xp.matmul(q, rest), xp.matmul(rest, r)


_qr = Op(
    "qr",
    check=lambda a: check_matrix("qr", a),
    forward=_qr_forward,
    vjp=_qr_vjp,
    jvp=_qr_jvp,
    batch=matrices_batch("qr", 2, 2),
)
QRResult: Any = type(np.linalg.qr(np.ones((1, 1))))


def qr(a: Any, mode: str = "reduced") -> Any:
    """q, r of a (..., M, N), the leading min(M, N) columns of a independent; `mode` reduced, complete or r."""
    check_matrix("qr", a)
    if mode not in ("reduced", "complete", "r"):
        raise NotImplementedError(f'qr: expected mode "reduced", "complete" or "r" on a traced array, got {mode!r}')
    m, n = a.shape[-2:]
    if m >= n:
        q, r = _qr(a)
    else:  # of a = [b c]: b = q r, a = q [r, qᵀ c]
        q, r = _qr(getitem(a, (Ellipsis, slice(0, m))))
        r = concatenate([r, matmul(swapaxes(q, -1, -2), getitem(a, (Ellipsis, slice(m, None))))], -1)
    if mode == "r":
        return r
    if mode == "complete" and m > n:
        xp = module_of(raw(a))
        q = completed(q, xp.linalg.qr(raw(a), mode="complete")[0])
        r = concatenate([r, xp.zeros((*a.shape[:-2], m - n, n), a.dtype)], -2)
    return QRResult(q, r)


HANDLERS.update(
    {
        np.linalg.cholesky: cholesky,
        np.linalg.eigh: eigh,
        np.linalg.eigvalsh: eigvalsh,
        np.linalg.svd: svd,
        np.linalg.svdvals: svdvals,
        np.linalg.qr: qr,
    }
)
