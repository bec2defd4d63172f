"""Differences, gradients on even and uneven grids, integrals, cross products."""

import numpy as np
import pytest
from functioncheck import check
from rulecheck import RuleCheck, randn

import gradlib as gl

X, V = randn(3, 4), randn(5)
CALLS = {
    "diff": (lambda x: np.diff(x, 2) + np.diff(np.diff(x)), X),
    "diff axis": (lambda x: np.diff(x, axis=0, prepend=0, append=x[:1]), X),
    "diff none": (lambda x: np.diff(x, 0) + np.diff(np.ones((1, 3)), prepend=x[:1, :1], append=0), X),
    "ediff1d": (lambda x: np.ediff1d(x, to_begin=[1, 2], to_end=x[0, 0]), X),
    "gradient": (np.gradient, X),
    "gradient one": (lambda v: np.gradient(v, 0.5) + np.gradient(v, 0.5, edge_order=2), V),
    "gradient two entries": (lambda v: np.gradient(v[:2]), V),
    "gradient steps": (lambda x: np.gradient(x, 2.0, 0.5, edge_order=2), X),
    "gradient grid": (lambda x: np.gradient(x, [0, 1, 3.0, 4], axis=1, edge_order=2), X),
    "gradient grids": (lambda x: np.gradient(x, [0, 1, 3.0], np.array([1, 2, 4.0, 5]), axis=(0, 1)), X),
    "gradient traced grid": (lambda v, x: np.gradient(v, np.cumsum(np.exp(x))), V, randn(5, seed=1)),
    "trapezoid": (lambda x: np.trapezoid(x, np.cumsum(x[0] ** 2)), X),
    "trapezoid dx": (lambda x: np.trapezoid(x, dx=0.2, axis=0), X),
    "trapezoid all": (lambda x: np.trapezoid(x, np.cumsum(x**2, 0), axis=0) + np.trapezoid([1.0, 2, 3, 4], x)[0], X),
    "cross": (lambda x: np.cross(x[:, :3], x[:, 1:]) + np.cross(x[:, :3], [1.0, 2.0, 3.0]), X),
    "cross 2": (lambda x: np.cross(x[:, :2], x[:, 1:3]), X),
    "cross 2 and 3": (lambda x: np.cross(x[:, :2], x[:, 1:]) - np.cross(x[:, 1:], x[:, :2]), X),
    "cross axis": (lambda x: np.cross(x, x[::-1] ** 2, axis=0), X),
    "cross axes": (lambda x: np.cross(x, x.T[:, ::-1], axisa=0, axisb=1, axisc=0), X),
    "linalg.cross": (lambda x: np.linalg.cross(x, x[::-1] ** 2, axis=0), X),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.filterwarnings("ignore:Arrays of 2-dimensional vectors")
def test_numpy_conventions(name):
    check(*CALLS[name])


ERRORS = [
    (lambda: gl.grad(lambda x: np.diff(x, -1).sum())(V), ValueError, "diff: expected an order of at least 0"),
    (lambda: gl.grad(lambda x: np.gradient(x, edge_order=3).sum())(V), ValueError, "gradient: expected edge_order"),
    (lambda: gl.grad(lambda x: np.gradient(x[:1]).sum())(V), ValueError, "gradient: expected at least 2 entries"),
    (lambda: gl.grad(lambda x: np.gradient(x, 1, 2).sum())(V), TypeError, "gradient: expected no, one or 1"),
    (
        lambda: gl.grad(lambda x: np.gradient(x, [1.0, 2.0]).sum())(V),
        ValueError,
        "gradient: expected 5 coordinates",
    ),
    (lambda: gl.grad(lambda x: np.cross(x, x).sum())(V), ValueError, "cross: expected vectors of 2 or 3"),
    (lambda: gl.grad(lambda x: np.linalg.cross(x[:2], x[:2]).sum())(V), ValueError, "cross: expected vectors of 3"),
]


class TestErrors(RuleCheck):
    errors = ERRORS
