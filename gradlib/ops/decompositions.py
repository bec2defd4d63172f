"""Decompositions of matrices: cholesky, eigh, qr. Matrices stand on the last two axes, in float32 or float64.

    a = l lᵀ        dl = l Φ(l⁻¹ da l⁻ᵀ), Φ the lower triangle with half of the diagonal          Murray 2016
    a = v w vᵀ      s = vᵀ da v,  dw = diag s,  dv = v (E ∘ s),  E_ij = 1 / (w_j - w_i)            Giles 2008
    a = q r         c = qᵀ da r⁻¹,  dq = da r⁻¹ - q (c - Ω),  dr = (c - Ω) r,  Ω = tril(c, -1) - tril(c, -1)ᵀ
                                                                                 Walter & Lehmann 2010

Conventions: cholesky and eigh read one triangle of a, as LAPACK does, and the derivative is with respect to that
triangle; the other has derivative 0. Eigenvectors of equal eigenvalues are not determined: the terms that would turn
them into each other are 0, so that first derivatives of whatever does not depend on the choice of these vectors are
right, and those of higher order leave these terms out.

Sources: Murray 2016, arXiv:1602.07527; Giles 2008, "Collected matrix derivative results"; Walter & Lehmann 2010,
arXiv:1001.1654.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..op import Op
from ..trace import HANDLERS, Namespace, module_of, raw
from .completion import completed
from .index import getitem
from .join import concatenate
from .linalg import _solve
from .matmul import matmul
from .matrices import (
    check_matrix,
    diagonal_of,
    from_lower,
    half_lower,
    inverse_gaps,
    matrices_batch,
    mt,
    on_diagonal,
    onto_lower,
    result_class,
)
from .shape import swapaxes


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
def _read(xp: Any, x: Any, uplo: str) -> Any:
    """The symmetric matrices that one triangle of x gives."""
    return from_lower(xp, x if uplo == "L" else mt(xp, x))


def _eigh_forward(xp: Any, a: Any, *, uplo: str) -> tuple:
    w, v = _eigh(a, uplo=uplo) if type(xp) is Namespace else xp.linalg.eigh(a, uplo)
    return (w, v), (w, v)


def _eigh_vjp(xp: Any, saved: tuple, dy: tuple, need: tuple, *, uplo: str) -> tuple:
    w, v = saved
    vt = mt(xp, v)
    m = on_diagonal(xp, dy[0]) + inverse_gaps(xp, w) * xp.matmul(vt, dy[1])
    da = onto_lower(xp, xp.matmul(v, xp.matmul(m, vt)))
    return (da if uplo == "L" else mt(xp, da),)


def _eigh_jvp(xp: Any, saved: tuple, dx: tuple, *, uplo: str) -> tuple:
    w, v = saved
    s = xp.matmul(mt(xp, v), xp.matmul(_read(xp, dx[0], uplo), v))
    return diagonal_of(xp, s), xp.matmul(v, inverse_gaps(xp, w) * s)


_eigh = Op(
    "eigh",
    check=lambda a, *, uplo: check_matrix("eigh", a, square=True),
    forward=_eigh_forward,
    vjp=_eigh_vjp,
    jvp=_eigh_jvp,
    batch=matrices_batch("eigh", 1, 2),
)


def eigh(a: Any, UPLO: str = "L") -> Any:
    """Eigenvalues (ascending) and eigenvectors (columns) of the symmetric matrices given by one triangle."""
    if str(UPLO).upper() not in ("L", "U"):
        raise ValueError(f'eigh: expected UPLO "L" or "U", got {UPLO!r}')
    return result_class("eigh")(*_eigh(a, uplo=UPLO.upper()))


def eigvalsh(a: Any, UPLO: str = "L") -> Any:
    return eigh(a, UPLO)[0]


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
        q = completed(q, a, "qr")
        r = concatenate([r, module_of(raw(a)).zeros((*a.shape[:-2], m - n, n), a.dtype)], -2)
    return result_class("qr")(q, r)


HANDLERS.update(
    {
        np.linalg.cholesky: cholesky,
        np.linalg.eigh: eigh,
        np.linalg.eigvalsh: eigvalsh,
        np.linalg.qr: qr,
    }
)
