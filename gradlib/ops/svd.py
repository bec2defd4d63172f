"""The singular value decomposition a = u s vᵀ, of matrices on the last two axes, in float32 or float64.

With p = uᵀ da v = p⁺ + p⁻ (symmetric and antisymmetric), E_ij = 1 / (s_j - s_i) and H_ij = 1 / (s_j + s_i):

    ds = diag p        du = u (E ∘ p⁺ + H ∘ p⁻) + (1 - u uᵀ) da v / s
                       dv = v (E ∘ p⁺ - H ∘ p⁻) + (1 - v vᵀ) daᵀ u / s

Conventions: singular vectors of equal singular values are not determined: the terms that would turn them into each
other are 0 (and 1/s at s = 0), so that first derivatives of whatever does not depend on the choice of these vectors,
the polar factor u vᵀ too, are right, and those of higher order leave these terms out.

Source: Townsend 2016, "Differentiating the singular value decomposition", with its F split into E and H.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..op import Op
from ..trace import HANDLERS, Namespace
from .completion import completed
from .decompositions import eigh
from .elementwise import absolute
from .matrices import check_matrix, diagonal_of, inverse_gaps, matrices_batch, mt, on_diagonal, result_class
from .picking import take_along_axis
from .shape import expand_dims, flip, swapaxes


def _svd_forward(xp: Any, a: Any) -> tuple:
    y = tuple(_svd(a) if type(xp) is Namespace else xp.linalg.svd(a, full_matrices=False))
    return y, y


def _svd_parts(xp: Any, saved: tuple) -> tuple:
    """u, uᵀ, vᵀ, v, E, H and 1/s (0 for s = 0): E_ij = 1 / (s_j - s_i), H_ij = 1 / (s_j + s_i)."""
    u, s, vt = saved
    zero = xp.equal(s, 0)
    inverse = xp.where(zero, 0, 1 / xp.where(zero, 1, s))
    return u, mt(xp, u), vt, mt(xp, vt), inverse_gaps(xp, s), inverse_gaps(xp, s, 1), inverse


def _outside(xp: Any, u: Any, ut: Any, x: Any) -> Any:
    """(1 - u uᵀ) x."""
    return x - xp.matmul(u, xp.matmul(ut, x))


def _svd_jvp(xp: Any, saved: tuple, dx: tuple) -> tuple:
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


def svd(a: Any, full_matrices: bool = True, compute_uv: bool = True, hermitian: bool = False) -> Any:
    """(u, s, vᵀ), or s alone; `hermitian`: by the eigenvalues of the lower triangle."""
    check_matrix("svd", a, square=hermitian)
    if hermitian:
        return _svd_hermitian(a, compute_uv)
    u, s, vt = _svd(a)
    if not compute_uv:
        return s
    m, n = a.shape[-2:]
    if full_matrices and m > n:
        u = completed(u, a, "svd")
    if full_matrices and m < n:
        vt = swapaxes(completed(swapaxes(vt, -1, -2), a, "svd"), -1, -2)
    return result_class("svd")(u, s, vt)


def _svd_hermitian(a: Any, compute_uv: bool) -> Any:
    """u = v, s = |w| and vᵀ with the signs of w, in descending order."""
    w, v = eigh(a)
    order = flip(HANDLERS[np.argsort](absolute(w)), -1)
    w = take_along_axis(w, order)
    s = absolute(w)
    if not compute_uv:
        return s
    u = take_along_axis(v, expand_dims(order, -2))
    return result_class("svd")(u, s, swapaxes(u * expand_dims(HANDLERS[np.sign](w), -2), -1, -2))


def svdvals(x: Any, /) -> Any:
    return svd(x, compute_uv=False)


HANDLERS.update({np.linalg.svd: svd, np.linalg.svdvals: svdvals})
