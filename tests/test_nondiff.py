"""Functions without derivatives: they give plain values, and nothing passes through them."""

import numpy as np
import pytest
from rulecheck import ErrorCheck, randn

import gradlib as gl
from gradlib.trace import Traced

X = randn(3, 4)
Z = np.array([1.0, -2.5, 0.0, np.inf, np.nan])
UNARY = "isnan isinf isfinite sign signbit floor ceil trunc rint logical_not".split()  # noqa: SIM905
BINARY = "equal not_equal less less_equal greater greater_equal logical_and logical_or logical_xor floor_divide".split()  # noqa: SIM905
CALLS = {
    "argmax": lambda x: np.argmax(x, axis=1),
    "argmax flat": lambda x: x.argmax(),
    "argmin": lambda x: np.argmin(x, 0),
    "argsort": lambda x: np.argsort(x),
    "argsort axis": lambda x: x.argsort(axis=0),
    "any": lambda x: np.any(x > 0, axis=1),
    "all": lambda x: np.all(x),
    "count": lambda x: np.count_nonzero(x > 0),
    "zeros": lambda x: np.zeros_like(x),
    "ones": lambda x: np.ones_like(x, dtype=np.float32),
    "masks": lambda x: ((x > 0) & (x < 1)) | ~(x != 0) ^ (x >= 2),
    "cast": lambda x: x.astype(np.int32),
    "close": lambda x: np.allclose(x, x + 1e-12),
    "same": lambda x: np.array_equal(x, x),
    "type": lambda x: np.result_type(x, np.float32),
    "scalar": lambda x: np.isscalar(x),
    "angle": lambda x: np.angle(x) + np.angle(x, deg=True),
    "spacing": lambda x: np.spacing(x),
    "integers": lambda x: np.gcd((x > 0) << 2, np.lcm(np.argsort(x), 3)) >> 1,
    "bits": lambda x: np.packbits(x > 0) + np.unpackbits(np.packbits(x > 0))[:2],
    "places": lambda x: np.unravel_index(x.argmax(), x.shape)[0] + np.ravel_multi_index(np.nonzero(x > 0), x.shape),
    "einsum_path": lambda x: np.einsum_path("ij,kj->ik", x, x)[1],
    "round": lambda x: (round(x[0, 0]), round(x[0, 1], 1)),
    "list": lambda x: x.tolist(),
    "item": lambda x: (x[0, 0].item(), float(x[0, 0]), int(x[0, 1]), bool(x[0, 2]), [5, 6][x[0].argmax() // 9]),
}


def _seen(f, *args):
    """What f gives on traced arguments inside grad."""
    found = []
    gl.grad(lambda *a: (found.append(f(*a)), np.sum(a[0]))[1])(*args)
    assert type(found[0]) is not Traced
    return found[0]


@pytest.mark.parametrize("name", UNARY)
def test_unary(name):
    f = getattr(np, name)
    np.testing.assert_array_equal(_seen(f, Z), f(Z))


@pytest.mark.parametrize("name", BINARY)
def test_binary(name):
    f = getattr(np, name)
    for other in (X[::-1], 0.5, X[0]):
        np.testing.assert_array_equal(_seen(lambda x, o=other: f(x, o), X), f(X, other))
        np.testing.assert_array_equal(_seen(lambda x, o=other: f(o, x), X), f(other, X))


@pytest.mark.parametrize("name", CALLS)
def test_others(name):
    got, want = _seen(CALLS[name], X), CALLS[name](X)
    np.testing.assert_array_equal(got, want)
    assert getattr(got, "dtype", None) == getattr(want, "dtype", None)


@pytest.mark.parametrize(
    "f", [np.floor, np.rint, np.sign, gl.stop_gradient, lambda x: (x > 0).astype(float), lambda x: x // 2]
)
def test_no_derivative_passes(f):
    assert gl.grad(lambda x: np.sum(x * 2 + f(x)))(X).tolist() == np.full(X.shape, 2).tolist()
    assert (gl.jvp(f, (X,), (X,))[1] == 0).all()


def test_control_flow_on_values():
    def f(x):
        if x > 0 and x != 1:
            return x**2
        return -x if x else 3 * x

    assert [float(gl.grad(f)(v)) for v in (3.0, -1.0, 0.0)] == [6, -1, 3]
    assert gl.grad(lambda x: [x, 2 * x, 3 * x][np.argmax(np.array([0, 2, 1]))])(1.0) == 2


ERRORS = [
    (lambda: gl.grad(lambda x: np.argmax(x, axis=3) * 1.0)(X), ValueError, "argmax: axis 3 is out of range"),
    (lambda: gl.grad(lambda x: np.argmax(x, out=0) * 1.0)(X), NotImplementedError, "argmax: keyword out"),
    (lambda: gl.grad(lambda x: x & 1)(X), TypeError, "bitwise_and"),
]


class TestErrors(ErrorCheck):
    errors = ERRORS
