"""Medians, quantiles and percentiles: every method, quantiles to differentiate, nan."""

import numpy as np
import pytest
from functioncheck import check
from rulecheck import RuleCheck, close, randn

import gradlib as gl

X, V = randn(3, 4), randn(5)
METHODS = [
    "inverted_cdf", "averaged_inverted_cdf", "closest_observation", "interpolated_inverted_cdf", "hazen", "weibull",
    "linear", "median_unbiased", "normal_unbiased", "lower", "higher", "midpoint", "nearest",
]  # fmt: skip
CALLS = {
    "median": (np.median, V),
    "median even": (lambda x: np.median(x, 1) + np.median(x), X),
    "median axes": (lambda x: np.median(x[None], (0, 2), keepdims=True), X),
    "quantile": (lambda x: np.quantile(x, [[0.1, 0.5, 1]], 1), X),
    "quantile one": (lambda x: np.quantile(x, 0.3) + np.quantile(x, 0.0, axis=0, keepdims=True), X),
    "percentile": (lambda x: np.percentile(x, 30, axis=0) + np.percentile(x, [5.0])[0], X),
}
ERRORS = [
    (lambda: gl.grad(lambda x: np.quantile(x, 1.5))(V), ValueError, "quantile: expected quantiles in [0, 1]"),
    (lambda: gl.grad(lambda x: np.quantile(x, 0.5, method="mode"))(V), ValueError, "quantile: expected a method of li"),
    (lambda: gl.grad(lambda x: np.quantile(x, 0.5, weights=V))(V), NotImplementedError, "quantile: weights is not"),
    (lambda: gl.grad(lambda x: np.median(x))(np.zeros((0,))), ValueError, "median: expected at least one entry"),
]


class TestErrors(RuleCheck):
    errors = ERRORS


@pytest.mark.parametrize("name", CALLS)
def test_numpy_conventions(name):
    check(*CALLS[name])


@pytest.mark.parametrize("method", METHODS)
def test_methods(method):
    x = randn(3, 4, 5)
    for axis in (0, 1, 2, (0, 1)):
        for q in (0.0, 1.0, 0.3, 0.5, np.linspace(0, 1, 21)):
            got = gl.vjp(lambda x, q=q, a=axis: np.quantile(x, q, axis=a, method=method), x)[0]
            close(got, np.quantile(x, q, axis=axis, method=method), 1e-13)
    gl.check_grads(lambda x, q: np.quantile(x, q, axis=2, method=method), (x, np.array([0.33, 0.62])), order=2)


def test_traced_quantiles():
    check(lambda x, q: np.quantile(x, q, 1), X, np.array([0.3, 0.62]))
    check(lambda x, q: np.percentile(x, q, axis=0, method="hazen"), X, np.array(37.0))


def test_quantiles_at_the_ends_have_the_slope_inside():
    x = np.array([1.0, 2.0, 5.0])
    assert [gl.grad(lambda q: np.quantile(x, q))(q) for q in (0.0, 0.25, 0.5, 1.0)] == [2, 2, 6, 6]
    assert gl.grad(lambda q: np.quantile(x, q, method="weibull"))(0.1) == 0
    assert gl.grad(lambda q: np.quantile(x[:1], q))(0.1) == 0


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_nan_makes_nan():
    x = np.array([[1.0, np.nan, 2.0], [3.0, 1.0, 2.0]])
    for f in (lambda x: np.median(x, 1), lambda x: np.quantile(x, 0.1, 1), lambda x: np.percentile(x, [10, 90], 1)):
        y, pullback = gl.vjp(f, x)
        np.testing.assert_allclose(y, f(x))
        assert not pullback(np.ones_like(y))[0][0].any()
