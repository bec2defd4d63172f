"""jacobian_norm: whole and by samples, exact and estimated, against dense matrices and JAX, through transforms."""

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from rulecheck import LAYOUTS, close, randn
from standin import DeviceArray, rules_only, to_numpy, to_standin

import gradlib as gl
from gradlib.jacobian.jacobian_svd import DENSE

jax = pytest.importorskip("jax")
jax.config.update("jax_enable_x64", True)

B, K, N = 5, 3, 4
W, X = randn(K, N), randn(B, K)
ADDRESS = property(lambda a: SimpleNamespace(ptr=a.host.ctypes.data))  # a.data.ptr, as CuPy's arrays have it
ORDERS = {"fro": "fro", "spectral": 2}


def f(x, w=W):
    return np.tanh(x @ w)


def narrow(x):
    return np.tanh(x @ W[:, :2])


def whole(g, x):
    """The Jacobian as a matrix."""
    return gl.jacobian(g)(x).reshape(np.size(g(x)), x.size)


def of_samples(g, x):
    """The matrix of each sample, from the Jacobian of the whole batch."""
    j, b = gl.jacobian(g)(x), len(x)
    m, n = np.size(g(x)) // max(b, 1), x.size // max(b, 1)
    return np.stack([j.reshape(b, m, b, n)[i, :, i] for i in range(b)]) if b else np.zeros((0, m, n))


def norms(matrices, ord):
    if 0 in matrices.shape:
        return np.zeros(matrices.shape[:-2])
    return np.linalg.norm(matrices, ORDERS[ord], axis=(-2, -1))


SHAPES = {
    "more outputs": (f, X),
    "fewer outputs": (narrow, X),
    "one output a sample": (lambda x: np.sum(x**2, axis=1), X),
    "rank three": (lambda x: np.tanh(x)[:, ::-1] * x.sum((1, 2))[:, None, None], randn(B, 2, 3)),
    "elementwise": (np.sinh, X),
    "one sample": (f, X[:1]),
    "no sample": (f, X[:0]),
    "no entry": (lambda x: np.concatenate([x, x], axis=1), np.ones((3, 0))),
    "zero": (lambda x: np.zeros_like(gl.stop_gradient(x)), X),
}


@pytest.mark.parametrize("options", [{}, {"chunk_size": 1}, {"chunk_size": 2}])
@pytest.mark.parametrize("ord", ORDERS)
@pytest.mark.parametrize("name", SHAPES)
def test_against_numpy(name, ord, options):
    g, x = SHAPES[name]
    before = x.copy()
    got = gl.jacobian_norm(g, ord=ord, **options)(x)
    assert np.shape(got) == ()
    close(got, norms(whole(g, x), ord), 1e-12)
    got = gl.jacobian_norm(g, ord=ord, in_axes=0, **options)(x)
    assert got.shape == (len(x),)
    close(got, norms(of_samples(g, x), ord), 1e-12)
    assert (x == before).all()


@pytest.mark.parametrize("ord", ORDERS)
def test_of_a_function_of_trees(ord):
    g = lambda p, x: {"y": np.tanh(x @ p["w"] + p["b"]), "s": np.sum(p["w"] ** 2)}  # noqa: E731
    p = {"w": randn(K, 2), "b": randn(2)}
    J = gl.JacobianOperator(lambda p: g(p, X), p).to_dense()
    close(gl.jacobian_norm(g, ord=ord)(p, X), norms(J, ord), 1e-12)
    J = gl.JacobianOperator(g, p, X).to_dense()
    close(gl.jacobian_norm(g, (0, 1), ord=ord)(p, X), norms(J, ord), 1e-12)
    close(gl.jacobian_norm(np.sin, ord=ord)(0.5), np.cos(0.5), 1e-12)


@pytest.mark.parametrize("ord", ORDERS)
def test_by_shared_parameters(ord):
    """in_axes as in batch_jacobian: the norm of every sample's Jacobian by what all share."""
    got = gl.jacobian_norm(lambda w, x: f(x, w), 0, in_axes=(None, 0), ord=ord)(W, X)
    matrices = gl.jacobian(lambda w: f(X, w))(W).reshape(B, N, -1)
    close(got, norms(matrices, ord), 1e-12)


def test_elementwise_functions_take_one_row():
    """A matrix a sample would take 8 TB."""
    x = randn(2, 1_000_000)
    close(gl.jacobian_norm(np.sin, in_axes=0)(x), np.linalg.norm(np.cos(x), axis=1), 1e-12)


def large():
    """A function with more rows and columns than are formed, and its singular values."""
    w, x = randn(90, 120), randn(90)
    g = lambda x: np.sin(x @ w)  # noqa: E731
    return g, x, np.linalg.svd(gl.jacobian(g)(x), compute_uv=False)


def test_spectral_norm_by_products_alone():
    g, x, s = large()
    assert len(s) > DENSE
    close(gl.jacobian_norm(g, ord="spectral")(x), s[0], 1e-12)
    assert gl.jacobian_norm(lambda x: g(x) * 0, ord="spectral")(x) == 0


def test_spectral_norm_can_be_differentiated_where_it_is_large():
    g, x, s = large()
    u, _, vt = np.linalg.svd(gl.jacobian(g)(x))
    want = gl.grad(lambda x: u[:, 0] @ gl.jvp(g, (x,), (vt[0],))[1])(x)
    close(gl.grad(gl.jacobian_norm(g, ord="spectral"))(x), want, 1e-9)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    x = LAYOUTS[layout](X)
    close(gl.jacobian_norm(f, in_axes=0)(x), norms(of_samples(f, X), "fro"), 1e-12)


@pytest.mark.parametrize("ord", ORDERS)
@pytest.mark.parametrize(("dtype", "result"), [("float16", "float32"), ("float32", "float32"), ("float64", "float64")])
@pytest.mark.parametrize("in_axes", [None, 0])
def test_dtypes(ord, dtype, result, in_axes):
    w = W.astype(dtype)
    got = gl.jacobian_norm(lambda x: f(x, w), ord=ord, in_axes=in_axes)(X.astype(dtype))
    assert got.dtype == result
    want = gl.jacobian_norm(f, ord=ord, in_axes=in_axes)(X)
    close(got, want, {"float16": 1e-2, "float32": 1e-5, "float64": 1e-12}[dtype])


def test_large_entries_of_float16_do_not_overflow():
    x = np.ones((2, 3), np.float16)
    close(gl.jacobian_norm(lambda x: x * np.float16(300), in_axes=0)(x), np.full(2, 300 * 3**0.5), 1e-6)


# --- estimates -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("g", [f, narrow])
@pytest.mark.parametrize("in_axes", [None, 0])
def test_the_square_of_the_estimate_is_right_on_average(g, in_axes):
    """Within four standard errors, which are less than a percent; and it does vary."""
    runs = np.array([gl.jacobian_norm(g, in_axes=in_axes, samples=100, seed=s)(X) ** 2 for s in range(80)])
    error, want = runs.std(0) / np.sqrt(len(runs)), gl.jacobian_norm(g, in_axes=in_axes)(X) ** 2
    assert (error > 0).all() and (error < 0.02 * want).all()
    assert (abs(runs.mean(0) - want) < 4 * error).all()


def test_estimates_are_the_same_for_a_seed_whatever_the_chunks():
    first = gl.jacobian_norm(f, in_axes=0, samples=5, seed=1)(X)
    for chunk_size in (1, 2, 5):
        close(gl.jacobian_norm(f, in_axes=0, samples=5, seed=1, chunk_size=chunk_size)(X), first, 1e-13)
    assert (gl.jacobian_norm(f, in_axes=0, samples=5, seed=2)(X) != first).all()


def test_one_vector_of_signs_is_exact_for_one_output():
    g = lambda x: np.sum(np.sin(x), axis=1)  # noqa: E731
    close(gl.jacobian_norm(g, in_axes=0, samples=1)(X), np.linalg.norm(np.cos(X), axis=1), 1e-12)


# --- outer transforms ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("in_axes", [None, 0])
@pytest.mark.parametrize("options", [{}, {"samples": 2}, {"chunk_size": 1}, {"ord": "spectral"}])
def test_it_can_be_differentiated(in_axes, options):
    options = {"in_axes": in_axes, **options}
    gl.check_grads(lambda x, w: np.sum(gl.jacobian_norm(lambda x: f(x, w), **options)(x) ** 2), (X, W), order=2)


@pytest.mark.parametrize("ord", ORDERS)
def test_regulariser_with_jax(ord):
    """The gradient of the mean squared norm of the samples' Jacobians by the parameters."""

    def of_sample(w, x):
        return jax.numpy.linalg.norm(jax.jacfwd(lambda x: jax.numpy.tanh(x @ w))(x), ORDERS[ord])

    want = jax.grad(lambda w: jax.numpy.mean(jax.vmap(of_sample, (None, 0))(w, X) ** 2))(W)
    got = gl.grad(lambda w: np.mean(gl.jacobian_norm(lambda x: f(x, w), in_axes=0, ord=ord)(X) ** 2))(W)
    close(got, np.asarray(want), 1e-11)


@pytest.mark.parametrize("in_axes", [None, 0])
def test_the_derivative_at_a_jacobian_of_zero_is_zero(in_axes):
    got = gl.grad(lambda w: np.sum(gl.jacobian_norm(lambda x: x @ w, in_axes=in_axes)(X)))(np.zeros((K, N)))
    assert (got == 0).all()


@pytest.mark.parametrize("ord", ORDERS)
def test_a_captured_norm_is_replayed(ord):
    step = gl.capture(lambda x, w: gl.jacobian_norm(lambda x: f(x, w), in_axes=0, ord=ord)(x))
    for x in (X, X + 1):
        close(step(x, W), gl.jacobian_norm(f, in_axes=0, ord=ord)(x), 1e-13)


# --- memory, devices, errors -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("in_axes", [None, 0])
def test_working_memory_keeps_to_its_budget(in_axes):
    w, x = randn(100, 150), randn(20, 100)
    g = lambda x: np.tanh(x @ w)  # noqa: E731
    gl.jacobian_norm(g, in_axes=0)(x[:1])
    tracemalloc.start()
    gl.jacobian_norm(g, in_axes=in_axes, max_bytes="1MB")(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.3e6  # the matrices of the samples would take 2.4 MB, the whole 48 MB


@pytest.mark.parametrize("in_axes", [None, 0])
@pytest.mark.parametrize("ord", ORDERS)
def test_on_device_arrays(in_axes, ord, monkeypatch):
    monkeypatch.setattr(DeviceArray, "data", ADDRESS, raising=False)
    w, x = to_standin((W, X))
    with rules_only():
        got = gl.jacobian_norm(lambda x: np.tanh(x @ w), in_axes=in_axes, ord=ord)(x)
        close(to_numpy(got), gl.jacobian_norm(f, in_axes=in_axes, ord=ord)(X), 1e-12)
        got = gl.grad(lambda w: np.sum(gl.jacobian_norm(lambda x: np.tanh(x @ w), in_axes=in_axes, ord=ord)(x)))(w)
    want = gl.grad(lambda w: np.sum(gl.jacobian_norm(lambda x: f(x, w), in_axes=in_axes, ord=ord)(X)))(W)
    close(to_numpy(got), want, 1e-11)


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: gl.jacobian_norm(f, ord="nuc"), ValueError, 'jacobian_norm: expected ord "fro" or "spectral", got'),
        (
            lambda: gl.jacobian_norm(f, ord="spectral", samples=3),
            ValueError,
            "jacobian_norm: samples estimates ord",
        ),
        (lambda: gl.jacobian_norm(f, samples=1.5), ValueError, "jacobian_norm: expected samples a positive int"),
        (lambda: gl.jacobian_norm(f, samples=1, seed="a"), TypeError, "jacobian_norm: expected an int or a np.random"),
        (lambda: gl.jacobian_norm(f, chunk_size=-1), ValueError, "jacobian_norm: expected a positive int or None"),
        (lambda: gl.jacobian_norm(f, max_bytes="2 apples"), ValueError, "jacobian_norm: expected max_bytes as"),
        (lambda: gl.jacobian_norm(f, max_bytes=1)(X), ValueError, "jacobian_norm: max_bytes=1 is too small: a sweep"),
        (lambda: gl.jacobian_norm(f)(np.arange(3)), TypeError, "jacobian_norm: expected floating-point arrays"),
        (lambda: gl.jacobian_norm(f)(X * 1j), TypeError, "jacobian_norm: expected floating-point arrays"),
        (lambda: gl.jacobian_norm(f, 2)(X), ValueError, "jacobian_norm: argnums 2 does not fit"),
        (lambda: gl.jacobian_norm(f, in_axes=(0, 0))(X), ValueError, "jacobian_norm: expected in_axes 0, None or"),
        (
            lambda: gl.jacobian_norm(lambda x: x - x.mean(0), in_axes=0)(X),
            ValueError,
            "jacobian_norm: the function mixes samples",
        ),
    ],
)
def test_bad_input(call, kind, words):
    with pytest.raises(kind, match=words):
        call()
