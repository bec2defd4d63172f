"""Linear layers: y = act(x @ w + b) for dense x by BLAS and for sparse (CSR) x without densifying.

    z = x @ w + b, y = act(z)        dz = dy act'(z)
    dx = dz @ wᵀ     dw = xᵀ @ dz     db = Σ dz over all leading axes

Saved are z or y, whichever act' needs. One op for product, bias and activation: one record, and one fused epilogue.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from ..device import adopt
from ..jacobian.blocks import ByRules, Kronecker, RepeatedDiagonal, SharedDense
from ..jacobian.factors import Outer, Rows, rows_by_sample
from ..op import Op, describe, shape_of, total
from ..precision import is_floating, narrow, wide
from ..trace import Namespace, Traced
from .activations import ACTIVATIONS, activate, slope
from .batching import Mixed
from .csr import CSR, csr_product, is_sparse, product_jvp, stacked_dots, stacked_transposed
from .matmul import factors, multiplied, product, weight_cotangent


def _finish(xp: Any, z: Any, b: Any, activation: str | None) -> tuple[Any, Any, Any]:
    """(y, z or None, y or None): bias and activation applied to the product, in place where it is plain memory."""
    plain = type(xp) is not Namespace and type(b) is not Traced
    if b is not None:
        z = xp.add(z, b, out=z) if plain and (z.dtype == b.dtype or z.dtype == xp.result_type(z, b)) else z + b
    if activation is None:
        return z, None, None
    y = activate(xp, activation, z, reuse=plain)
    return (y, None, y) if ACTIVATIONS[activation].from_output else (y, z, y)


def _dz(xp: Any, dy: Any, z: Any, y: Any, activation: str | None) -> Any:
    if dy.dtype.itemsize == 2:
        return narrow(_dz(xp, wide(dy), wide(z), wide(y), activation), dy.dtype)
    return dy if activation is None else dy * slope(xp, activation, z, y)


def _kept(dtype: Any, y: Any, z: Any, kept: Any) -> tuple[Any, Any, Any]:
    """The results of `_finish` in `dtype`, what is one array staying one."""
    done = narrow(y, dtype)
    return done, z if z is None else narrow(z, dtype), done if kept is y else kept


def _bias_cotangent(xp: Any, dz: Any) -> Any:
    """Σ dz over the rows. BLAS adds a matrix's rows up in half of the time that NumPy's sum takes."""
    if dz.ndim == 3 and xp is np and dz.dtype.itemsize > 2:
        return np.matmul(_ones(dz.shape[1], dz.dtype), dz)
    return total(xp, dz, tuple(range(1, dz.ndim - 1))) if dz.ndim > 2 else dz


@lru_cache(maxsize=8)
def _ones(n: int, dtype: Any) -> np.ndarray:
    return np.ones(n, dtype)


def _forward(xp: Any, x: Any, w: Any, b: Any = None, *, activation: str | None) -> tuple:
    if x.dtype.itemsize == 2 or w.dtype.itemsize == 2:
        dtype = xp.result_type(*[a.dtype for a in (x, w, b) if a is not None])
        y, z, kept = _kept(dtype, *_finish(xp, wide(product(xp, *factors(xp, x, w))), b, activation))
    else:
        y, z, kept = _finish(xp, product(xp, x, w), b, activation)
    return y, (x, w, b, z, kept)


def _vjp(xp: Any, saved: tuple, dy: Any, need: tuple, *, activation: str | None) -> tuple:
    x, w, _, z, y = saved
    dz = _dz(xp, dy, z, y, activation)
    dx = multiplied(xp, dz, w.T) if need[0] else None
    dw = weight_cotangent(xp, x, dz) if need[1] else None
    db = _bias_cotangent(xp, dz) if len(need) > 2 and need[2] else None
    return (dx, dw, db)[: len(need)]


def _jvp(xp: Any, saved: tuple, dx: tuple, *, activation: str | None) -> Any:
    x, w, _, z, y = saved
    return _dz(xp, tangent(xp, x, w, dx), z, y, activation)


def tangent(xp: Any, x: Any, w: Any, dx: tuple) -> Any:
    """The tangents of x w + b, of those of x, w and b."""
    parts = []
    if dx[0] is not None:
        parts.append(multiplied(xp, dx[0], w))
    if dx[1] is not None:
        parts.append(multiplied(xp, x, dx[1] if x.ndim == 2 else _lift_weight(xp, dx[1], x.ndim)))
    if len(dx) > 2 and dx[2] is not None:
        shape = (dx[2].shape[0], *(1,) * (x.ndim - 1), w.shape[1])
        parts.append(xp.broadcast_to(xp.reshape(dx[2], shape), (shape[0], *x.shape[:-1], w.shape[1])))
    dz = parts[0]
    for part in parts[1:]:
        dz = dz + part
    return dz


def _lift_weight(xp: Any, dw: Any, ndim: int) -> Any:
    return xp.reshape(dw, (dw.shape[0], *(1,) * (ndim - 2), *dw.shape[1:]))


def _vjp_each(xp: Any, saved: tuple, dy: Any, need: tuple, axis: int, *, activation: str | None) -> tuple:
    """Per-sample cotangents of w and b: dw_b = Σ_r x_br dz_brᵀ and db_b = Σ_r dz_br over the rows of a sample."""
    x, w, _, z, y = saved
    rows = rows_by_sample(_dz(xp, dy, z, y, activation), axis, 1)
    dw = Outer(rows_by_sample(x, axis, 0), rows) if need[1] else None
    db = Rows(total(xp, rows, 2) if rows.shape[2] != 1 else rows[:, :, 0]) if len(need) > 2 and need[2] else None
    return (None, dw, db)[: len(need)]


def _block(xp: Any, saved: tuple, i: int, *, activation: str | None) -> Any:
    x, w, _, z, y = saved
    d = None if activation is None else slope(xp, activation, z, y)
    if i == 0:
        return SharedDense(w, x.shape[:-1], d)
    if i == 1:
        return Kronecker(x, w.shape[1], d)
    return RepeatedDiagonal(w, (*x.shape[:-1], w.shape[1]), d)


def _batch(tags: tuple, shapes: tuple, static: dict) -> Any:
    if any(tags[1:]):
        return Mixed("linear", "takes weights that differ between samples; use np.einsum for them")
    if tags[0] and tags[0].axis == -1:
        return Mixed("linear", "sums over the batch axis")
    return tags[0]


_linear = Op(
    "linear",
    forward=_forward,
    vjp=_vjp,
    jvp=_jvp,
    vjp_each=_vjp_each,
    block=_block,
    batch=_batch,
    reads=((1, 2, 3, 4), (0, 1, 2, 3, 4), (1, 2, 3, 4)),  # parameters live on anyway: x alone is worth leaving out
)


# Sparse x: B rows given by data (nnz,), column indices (nnz,) and indptr (B + 1,).
def _csr_forward(
    xp: Any, data: Any, indices: Any, indptr: Any, w: Any, b: Any = None, *, activation: str | None
) -> tuple:
    y, z, kept = _finish(xp, csr_product(data, indices, indptr, w), b, activation)
    return y, (data, indices, indptr, w, b, z, kept)


def _csr_vjp(xp: Any, saved: tuple, dy: Any, need: tuple, *, activation: str | None) -> tuple:
    data, indices, indptr, w, _, z, y = saved
    dz = _dz(xp, dy, z, y, activation)
    ddata = stacked_dots(xp, dz, w, indices, indptr) if need[0] else None
    dw = stacked_transposed(xp, data, indices, indptr, dz, w.shape[0]) if need[3] else None
    db = _bias_cotangent(xp, dz) if len(need) > 4 and need[4] else None
    return (ddata, None, None, dw, db)[: len(need)]


def _csr_jvp(xp: Any, saved: tuple, dx: tuple, *, activation: str | None) -> Any:
    *pattern, w, _, z, y = saved
    dz = None if dx[0] is None and dx[3] is None else product_jvp(xp, (*pattern, w), dx[:4])
    return _dz(xp, sparse_tangent(xp, dz, pattern[2], w, dx[4:]), z, y, activation)


def sparse_tangent(xp: Any, dz: Any, indptr: Any, w: Any, db: tuple) -> Any:
    """The tangents of S w + b, of dz, those of S w, and those of b: (), (None,) or (db,)."""
    if not db or db[0] is None:
        return dz
    rows = xp.expand_dims(db[0], 1)
    return xp.broadcast_to(rows, (rows.shape[0], indptr.shape[0] - 1, w.shape[1])) if dz is None else dz + rows


def _csr_block(xp: Any, saved: tuple, i: int, *, activation: str | None) -> Any:
    """Of data, w and b: the sparse products themselves, since their structure is the pattern's."""
    data, _, indptr, w, b, _, _ = saved
    shape = {0: data.shape, 3: w.shape, 4: w.shape[1:]}.get(i)
    if shape is None:
        return None
    count = 4 if b is None else 5
    need = tuple(j == i for j in range(count))
    return ByRules(
        w,
        (shape, (indptr.shape[0] - 1, w.shape[1])),
        lambda dy: _csr_vjp(xp, saved, dy, need, activation=activation)[i],
        lambda dx: _csr_jvp(xp, saved, tuple(dx if n else None for n in need), activation=activation),
    )


_csr_linear = Op("csr_linear", forward=_csr_forward, vjp=_csr_vjp, jvp=_csr_jvp, block=_csr_block)


def linear(x: Any, w: Any, b: Any = None, *, activation: str | None = None) -> Any:
    """act(x @ w + b): x (..., K) dense, or sparse rows (B, K) as a CSR matrix of SciPy's or CuPy's or `gl.CSR`.

    w: (K, N). b: (N,) or None. `activation`: None or one of "relu", "sigmoid", "tanh", "silu", "softplus", "gelu",
    "gelu_tanh", "elu", "leaky_relu" (with their default parameters), fused with the bias. Returns (..., N).
    A SciPy matrix is data without derivative; a `gl.CSR` gives the derivative of each stored entry.

    Raises TypeError for other dtypes and formats, ValueError for shapes that do not fit.

    >>> import gradlib as gl, numpy as np
    >>> gl.linear(np.ones((2, 3)), np.ones((3, 1)), np.array([-4.0]), activation="relu")
    array([[0.],
           [0.]])
    """
    sparse = type(x) not in _DENSE and (is_sparse(x) or isinstance(x, CSR))
    x, w, b = adopt(x), adopt(w), adopt(b)
    _check(x, w, b, activation, sparse)
    bias = () if b is None else (b,)
    if sparse:
        x = x if isinstance(x, CSR) else CSR.from_scipy(x)
        pattern = x.pattern
        return _csr_linear(x.data, pattern.indices, pattern.indptr, w, *bias, activation=activation)
    return _linear(x, w, *bias, activation=activation)


_DENSE = (np.ndarray, Traced)


def _check(x: Any, w: Any, b: Any, activation: str | None, sparse: bool) -> None:
    if activation is not None and activation not in ACTIVATIONS:
        raise ValueError(f"linear: expected activation None or one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    for name, a in (("x", x.data if sparse else x), ("w", w), ("b", b)):
        if a is not None and (not hasattr(a, "dtype") or not is_floating(a.dtype)):
            raise TypeError(f"linear: expected floating-point {name}, got {describe(a)}")
    k = shape_of(x)[-1:]
    if len(shape_of(w)) != 2 or not k or k[0] != w.shape[0] or (sparse and len(x.shape) != 2):
        raise ValueError(f"linear: expected x (..., K) and w (K, N), got {_name(x)} and {describe(w)}")
    if b is not None and shape_of(b) != w.shape[1:]:
        raise ValueError(f"linear: expected b of shape {w.shape[1:]} for w {describe(w)}, got {describe(b)}")


def _name(x: Any) -> str:
    return f"sparse {x.data.dtype}{list(x.shape)}" if is_sparse(x) or isinstance(x, CSR) else describe(x)
