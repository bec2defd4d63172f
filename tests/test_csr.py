"""The three sparse products against dense ones; CSR as a pytree."""

import numpy as np
import pytest
import scipy.sparse as sp
from rulecheck import Case, RuleCheck, close, randn

import gradlib as gl
from gradlib import tree
from gradlib.op import REGISTRY


def _rows(b, k, nnz, seed=0):
    rng = np.random.default_rng(seed)
    x = sp.coo_array(
        (rng.standard_normal(nnz), (rng.integers(0, max(b, 1), nnz), rng.integers(0, max(k, 1), nnz))), (b, k)
    )
    return x.tocsr()


#: rows, columns, entries, width: ordinary, an empty matrix, no rows, one of everything, no width
SIZES = [(3, 4, 6, 2), (2, 3, 0, 2), (0, 3, 0, 2), (1, 1, 1, 1), (3, 4, 5, 0)]


def _cases(b, k, nnz, n):
    x = _rows(b, k, nnz)
    pattern = (x.indices, x.indptr)
    return [
        Case(REGISTRY["csr_product"], (x.data, *pattern, randn(k, n))),
        Case(REGISTRY["csr_transposed"], (x.data, *pattern, randn(b, n)), width=k),
        Case(REGISTRY["csr_dots"], (randn(b, n), randn(k, n, seed=1), *pattern)),
    ]


CASES = [case for size in SIZES for case in _cases(*size)]
ERRORS = [
    (lambda: gl.CSR.from_scipy(sp.coo_array(np.eye(2))), TypeError, "CSR: expected a sparse matrix … got coo"),
    (lambda: gl.CSR.from_scipy(np.eye(2)), TypeError, "CSR: expected a sparse matrix … got float64[2, 2]"),
]


class TestRules(RuleCheck):
    cases = CASES
    errors = ERRORS


def test_products_are_the_dense_ones():
    x, w, z = _rows(5, 7, 12), randn(7, 3), randn(5, 3)
    close(REGISTRY["csr_product"](x.data, x.indices, x.indptr, w), x.toarray() @ w, 1e-14)
    close(REGISTRY["csr_transposed"](x.data, x.indices, x.indptr, z, width=7), x.toarray().T @ z, 1e-14)
    close(REGISTRY["csr_dots"](z, w, x.indices, x.indptr), (z @ w.T)[x.tocoo().coords], 1e-14)


def test_repeated_entries_count_each():
    data, indices, indptr = np.array([1.0, 2.0]), np.array([1, 1]), np.array([0, 2])
    w = randn(2, 3)
    close(REGISTRY["csr_product"](data, indices, indptr, w), 3 * w[1:], 1e-15)
    assert gl.grad(lambda d: np.sum(REGISTRY["csr_product"](d, indices, indptr, np.ones((2, 1)))))(data).tolist() == [
        1,
        1,
    ]


def test_csr_is_a_pytree_of_its_entries():
    x = gl.CSR.from_scipy(_rows(3, 4, 5))
    leaves, structure = tree.flatten({"x": x})
    assert len(leaves) == 1 and leaves[0] is x.data
    again = tree.unflatten(structure, [2 * x.data])["x"]
    assert again.shape == (3, 4)
    np.testing.assert_allclose(again.to_scipy().toarray(), 2 * x.to_scipy().toarray())


@pytest.mark.parametrize("f", [gl.jacfwd, gl.jacrev])
def test_jacobian_by_entries(f):
    x, w = _rows(3, 4, 5), randn(4, 2)
    rows = x.tocoo().coords[0]
    want = np.zeros((3, 2, x.nnz))
    for j, (row, column) in enumerate(zip(rows, x.indices, strict=True)):
        want[row, :, j] = w[column]
    close(f(lambda x: gl.linear(x, w))(gl.CSR.from_scipy(x)).data, want, 1e-14)


def test_a_sparse_vector_is_refused():
    with pytest.raises(ValueError, match=r"linear: expected x .* got sparse float64\[3\]"):
        gl.linear(sp.csr_array(np.ones(3)), np.ones((3, 2)))
