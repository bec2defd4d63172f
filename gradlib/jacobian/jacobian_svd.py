"""The largest singular values and vectors of a Jacobian that is never formed."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np

from ..precision import wide
from ..transforms import pick, run
from .operator import JacobianOperator, is_traced
from .sides import entries

DENSE = 64  # up to this many rows or columns the matrix is formed
TIE = 1 - 1e-3  # magnitudes that close to the largest are equal but for rounding


def jacobian_svd(f: Callable[..., Any], argnums: int | tuple[int, ...] = 0, *, k: int | None = None) -> Any:
    """Function that gives the k largest singular values of ∂f/∂x and their vectors: (u (M, k), s (k,), vt (k, N)).

    M entries of f(x), N entries of the arguments `argnums` names, pytrees flattened as in `gl.JacobianOperator`;
    k from 1 to min(M, N), all of them where it is None; s descends. The first entry of each row of vt whose magnitude
    is, but for 0.1 %, the row's largest is positive. float32 and float64 stay what they are; float16 and bfloat16 give
    float32.

    Where min(M, N) is at most 64, or k more than a quarter of it, the matrix is formed and handed to LAPACK. Otherwise
    Lanczos (SciPy's `eigsh`, or CuPy's) finds the leading subspace X of JᵀJ, or of JJᵀ where that is smaller, by
    products alone, and the decomposition is that of J X, so that it needs memory for k vectors. It starts from a fixed
    vector: equal calls give equal results.

    Raises TypeError inside another transform or capture: there take np.linalg.svd(gl.jacobian(f)(x)), which can be
    differentiated; ValueError for k out of range; scipy's ArpackNoConvergence where singular values lie so close that
    Lanczos does not part them (larger k, or all, does).

    Source: Golub & Kahan 1965, "Calculating the singular values and pseudo-inverse of a matrix".

    >>> import gradlib as gl, numpy as np
    >>> u, s, vt = gl.jacobian_svd(lambda x: np.array([2.0, 1.0, 5.0]) * x, k=2)(np.ones(3))
    >>> s, vt
    (array([5., 2.]), array([[0., 0., 1.],
           [1., 0., 0.]]))
    """
    name = "jacobian_svd"
    if k is not None and (not isinstance(k, (int, np.integer)) or k < 1):
        raise ValueError(f"{name}: expected k a positive int or None, got {k!r}")

    @wraps(f)
    def wrapped(*args: Any, **kwargs: Any) -> tuple[Any, Any, Any]:
        of_chosen, primals = pick(f, argnums, args, kwargs, name)
        inside, outputs, _ = run(name, of_chosen, primals)
        if is_traced(inside, outputs):
            raise TypeError(
                f"{name}: cannot be differentiated or captured; there take np.linalg.svd of gl.jacobian(f)(x)"
            )
        rank = min(entries(outputs.values), entries(inside.leaves))
        if k is not None and k > rank:
            raise ValueError(f"{name}: expected k at most min(M, N) = {rank}, got {k}")
        return largest(JacobianOperator.over(inside, outputs), rank if k is None else int(k))

    return wrapped


def largest(operator: JacobianOperator, k: int) -> tuple[Any, Any, Any]:
    """The k largest singular triplets (u, s, vt), signs fixed."""
    m, n = operator.shape
    if m >= n:
        u, s, vt = _of_tall(operator, k)
    else:
        v, s, ut = _of_tall(operator.T, k)
        u, vt = ut.T, v.T
    sign = _signs(operator.module, vt)
    return u * sign, s, vt * sign[:, None]


def _of_tall(operator: JacobianOperator, k: int) -> tuple[Any, Any, Any]:
    """(u, s, vt) of an operator with no more columns than rows, from an SVD of J X."""
    linalg, n = operator.module.linalg, operator.shape[1]
    if n <= DENSE or 4 * k > n:
        u, s, vt = linalg.svd(wide(operator.to_dense()), full_matrices=False)
        return u[:, :k], s[:k], vt[:k]
    x = _leading(operator, k)
    u, s, w = linalg.svd(wide(operator.matmat(x)), full_matrices=False)
    return u, s, w @ x.T


def _leading(operator: JacobianOperator, k: int) -> Any:
    """An orthonormal basis (N, k) of the leading eigenvectors of JᵀJ."""
    xp, n = operator.module, operator.shape[1]
    if xp is np:
        from scipy.sparse.linalg import LinearOperator, eigsh
    else:
        from cupyx.scipy.sparse.linalg import LinearOperator, eigsh
    j = operator.to_scipy()
    start = xp.asarray(np.random.default_rng(0).standard_normal(n).astype(j.dtype))
    if not bool((j.matvec(start) != 0).any()):  # almost surely J = 0, which ARPACK refuses
        return xp.eye(n, k, dtype=j.dtype)
    gram = LinearOperator((n, n), matvec=lambda v: j.rmatvec(j.matvec(v)), dtype=j.dtype)
    return eigsh(gram, k=k, which="LA", v0=start)[1]


def _signs(xp: Any, vt: Any) -> Any:
    """The sign of the first of the largest entries of each row."""
    if not vt.shape[0]:
        return xp.ones((0,), vt.dtype)
    size = abs(vt)
    first = (size >= TIE * size.max(axis=1, keepdims=True)).argmax(axis=1)
    return 1 - 2 * (xp.take_along_axis(vt, first[:, None], 1)[:, 0] < 0).astype(vt.dtype)
