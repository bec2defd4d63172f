"""svd: rules, argument forms, JAX, repeated and zero singular values."""

import numpy as np
import pytest
from functioncheck import OneResult, against_jax, check, float32_is_kept
from rulecheck import Case, RuleCheck, close, randn

import gradlib as gl
from gradlib.op import REGISTRY

SVD = REGISTRY["svd"]
TALL, WIDE, BATCH = randn(4, 2), randn(2, 3), randn(2, 2, 2)
CASES = [Case(OneResult(SVD, i), (a,)) for i in (0, 1, 2) for a in (TALL, WIDE, BATCH)]
CASES += [Case(OneResult(SVD, 1), (a,)) for a in (np.zeros((0, 2)), np.ones((1, 1)), np.zeros((2, 0, 3)))]
ERRORS = [
    (lambda: gl.grad(lambda a: np.linalg.svd(a)[1].sum())(np.ones(3)), ValueError, "svd: expected matrices … [3]")
]


class TestRules(RuleCheck):
    cases = CASES
    errors = ERRORS
    test_dtype_is_kept = float32_is_kept


CALLS = {
    "thin": (lambda a: np.linalg.svd(a, full_matrices=False), TALL),
    "full tall": (np.linalg.svd, randn(3, 2)),
    "full tall, more columns": (lambda a: (lambda u: u[:, 2:] @ u[:, 2:].T)(np.linalg.svd(a)[0]), TALL),
    "full wide": (np.linalg.svd, WIDE),
    "batch": (np.linalg.svd, BATCH),
    "names": (lambda a: (np.linalg.svd(a).U, np.linalg.svd(a).S, np.linalg.svd(a).Vh), randn(3, 3)),
    "values": (lambda a: np.linalg.svd(a, compute_uv=False) + np.linalg.svdvals(a), TALL),
    "hermitian values": (lambda a: np.linalg.svd(a + a.T, compute_uv=False, hermitian=True), randn(3, 3)),
}


@pytest.mark.parametrize("name", CALLS)
def test_numpy_conventions(name):
    check(*CALLS[name])


def test_hermitian():
    a = np.array([[1.0, 0.5], [0.5, -2.0]])
    y = gl.vjp(lambda a: list(np.linalg.svd(a, hermitian=True)), a)[0]
    for got, want in zip(y, np.linalg.svd(a, hermitian=True), strict=True):
        close(got, want, 1e-14)
    gl.check_grads(lambda a: list(np.linalg.svd(a, hermitian=True)), (a,), order=2)


def _polar(np, a):
    u, _, vt = np.linalg.svd(a, full_matrices=False)
    return u @ vt


SCALARS = {
    "values": lambda np, a: np.sum(np.linalg.svd(a, compute_uv=False) ** 3),
    "vectors": lambda np, a: np.sum(np.linalg.svd(a, full_matrices=False)[0] ** 4),
    "polar factor": lambda np, a: np.sum(_polar(np, a) ** 3),
}


@pytest.mark.parametrize("shape", [(4, 2), (2, 3)])
def test_against_jax(shape):
    against_jax(SCALARS, randn(*shape), 1e-7)


def test_repeated_singular_values():
    """The polar factor is smooth where singular values meet: its derivative keeps their antisymmetric part."""
    a, tangent = 2 * np.eye(3), randn(3, 3)
    ahead, behind = (_polar(np, a + s * 1e-6 * tangent) for s in (1, -1))
    close(gl.jvp(lambda a: _polar(np, a), (a,), (tangent,))[1], (ahead - behind) / 2e-6, 1e-8)
    c = randn(3, 3, seed=1)
    pulled = gl.vjp(lambda a: _polar(np, a), a)[1](c)[0]
    close(np.sum(pulled * tangent), np.sum((ahead - behind) / 2e-6 * c), 1e-8)


def test_zero_singular_values_give_finite_derivatives():
    a = np.outer([1.0, 2.0], [3.0, 4.0])
    close(gl.grad(lambda a: np.linalg.svdvals(a)[0])(a), np.outer([1, 2], [3, 4]) / 5 / np.sqrt(5), 1e-12)
    assert np.isfinite(gl.grad(lambda a: np.sum(np.linalg.svd(a)[0]))(np.zeros((3, 2)))).all()
