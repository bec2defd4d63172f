"""Elementwise ops of several arguments: rules, broadcasting, kinks and zeros."""

import numpy as np
import pytest
from rulecheck import Case, RuleCheck, randn, uniform

import gradlib as gl
from gradlib.op import REGISTRY

BINARY = "add subtract multiply divide power maximum minimum fmax fmin hypot arctan2 logaddexp".split()  # noqa: SIM905
POSITIVE = {"divide", "power"}
#: shapes that broadcast in every way: equal, behind, before, both, scalars, size 1, empty
SHAPES = [((2, 3), (2, 3)), ((2, 3), (3,)), ((3,), (2, 1)), ((2, 1), (1, 3)), ((), (3,)), ((1,), ()), ((0, 3), (3,))]


def _pair(name, a, b):
    low, high = (0.4, 2) if name in POSITIVE else (-2, 2)
    return Case(REGISTRY[name], (uniform(*a, low=low, high=high, seed=1), uniform(*b, low=low, high=high, seed=100)))


def _mask(*shape):
    return np.random.default_rng(0).random(shape) > 0.5


CASES = [_pair(name, *shapes) for name in ("multiply", "divide", "maximum") for shapes in SHAPES]
CASES += [_pair(name, *shapes) for name in BINARY for shapes in [((2, 1), (3,)), ((4,), (4,))]]
CASES += [
    Case(REGISTRY["multiply"], (randn(2, 3), 2.5)),
    Case(REGISTRY["divide"], (2.5, uniform(3, low=0.5, high=2))),
    Case(REGISTRY["power"], (uniform(3, low=0.5, high=2), 3.0)),
    Case(REGISTRY["power"], (1.7, randn(3))),
    Case(REGISTRY["add"], (randn(2, 3), np.arange(3, dtype=np.int8))),
    Case(REGISTRY["where"], (_mask(2, 3), randn(2, 3), randn(3))),
    Case(REGISTRY["where"], (_mask(3), randn(2, 1), randn())),
    Case(REGISTRY["where"], (_mask(2, 3), randn(2, 3), 0.0)),
    Case(REGISTRY["where"], (_mask(4), 1.0, randn(4))),
    Case(REGISTRY["where"], (_mask(0), randn(0), randn(1))),
    Case(REGISTRY["clip"], (randn(3, 4),), low=-0.5, high=0.5),
    Case(REGISTRY["clip"], (randn(5),), low=None, high=0.1),
    Case(REGISTRY["clip"], (randn(5),), low=0.1, high=None),
]
ERRORS = [
    (
        lambda: gl.grad(lambda x: np.sum(x + np.ones(4)))(np.ones(3)),
        ValueError,
        "add: shapes do not broadcast: … float64[3] … float64[4]",
    ),
    (lambda: gl.grad(lambda x: np.sum(x * np.ones((2, 4))))(np.ones((3, 1, 3))), ValueError, "multiply: shapes"),
    (lambda: gl.grad(lambda x: np.where(x > 0, x, np.ones(4)).sum())(np.ones(3)), ValueError, "where: shapes"),
    (lambda: gl.grad(lambda x: np.where(x)[0])(np.ones(3)), NotImplementedError, "where: give both branches"),
    (lambda: gl.grad(lambda x: x + "a")(1.0), TypeError, "unsupported operand"),
    (lambda: gl.grad(lambda x: np.sum(x + np.array(["a"])))(np.ones(1)), TypeError, "add: expected … got <U1[1]"),
    (
        lambda: gl.grad(lambda x: np.sum(x + np.array([None])))(np.ones(1)),
        TypeError,
        "add: expected … got object[1]",
    ),
    (lambda: gl.grad(lambda x: np.clip(x, 0, 1, out=np.ones(1)))(np.ones(1)), TypeError, "clip: out="),
]


class TestRules(RuleCheck):
    cases = CASES
    errors = ERRORS


@pytest.mark.parametrize("f", [np.maximum, np.minimum, np.fmax, np.fmin])
def test_ties_share_the_derivative(f):
    a = np.array([1.0, -2.0])
    da, db = gl.grad(lambda a, b: np.sum(f(a, b)), (0, 1))(a, a.copy())
    np.testing.assert_array_equal([da, db], np.full((2, 2), 0.5))
    assert gl.grad(lambda a: np.sum(f(a, a)))(a).tolist() == [1, 1]


def test_fmax_passes_the_derivative_around_nan():
    a, b = np.array([np.nan, 1.0]), np.array([2.0, np.nan])
    da, db = gl.grad(lambda a, b: np.sum(np.fmax(a, b)), (0, 1))(a, b)
    assert (da.tolist(), db.tolist()) == ([0, 1], [1, 0])


@pytest.mark.parametrize(("b", "slope"), [(0.0, 0), (1.0, 1), (2.0, 0), (3.0, 0)])
def test_power_at_zero(b, slope):
    with np.errstate(all="raise"):
        assert gl.grad(lambda x: x**b)(0.0) == slope
        assert gl.grad(lambda x: np.sum(x ** np.array([b])))(np.zeros(1))[0] == slope
        assert gl.grad(lambda b: 0.0**b)(b) == 0


def test_power_of_negative_bases():
    x = np.array([-2.0, 3.0])
    np.testing.assert_allclose(gl.grad(lambda x: np.sum(x**3))(x), 3 * x**2)
    np.testing.assert_allclose(gl.grad(lambda x: np.sum(x ** np.array([3.0, 2.0])))(x), [12, 6])
    np.testing.assert_allclose(gl.grad(lambda x: np.sum(x**-1))(x), -1 / x**2)
    np.testing.assert_allclose(gl.hessian(lambda x: np.sum(x**2))(x), 2 * np.eye(2))


def test_where_shields_from_infinite_derivatives():
    def safe_log(x):
        return np.where(x > 0, np.log(np.where(x > 0, x, 1.0)), 0.0)

    assert gl.grad(lambda x: safe_log(x).sum())(np.array([0.0, 2.0])).tolist() == [0, 0.5]


def test_clip_bounds():
    x = np.array([-1.0, 0.0, 0.5, 1.0, 2.0])
    assert gl.grad(lambda x: np.clip(x, 0, 1).sum())(x).tolist() == [0, 1, 1, 1, 0]
    low = np.array([0.0, 0.1, 0.0, 0.0, 3.0])
    dx, dlow = gl.grad(lambda x, low: np.clip(x, low, None).sum(), (0, 1))(x, low)
    assert (dx.tolist(), dlow.tolist()) == ([0, 0, 1, 1, 0], [1, 1, 0, 0, 1])


@pytest.mark.parametrize("scale", [1e4, -1e4, -np.inf])
def test_logaddexp_at_extremes(scale):
    da, db = gl.grad(np.logaddexp, (0, 1))(scale, 0.0)
    assert (da, db) == ((1, 0) if scale > 0 else (0, 1))


def test_logaddexp_of_two_masked():
    assert gl.grad(np.logaddexp, (0, 1))(-np.inf, -np.inf) == (0, 0)


def test_hypot_and_arctan2_at_zero_and_far():
    assert gl.grad(np.hypot, (0, 1))(0.0, 0.0) == (0, 0)
    np.testing.assert_allclose(gl.grad(np.hypot, (0, 1))(3e200, 4e200), (0.6, 0.8))
    np.testing.assert_allclose(gl.grad(np.arctan2, (0, 1))(3.0, 4.0), (4 / 25, -3 / 25))


def test_hypot_and_norm_agree_at_zero_at_second_order():
    for f in (lambda x: np.hypot(x[0], x[1]), np.linalg.norm):
        for hessian in (gl.hessian(f), gl.jacfwd(gl.grad(f)), gl.jacrev(gl.grad(f))):
            np.testing.assert_array_equal(hessian(np.zeros(2)), np.zeros((2, 2)))


@pytest.mark.parametrize(("dtype", "scale"), [("float32", 1e-25), ("float32", 1e25), ("float64", 1e-200)])
def test_arctan2_far_from_one(dtype, scale):
    x = np.array([scale, scale], dtype)
    for mode in (gl.jacrev, gl.jacfwd):
        got = mode(lambda x: np.arctan2(x[0], x[1]))(x)
        np.testing.assert_allclose(got, [0.5 / scale, -0.5 / scale], rtol=1e-6)


def test_number_bases_below_zero():
    np.testing.assert_array_equal(gl.grad(lambda x: x[0] ** x[1])(np.array([-2.0, 2.0])), [-4, np.nan])
    assert np.isnan(gl.grad(lambda x: np.sum((-2.0) ** x))(np.array([1.0, 2.0]))).all()


@pytest.mark.parametrize("zero", [0, 0.0, -0.0, np.float64(0)])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_division_by_the_number_zero(zero):
    x = np.array([1.0, -2.0])
    want = np.full(2, np.inf if np.copysign(1, zero) > 0 else -np.inf)
    y, pullback = gl.vjp(lambda x: x / zero, x)
    np.testing.assert_array_equal(y, x / zero)
    np.testing.assert_array_equal(pullback(np.ones(2))[0], want)
    np.testing.assert_array_equal(gl.jvp(lambda x: x / zero, (x,), (np.ones(2),))[1], want)


def test_operators_are_the_functions():
    x = np.array([0.5, 1.5])
    np.testing.assert_allclose(gl.grad(lambda x: np.sum(2 - 3 / x + x / 2 - (-x) + 1 * +x))(x), 3 / x**2 + 2.5)
    np.testing.assert_allclose(gl.grad(lambda x: np.sum(abs(-x) + 2.0**x))(x), 1 + np.log(2) * 2.0**x)
