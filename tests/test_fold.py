"""Plain code keeps the structure of its Jacobian: which segments a function becomes, and that the numbers are right."""

import numpy as np
import pytest

import gradlib as gl
from gradlib.jacobian.batched import Batched
from gradlib.jacobian.chain import chain_of

RNG = np.random.default_rng(0)
W, C = RNG.standard_normal((6, 5)), RNG.standard_normal(5)
SQUARE, SCALE = RNG.standard_normal((6, 6)), RNG.standard_normal(6)


def kinds(f, x):
    return [s.kind for s in chain_of(Batched("test", f, (x,), (0,), (0,), {}))]


FUNCTIONS = {
    "layer in plain NumPy": (lambda x: np.maximum(x @ W + C, 0), ["shared matrix"]),
    "sigmoid by hand": (lambda x: 1 / (1 + np.exp(-x)), ["diagonal"]),
    "x used twice": (lambda x: x * gl.sigmoid(x) + x, ["diagonal"]),
    "scaled by one row": (lambda x: np.tanh(x) * 3.0 + SCALE[0], ["diagonal"]),
    "softmax of twice x, plus x": (lambda x: gl.softmax(2.0 * x) * 3.0 + x, ["diagonal - rank 1"]),
    "sum of two matrices": (lambda x: x @ SQUARE + x @ SQUARE.T, ["shared matrix"]),
    "matrix and x": (lambda x: x @ SQUARE + x, ["rules"]),
    "reshaped and back": (lambda x: np.tanh(x.reshape(-1, 2, 3)).reshape(-1, 6), ["diagonal", "identity"]),
    "picked": (lambda x: np.tanh(x[:, 1:4]), ["gather", "diagonal"]),
    "flipped and turned": (lambda x: np.flip(x.reshape(-1, 2, 3).swapaxes(1, 2), 1), ["gather"]),
    "copied": (lambda x: x.reshape(-1, 3, 2), ["identity"]),
    "residual": (lambda x: np.tanh(x + np.tanh(x @ SQUARE)) @ W, ["rules", "diagonal", "shared matrix"]),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize("mode", ["auto", "rev", "fwd"])
def test_structure_and_values(name, samples, mode):
    f, expected = FUNCTIONS[name]
    x = RNG.standard_normal((samples, 6))
    assert kinds(f, x) == [k for k in expected if k != "identity" or expected == ["identity"]]
    whole = gl.jacobian(f)(x)
    want = np.stack([whole[b][..., b, :] for b in range(samples)])
    np.testing.assert_allclose(gl.batch_jacobian(f, mode=mode)(x), want, rtol=1e-12, atol=1e-14)


def test_captured():
    f = FUNCTIONS["picked"][0]
    g = lambda x: np.maximum(f(x) * 2.0 + x[:, ::-1][:, :3], 0)  # noqa: E731
    for h in (f, g, FUNCTIONS["layer in plain NumPy"][0], FUNCTIONS["x used twice"][0]):
        fast = gl.capture(gl.batch_jacobian(h))
        for _ in range(2):
            x = RNG.standard_normal((4, 6))
            np.testing.assert_array_equal(fast(x), gl.batch_jacobian(h)(x))
