"""divergence: against traces of explicit Jacobians and JAX, exact and estimated, and through outer transforms."""

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from rulecheck import LAYOUTS, close, randn
from standin import DeviceArray, rules_only, to_numpy, to_standin

import gradlib as gl

jax = pytest.importorskip("jax")
jax.config.update("jax_enable_x64", True)

B, N = 6, 4
W, V, X = randn(N, 9), randn(9, N), randn(B, N)


def field(x, w=W, v=V):
    return np.tanh(x @ w) @ v


def traces(f, x):
    """The trace of every sample's Jacobian, from the Jacobian of the whole batch."""
    j, n = gl.jacobian(f)(x), len(x)
    k = x.size // max(n, 1)
    return np.array([np.trace(j.reshape(n, k, n, k)[b, :, b]) for b in range(n)])


FIELDS = {
    "network": (field, X),
    "elementwise": (np.sin, X),
    "one number a sample": (np.sin, randn(B)),
    "of rank three": (lambda x: np.einsum("bij,jk->bik", np.tanh(x), randn(3, 3)) * x.sum((1, 2))[:, None, None],
                      randn(5, 2, 3)),
    "softmax": (gl.softmax, X),
    "permuted inside": (lambda x: x[:, ::-1] ** 3, X),
    "an inner gradient": (lambda x: gl.grad(lambda z: np.sum(np.tanh(z @ W) ** 2))(x), X),
    "does not depend": (lambda x: np.ones_like(gl.stop_gradient(x)), X),
    "one sample": (field, X[:1]),
    "no sample": (field, X[:0]),
    "no entry": (lambda x: x * 2, np.ones((3, 0))),
}  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"chunk_size": 1}, {"chunk_size": 3}, {"max_bytes": 20000}])
@pytest.mark.parametrize("name", FIELDS)
def test_exact_is_the_trace(name, options):
    f, x = FIELDS[name]
    before = x.copy()
    got = gl.divergence(f, **options)(x)
    assert got.shape == (len(x),)
    close(got, traces(f, x), 1e-12)
    assert (x == before).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    close(gl.divergence(field)(LAYOUTS[layout](X)), traces(field, X), 1e-12)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("samples", [None, 2])
def test_dtypes(dtype, samples):
    w = (randn(N, N) / 4).astype(dtype)
    got = gl.divergence(lambda x: np.tanh(x @ w), samples=samples)(X.astype(dtype))
    assert got.dtype == dtype
    want = gl.divergence(lambda x: np.tanh(x @ w.astype(float)), samples=samples)(X)
    close(got, want, {"float16": 1e-2, "float32": 3e-6, "float64": 1e-12}[dtype])


def test_elementwise_functions_take_one_tangent():
    """A matrix a sample would take 8 TB."""
    x = randn(2, 1_000_000)
    close(gl.divergence(lambda x: np.tanh(x) * 2, noise="normal")(x), 2 * (1 - np.tanh(x) ** 2).sum(1), 1e-12)


def test_pytrees():
    f = lambda p: {"a": p["a"] * p["b"][:, :1], "b": np.tanh(p["b"] @ W[:2, :2]) + p["a"][:, 0, None]}  # noqa: E731
    p = {"a": randn(B, 3), "b": randn(B, 2)}
    joined = lambda x: np.concatenate(gl.tree.flatten(f({"a": x[:, :3], "b": x[:, 3:]}))[0], 1)  # noqa: E731
    for chunk_size in (None, 2):
        close(
            gl.divergence(f, chunk_size=chunk_size)(p), traces(joined, np.concatenate([p["a"], p["b"]], axis=1)), 1e-12
        )


def test_a_continuous_flow_takes_time_state_and_parameters():
    """f(t, x, params), as a solver calls it: the value and the divergence of one run."""

    def f(t, x, params):
        calls.append(1)
        return np.tanh(x @ params["w"] + t) @ params["v"]

    calls, params = [], {"w": W, "v": V}
    y, d = gl.divergence(f, 1, in_axes=(None, 0, None), with_value=True)(0.3, X, params)
    assert len(calls) == 1
    close(y, f(0.3, X, params), 0)
    close(d, traces(lambda x: f(0.3, x, params), X), 1e-12)
    t = np.linspace(0, 1, B)  # a time a sample
    close(
        gl.divergence(f, -2, in_axes=(0, 0, None))(t[:, None], X, params),
        traces(lambda x: f(t[:, None], x, params), X),
        1e-12,
    )


# --- estimates -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("noise", ["rademacher", "normal"])
def test_estimates_are_right_on_average(noise):
    """Within four standard errors, which are less than a percent of the scale; and they do vary."""
    x = X * np.ones((1, 1))
    runs = np.array([gl.divergence(field, samples=500, noise=noise, seed=s)(x) for s in range(60)])
    error = runs.std(0) / np.sqrt(len(runs))
    j = gl.batch_jacobian(field)(x)
    assert (error > 0).all() and (error < 0.01 * np.linalg.norm(j, axis=(1, 2))).all()
    assert (abs(runs.mean(0) - traces(field, x)) < 4 * error).all()


@pytest.mark.parametrize("noise", ["rademacher", "normal"])
def test_the_variance_is_that_of_the_theory(noise):
    """2 |S|² for normal vectors, less 2 Σ S_ii² for signs, with S the symmetric part of J."""
    x = X[:1]
    s = gl.batch_jacobian(field)(x)[0]
    s = (s + s.T) / 2
    want = 2 * np.sum(s**2) - (2 * np.sum(np.diag(s) ** 2) if noise == "rademacher" else 0)
    repeated = np.repeat(x, 20000, axis=0)
    got = gl.divergence(field, samples=1, noise=noise)(repeated).var()
    assert abs(got / want - 1) < 0.05


def test_signs_are_exact_where_the_jacobian_is_diagonal():
    close(gl.divergence(np.sin, samples=1)(X), np.cos(X).sum(1), 1e-12)


def test_estimates_are_the_same_for_a_seed_whatever_the_chunks():
    first = gl.divergence(field, samples=7, seed=3)(X)
    for chunk_size in (1, 2, 7, 100):
        close(gl.divergence(field, samples=7, seed=3, chunk_size=chunk_size)(X), first, 1e-13)
    assert (gl.divergence(field, samples=7, seed=4)(X) != first).all()
    rng = np.random.default_rng(3)
    close(gl.divergence(field, samples=7, seed=rng)(X), first, 0)
    assert (gl.divergence(field, samples=7, seed=rng)(X) != first).all()


# --- outer transforms ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("options", [{}, {"chunk_size": 3}, {"samples": 3}])
def test_it_can_be_differentiated(options):
    gl.check_grads(lambda x, w: np.sum(gl.divergence(lambda x: field(x, w), **options)(x) ** 2), (X, W), order=2)


def test_gradient_of_a_flow_step_with_jax():
    """The log density's part of the loss of a continuous flow, by the parameters."""

    def of_sample(w, x):
        return jax.numpy.trace(jax.jacfwd(lambda x: jax.numpy.tanh(x @ w) @ V)(x))

    want = jax.grad(lambda w: jax.numpy.mean(jax.vmap(of_sample, (None, 0))(w, X) ** 2))(W)
    got = gl.grad(lambda w: np.mean(gl.divergence(lambda x: field(x, w))(X) ** 2))(W)
    close(got, np.asarray(want), 1e-11)


def test_score_matching():
    """½ |s|² + div s for the score s of a normal density with precision a: at the true one the gradient vanishes."""
    x = np.sqrt(0.5) * randn(4000, 2)
    second = np.mean(x**2)  # 1 / precision

    def loss(a):
        s, d = gl.divergence(lambda x: -a * x, with_value=True)(x)
        return np.mean(0.5 * np.sum(s**2, axis=1) + d)

    assert abs(gl.grad(loss)(1 / second)) < 1e-10 < abs(gl.grad(loss)(1.1 / second))


def test_a_captured_divergence_is_replayed():
    step = gl.capture(lambda x, w: gl.divergence(lambda x: field(x, w), samples=2)(x))
    for x in (X, X + 1):
        close(step(x, W), gl.divergence(field, samples=2)(x), 1e-14)


# --- memory, devices, errors -----------------------------------------------------------------------------------------
def test_working_memory_keeps_to_its_budget():
    w, x = randn(200, 200), randn(64, 200)
    for f in (lambda x: np.tanh(x @ w), lambda x: np.concatenate([x[:, :100], np.tanh(x @ w)[:, 100:]], axis=1)):
        gl.divergence(f)(x[:1])
        tracemalloc.start()
        gl.divergence(f, max_bytes="4MB")(x)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 5e6  # all tangents, or all matrices, would take 20 MB


def test_on_device_arrays(monkeypatch):
    address = property(lambda a: SimpleNamespace(ptr=a.host.ctypes.data))  # a.data.ptr, as CuPy's arrays have it
    monkeypatch.setattr(DeviceArray, "data", address, raising=False)
    w, v, x = to_standin((W, V, X))
    with rules_only():
        for options in ({}, {"samples": 3}, {"chunk_size": 2}):
            got = gl.divergence(lambda x: np.tanh(x @ w) @ v, **options)(x)
            close(to_numpy(got), gl.divergence(field, **options)(X), 1e-12)
        got = gl.grad(lambda w: np.sum(gl.divergence(lambda x: np.tanh(x @ w) @ v)(x)))(w)
        close(to_numpy(got), gl.grad(lambda w: np.sum(gl.divergence(lambda x: field(x, w))(X)))(W), 1e-11)


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (
            lambda: gl.divergence(lambda x: x @ W)(X),
            ValueError,
            r"divergence: expected the function to give what its argument is, float64\[6, 4\], got float64\[6, 9\]",
        ),
        (lambda: gl.divergence(lambda x: (x, x))(X), ValueError, "divergence: expected the function to give what"),
        (lambda: gl.divergence(lambda x: x - x.mean(0))(X), ValueError, "divergence: the function mixes samples"),
        (lambda: gl.divergence(lambda x: x[0])(X), ValueError, "divergence: "),
        (lambda: gl.divergence(np.sum)(X), ValueError, "divergence: "),
        (lambda: gl.divergence(np.sin)(np.arange(3)), TypeError, "divergence: expected floating-point arrays"),
        (lambda: gl.divergence(np.sin)(X * 1j), TypeError, "divergence: expected floating-point arrays"),
        (lambda: gl.divergence(np.sin)(np.array(1.0)), ValueError, "divergence: expected a batch axis first"),
        (lambda: gl.divergence(np.sin, 1)(X), ValueError, "divergence: argnums 1 does not fit"),
        (lambda: gl.divergence(np.add, (0, 1))(X, X), ValueError, "divergence: expected argnums to name one argument"),
        (lambda: gl.divergence(np.add, in_axes=(None, 0))(X, X), ValueError, "divergence: expected argnums to name"),
        (lambda: gl.divergence(np.sin, in_axes=1)(X), ValueError, "divergence: expected in_axes 0, None or"),
        (lambda: gl.divergence(np.sin, samples=0), ValueError, "divergence: expected samples a positive int"),
        (lambda: gl.divergence(np.sin, samples=1, noise="uniform"), ValueError, "expected noise 'rademacher' or"),
        (lambda: gl.divergence(np.sin, samples=1, seed=None), TypeError, "expected an int or a np.random.Generator"),
        (lambda: gl.divergence(np.sin, chunk_size=0), ValueError, "divergence: expected a positive int or None"),
        (lambda: gl.divergence(np.sin, max_bytes=1)(X), ValueError, "divergence: max_bytes=1 is too small"),
    ],
)
def test_bad_input(call, kind, words):
    with pytest.raises(kind, match=words):
        call()
