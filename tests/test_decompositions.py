"""cholesky, eigh, qr: rules, argument forms, JAX, repeated eigenvalues."""

import numpy as np
import pytest
from functioncheck import OneResult, against_jax, check, float32_is_kept
from rulecheck import Case, RuleCheck, close, randn

import gradlib as gl
from gradlib.op import REGISTRY


def spd(*shape):
    """Symmetric positive definite matrices with eigenvalues well apart."""
    x = 0.3 * randn(*shape)
    return x @ np.swapaxes(x, -1, -2) + np.diag(np.arange(1.0, shape[-1] + 1))


EIGH, QR = REGISTRY["eigh"], REGISTRY["qr"]
CASES = [Case(REGISTRY["cholesky"], (a,)) for a in (spd(3, 3), spd(2, 2, 2), np.ones((1, 1)), np.zeros((0, 0)))]
CASES += [Case(OneResult(EIGH, i), (a,), uplo=u) for i in (0, 1) for a, u in [(spd(3, 3), "L"), (spd(2, 2, 2), "U")]]
CASES += [Case(OneResult(EIGH, i), (a,), uplo="L") for i, a in [(0, np.zeros((2, 0, 0))), (1, np.ones((1, 1)))]]
TALL, WIDE = 0.5 * randn(4, 2) + np.eye(4, 2), randn(2, 4)
CASES += [Case(OneResult(QR, i), (a,)) for i in (0, 1) for a in (spd(3, 3), TALL, spd(2, 2, 2))]
ERRORS = [
    (lambda: gl.grad(lambda a: np.linalg.cholesky(a).sum())(randn(2, 3)), ValueError, "cholesky: expected square"),
    (lambda: gl.grad(lambda a: np.linalg.cholesky(a).sum())(-np.eye(2)), np.linalg.LinAlgError, "positive definite"),
    (
        lambda: gl.grad(lambda a: np.linalg.eigh(a, "X")[0].sum())(np.eye(2)),
        ValueError,
        "eigh: expected UPLO",
    ),
    (lambda: gl.grad(lambda a: np.linalg.qr(a, "raw")[0].sum())(np.eye(2)), NotImplementedError, "qr: expected mode"),
]


class TestRules(RuleCheck):
    cases = CASES
    errors = ERRORS
    test_dtype_is_kept = float32_is_kept


CALLS = {
    "cholesky": (np.linalg.cholesky, spd(2, 3, 3)),
    "cholesky upper": (lambda a: np.linalg.cholesky(a, upper=True), spd(3, 3)),
    "eigh": (np.linalg.eigh, spd(3, 3)),
    "eigh upper": (lambda a: np.linalg.eigh(a, UPLO="u"), spd(2, 3, 3)),
    "eigh names": (lambda a: (np.linalg.eigh(a).eigenvalues, np.linalg.eigh(a).eigenvectors), spd(3, 3)),
    "eigvalsh": (lambda a: np.linalg.eigvalsh(a) * np.linalg.eigvalsh(a, "U"), spd(3, 3)),
    "qr": (np.linalg.qr, TALL),
    "qr names": (lambda a: (np.linalg.qr(a).Q, np.linalg.qr(a).R), spd(3, 3)),
    "qr wide": (np.linalg.qr, WIDE),
    "qr r": (lambda a: np.linalg.qr(a, mode="r"), TALL),
    "qr r wide": (lambda a: np.linalg.qr(a, "r"), WIDE),
    "qr complete": (lambda a: np.linalg.qr(a, "complete"), TALL[:3]),
    "qr complete, more columns": (lambda a: (lambda q: q[:, 2:] @ q[:, 2:].T)(np.linalg.qr(a, "complete")[0]), TALL),
    "qr complete wide": (lambda a: np.linalg.qr(a, "complete"), WIDE),
}


@pytest.mark.parametrize("name", CALLS)
def test_numpy_conventions(name):
    check(*CALLS[name])


def _symmetric(a):
    return a + a.T


def _positive(np, a):
    return a @ a.T + 2 * np.eye(a.shape[0])


SCALARS = {
    "cholesky": lambda np, a: np.sum(np.sin(np.linalg.cholesky(_positive(np, a)))),
    "eigh values": lambda np, a: np.sum(np.linalg.eigh(_symmetric(a))[0] ** 3),
    "eigh projections": lambda np, a: np.sum(np.linalg.eigh(_symmetric(a))[1] ** 4),
    "eigvalsh": lambda np, a: np.linalg.eigvalsh(_symmetric(a))[0],
    "qr": lambda np, a: np.sum(np.linalg.qr(a[:, :2])[0] ** 4 * np.cos(a[:, :2])),
    "qr r": lambda np, a: np.sum(np.linalg.qr(a[:, :2])[1] ** 4),
}


def test_against_jax():
    against_jax(SCALARS, randn(3, 3), 1e-7)


def test_repeated_eigenvalues():
    """What does not depend on the choice of eigenvectors has its right, finite derivative."""
    a = np.diag([2.0, 2.0, 5.0])
    close(gl.grad(lambda a: np.sum(np.linalg.eigh(a)[0] ** 2))(a), 2 * a, 1e-12)

    def rebuilt(a):
        w, v = np.linalg.eigh(a)
        return (v[:, :2] @ v[:, :2].T)[0, 2]  # projection on the repeated pair

    tangent = _symmetric(randn(3, 3))
    difference = (rebuilt(a + 1e-6 * tangent) - rebuilt(a - 1e-6 * tangent)) / 2e-6
    close(gl.jvp(rebuilt, (a,), (tangent,))[1], difference, 1e-7)
    close(np.sum(gl.grad(rebuilt)(a) * tangent), difference, 1e-7)
    assert np.isfinite(gl.grad(lambda a: np.linalg.eigh(a)[1].sum())(np.eye(3))).all()


def test_only_one_triangle_is_read():
    a = spd(3, 3)
    for f, upper in [(np.linalg.cholesky, False), (lambda a: np.linalg.eigvalsh(a, "U"), True)]:
        d = gl.jacrev(f)(a)
        other = np.triu_indices(3, 1) if not upper else np.tril_indices(3, -1)
        assert (d[..., other[0], other[1]] == 0).all() and np.abs(d).max() > 0.1
