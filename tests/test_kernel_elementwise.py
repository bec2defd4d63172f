"""The elementwise kernels against mpmath-independent float64 formulas of NumPy and SciPy."""

import numpy as np
import pytest
from kernel_device import DTYPES, call, close
from scipy import special

from gradlib.kernels import elementwise

ROOT_2_OVER_PI = np.sqrt(2 / np.pi)


def _gelu_tanh_slope(x):
    u, du = ROOT_2_OVER_PI * (x + 0.044715 * x**3), ROOT_2_OVER_PI * (1 + 3 * 0.044715 * x**2)
    return 0.5 * (1 + np.tanh(u)) + 0.5 * x / np.cosh(u) ** 2 * du


# name: (f, f', domain, static)
ANY, POSITIVE = (-4, 4), (0.1, 4)
CASES = {
    "exp": (np.exp, np.exp, ANY, {}),
    "log": (np.log, lambda x: 1 / x, POSITIVE, {}),
    "log1p": (np.log1p, lambda x: 1 / (1 + x), POSITIVE, {}),
    "expm1": (np.expm1, np.exp, ANY, {}),
    "tanh": (np.tanh, lambda x: 1 / np.cosh(x) ** 2, ANY, {}),
    "sqrt": (np.sqrt, lambda x: 0.5 / np.sqrt(x), POSITIVE, {}),
    "square": (np.square, lambda x: 2 * x, ANY, {}),
    "reciprocal": (np.reciprocal, lambda x: -1 / x**2, POSITIVE, {}),
    "sin": (np.sin, np.cos, ANY, {}),
    "cos": (np.cos, lambda x: -np.sin(x), ANY, {}),
    "negative": (np.negative, lambda x: -np.ones_like(x), ANY, {}),
    "absolute": (np.abs, np.sign, ANY, {}),
    "erf": (special.erf, lambda x: 2 / np.sqrt(np.pi) * np.exp(-(x**2)), ANY, {}),
    "relu": (lambda x: np.maximum(x, 0), lambda x: x > 0, ANY, {}),
    "sigmoid": (special.expit, lambda x: special.expit(x) * special.expit(-x), ANY, {}),
    "silu": (
        lambda x: x * special.expit(x),
        lambda x: special.expit(x) + x * special.expit(x) * special.expit(-x),
        ANY,
        {},
    ),
    "softplus": (lambda x: np.logaddexp(x, 0), special.expit, ANY, {}),
    "elu": (
        lambda x: np.where(x > 0, x, 0.7 * np.expm1(x)),
        lambda x: np.where(x > 0, 1, 0.7 * np.exp(x)),
        ANY,
        {"alpha": 0.7},
    ),
    "leaky_relu": (
        lambda x: np.where(x > 0, x, 0.3 * x),
        lambda x: np.where(x > 0, 1, 0.3),
        ANY,
        {"negative_slope": 0.3},
    ),
    "gelu": (
        lambda x: x * special.ndtr(x),
        lambda x: special.ndtr(x) + x * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi),
        ANY,
        {"approximate": False},
    ),
    "gelu_tanh": (
        lambda x: 0.5 * x * (1 + np.tanh(ROOT_2_OVER_PI * (x + 0.044715 * x**3))),
        _gelu_tanh_slope,
        ANY,
        {"approximate": True},
    ),
}


LEFT_OUT = [("sin", "float64"), ("cos", "float64")]


def _case(name):
    f, df, domain, static = CASES[name]
    return getattr(elementwise, name.removesuffix("_tanh")), f, df, domain, static


INSTANCES = [(name, dtype) for name in CASES for dtype in DTYPES if (name, dtype) not in LEFT_OUT]


@pytest.mark.parametrize(("name", "dtype"), LEFT_OUT)
def test_what_is_left_to_the_rule(name, dtype):
    assert call(getattr(elementwise, name).forward, np.ones(3, dtype)) is NotImplemented


@pytest.mark.parametrize(("name", "dtype"), INSTANCES)
def test_values_and_derivatives(name, dtype):
    kernel, f, df, domain, static = _case(name)
    rng = np.random.default_rng(0)
    x = rng.uniform(*domain, (3, 11)).astype(dtype)
    exact = x.astype(float)
    y, saved = call(kernel.forward, x, **static)
    close(y, f(exact), dtype)
    d = rng.normal(size=(3, *x.shape)).astype(dtype)
    (dx,) = call(kernel.vjp, saved, d, (True,), **static)
    close(dx, d.astype(float) * df(exact), dtype, scale=30)
    np.testing.assert_array_equal(call(kernel.jvp, saved, (d,), **static), dx)
    assert call(kernel.vjp, saved, d, (False,), **static) == (None,)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (127,), (0,), (2, 0), (1025,), (4, 8)])
@pytest.mark.parametrize("V", [0, 1, 3])
def test_every_element_of_every_shape(shape, V, schedule):
    x = np.linspace(-2, 2, int(np.prod(shape)), dtype="float32").reshape(shape)
    y, saved = call(elementwise.tanh.forward, x)
    close(y, np.tanh(x.astype(float)), "float32")
    d = np.random.default_rng(1).normal(size=(V, *shape)).astype("float32")
    (dx,) = call(elementwise.tanh.vjp, saved, d, (True,))
    close(dx, d / np.cosh(x.astype(float)) ** 2, "float32", scale=3)


def test_strided_and_misaligned_arrays():
    base = np.linspace(-3, 3, 401, dtype="float32")
    for x in (base[1:], base[::3], base[:400].reshape(20, 20).T, base[::-1]):
        y, saved = call(elementwise.sigmoid.forward, x)
        close(y, special.expit(x.astype(float)), "float32")
        (dx,) = call(elementwise.sigmoid.vjp, saved, np.ones((2, *x.shape), "float32")[:, ::-1], (True,))
        close(dx[1], special.expit(x.astype(float)) * special.expit(-x.astype(float)), "float32")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "limits"),
    [
        ("sigmoid", (0, 1)),
        ("tanh", (-1, 1)),
        ("softplus", (0, 1e4)),
        ("silu", (0, 1e4)),
        ("gelu", (0, 1e4)),
        ("gelu_tanh", (0, 1e4)),
        ("relu", (0, 1e4)),
        ("elu", (-0.7, 1e4)),
    ],
)
def test_far_from_zero(name, limits, dtype):
    kernel, _, _, _, static = _case(name)
    y, saved = call(kernel.forward, np.array([-1e4, 1e4], dtype), **static)
    close(y, np.array(limits), dtype)
    (dx,) = call(kernel.vjp, saved, np.ones((1, 2), dtype), (True,), **static)
    close(dx, np.array([[0, 0 if limits[1] == 1 else 1]]), dtype)


def test_kinks_and_nan():
    x = np.array([0.0, np.nan], "float32")
    y, saved = call(elementwise.relu.forward, x)
    assert y[0] == 0 and np.isnan(y[1])
    assert call(elementwise.relu.vjp, saved, np.ones((1, 2), "float32"), (True,))[0][0, 0] == 0
    _, saved = call(elementwise.absolute.forward, np.zeros(1, "float32"))
    assert call(elementwise.absolute.vjp, saved, np.ones((1, 1), "float32"), (True,))[0] == 0


def test_other_dtypes_are_left_to_the_rule():
    for x in (np.ones(3, "longdouble"), np.arange(3), np.float32(1), 2.0):
        assert call(elementwise.exp.forward, x) is NotImplemented
    x = np.ones(3, "float32")
    assert call(elementwise.exp.vjp, (x, x), np.ones((1, 3)), (True,)) is NotImplemented
