"""A traced array as NumPy's users handle one: attributes, numbers made of it, its array namespace."""

import math

import numpy as np
import pytest

import gradlib as gl
from gradlib.trace import Trace

X = np.array([1.25, 2.0, 3.5])

DIFFERENTIATED = {
    "flat": lambda x: sum(v**2 for v in x.reshape(3, 1).flat) + x.flat[1] ** 3,
    "view": lambda x: np.sum(x.view() ** 2) + np.sum(x.view(np.float64)[1:] ** 3),
    "copy": lambda x: np.sum(x.copy("C") ** 2) + np.sum(x.copy(order="K")[1:] ** 3),
    "to_device": lambda x: np.sum(x.to_device(x.device) ** 3),
    "asarray": lambda x: np.sum(_xp(x).asarray(x) ** 2 * _xp(x).asarray([2.0, 3.0, 4.0])),
    "asarray of values": lambda x: np.sum(_xp(x).asarray([[x[0], 1.0], [x[1], x[2]]]) ** 3),
    "array": lambda x: np.sum(_xp(x).array([x[0], 2 * x[2]]) ** 3),
    "asarray with a dtype": lambda x: np.sum(_xp(x).asarray(x, dtype=_xp(x).float64, copy=True) ** 3),
    "zeros": lambda x: np.sum((_xp(x).zeros(3, device=x.device) + x) ** 3),
    "arange": lambda x: np.sum(_xp(x).arange(3) * x**2),
    "full": lambda x: np.sum(_xp(x).full(3, x[0]) ** 3 * x),
    "linalg": lambda x: _xp(x).linalg.vector_norm(_xp(x).concat([x, _xp(x).ones(2)])),
}


def _xp(x):
    return x.__array_namespace__()


@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_what_is_made_of_a_traced_array_is_differentiated(name):
    gl.check_grads(DIFFERENTIATED[name], (X,), order=2, rtol=1e-4)


NUMBERS = {
    "format": lambda x: f"{x[0]:.3f} {x[1]:8.2e}",
    "round": lambda x: round(x[0]),
    "round to digits": lambda x: float(round(x[0], 1)),
    "trunc": lambda x: (math.trunc(x[2]), math.floor(x[2]), math.ceil(x[2])),
    "item": lambda x: (x.item(1), x.reshape(3, 1).item(2, 0), x[0].item()),
    "memory": lambda x: (x.itemsize, x.strides, x.reshape(3, 1)[::2].strides),
    "device": lambda x: str(getattr(x, "device", "cpu")),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_plain_values_are_those_of_the_array_inside(name):
    seen = []

    def f(x):
        seen.append(NUMBERS[name](x))
        return np.sum(x)

    gl.hessian(f)(X)
    assert seen == [NUMBERS[name](X)]


def test_plain_values_would_freeze_in_a_capture():
    for call in (lambda x: f"{x[0]:.3f}", lambda x: math.trunc(x[0]), lambda x: x.item(0)):
        with pytest.raises(TypeError, match=r"gl\.capture would freeze it"):
            gl.capture(lambda x: (call(x), x)[1])(X)  # noqa: B023
    captured = gl.capture(lambda x: round(x[0], 1) * x + round(x[1]))
    for x in (X, 2.06 * X):
        np.testing.assert_array_equal(captured(x), np.round(x[0], 1) * x + np.rint(x[1]))


def test_an_empty_format_names_the_traced_array():
    assert f"{Trace().wrap(X)}".startswith("Traced(float64[3], level ")


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda x: x.view(np.int64), TypeError, r"x\.view\(int64\).*x\.astype\(dtype\) for its values"),
        (lambda x: x.to_device("cuda"), ValueError, "stays on cpu; move the inputs with gl.to_device"),
        (round, TypeError, r"round: expected a number, got float64\[3\]"),
    ],
)
def test_what_a_traced_array_cannot_do_is_said(call, kind, words):
    with pytest.raises(kind, match=words):
        gl.grad(lambda x: np.sum(call(x)))(X)
