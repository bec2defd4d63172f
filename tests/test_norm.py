"""Norms: all orders, axes, zeros; against NumPy, differences and JAX."""

import numpy as np
import pytest
from functioncheck import against_jax, check
from rulecheck import Case, RuleCheck, close, randn

import gradlib as gl
from gradlib.op import REGISTRY

NORM = REGISTRY["p_norm"]
CASES = [
    Case(NORM, (randn(*shape, shift=1),), p=p, axis=axis, keepdims=keepdims)
    for p in (2.0, 3.0, 4.0, 0.5, -1.0)
    for shape, axis, keepdims in [((4,), (0,), False), ((2, 3), (1,), True), ((2, 3), (0, 1), False)]
]
CASES += [
    Case(NORM, (randn(*s),), p=2.0, axis=a, keepdims=False) for s, a in [((), ()), ((0, 3), (1,)), ((1, 1), (0,))]
]
ERRORS = [
    (lambda: gl.grad(lambda x: np.linalg.norm(x, 2))(randn(2, 2, 2)), ValueError, "norm: with an order expected"),
    (lambda: gl.grad(lambda x: np.linalg.norm(x, 3))(randn(2, 2)), ValueError, "norm: expected ±1, ±2"),
    (lambda: gl.grad(lambda x: np.linalg.norm(x, "fro"))(randn(2)), ValueError, "norm: expected a number as order"),
    (lambda: gl.grad(lambda x: np.linalg.norm(x, axis=(0, 0)))(randn(2, 2)), ValueError, "norm: expected one axis or"),
    (lambda: gl.grad(lambda x: np.linalg.matrix_norm(x))(randn(2)), ValueError, "matrix_norm: expected"),
]


class TestRules(RuleCheck):
    cases = CASES
    errors = ERRORS


X, V = randn(3, 4), randn(5)
CALLS = {
    f"vector {p}": (lambda v, p=p: np.linalg.norm(v, p), V) for p in (None, 0, 1, 2, 3, 0.5, -1, 2.5, np.inf, -np.inf)
}
CALLS |= {
    f"matrix {p}": (lambda x, p=p: np.linalg.norm(x, p), X) for p in (None, 1, -1, 2, -2, np.inf, -np.inf, "fro", "nuc")
}
CALLS |= {
    "axis": (lambda x: np.linalg.norm(x, 3, axis=1, keepdims=True), X),
    "axes": (lambda x: np.linalg.norm(x[None], "nuc", axis=(2, 0), keepdims=True), X),
    "axes without": (lambda x: np.linalg.norm(x[None], 1, axis=(-1, 1)), X),
    "everything": (lambda x: np.linalg.norm(x[None], keepdims=True), X),
    "vector_norm": (lambda x: np.linalg.vector_norm(x, axis=(0, 1), ord=3) + np.linalg.vector_norm(x, ord=np.inf), X),
    "vector_norm keepdims": (lambda x: np.linalg.vector_norm(x, axis=0, keepdims=True), X),
    "matrix_norm": (lambda x: np.linalg.matrix_norm(x[None], ord=2) * np.linalg.matrix_norm(x, keepdims=True), X),
}


@pytest.mark.parametrize("name", CALLS)
def test_numpy_conventions(name):
    check(*CALLS[name])


SCALARS = {f"{p}": lambda np, x, p=p: np.linalg.norm(x[:, 0] + x[:, 1] ** 2, p) for p in (2, 3, 4, 1.5, 1, np.inf)}
SCALARS |= {f"m{p}": lambda np, x, p=p: np.linalg.norm(x, p) for p in ("fro", "nuc", 2, -2, 1, -np.inf)}


def test_against_jax():
    against_jax(SCALARS, randn(3, 3), 1e-7)


def test_zeros():
    zero = np.zeros((2, 2))
    for f in (
        np.linalg.norm,
        lambda x: np.linalg.norm(x, "nuc"),
        lambda x: np.linalg.norm(x, 2),
        lambda x: np.linalg.norm(x, 1),
    ):
        assert (gl.grad(f)(zero) == 0).all() and (gl.jvp(f, (zero,), (zero + 1,))[1] == 0).all()
    assert (gl.hessian(np.linalg.norm)(np.zeros(3)) == 0).all()
    one = np.array([3.0, 0.0])  # an entry of 0: the second derivative is 1/3
    close(gl.hessian(np.linalg.norm)(one), np.diag([0, 1 / 3]), 1e-14)
    assert np.isfinite(gl.hessian(lambda x: np.linalg.norm(x, 1.5))(one)).all()
