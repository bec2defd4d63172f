"""logabsdet: against determinants of explicit Jacobians and JAX, flows whose volume is known, outer transforms."""

import numpy as np
import pytest
from rulecheck import LAYOUTS, close, randn
from standin import rules_only, to_numpy, to_standin

import gradlib as gl

jax = pytest.importorskip("jax")
jax.config.update("jax_enable_x64", True)

B, N = 5, 4
W, X = randn(N, N), randn(B, N)


def flow(x, w=W):
    return x + np.tanh(x @ w) / 3


def coupling(x):
    """An affine coupling layer: the second half is scaled by exp of a function of the first."""
    a, b = x[:, :2], x[:, 2:]
    return np.concatenate([a, b * np.exp(np.tanh(a @ W[:2, :2])) + a], axis=1)


@pytest.mark.parametrize(
    ("f", "x"),
    [
        (flow, X),
        (coupling, X),
        (np.sinh, X),
        (np.exp, randn(B)),
        (lambda x: (x.reshape(len(x), 6) @ randn(6, 6)).reshape(-1, 3, 2), randn(B, 2, 3)),
        (lambda x: x[:, ::-1] * -2, X),
        (flow, X[:1]),
        (flow, X[:0]),
        (lambda x: x * 2, np.ones((3, 0))),
        (lambda x: x, np.ones((0, 0))),
    ],
)
def test_against_numpy(f, x):
    n = x.size // max(len(x), 1)
    want = [np.linalg.slogdet(gl.jacobian(f)(x).reshape(len(x), n, len(x), n)[b, :, b])[1] for b in range(len(x))]
    got = gl.logabsdet(f)(x)
    assert got.shape == (len(x),) and got.dtype == float
    close(got, np.array(want), 1e-12)


def test_of_a_coupling_layer_it_is_the_sum_of_the_scales():
    close(gl.logabsdet(coupling)(X), np.tanh(X[:, :2] @ W[:2, :2]).sum(1), 1e-12)


def test_far_from_overflow_and_singular():
    x = randn(2, 400)
    close(gl.logabsdet(lambda x: x * 1e-5)(x), np.full(2, 400 * np.log(1e-5)), 1e-12)
    with np.errstate(divide="ignore"):
        assert (gl.logabsdet(lambda x: x * np.array([1.0, 0.0]))(x[:, :2]) == -np.inf).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    x = LAYOUTS[layout](X)
    close(gl.logabsdet(flow)(x), gl.logabsdet(flow)(X), 1e-13)
    assert (x == X).all()


@pytest.mark.parametrize(("dtype", "result"), [("float16", "float32"), ("float32", "float32"), ("float64", "float64")])
def test_dtypes(dtype, result):
    got = gl.logabsdet(lambda x: flow(x, W.astype(dtype)))(X.astype(dtype))
    assert got.dtype == result
    close(got, gl.logabsdet(flow)(X), {"float16": 1e-2, "float32": 1e-5, "float64": 1e-13}[dtype])


def test_arguments():
    f = lambda t, x, *, scale: (x + t) * scale  # noqa: E731
    got = gl.logabsdet(f, 1, in_axes=(None, 0))(0.5, X, scale=2.0)
    close(got, np.full(B, N * np.log(2)), 1e-13)
    close(gl.logabsdet(lambda s, x: x * s, -1)(np.arange(1.0, 6)[:, None], X), N * np.log(np.arange(1.0, 6)), 1e-13)


def test_it_can_be_differentiated():
    gl.check_grads(lambda x, w: np.sum(gl.logabsdet(lambda x: flow(x, w))(x) ** 2), (X, W), order=2)


def test_gradient_by_parameters_with_jax():
    def of_sample(w, x):
        return jax.numpy.linalg.slogdet(jax.jacfwd(lambda x: x + jax.numpy.tanh(x @ w) / 3)(x))[1]

    want = jax.grad(lambda w: jax.numpy.sum(jax.vmap(of_sample, (None, 0))(w, X)))(W)
    close(gl.grad(lambda w: np.sum(gl.logabsdet(lambda x: flow(x, w))(X)))(W), np.asarray(want), 1e-11)


def test_on_device_arrays():
    w, x = to_standin((W, X))
    with rules_only():
        value, gradient = gl.value_and_grad(lambda w: np.sum(gl.logabsdet(lambda x: x + np.tanh(x @ w) / 3)(x)))(w)
    want = gl.value_and_grad(lambda w: np.sum(gl.logabsdet(lambda x: flow(x, w))(X)))(W)
    close(to_numpy(value), want[0], 1e-12)
    close(to_numpy(gradient), want[1], 1e-11)


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (
            lambda: gl.logabsdet(lambda x: x[:, :3])(X),
            ValueError,
            r"logabsdet: expected one array with as many entries a sample on both sides, a square Jacobian; "
            r"got float64\[5, 3\] for float64\[5, 4\]",
        ),
        (lambda: gl.logabsdet(lambda x: (x, x))(X), ValueError, r"expected one array .* got float64\[5, 4\], float64"),
        (lambda: gl.logabsdet(lambda x: ())(X), ValueError, r"expected one array .* got nothing for float64\[5, 4\]"),
        (lambda: gl.logabsdet(lambda p, x: x)({}, X), ValueError, r"expected one array .* got .* for nothing"),
        (lambda: gl.logabsdet(lambda p: p["x"])({"x": X, "y": X}), ValueError, "logabsdet: expected one array"),
        (lambda: gl.logabsdet(np.sum)(X), ValueError, "logabsdet: the function mixes samples"),
        (lambda: gl.logabsdet(np.multiply, (0, 1))(X, X), ValueError, "logabsdet: expected an int as argnums"),
        (
            lambda: gl.logabsdet(np.multiply, in_axes=(None, 0))(X, X),
            ValueError,
            "logabsdet: expected argnums to name",
        ),
        (lambda: gl.logabsdet(lambda x: x - x.mean(0))(X), ValueError, "logabsdet: the function mixes samples"),
        (lambda: gl.logabsdet(np.sin)(np.arange(3)), TypeError, "logabsdet: expected floating-point arrays"),
        (lambda: gl.logabsdet(np.sin)(X * 1j), TypeError, "logabsdet: expected floating-point arrays"),
        (lambda: gl.logabsdet(np.sin, 1)(X), ValueError, "logabsdet: argnums 1 does not fit"),
    ],
)
def test_bad_input(call, kind, words):
    with pytest.raises(kind, match=words):
        call()
