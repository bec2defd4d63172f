"""Averages, ranges, and the reductions that pass over nan."""

import numpy as np
import pytest
from functioncheck import check
from rulecheck import RuleCheck, close, randn

import gradlib as gl

X = randn(3, 4)


M = np.array([[1, 0, 1, 1], [1, 1, 1, 0], [0, 1, 1, 1]]) > 0


def holes(x):
    """x with nan where it is large."""
    return np.where(x > 0.8, np.nan, x)


CALLS = {
    "average": (lambda x: np.average(x) + np.average(x, 1, [1, 2, 3.0, 4]), X),
    "average weights": (lambda x: np.average(x, weights=x**2), X),
    "average returned": (lambda x: np.average(x, 0, weights=x**2, returned=True), X),
    "average keepdims": (
        lambda x: np.average(x, (0, 1), keepdims=True) + np.average([1.0, 2, 3, 4], weights=x[0] ** 2),
        X,
    ),
    "ptp": (lambda x: np.ptp(x, 0) + np.ptp(x) + np.ptp(x, 1, keepdims=True), X),
    "std": (lambda x: np.std(x, 0, ddof=1) + x.std(), X),
    "nansum": (lambda x: np.nansum(holes(x)) + np.nansum(holes(x), 1, keepdims=True), X),
    "nanprod": (lambda x: np.nanprod(holes(x), axis=0), X),
    "nanmax": (lambda x: np.nanmax(holes(x), 1) + np.nanmin(holes(x), (0, 1), keepdims=True), X),
    "nanmean": (lambda x: np.nanmean(holes(x), 0, keepdims=True) * np.nanmean(holes(x)), X),
    "nanvar": (lambda x: np.nanvar(holes(x), 1, ddof=1) + np.nanstd(holes(x)), X),
    "nan where": (
        lambda x: (
            np.nansum(holes(x), 1, where=M, initial=1.0)
            + np.nanprod(holes(x), 1, where=M, dtype=float)
            + np.nanmax(holes(x), 1, where=M, initial=-3.0) * np.nanmin(holes(x), 1, initial=0.2)
        ),
        X,
    ),
    "nan mean where": (lambda x: np.nanmean(holes(x), 1, where=M, dtype=float) + np.nanvar(holes(x), 1, where=M), X),
    "nanvar mean": (lambda x: np.nanvar(holes(x), 1, mean=x[:, :1], dtype=float) + np.nanstd(holes(x), 1, ddof=1), X),
    "nancumsum": (lambda x: np.nancumsum(holes(x), 1) + np.nancumprod(holes(x), 0), X),
}


@pytest.mark.parametrize("name", CALLS)
def test_numpy_conventions(name):
    check(*CALLS[name])


def test_rows_of_nan_only():
    x = np.array([[np.nan, np.nan], [1.0, 3.0]])
    for f in (np.nanmax, np.nanmin):
        y, pullback = gl.vjp(lambda x, f=f: f(x, axis=1), x)
        np.testing.assert_array_equal(np.isnan(y), [True, False])
        assert np.isfinite(pullback(np.ones(2))[0]).all()


def test_no_spread():
    x = np.full(4, 2.0)
    for f in (np.std, np.nanstd):
        assert f(x) == 0 and (gl.grad(f)(x) == 0).all() and gl.jvp(f, (x,), (X[0],))[1] == 0
    close(gl.grad(np.std)(X[0]), (X[0] - X[0].mean()) / (4 * X[0].std()), 1e-14)


ERRORS = [
    (
        lambda: gl.grad(lambda x: np.average(x, 0, [1.0, 2.0]).sum())(X),
        ValueError,
        "average: expected weights … (3,)",
    ),
    (lambda: gl.grad(lambda x: np.nanmax(x, where=X > 0))(X), ValueError, "max: where= needs initial="),
    (lambda: gl.grad(lambda x: np.nanmean(x, out=X))(X), TypeError, "sum: out="),
    (lambda: gl.grad(lambda x: np.ptp(x, 5).sum())(X), ValueError, "axis 5 is out of range"),
    (lambda: gl.grad(lambda x: np.nanmedian(x))(X), NotImplementedError, "nanmedian; use np.median"),
]


class TestErrors(RuleCheck):
    errors = ERRORS
