"""Triangles, and what the ops of linear algebra share."""

import numpy as np
import pytest
from functioncheck import check
from rulecheck import Case, RuleCheck, close, randn

import gradlib as gl
from gradlib.op import REGISTRY
from gradlib.ops.matrices import from_lower, onto_lower

CASES = [
    Case(REGISTRY[name], (randn(*shape),), k=k)
    for name in ("tril", "triu")
    for shape, k in [((3, 3), 0), ((2, 4), 1), ((2, 3, 2), -1), ((0, 3), 0), ((1, 1), 0)]
]
ERRORS = [
    (lambda: gl.grad(lambda x: np.tril(x).sum())(np.float64(3)), ValueError, "tril: expected … got float64[]"),
    (lambda: gl.grad(lambda x: np.linalg.inv(x).sum())(np.ones((2, 3))), ValueError, "inv: expected square … [2, 3]"),
    (
        lambda: gl.grad(lambda x: np.linalg.inv(x).sum())(np.eye(2, dtype=np.float16)),
        TypeError,
        "inv: expected float32 or float64, got float16[2, 2]",
    ),
]


class TestRules(RuleCheck):
    cases = CASES
    errors = ERRORS


CALLS = {
    "tril": (lambda x: np.tril(x) + np.tril(x, -1) + np.tril(x, 5), randn(3, 4)),
    "of a vector": (lambda x: np.tril(x, 1) + np.triu(x**2), randn(3)),
    "triu": (lambda x: np.triu(x, 1) * np.triu(x, k=-1), randn(2, 3, 3)),
}


@pytest.mark.parametrize("name", CALLS)
def test_numpy_conventions(name):
    check(*CALLS[name])


def test_a_triangle_gives_a_symmetric_matrix_and_its_transpose():
    x, g = randn(4, 4), randn(4, 4, seed=1)
    s = from_lower(np, x)
    np.testing.assert_array_equal(s, s.T)
    np.testing.assert_array_equal(np.tril(s), np.tril(x))
    close(np.sum(s * g), np.sum(x * onto_lower(np, g)), 1e-13)


def test_batches_of_matrices_do_not_mix():
    x = randn(3, 2, 2)

    def f(x):
        return np.linalg.det(x) + np.linalg.inv(x)[:, 0, 0] + np.linalg.svd(x)[1][:, 0]

    got = gl.batch_jacobian(f)(x)
    for b in range(3):
        close(got[b], gl.grad(lambda x: f(x[None])[0])(x[b]), 1e-12)
    with pytest.raises(ValueError, match="inv works along the batch axis"):
        gl.batch_jacobian(lambda x: np.linalg.inv(x))(randn(3, 3))
