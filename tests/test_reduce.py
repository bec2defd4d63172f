"""Reductions: rules over every choice of axes, ties, zeros, empty axes."""

import numpy as np
import pytest
from rulecheck import Case, RuleCheck, close, randn

import gradlib as gl
from gradlib.op import REGISTRY

NAMES = ["sum", "mean", "prod", "max", "min"]
AXES = [
    ((2, 3), (0,), False),
    ((2, 3), (1,), True),
    ((2, 3), (0, 1), False),
    ((), (), False),
    ((1, 3, 1), (0, 2), True),
]


def _with_zeros(*zeros):
    x = randn(3, 4, shift=2)
    for i in zeros:
        x.flat[i] = 0
    return x


CASES = [Case(REGISTRY[n], (randn(*s),), axis=a, keepdims=k) for n in NAMES for s, a, k in AXES]
CASES += [Case(REGISTRY[n], (randn(0, 3),), axis=(0,), keepdims=False) for n in ("sum", "prod")]
CASES += [Case(REGISTRY[n], (randn(0, 3),), axis=(1,), keepdims=True) for n in NAMES]
CASES += [Case(REGISTRY["prod"], (_with_zeros(*z),), axis=a, keepdims=False)
          for z in [(1,), (1, 2), (0, 5, 6, 7)] for a in [(1,), (0,), (0, 1)]]  # fmt: skip
CASES += [Case(REGISTRY["cumsum"], (randn(*s),), axis=a) for s, a in [((3,), 0), ((2, 3), 0), ((2, 3), 1), ((0,), 0)]]
ERRORS = [
    (lambda: gl.grad(lambda x: np.sum(x, axis=2))(np.ones((2, 3))), ValueError, "sum: axis 2 is out of range … 2"),
    (lambda: gl.grad(lambda x: np.sum(x, axis=(0, -2)))(np.ones((2, 3))), ValueError, "sum: an axis occurs twice"),
    (
        lambda: gl.grad(lambda x: np.sum(x, axis="a"))(np.ones(2)),
        TypeError,
        "sum: expected an int as axis, got str",
    ),
    (lambda: gl.grad(lambda x: np.max(x))(np.ones(0)), ValueError, "max: expected at least one entry … (0,)"),
    (lambda: gl.grad(lambda x: np.min(x, axis=0).sum())(np.ones((0, 2))), ValueError, "min: expected at least one"),
    (lambda: gl.grad(lambda x: np.mean(x))(np.ones(0)), ValueError, "mean: expected at least one entry"),
    (lambda: gl.grad(lambda x: np.sum(x, out=np.ones(())))(np.ones(2)), TypeError, "sum: out="),
    (lambda: gl.grad(lambda x: np.unwrap(x))(np.ones(2)), NotImplementedError, "unwrap"),
]


class TestRules(RuleCheck):
    cases = CASES
    errors = ERRORS


@pytest.mark.parametrize("f", [np.max, np.min])
def test_ties_share_the_derivative(f):
    x = np.array([[1.0, 2, 2], [0, 0, 0]])
    want = {np.max: [[0, 0.5, 0.5], [1 / 3] * 3], np.min: [[1, 0, 0], [1 / 3] * 3]}[f]
    np.testing.assert_allclose(gl.grad(lambda x: f(x, axis=1).sum())(x), want)
    np.testing.assert_allclose(gl.grad(f)(np.ones((2, 2))), np.full((2, 2), 0.25))


@pytest.mark.parametrize(("x", "want"), [([0.0, 2, 3], [6, 0, 0]), ([0.0, 0, 3], [0, 0, 0]), ([2.0, 0], [0, 2])])
def test_prod_with_zeros(x, want):
    assert gl.grad(np.prod)(np.array(x)).tolist() == want


def test_second_derivative_of_prod_with_a_zero():
    x = np.array([0.0, 2, 3])
    np.testing.assert_array_equal(gl.hessian(np.prod)(x), [[0, 3, 2], [3, 0, 0], [2, 0, 0]])
    np.testing.assert_array_equal(gl.hessian(np.prod)(np.array([0.0, 0.0, 3])), [[0, 3, 0], [3, 0, 0], [0, 0, 0]])


def test_max_with_infinities():
    x = np.array([[-np.inf, 1], [-np.inf, -np.inf], [np.inf, 0]])
    with np.errstate(invalid="ignore"):  # the sum of the maxima is inf - inf
        dx = gl.grad(lambda x: np.max(x, axis=1).sum())(x)
    np.testing.assert_array_equal(dx, [[0, 1], [0.5, 0.5], [1, 0]])


@pytest.mark.parametrize("f", [np.var, np.std])
@pytest.mark.parametrize(
    "how", [{}, {"axis": 0}, {"axis": 1, "ddof": 1}, {"axis": (0, 1), "keepdims": True}, {"axis": -1, "correction": 1}]
)
def test_var_and_std(f, how):
    x = randn(4, 3)
    np.testing.assert_allclose(gl.vjp(lambda x: f(x, **how), x)[0], f(x, **how))
    gl.check_grads(lambda x: f(x, **how), (x,), order=2)


def test_methods_and_ufunc_reductions_are_the_functions():
    x = randn(3, 4)
    for f, g in [
        (lambda x: x.sum(0), lambda x: np.add.reduce(x)),
        (lambda x: x.prod(axis=1), lambda x: np.multiply.reduce(x, axis=1)),
        (lambda x: x.max(-1, keepdims=True), lambda x: np.maximum.reduce(x, axis=-1, keepdims=True)),
        (lambda x: x.min(), lambda x: np.amin(x)),
        (lambda x: x.mean((0, 1)), lambda x: np.mean(x)),
        (lambda x: x.cumsum(), lambda x: np.cumsum(x)),
    ]:
        np.testing.assert_allclose(gl.vjp(f, x)[0], f(x))
        np.testing.assert_allclose(gl.jacobian(f)(x), gl.jacobian(g)(x))


def test_reductions_to_another_dtype():
    x = randn(3).astype("float32")
    assert gl.vjp(lambda x: np.sum(x, dtype="float64"), x)[0].dtype == "float64"
    assert gl.grad(lambda x: np.sum(x, dtype="float64"))(x).dtype == "float32"


def test_float16_is_summed_in_float32():
    x = np.full(10_000, 1.25, np.float16)
    y, pullback = gl.vjp(np.sum, x)
    close(float(y), 12_500.0, 1e-3)
    assert y.dtype == pullback(y)[0].dtype == "float16"
