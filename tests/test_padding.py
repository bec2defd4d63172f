"""np.pad in all its modes, against NumPy and finite differences."""

import itertools

import numpy as np
import pytest
from functioncheck import check
from hypothesis import given, settings
from hypothesis import strategies as st
from rulecheck import RuleCheck, randn

import gradlib as gl

X = randn(3, 4)
CALLS = {
    "pad": (lambda x: np.pad(x, ((1, 2), (0, 1)), constant_values=((1, 2), (3, 4))), X),
    "pad number": (lambda x: np.pad(x, 1) + np.pad(x, (1, 1), "constant"), X),
    "pad axes": (lambda x: np.pad(x, {-1: 2, 0: (0, 1)}, mode="symmetric"), X),
    **{
        f"pad {m}": (lambda x, m=m: np.pad(x, ((2, 1), (0, 5)), mode=m), X)
        for m in ("edge", "reflect", "symmetric", "wrap")
    },
    **{
        f"pad {m}": (lambda x, m=m: np.pad(x, ((2, 1), (0, 5)), m), X) for m in ("mean", "median", "maximum", "minimum")
    },
    "pad near": (
        lambda x: np.pad(x, 2, "mean", stat_length=((1, 2), (3, 9))) + np.pad(x, 2, "maximum", stat_length=2),
        X,
    ),
    "pad ramp": (lambda x: np.pad(x, ((2, 0), (1, 3)), "linear_ramp", end_values=((1, 2), (3, 4))), X),
    "pad ramp traced": (lambda x: np.pad(x, 2, "linear_ramp", end_values=x[0, 0] ** 2), X),
    "pad traced": (lambda x: np.pad(x, 1, constant_values=x[0, 0]), X),
    "pad traced pairs": (lambda x: np.pad(x, 1, constant_values=((x[0, 0], 1.0), (x[0, 1] ** 2, x[1, 1]))), X),
    "pad odd": (lambda x: np.pad(x, ((2, 1), (0, 3)), "reflect", reflect_type="odd"), X),
    "pad odd symmetric": (lambda x: np.pad(x, ((2, 1), (0, 9)), "symmetric", reflect_type="odd"), X),
}
ERRORS = [
    (lambda: gl.grad(lambda x: np.pad(x, (1, 2, 3)).sum())(X), ValueError, "pad: expected pad_width"),
    (lambda: gl.grad(lambda x: np.pad(x, -1).sum())(X), ValueError, "pad: expected widths of at least 0"),
    (
        lambda: gl.grad(lambda x: np.pad(x, 1, "empty").sum())(X),
        NotImplementedError,
        "pad: … constant, linear_ramp … 'emp",
    ),
    (
        lambda: gl.grad(lambda x: np.pad(x, 1, "mean", end_values=1).sum())(X),
        ValueError,
        "pad: mode 'mean' takes no end",
    ),
    (lambda: gl.grad(lambda x: np.pad(x[:0], 1, "mean").sum())(X), ValueError, "pad: expected at least one entry"),
]


class TestErrors(RuleCheck):
    errors = ERRORS


@pytest.mark.parametrize("name", CALLS)
def test_numpy_conventions(name):
    check(*CALLS[name])


@pytest.mark.parametrize("mode", ["reflect", "symmetric"])
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_odd_reflections_by_any_width(mode, n):
    x = randn(n)
    for widths in itertools.product(range(9), repeat=2):
        got = gl.vjp(lambda x, w=widths: np.pad(x, w, mode, reflect_type="odd"), x)[0]
        np.testing.assert_allclose(got, np.pad(x, widths, mode, reflect_type="odd"), rtol=1e-12, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 5),
    st.tuples(st.integers(0, 7), st.integers(0, 7)),
    st.sampled_from(["edge", "reflect", "symmetric", "wrap"]),
)
def test_pad_by_any_width(n, widths, mode):
    x = np.arange(1.0, n + 1)
    y, pullback = gl.vjp(lambda x: np.pad(x, widths, mode), x)
    np.testing.assert_array_equal(y, np.pad(x, widths, mode))
    np.testing.assert_array_equal(pullback(np.ones_like(y))[0], [(y == v).sum() for v in x])
