"""Running products, with zeros anywhere; running sums under their newer names."""

import numpy as np
import pytest
from functioncheck import check
from rulecheck import Case, RuleCheck, randn

import gradlib as gl
from gradlib.op import REGISTRY

CUMPROD = REGISTRY["cumprod"]


def zeros_at(*places):
    x = randn(3, 4, shift=1.5)
    for i in places:
        x.flat[i] = 0
    return x


CASES = [Case(CUMPROD, (x,), axis=a) for x in (zeros_at(), zeros_at(5), zeros_at(0, 2, 7, 11)) for a in (0, 1)]
CASES += [Case(CUMPROD, (x,), axis=0) for x in (randn(1), np.zeros(1), np.zeros(3), np.zeros((0, 2)), randn(2, 2, 2))]
ERRORS = [
    (lambda: gl.grad(lambda x: np.cumprod(x, 3).sum())(randn(2)), ValueError, "cumprod: axis 3 is out of range"),
    (lambda: gl.grad(lambda x: np.cumprod(x, out=x).sum())(randn(2)), TypeError, "cumprod: out= … lose"),
    (lambda: gl.grad(lambda x: np.add.reduceat(x, [0]).sum())(randn(2)), NotImplementedError, "add.reduceat"),
]


class TestRules(RuleCheck):
    cases = CASES
    errors = ERRORS


X = randn(3, 4)
CALLS = {
    "cumprod": (lambda x: np.cumprod(x) * x.cumprod(), X),
    "cumprod axis": (lambda x: np.cumprod(x, axis=-1), X),
    "dtype": (lambda x: np.cumprod(x, 1, dtype=float) + np.cumsum(x, 1, float) + x.trace(dtype=float), X),
    "accumulate": (lambda x: np.multiply.accumulate(x) + np.add.accumulate(x, axis=1), X),
}
if hasattr(np, "cumulative_sum"):
    CALLS |= {
        "cumulative_sum": (lambda x: np.cumulative_sum(x, axis=1, include_initial=True), X),
        "cumulative_prod": (lambda x: np.cumulative_prod(x, axis=0, include_initial=True), X),
        "one axis": (lambda x: np.cumulative_sum(x[0]) * np.cumulative_prod(x[1]), X),
    }

    def test_the_axis_is_needed():
        with pytest.raises(ValueError, match="cumulative_prod: expected one dimension, or an axis"):
            gl.grad(lambda x: np.cumulative_prod(x).sum())(X)


@pytest.mark.parametrize("name", CALLS)
def test_numpy_conventions(name):
    check(*CALLS[name])
