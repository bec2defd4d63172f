"""Elementwise ops of one argument: rules, and what happens far from zero and at kinks."""

import mpmath
import numpy as np
import pytest
from rulecheck import Case, RuleCheck, close, uniform

import gradlib as gl
from gradlib.op import REGISTRY
from gradlib.ops import elementwise

# name: domain, where it is not the whole line
DOMAINS = {
    "log": (0.2, 3), "log2": (0.2, 3), "log10": (0.2, 3), "log1p": (-0.5, 3), "sqrt": (0.2, 3), "cbrt": (0.2, 3),
    "reciprocal": (0.5, 3), "tan": (-1, 1), "arcsin": (-0.8, 0.8), "arccos": (-0.8, 0.8), "arccosh": (1.3, 4),
    "arctanh": (-0.8, 0.8),
}  # fmt: skip
NAMES = [
    "negative",
    "positive",
    "absolute",
    "fabs",
    "exp",
    "exp2",
    "expm1",
    "log",
    "log2",
    "log10",
    "log1p",
    "sqrt",
    "cbrt",
    "square",
    "reciprocal",
    "sin",
    "cos",
    "tan",
    "arcsin",
    "arccos",
    "arctan",
    "sinh",
    "cosh",
    "tanh",
    "arcsinh",
    "arccosh",
    "arctanh",
    "deg2rad",
    "rad2deg",
    "relu",
    "sigmoid",
    "softplus",
    "silu",
    "erf",
]
STATICS = [
    ("elu", {"alpha": 0.7}),
    ("leaky_relu", {"negative_slope": 0.3}),
    ("gelu", {"approximate": False}),
    ("gelu", {"approximate": True}),
]


def _case(name, shape, **static):
    low, high = DOMAINS.get(name, (-2, 2))
    return Case(REGISTRY[name], (uniform(*shape, low=low, high=high),), **static)


CASES = [_case(name, (2, 3)) for name in NAMES]
CASES += [_case(name, (5,), **static) for name, static in STATICS]
CASES += [_case(name, shape) for name in ("tanh", "relu", "erf") for shape in ((), (1,), (0,), (3, 0, 2), (3, 1, 5))]
ERRORS = [
    (lambda: gl.relu("a"), TypeError, "relu: expected a floating-point array, got str"),
    (lambda: gl.gelu(np.arange(3)), TypeError, "gelu: expected a floating-point array, got int64[3]"),
    (lambda: gl.silu(np.array(["a"])), TypeError, "silu: expected … got <U1[1]"),
    (lambda: gl.tanh(np.array([None])), TypeError, "tanh: expected … got object[1]"),
    (lambda: gl.sigmoid(np.ones(2, complex)), TypeError, "sigmoid: expected … got complex128[2]"),
]


class TestRules(RuleCheck):
    cases = CASES
    errors = ERRORS


# name: (function of mpmath, points)
REFERENCES = {
    "sigmoid": (lambda x: 1 / (1 + mpmath.exp(-x)), [-700, -30, -1, 0.3, 30]),
    "softplus": (lambda x: mpmath.log1p(mpmath.exp(x)), [-30, -1, 0.0, 0.3, 30, 700]),
    "silu": (lambda x: x / (1 + mpmath.exp(-x)), [-30, -1, 0.3, 30]),
    "erf": (mpmath.erf, [-3, -1e-9, 0.3, 2, 6]),
    "gelu": (lambda x: x * mpmath.ncdf(x), [-2, -1, 0.0, 0.3, 5]),
    "expm1": (mpmath.expm1, [-1, 1e-12, 3]),
    "log1p": (mpmath.log1p, [-0.5, 1e-12, 3]),
    "elu": (lambda x: x if x > 0 else mpmath.expm1(x), [-30, -1, -1e-9, 0.3]),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_value_and_derivatives_against_mpmath(name):
    exact, points = REFERENCES[name]
    f = getattr(gl, name, None) or getattr(np, name)
    first, second = gl.grad(f), gl.grad(gl.grad(f))
    with mpmath.workdps(40):
        for x in points:
            want = float(exact(mpmath.mpf(x)))
            assert abs(float(f(x)) - want) <= 1e-15 * abs(want)  # all digits, of small values too
            close(float(first(float(x))), float(mpmath.diff(exact, x)), 4e-15)
            close(float(second(float(x))), float(mpmath.diff(exact, x, 2)), 1e-14)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("f", "values", "slopes"),
    [
        (gl.sigmoid, (0, 1), (0, 0)),
        (gl.tanh, (-1, 1), (0, 0)),
        (gl.softplus, (0, 1e4), (0, 1)),
        (gl.silu, (0, 1e4), (0, 1)),
        (gl.gelu, (0, 1e4), (0, 1)),
        (lambda x: gl.gelu(x, approximate=True), (0, 1e4), (0, 1)),
        (gl.elu, (-1, 1e4), (0, 1)),
        (gl.erf, (-1, 1), (0, 0)),
    ],
)
def test_far_from_zero(f, values, slopes, dtype):
    x = np.array([-1e4, 1e4], dtype)
    with np.errstate(all="raise", under="ignore"):
        y, pullback = gl.vjp(f, x)
        np.testing.assert_array_equal(y, np.array(values, dtype))
        np.testing.assert_array_equal(pullback(np.ones_like(y))[0], np.array(slopes, dtype))
        np.testing.assert_array_equal(gl.grad(lambda t: gl.grad(lambda s: np.sum(f(s)))(t).sum())(x), [0, 0])


@pytest.mark.parametrize(
    ("f", "slope"),
    [(np.abs, 0), (np.fabs, 0), (gl.relu, 0), (gl.elu, 1), (lambda x: gl.leaky_relu(x, 0.25), 0.25)],
)
def test_slope_at_the_kink(f, slope):
    assert gl.grad(f)(0.0) == slope
    assert gl.jvp(f, (0.0,), (1.0,))[1] == slope


def test_nan_stays_nan():
    for name in NAMES:
        with np.errstate(invalid="ignore"):
            y = REGISTRY[name](np.array([np.nan]))
        assert np.isnan(y).all(), name


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (7,), (23, 89), (32, 64), (128, 128), (128, 129)])
def test_relu_of_arrays_of_any_size(shape, dtype):
    """Some meet zeros, others a number; wherever they lie in memory."""
    x = np.asarray(np.random.default_rng(0).standard_normal(shape)).astype(dtype)
    x.reshape(-1)[:5] = [np.nan, np.inf, -np.inf, -0.0, 0.0][: x.size]
    for given in (x, x.T, np.repeat(x[..., None], 2, -1)[..., 0], x.astype(x.dtype.newbyteorder())):
        kept = given.copy()
        y = gl.relu(given)
        np.testing.assert_array_equal(y, np.where(np.isnan(kept), kept, np.where(kept > 0, kept, 0)))
        assert y.dtype == x.dtype
        np.testing.assert_array_equal(given, kept)


def test_public_functions_are_the_ops():
    x = np.linspace(-2, 2, 7)
    np.testing.assert_array_equal(elementwise.tanh_(x), np.tanh(x))
    np.testing.assert_array_equal(gl.relu(-1), 0.0)
    assert gl.grad(gl.sigmoid)(0.0) == 0.25
