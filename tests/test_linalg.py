"""solve, inv, det, slogdet, pinv and what is composed of them: rules, argument forms, JAX, singular matrices."""

import numpy as np
import pytest
from functioncheck import OneResult, against_jax, check, float32_is_kept
from rulecheck import Case, RuleCheck, close, randn

import gradlib as gl
from gradlib.op import REGISTRY

SQUARE = 0.4 * randn(3, 3) + 1.5 * np.eye(3)
BATCH = 0.4 * randn(2, 3, 3) + 1.5 * np.eye(3)
OPS = {name: REGISTRY[name] for name in ("solve", "inv", "det", "slogdet", "pinv")}
SLOGDET = OneResult(OPS["slogdet"], 1)
CASES = [
    Case(OPS["solve"], (SQUARE, randn(3, 2))),
    Case(OPS["solve"], (SQUARE, randn(2, 3, 1))),
    Case(OPS["solve"], (BATCH, randn(3, 2))),
    Case(OPS["solve"], (BATCH[:, None], randn(4, 3, 1)), order=2),
    Case(OPS["solve"], (np.ones((1, 1)), randn(1, 1))),
    Case(OPS["solve"], (np.zeros((0, 0)), np.zeros((0, 2)))),
    Case(OPS["solve"], (SQUARE, np.zeros((3, 0)))),
    Case(OPS["inv"], (SQUARE,)),
    Case(OPS["inv"], (BATCH,)),
    Case(OPS["inv"], (np.zeros((2, 0, 0)),)),
    Case(OPS["det"], (SQUARE,)),
    Case(OPS["det"], (BATCH,)),
    Case(OPS["det"], (np.array([[1.0, 2.0], [2.0, 4.0]]),), order=2),
    Case(OPS["det"], (np.zeros((3, 3)),)),
    Case(OPS["det"], (np.ones((1, 1)),)),
    Case(SLOGDET, (SQUARE,)),
    Case(SLOGDET, (BATCH,)),
    Case(OneResult(OPS["slogdet"], 0), (SQUARE,)),
    Case(OPS["pinv"], (SQUARE[:, :2],), rcond=1e-15),
    Case(OPS["pinv"], (BATCH[:, :2],), rcond=1e-15),
    Case(OPS["pinv"], (SQUARE,), rcond=1e-15),
]
ERRORS = [
    (lambda: gl.grad(lambda a: np.linalg.solve(a, np.ones(2)).sum())(SQUARE), ValueError, "solve: expected … [3, 3]"),
    (
        lambda: gl.grad(lambda a: np.linalg.solve(a, np.ones((5, 3, 1))).sum())(BATCH),
        ValueError,
        "solve: leading axes do not broadcast",
    ),
    (lambda: gl.grad(lambda a: np.linalg.det(a))(randn(2, 3)), np.linalg.LinAlgError, "det: expected square matrices"),
    (
        lambda: gl.grad(lambda a: np.linalg.pinv(a, [1e-3, 1e-2]).sum())(BATCH),
        NotImplementedError,
        "pinv: expected",
    ),
    (lambda: gl.grad(lambda a: np.linalg.tensorinv(a, 0).sum())(SQUARE), ValueError, "tensorinv: expected equal sizes"),
    (
        lambda: gl.grad(lambda a: np.linalg.tensorsolve(a, np.ones(2)).sum())(SQUARE),
        ValueError,
        "tensorsolve: expected",
    ),
    (lambda: gl.grad(lambda a: np.linalg.cond(a))(SQUARE), NotImplementedError, "linalg.cond … np.linalg.norm(x) *"),
    (lambda: gl.grad(lambda a: np.linalg.eig(a)[0].sum())(SQUARE), NotImplementedError, "linalg.eig; … eigh"),
]


class TestRules(RuleCheck):
    cases = CASES
    errors = ERRORS
    test_dtype_is_kept = float32_is_kept


CALLS = {
    "solve vector": (lambda a, b: np.linalg.solve(a, b), SQUARE, randn(3)),
    "solve matrix": (np.linalg.solve, SQUARE, randn(3, 2)),
    "solve vector for each": (lambda a, b: np.linalg.solve(a, b), BATCH, randn(3)),
    "solve data": (lambda a: np.linalg.solve(np.eye(3), a) + np.linalg.solve(a, np.eye(3)), SQUARE),
    "inv": (np.linalg.inv, BATCH),
    "det": (np.linalg.det, BATCH),
    "slogdet": (lambda a: np.linalg.slogdet(-a).logabsdet, BATCH),
    "slogdet sign": (np.linalg.slogdet, SQUARE),
    "pinv wide": (np.linalg.pinv, SQUARE[:2]),
    "pinv tall": (lambda a: np.linalg.pinv(a, rcond=1e-6) + np.linalg.pinv(a, rtol=1e-6), SQUARE[:, :2]),
    "pinv hermitian": (lambda a: np.linalg.pinv(a + a.T, hermitian=True), SQUARE),
    "lstsq": (lambda a, b: np.linalg.lstsq(a, b, rcond=None)[0], randn(4, 2), randn(4)),
    "lstsq all": (lambda a, b: np.linalg.lstsq(a, b)[:2], randn(4, 2), randn(4, 3)),
    "lstsq singular values": (lambda a: np.linalg.lstsq(a, a, rcond=None)[3], randn(4, 2)),
    "tensorsolve": (lambda a, b: np.linalg.tensorsolve(a.reshape(1, 3, 3), b.reshape(1, 3)), SQUARE, randn(3)),
    "tensorsolve axes": (lambda a, b: np.linalg.tensorsolve(a.reshape(3, 1, 3), b, axes=(0,)), SQUARE, randn(1, 3)),
    "tensorinv": (lambda a: np.linalg.tensorinv(a.reshape(3, 3, 1), 1), SQUARE),
}


@pytest.mark.parametrize("name", CALLS)
def test_numpy_conventions(name):
    check(*CALLS[name])


def _spd(np, a):
    return a @ a.T + 2 * np.eye(a.shape[0])


SCALARS = {
    "solve": lambda np, a: np.sum(np.sin(np.linalg.solve(_spd(np, a), a[0]))),
    "inv": lambda np, a: np.sum(np.linalg.inv(_spd(np, a)) ** 3),
    "det": lambda np, a: np.sin(np.linalg.det(a)),
    "slogdet": lambda np, a: np.linalg.slogdet(a)[1] ** 2,
    "pinv": lambda np, a: np.sum(np.linalg.pinv(a[:, :2]) ** 3),
    "log likelihood": lambda np, a: a[0] @ np.linalg.solve(_spd(np, a), a[0]) + np.linalg.slogdet(_spd(np, a))[1],
}


def test_against_jax():
    against_jax(SCALARS, SQUARE)


def test_rank_and_residuals_are_numpys():
    a = np.array([[1.0, 2.0], [2.0, 4.0], [0.0, 0.0]])
    y = gl.vjp(lambda a: list(np.linalg.lstsq(a, np.ones(3), rcond=None)), a)[0]
    want = np.linalg.lstsq(a, np.ones(3), rcond=None)
    assert y[2] == want[2] == 1 and y[1].shape == want[1].shape == (0,)
    assert gl.vjp(lambda a: np.linalg.matrix_rank(a) * a, a)[0].tolist() == a.tolist()


def test_singular_matrices():
    """det is a polynomial: it has derivatives everywhere; inv does not.

    Its higher derivatives are computed beside a singular matrix: differences need a step in which they change by more
    than their rounding.
    """
    for a in (np.zeros((2, 2)), np.ones((3, 3)), np.diag([1.0, 0.0, 2.0, 3.0]), np.arange(9.0).reshape(3, 3)):
        gl.check_grads(np.linalg.det, (a,), order=3, eps=1e-4, atol=1e-6)
    batch = np.stack([np.zeros((3, 3)), SQUARE])
    close(gl.jacrev(np.linalg.det)(batch)[1, 1], gl.grad(np.linalg.det)(SQUARE), 1e-13)
    with pytest.raises(np.linalg.LinAlgError, match="Singular"):
        gl.grad(lambda a: np.linalg.inv(a).sum())(np.ones((2, 2)))


def test_one_factorisation_serves_all_cotangents(monkeypatch):
    """The stack goes through LAPACK as columns."""
    shapes = []
    solve = np.linalg.solve

    def spy(a, b):
        shapes.append((a.shape, b.shape))
        return solve(a, b)

    monkeypatch.setattr(np.linalg, "solve", spy)
    gl.jacrev(lambda b: REGISTRY["solve"](SQUARE, b))(randn(3, 2))
    assert shapes == [((3, 3), (3, 2)), ((3, 3), (3, 12))]
