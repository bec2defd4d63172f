"""where=, initial= and mean= of the reductions."""

import numpy as np
import pytest
from functioncheck import check
from rulecheck import RuleCheck, randn

import gradlib as gl

X = randn(3, 4)
M = X > -0.5
CALLS = {
    "sum": (lambda x: np.sum(x, 1, where=M) + np.sum(x, initial=2.0) + x.sum(where=M, initial=1.0), X),
    "prod": (lambda x: np.prod(x, 0, where=M, keepdims=True) + np.prod(x, initial=x[0, 0]), X),
    "max": (lambda x: np.max(x, 1, initial=0.5, where=M) + np.amax(x, initial=0.0) + x.max(0, initial=-9.0)[:3], X),
    "min": (lambda x: np.min(x, where=M[0], initial=x[0, 1]) + np.amin(x, 1, initial=-0.3), X),
    "mean": (lambda x: np.mean(x, 0, where=M) + np.mean(x**2, where=M[:, :1], keepdims=True) + x.mean(where=True), X),
    "var": (lambda x: np.var(x, 1, where=M) + np.var(x, where=M[0], ddof=1) + x.var(where=x > 0), X),
    "var correction": (lambda x: np.var(x, 1, where=M, correction=0.5, keepdims=True), X),
    "var mean": (lambda x: np.var(x, 0, mean=np.mean(x, 0, keepdims=True)) + np.std(x, 0, mean=x[:1] ** 2), X),
    "var dtype": (lambda x: np.var(x, 1, dtype=np.float64) + np.mean(x, 1, np.float64, where=M), X),
    "std": (lambda x: np.std(x, 1, where=M, keepdims=True) + x.std(where=M, mean=0.3, dtype=float), X),
    "ufuncs": (
        lambda x: (
            np.add.reduce(x, where=M)
            + np.multiply.reduce(x, 0, initial=2.0, where=M)
            + np.maximum.reduce(x, initial=0.1)
            + np.minimum.reduce(x, axis=0, where=M, initial=3.0)
        ),
        X,
    ),
    "mask of the values": (lambda x: np.sum(x**2, where=x > 0) + np.mean(x, where=x > 0), X),
}


@pytest.mark.parametrize("name", CALLS)
def test_numpy_conventions(name):
    check(*CALLS[name])


def test_what_is_left_out_has_no_derivative():
    x = np.array([np.nan, 2.0, np.inf])
    assert gl.grad(lambda x: np.sum(x, where=np.isfinite(x)))(x).tolist() == [0, 1, 0]
    assert gl.grad(lambda x: np.max(x, where=np.isfinite(x), initial=0.0))(x).tolist() == [0, 1, 0]


def test_no_entries():
    x = np.zeros((0, 3))
    for f in (lambda x: np.max(x, 0, initial=2.0), lambda x: np.min(x, 0, initial=-1.0, keepdims=True)):
        np.testing.assert_array_equal(gl.vjp(f, x)[0], f(x))
        assert gl.jacobian(f)(x).size == 0
    assert gl.vjp(lambda x: np.linalg.norm(x[:, 0], np.inf), x)[0] == 0


@pytest.mark.filterwarnings("ignore")
def test_fewer_entries_than_degrees_of_freedom():
    mask = np.array([[True] * 4, [True, False, False, False], [False] * 4])
    for f in (np.var, lambda x, *a, **k: np.nanvar(np.where(k.pop("where"), x, np.nan), *a, **k)):
        got, want = gl.vjp(lambda x, f=f: f(x, 1, ddof=1, where=mask), X)[0], f(X, 1, ddof=1, where=mask)
        np.testing.assert_allclose(got, want, rtol=1e-12)


ERRORS = [
    (lambda: gl.grad(lambda x: np.max(x, where=x > 0))(X), ValueError, "max: where= needs initial="),
    (lambda: gl.grad(lambda x: np.var(x, where=x > 0, out=X))(X), TypeError, "var: out="),
    (lambda: gl.grad(lambda x: np.max(x[:0]))(X), ValueError, "max: expected at least one entry"),
    (lambda: gl.grad(lambda x: np.sum(x, where=np.ones(3, bool)))(X), ValueError, "where: shapes do not broadcast"),
]


class TestErrors(RuleCheck):
    errors = ERRORS
