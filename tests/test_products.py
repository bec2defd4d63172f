"""Matrix powers and chains, vecdot and its kin, ufunc.outer, np.linalg's twins, einsum by axis numbers."""

import numpy as np
import pytest
from functioncheck import check
from rulecheck import RuleCheck, close, randn

import gradlib as gl
from gradlib.ops.products import _cuts

X, A = randn(3, 4), 0.4 * randn(3, 3) + np.eye(3)
CALLS = {
    "matrix_power": (lambda a: np.linalg.matrix_power(a, 5) + np.linalg.matrix_power(a, 1), A),
    "matrix_power negative": (lambda a: np.linalg.matrix_power(a[None], -3), A),
    "matrix_power zero": (lambda a: np.linalg.matrix_power(a, 0), A),
    "multi_dot": (lambda a: np.linalg.multi_dot([a[0], a, a[:, :2], a[:2], a[1]]), A),
    "multi_dot two": (lambda a: np.linalg.multi_dot([a, np.ones((3, 2))]), A),
    "multi_dot vector": (lambda a: np.linalg.multi_dot([a, a, a[0]]), A),
    "vecdot": (lambda x: np.vecdot(x, x[0] ** 2) + np.linalg.vecdot(x, x**2), X),
    "vecdot axis": (lambda x: np.vecdot(x, x**2, axis=0) + np.linalg.vecdot(x, x, axis=0), X),
    "outer": (lambda x: np.subtract.outer(x, x[0]) + np.multiply.outer(x, x[1]) * np.maximum.outer(x, x[2]), X),
    "outer list": (lambda x: np.add.outer([1.0, 2.0], x), X),
    "linalg": (
        lambda a: (
            np.linalg.outer(a[0], a[1]) + np.linalg.matmul(a, a) + np.linalg.matrix_transpose(a) + np.linalg.trace(a)
        ),
        A,
    ),
    "linalg diagonal": (lambda a: np.linalg.diagonal(a[None], offset=1) + np.linalg.trace(a, offset=-1), A),
    "linalg tensordot": (lambda a: np.linalg.tensordot(a, a, axes=1) + np.linalg.tensordot(a, a), A),
    "einsum by numbers": (lambda x: np.einsum(x, [0, 1], x, [2, 1], [0, 2]), X),
    "einsum by numbers, implicit": (lambda x: np.einsum(x, [Ellipsis, 1], x, [2, 1]), X),
}
if hasattr(np, "matvec"):
    CALLS["matvec"] = (lambda x: np.matvec(x, x[:, None]), X)
    CALLS["vecmat"] = (lambda x: np.vecmat(x[:, 0], x), X)


@pytest.mark.parametrize("name", CALLS)
def test_numpy_conventions(name):
    check(*CALLS[name])


def test_chains_are_cut_at_the_least_cost():
    sizes = [10, 100, 5, 50, 1]
    cut = _cuts(sizes)

    def cost(i, j):
        if i == j:
            return 0
        k = cut[i, j]
        return cost(i, k) + cost(k + 1, j) + sizes[i] * sizes[k + 1] * sizes[j + 1]

    assert cost(0, 3) == 100 * 5 * 1 + 5 * 50 * 1 + 10 * 100 * 1


def test_powers_by_squaring():
    close(gl.grad(lambda a: np.trace(np.linalg.matrix_power(a, 6)))(A), 6 * np.linalg.matrix_power(A, 5).T, 1e-12)


ERRORS = [
    (
        lambda: gl.grad(lambda a: np.linalg.matrix_power(a, 1.5).sum())(A),
        TypeError,
        "matrix_power: expected an int",
    ),
    (lambda: gl.grad(lambda a: np.linalg.multi_dot([a]).sum())(A), ValueError, "multi_dot: expected at least two"),
    (
        lambda: gl.grad(lambda a: np.linalg.multi_dot([a, a[0], a]).sum())(A),
        ValueError,
        "multi_dot: expected matrices",
    ),
    (lambda: gl.grad(lambda a: np.linalg.outer(a, a).sum())(A), ValueError, "outer: expected two vectors"),
    (
        lambda: gl.grad(lambda a: np.vecdot(a, a[:, :2]).sum())(A),
        ValueError,
        "vecdot: expected vectors of one length",
    ),
    (lambda: gl.grad(lambda a: np.linalg.trace(a[0]))(A), ValueError, "trace: expected matrices"),
    (lambda: gl.grad(lambda a: np.cbrt.outer(a, a))(A), (NotImplementedError, ValueError), "outer"),
]


class TestErrors(RuleCheck):
    errors = ERRORS
