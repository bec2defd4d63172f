"""Sparse rows: the three products of one trilinear form, each the derivative of the others.

With S = S(data) the (B, K) matrix in CSR form (data, indices, indptr) and row(j) the row of entry j:

    csr_product     z = S @ w                        (B, N) from data, w (K, N)
    csr_transposed  t = Sᵀ @ z                       (K, N) from data, z (B, N)
    csr_dots        r_j = z[row(j)] · w[indices[j]]  (nnz,) from z, w

⟨z, S(data) w⟩ is linear in each of data, w and z; its three partials are these ops.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from .. import tree
from ..op import Op, describe, total
from ..precision import is_narrow, wide
from ..segment_sum import segment_sum
from ..trace import Namespace


class Pattern:
    """Where the entries of sparse rows stand: column indices (nnz,), indptr (B + 1,), shape (B, K)."""

    def __init__(self, indices: Any, indptr: Any, shape: tuple[int, int]) -> None:
        self.indices, self.indptr, self.shape = indices, indptr, shape

    # equal where it is made of the same arrays, so that one matrix has one pattern however often it is wrapped
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pattern) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple:
        return id(self.indices), id(self.indptr), self.shape


class CSR:
    """Sparse rows whose entries can be differentiated: a pytree with one leaf, `data` (nnz,).

    `gl.grad(f)(CSR.from_scipy(x))` is a CSR with the same pattern and the derivative of every stored entry.

    >>> import gradlib as gl, scipy.sparse as sp
    >>> x = gl.CSR.from_scipy(sp.csr_array([[0.0, 2.0], [3.0, 0.0]]))
    >>> x.shape, x.data
    ((2, 2), array([2., 3.]))
    """

    def __init__(self, data: Any, pattern: Pattern) -> None:
        self.data, self.pattern = data, pattern

    @classmethod
    def from_scipy(cls, x: Any) -> CSR:
        """From a scipy.sparse or cupyx.scipy.sparse CSR matrix; arrays are shared, not copied."""
        if not is_sparse(x) or x.format != "csr":
            raise TypeError(f"CSR: expected a sparse matrix in CSR format, got {getattr(x, 'format', describe(x))}")
        return cls(x.data, Pattern(x.indices, x.indptr, tuple(x.shape)))

    @property
    def shape(self) -> tuple[int, int]:
        return self.pattern.shape

    def moved(self, move: Callable[[Any], Any]) -> CSR:
        """With every array passed through `move`: how `gl.to_device` takes it to another device."""
        p = self.pattern
        return CSR(move(self.data), Pattern(move(p.indices), move(p.indptr), p.shape))

    def to_scipy(self) -> Any:
        """As a scipy.sparse CSR array (data of NumPy only)."""
        import scipy.sparse as sp

        return sp.csr_array((self.data, self.pattern.indices, self.pattern.indptr), shape=self.shape)


tree.register(CSR, lambda x: ((x.data,), x.pattern), lambda pattern, children: CSR(children[0], pattern))


def is_sparse(x: Any) -> bool:
    """Whether x is a sparse matrix of SciPy's or CuPy's (found without importing either)."""
    return hasattr(x, "format") and hasattr(x, "nnz") and hasattr(x, "tocsr")


def row_of_entry(xp: Any, indptr: Any) -> Any:
    """(nnz,) the row of each stored entry."""
    return xp.repeat(xp.arange(indptr.shape[0] - 1), indptr[1:] - indptr[:-1])


def _matrix(data: Any, indices: Any, indptr: Any, width: int) -> Any:
    import scipy.sparse as sp

    return sp.csr_array((data, indices, indptr), shape=(indptr.shape[0] - 1, width))


def _sum_rows(xp: Any, terms: Any, at: Any, rows: int) -> Any:
    """out[at[j]] += terms[j] in a fixed order: terms (nnz, N) -> (rows, N)."""
    return segment_sum(xp, terms.T, at, xp.zeros((terms.shape[1], rows), terms.dtype)).T


def _by_scipy(f: Any, data: Any, x: Any) -> Any:
    """f(data, x); float16 and bfloat16, which SciPy's sparse matrices do not take, by way of float32."""
    dtype = np.result_type(data.dtype, x.dtype)
    return f(wide(data), wide(x)).astype(dtype) if is_narrow(dtype) else f(wide(data), wide(x))


def _product(xp: Any, data: Any, indices: Any, indptr: Any, w: Any) -> Any:
    if xp is np:
        return _by_scipy(lambda d, x: _matrix(d, indices, indptr, w.shape[0]) @ x, data, w)
    return _sum_rows(xp, data[:, None] * w[indices], row_of_entry(xp, indptr), indptr.shape[0] - 1)


def _transposed(xp: Any, data: Any, indices: Any, indptr: Any, z: Any, width: int) -> Any:
    if xp is np:
        return _by_scipy(lambda d, x: _matrix(d, indices, indptr, width).T @ x, data, z)
    return _sum_rows(xp, data[:, None] * z[row_of_entry(xp, indptr)], indices, width)


def _dots(xp: Any, z: Any, w: Any, indices: Any, indptr: Any) -> Any:
    return total(xp, z[row_of_entry(xp, indptr)] * w[indices], -1)


def _fold(xp: Any, d: Any) -> Any:
    """[V, n, N] as (n, V N): the stack rides along as further columns."""
    return xp.reshape(xp.moveaxis(d, 0, 1), (d.shape[1], d.shape[0] * d.shape[2]))


def _unfold(xp: Any, y: Any, v: int, n: int) -> Any:
    return xp.moveaxis(xp.reshape(y, (y.shape[0], v, n)), 1, 0)


def _each(xp: Any, f: Any, stack: Any, shape: tuple, dtype: Any) -> Any:
    """f of every member of a stack, stacked: for tangents of the data, which are rare."""
    return xp.stack([f(stack[v]) for v in range(stack.shape[0])]) if stack.shape[0] else xp.zeros((0, *shape), dtype)


# On traced arrays each op is recorded one level down as itself.
def _product_forward(xp: Any, data: Any, indices: Any, indptr: Any, w: Any) -> tuple:
    product = csr_product if type(xp) is Namespace else partial(_product, xp)
    return product(data, indices, indptr, w), (data, indices, indptr, w)


def _product_vjp(xp: Any, saved: tuple, dz: Any, need: tuple) -> tuple:
    data, indices, indptr, w = saved
    return (
        stacked_dots(xp, dz, w, indices, indptr) if need[0] else None,
        None,
        None,
        stacked_transposed(xp, data, indices, indptr, dz, w.shape[0]) if need[3] else None,
    )


def product_jvp(xp: Any, saved: tuple, dx: tuple) -> Any:
    """S(ddata) @ w + S @ dw, for stacks of either."""
    data, indices, indptr, w = saved
    total = stacked_product(xp, data, indices, indptr, dx[3]) if dx[3] is not None else None
    if dx[0] is not None:
        shape = (indptr.shape[0] - 1, w.shape[1])
        part = _each(xp, lambda d: csr_product(d, indices, indptr, w), dx[0], shape, w.dtype)
        total = part if total is None else total + part
    return total


def _transposed_forward(xp: Any, data: Any, indices: Any, indptr: Any, z: Any, *, width: int) -> tuple:
    transposed = csr_transposed if type(xp) is Namespace else partial(_transposed, xp)
    return transposed(data, indices, indptr, z, width=width), (data, indices, indptr, z)


def _transposed_vjp(xp: Any, saved: tuple, dt: Any, need: tuple, *, width: int) -> tuple:
    data, indices, indptr, z = saved
    dots = None
    if need[0]:
        dots = _each(xp, lambda d: csr_dots(z, d, indices, indptr), dt, indices.shape, z.dtype)
    dz = stacked_product(xp, data, indices, indptr, dt) if need[3] else None
    return dots, None, None, dz


def _transposed_jvp(xp: Any, saved: tuple, dx: tuple, *, width: int) -> Any:
    data, indices, indptr, z = saved
    total = stacked_transposed(xp, data, indices, indptr, dx[3], width) if dx[3] is not None else None
    if dx[0] is not None:
        shape = (width, z.shape[1])
        part = _each(xp, lambda d: csr_transposed(d, indices, indptr, z, width=width), dx[0], shape, z.dtype)
        total = part if total is None else total + part
    return total


def _dots_forward(xp: Any, z: Any, w: Any, indices: Any, indptr: Any) -> tuple:
    dots = csr_dots if type(xp) is Namespace else partial(_dots, xp)
    return dots(z, w, indices, indptr), (z, w, indices, indptr)


def _dots_vjp(xp: Any, saved: tuple, dr: Any, need: tuple) -> tuple:
    z, w, indices, indptr = saved
    dz = dw = None
    if need[0]:
        dz = _each(xp, lambda d: csr_product(d, indices, indptr, w), dr, z.shape, z.dtype)
    if need[1]:
        dw = _each(xp, lambda d: csr_transposed(d, indices, indptr, z, width=w.shape[0]), dr, w.shape, w.dtype)
    return dz, dw, None, None


def _dots_jvp(xp: Any, saved: tuple, dx: tuple) -> Any:
    z, w, indices, indptr = saved
    total = stacked_dots(xp, dx[0], w, indices, indptr) if dx[0] is not None else None
    if dx[1] is not None:
        part = _each(xp, lambda d: csr_dots(z, d, indices, indptr), dx[1], indices.shape, w.dtype)
        total = part if total is None else total + part
    return total


csr_product = Op("csr_product", forward=_product_forward, vjp=_product_vjp, jvp=product_jvp)
csr_transposed = Op("csr_transposed", forward=_transposed_forward, vjp=_transposed_vjp, jvp=_transposed_jvp)
csr_dots = Op("csr_dots", forward=_dots_forward, vjp=_dots_vjp, jvp=_dots_jvp)


def stacked_product(xp: Any, data: Any, indices: Any, indptr: Any, dw: Any) -> Any:
    """S @ dw[v] for dw [V, K, N] -> [V, B, N]."""
    y = csr_product(data, indices, indptr, _fold(xp, dw))
    return _unfold(xp, y, dw.shape[0], dw.shape[2])


def stacked_transposed(xp: Any, data: Any, indices: Any, indptr: Any, dz: Any, width: int) -> Any:
    """Sᵀ @ dz[v] for dz [V, B, N] -> [V, K, N]."""
    t = csr_transposed(data, indices, indptr, _fold(xp, dz), width=width)
    return _unfold(xp, t, dz.shape[0], dz.shape[2])


def stacked_dots(xp: Any, dz: Any, w: Any, indices: Any, indptr: Any) -> Any:
    """csr_dots of every dz[v]: [V, B, N] -> [V, nnz]."""
    return _each(xp, lambda d: csr_dots(d, w, indices, indptr), dz, indices.shape, w.dtype)
