"""where= and initial= of the reductions."""

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
    "mask of the values": (lambda x: np.sum(x**2, where=x > 0) + np.mean(x, where=x > 0), X),
}


@pytest.mark.parametrize("name", CALLS)
def test_numpy_conventions(name):
    check(*CALLS[name])


def test_what_is_left_out_has_no_derivative():
    x = np.array([np.nan, 2.0, np.inf])
    assert gl.grad(lambda x: np.sum(x, where=np.isfinite(x)))(x).tolist() == [0, 1, 0]
    assert gl.grad(lambda x: np.max(x, where=np.isfinite(x), initial=0.0))(x).tolist() == [0, 1, 0]


ERRORS = [
    (lambda: gl.grad(lambda x: np.max(x, where=x > 0))(X), ValueError, "max: where= needs initial="),
    (lambda: gl.grad(lambda x: np.var(x, where=x > 0))(X), NotImplementedError, "var: keyword where"),
    (lambda: gl.grad(lambda x: np.sum(x, where=np.ones(3, bool)))(X), ValueError, "where: shapes do not broadcast"),
]


class TestErrors(RuleCheck):
    errors = ERRORS
