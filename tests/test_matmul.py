"""Matrix products: rules with broadcast leading axes, NumPy's conventions."""

import numpy as np
import pytest
from functioncheck import check_product
from rulecheck import Case, RuleCheck, randn

import gradlib as gl
from gradlib.op import REGISTRY

MATMUL = REGISTRY["matmul"]
SHAPES = [
    ((2, 3), (3, 4)), ((1, 1), (1, 1)), ((2, 2, 3), (3, 1)), ((2, 3), (2, 3, 2)), ((2, 1, 2, 3), (3, 3, 2)),
    ((1, 2, 3), (2, 3, 1)), ((0, 3), (3, 2)), ((2, 0), (0, 3)), ((2, 3), (3, 0)), ((0, 2, 3), (3, 2)),
]  # fmt: skip


CASES = [Case(MATMUL, (randn(*a), randn(*b, seed=3))) for a, b in SHAPES]
ERRORS = [
    (
        lambda: gl.grad(lambda x: np.sum(x @ np.ones((4, 2))))(np.ones((2, 3))),
        ValueError,
        "matmul: expected (..., n, k) @ (..., k, m), got float64[2, 3] @ float64[4, 2]",
    ),
    (
        lambda: gl.grad(lambda x: np.sum(x @ np.ones((3, 3, 2))))(np.ones((2, 2, 3))),
        ValueError,
        "matmul: leading axes do not broadcast",
    ),
    (
        lambda: gl.grad(lambda x: np.sum(x @ np.ones((3, 4, 2))))(np.ones((2, 3))),
        ValueError,
        "matmul: expected (..., n, k) @ (..., k, m), got float64[2, 3] @ float64[3, 4, 2]",
    ),
    (lambda: gl.grad(lambda x: x @ x)(1.0), ValueError, "matmul: expected arrays of at least one dimension"),
    (
        lambda: gl.grad(lambda x: np.tensordot(x, np.ones((4, 2)), 1).sum())(np.ones((2, 3))),
        ValueError,
        "tensordot: axes 1 do not match in float64[2, 3] and float64[4, 2]",
    ),
]


class TestRules(RuleCheck):
    cases = CASES
    errors = ERRORS


A, B, U, T = randn(3, 4), randn(4, 2), randn(4), randn(2, 3, 4)
CALLS = {
    "matrix vector": (lambda a, u: a @ u, A, U),
    "vector matrix": (lambda u, b: u @ b, U, B),
    "vector vector": (lambda u, v: u @ v, U, U + 1),
    "batched vector": (lambda t, u: t @ u, T, U),
    "vector batched": (lambda u, t: u @ t.swapaxes(1, 2), U, T),
    "one for many": (lambda a, t: a @ t.swapaxes(1, 2), A, T),
    "reflected": (lambda b: A @ b, B),
    "dot": (lambda a, b: np.dot(a, b) + a.dot(B), A, B),
    "dot numbers": (lambda a, u: np.dot(a[0, 0], u), A, U),
    "dot high": (lambda t, b: np.dot(t, b[None] * np.ones((3, 1, 1))), T, B),
    "inner": (lambda t, a: np.inner(t, a), T, A),
    "outer": (lambda u, t: np.outer(u, t), U, T),
    "vdot": (lambda a, c: np.vdot(a, c), A, A + 1),
    "tensordot": (lambda t, a: np.tensordot(t, a), T, A),
    "tensordot axes": (
        lambda t, a: np.tensordot(t, a, ((1, 2), (0, 1))) + np.tensordot(t, a, (-2, 0))[:, 0, 0],
        T,
        A,
    ),
    "tensordot none": (lambda u, v: np.tensordot(u, v, 0), U, U),
    "kron": (lambda a, b: np.kron(a, b), A, B),
    "kron ranks": (lambda u, b: np.kron(u, b), U, B),
}


@pytest.mark.parametrize("name", CALLS)
def test_numpy_conventions(name):
    check_product(*CALLS[name])


def test_float16_products_accumulate_in_float32():
    x = np.full((1, 4096), 1.0, np.float16)
    assert float(gl.vjp(lambda x: x @ x.T, x)[0][0, 0]) == 4096
