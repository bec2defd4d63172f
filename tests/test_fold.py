"""Plain code keeps the structure of its Jacobian: which segments a function becomes, and that the numbers are right."""

import numpy as np
import pytest

import gradlib as gl
from gradlib.jacobian.batched import Batched
from gradlib.jacobian.blocks import Block
from gradlib.jacobian.chain import chain_of
from gradlib.op import REGISTRY, Op

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
    "picked twice": (lambda x: np.tanh(x[:, [0, 0, 5]]), ["gather", "diagonal"]),
    "repeated": (lambda x: np.repeat(x, 2, axis=1)[:, ::3], ["gather"]),
    "an axis more": (lambda x: np.tanh(x)[:, None, :, None], ["diagonal"]),
    "chosen by hand": (lambda x: np.where(x > 0, x, 0.1 * x), ["diagonal"]),
    "chosen or a number": (lambda x: np.where(x > 0, x, 1.0), ["diagonal"]),
    "chosen before a matrix": (lambda x: np.where(x > 0, x, 0.1 * x) @ W, ["diagonal", "shared matrix"]),
    "less its mean": (lambda x: np.tanh(x - x.mean(axis=1)[:, None]), ["diagonal - rank 1"]),
    "softmax by hand": (lambda x: np.exp(x) / np.sum(np.exp(x), axis=1, keepdims=True), ["diagonal - rank 1"]),
    "softmax less the largest": (
        lambda x: (lambda e: e / e.sum(axis=-1, keepdims=True))(np.exp(x - x.max(axis=-1, keepdims=True))),
        ["diagonal - rank 2"],
    ),
    "layer norm by hand": (
        lambda x: (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5) * SCALE,
        ["diagonal - rank 2"],
    ),
    "rows of length 1": (lambda x: x / np.linalg.norm(x, axis=1, keepdims=True), ["diagonal - rank 1"]),
    "sum of squares": (lambda x: np.sum(np.tanh(x) ** 2, axis=1), ["row gradient"]),
    "largest": (lambda x: np.max(x @ W, axis=1), ["shared matrix", "row gradient"]),
    "largest of pieces": (lambda x: np.max(x.reshape(-1, 2, 3), axis=2), ["row gradient"]),
    "product of pieces": (lambda x: np.prod(x.reshape(-1, 2, 3), axis=2), ["row gradient"]),
    "mean of all": (lambda x: np.mean(np.mean(x.reshape(-1, 2, 3), axis=2), axis=1), ["row gradient"]),
    "norm of columns": (lambda x: np.linalg.norm(x.reshape(-1, 2, 3), axis=1), ["RowGradient"]),
    "log of summed exps": (lambda x: np.log(np.sum(np.exp(x), axis=1)), ["row gradient"]),
    "rows to numbers": (lambda x: gl.logsumexp(np.tanh(x), axis=1), ["row gradient"]),
    "rows to numbers on the way": (
        lambda x: np.sin(gl.logsumexp((x @ W).reshape(-1, 5, 1) * C, axis=2)) @ SQUARE[:5],
        ["shared matrix", "Spread", "row gradient", "shared matrix"],
    ),
    "residual": (lambda x: np.tanh(x + np.tanh(x @ SQUARE)) @ W, ["rules", "diagonal", "shared matrix"]),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize("mode", ["auto", "rev", "fwd"])
def test_structure_and_values(name, samples, mode):
    f, expected = FUNCTIONS[name]
    x = RNG.standard_normal((samples, 6))
    assert kinds(f, x) == [k for k in expected if k != "identity" or expected == ["identity"]]
    for _ in range(2):  # the second time what is known of the first serves
        whole = gl.jacobian(f)(x)
        want = np.stack([whole[b][..., b, :] for b in range(samples)])
        J = gl.batch_jacobian(f, mode=mode)
        found = J(x)
        np.testing.assert_allclose(found, want, rtol=1e-12, atol=1e-14)
        np.testing.assert_array_equal(J(x), found)  # by the code that was recorded
        x = RNG.standard_normal((samples, 6))


def test_an_index_of_each_sample_or_changed_in_place():
    x, rows, index = RNG.standard_normal((4, 6)), np.arange(4), np.array([3, 3, 0, 1])
    own = gl.batch_jacobian(lambda x, i: np.tanh(x[rows, i]), argnums=0)
    np.testing.assert_allclose(own(x, index), np.eye(6)[index] * (1 - np.tanh(x) ** 2), rtol=1e-12)
    f = lambda x: x[:, index] ** 2  # noqa: E731
    for call in (gl.batch_jacobian(f), gl.capture(gl.batch_jacobian(f))):
        for _ in range(2):
            want = 2 * x[:, index, None] * np.eye(6)[index]
            np.testing.assert_allclose(call(x), want, rtol=1e-12)
            index[:] = RNG.integers(0, 6, 4)


def test_what_is_not_chosen_passes_nothing():
    x = np.array([[0.0, 4.0], [1.0, 0.0]])
    root = lambda x: np.where(x > 0, np.sqrt(x), 0.0)  # noqa: E731  (infinite behind the choice)
    guarded = lambda x: np.sqrt(np.where(x > 0, 0.0, x)) + x  # noqa: E731  (and before it)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(gl.batch_jacobian(root)(x), [[[0, 0], [0, 0.25]], [[0.5, 0], [0, 0]]])
        found = gl.batch_jacobian(guarded)(x)
    assert found[0, 1, 1] == 1 and found[1, 0, 0] == 1 and np.isinf(found[0, 0, 0])


def test_captured():
    f = FUNCTIONS["picked"][0]
    g = lambda x: np.maximum(f(x) * 2.0 + x[:, ::-1][:, :3], 0)  # noqa: E731
    for h in (f, g, FUNCTIONS["layer in plain NumPy"][0], FUNCTIONS["x used twice"][0]):
        fast = gl.capture(gl.batch_jacobian(h))
        for _ in range(2):
            x = RNG.standard_normal((4, 6))
            np.testing.assert_array_equal(fast(x), gl.batch_jacobian(h)(x))


class Bidiagonal(Block):
    """A structure that gradlib does not know: y_i = a_i x_i + b_i x_(i-1), each sample's own a and b."""

    def __init__(self, a, b):
        self.a, self.b, self.like = a, b, a
        self.x_shape = self.y_shape = a.shape

    def vjp(self, dy):
        dx = dy * self.a
        dx[..., :-1] += (dy * self.b)[..., 1:]
        return dx

    def jvp(self, dx):
        dy = dx * self.a
        dy[..., 1:] += dx[..., :-1] * self.b[..., 1:]
        return dy


@pytest.fixture
def times_the_last():
    """The op y_i = x_i x_(i-1), with x_(-1) = 1, which has a block and no rules."""

    def last(xp, x):
        return xp.concatenate([xp.ones((*x.shape[:-1], 1), x.dtype), x[..., :-1]], axis=-1)

    yield Op(
        "times_the_last",
        forward=lambda xp, x: (x * last(xp, x), (x, last(xp, x))),
        vjp=lambda xp, saved, dy, need: pytest.fail("by its rules"),
        jvp=lambda xp, saved, dx: pytest.fail("by its rules"),
        block=lambda xp, saved, i: Bidiagonal(saved[1], saved[0]),
        batch=lambda tags, shapes, static: tags[0],
    )
    del REGISTRY["times_the_last"]


@pytest.mark.parametrize("mode", ["auto", "rev", "fwd"])
@pytest.mark.parametrize("options", [{}, {"chunk_size": 2}, {"max_bytes": 20_000}])
def test_a_block_of_a_class_of_ones_own(times_the_last, mode, options):
    """It is a part of the chain by its own methods alone."""

    def plain(x):
        return np.concatenate([x[:, :1], x[:, 1:] * x[:, :-1]], axis=1)

    def net(middle):
        return lambda x: np.tanh(middle(np.tanh(x @ SQUARE))) @ W

    x = RNG.standard_normal((4, 6))
    for f, g, expected in [
        (times_the_last, plain, ["Bidiagonal"]),
        (net(times_the_last), net(plain), ["shared matrix", "Bidiagonal", "diagonal", "shared matrix"]),
    ]:
        assert kinds(f, x) == expected
        J = gl.batch_jacobian(f, mode=mode, **options)
        want = np.einsum("bibj->bij", gl.jacobian(g)(x))
        np.testing.assert_allclose(J(x), want, rtol=1e-12, atol=1e-14)
        assert all(k in str(J.plan(x)) for k in expected)
        captured = gl.capture(J)
        for y in (x, x[::-1] + 1):
            np.testing.assert_allclose(captured(y), np.einsum("bibj->bij", gl.jacobian(g)(y)), rtol=1e-12, atol=1e-14)
        for at, piece in J.chunks(x):
            np.testing.assert_allclose(piece, want[at], rtol=1e-12, atol=1e-14)
