"""gramian against products of explicit Jacobians, for every way a parameter can be used."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from parameters import FUNCTIONS, TOKENS, W, X, jacobians, unruled
from rulecheck import close, randn
from standin import rules_only, to_numpy, to_standin
from test_batched_random import MIXTURES, SHAPES, mixture

import gradlib as gl
from gradlib.jacobian import gramian as module
from gradlib.jacobian.gramian import gramian
from gradlib.jacobian.norms import per_sample_norms


def expected(f, p, x, x2=None):
    """(B, B2, 4, 4), by one Jacobian a sample."""
    a = jacobians(f, p, x)
    b = a if x2 is None else jacobians(f, p, x2)
    return sum(np.einsum("bip,cjp->bcij", a[k], b[k]) for k in p)


@pytest.mark.parametrize("piece", [None, 1, 3000, 30000])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_products_of_jacobians(name, piece, monkeypatch):
    if piece is not None:  # few pairs, few outputs at a time
        monkeypatch.setattr(module, "PIECE", piece)
        monkeypatch.setattr(module, "CACHED", piece)
    f, p, x = FUNCTIONS[name]
    want = expected(f, p, x)
    got = gramian(f)(p, x)
    assert got.flags.c_contiguous and got.flags.writeable
    close(got, want, 1e-12)
    close(gramian(f, trace_outputs=True)(p, x), np.einsum("bcii->bc", want), 1e-12)
    other = x[:2]
    close(gramian(f)(p, x, other), want[:, :2], 1e-12)
    close(gramian(f)(p, other, x), want[:2], 1e-12)
    close(gramian(f, trace_outputs=True)(p, x, other), np.einsum("bcii->bc", want)[:, :2], 1e-12)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(MIXTURES, SHAPES)
def test_random_programs(steps, shape):
    """Kernel and norms of random functions: products of their Jacobians, or refused."""

    f = mixture(steps)
    w, x = randn(4), randn(*shape)
    try:
        got = gramian(f)(w, x)
        norms = per_sample_norms(lambda w, x: np.sum(f(w, x).reshape(len(x), -1), axis=1))(w, x)
    except (ValueError, NotImplementedError):
        return
    whole = gl.jacobian(f)(w, x)
    flat = whole.reshape(len(x), whole[0].size // 4, 4)
    close(got, np.einsum("bip,cjp->bcij", flat, flat).reshape(got.shape), 1e-9)
    close(norms, np.linalg.norm(flat.sum(axis=1), axis=1), 1e-6)


@pytest.mark.parametrize("name", ["linear", "tokens", "twice", "tied", "gather"])
def test_symmetric_and_positive(name):
    f, p, x = FUNCTIONS[name]
    k = gramian(f)(p, x)
    close(k, k.transpose(1, 0, 3, 2), 1e-14)
    flat = k.transpose(0, 2, 1, 3).reshape(k.shape[0] * 4, -1)
    assert np.linalg.eigvalsh(flat).min() > -1e-12 * np.abs(flat).max()


def test_against_jax():
    jax = pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)

    def one(p, x):
        h = jax.numpy.tanh(x @ p["w"] + p["b"])
        return jax.nn.softmax(h @ p["s"]) * p["b"]

    def f(p, x):
        return gl.softmax(gl.linear(x, p["w"], p["b"], activation="tanh") @ p["s"]) * p["b"]

    p, y = {"w": W, "b": randn(4), "s": randn(4, 4)}, randn(3, 3, seed=5)
    a, b = (jax.vmap(jax.jacrev(one), (None, 0))(p, z) for z in (X, y))
    flat = [np.concatenate([np.asarray(j[k]).reshape(len(j[k]), 4, -1) for k in p], -1) for j in (a, b)]
    close(gramian(f)(p, X, y), np.einsum("bip,cjp->bcij", *flat), 1e-13)
    close(gramian(f, trace_outputs=True)(p, X, y), np.einsum("bip,cip->bc", *flat), 1e-13)


@pytest.mark.parametrize("out", [(), (2,), (2, 3), (0,)])
@pytest.mark.parametrize("size", [0, 1, 4])
def test_shapes(out, size):
    def f(w, x):
        y = np.sin(x @ w)
        return y[:, 0] if not out else np.broadcast_to(y[:, :1].reshape(-1, *(1,) * len(out)), (len(x), *out)) * 2

    x, y = randn(size, 3), randn(2, 3)
    got = gramian(f)(W, x, y)
    assert got.shape == (size, 2, *out, *out)
    assert gramian(f, trace_outputs=True)(W, x, y).shape == (size, 2)
    every = [gl.batch_jacobian(f, in_axes=(None, 0))(W, z).reshape(len(z), int(np.prod(out)), W.size) for z in (x, y)]
    close(got, np.einsum("bip,cjp->bcij", *every).reshape(got.shape), 1e-13)


def test_trees_of_data():
    def f(p, data):
        return np.tanh(data["x"] @ p[0]) * data["scale"][:, None] + p[1]

    data = {"x": X, "scale": np.arange(5.0)}
    got = gramian(f)([W, randn(4)], data, gl.tree.map(lambda a: a[:3], data))
    close(got, gramian(lambda p, x: f(p, {"x": x, "scale": data["scale"][: len(x)]}))([W, randn(4)], X)[:, :3], 1e-13)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_dtypes(dtype):
    f, p, x = FUNCTIONS["linear"]
    got = gramian(f)({k: a.astype(dtype) for k, a in p.items()}, x.astype(dtype))
    assert got.dtype == dtype
    close(got.astype(float), gramian(f)(p, x), 3e-6 if dtype == "float32" else 6e-3)


def test_an_op_without_a_batch_rule(monkeypatch):
    with unruled() as product:
        for piece in (module.PIECE, 1):
            monkeypatch.setattr(module, "PIECE", piece)
            got = gramian(lambda w, x: np.sin(product(x, w)))(W, X)
            close(got, gramian(lambda w, x: np.sin(x @ w))(W, X), 1e-13)


def test_layouts_and_inputs_unchanged():
    f, p, x = FUNCTIONS["tokens"]
    strided, before = np.repeat(x, 2, axis=-1)[..., ::2], x.copy()
    close(gramian(f)(p, strided), gramian(f)(p, np.asfortranarray(x)), 1e-14)
    assert (strided == before).all()


def test_jacobians_are_not_formed():
    x, w = randn(64, 300).astype("float32"), randn(300, 200).astype("float32")
    kernel = gramian(lambda w, x: np.tanh(x @ w)[:, :8])
    kernel(w, x)
    tracemalloc.start()
    k = kernel(w, x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * k.nbytes  # 1 MB each; the Jacobians are 123 MB


@pytest.mark.parametrize("settings", [{}, {"trace_outputs": True}])
def test_derivative_of_hidden_layers(settings):
    """In the last layer the activations depend on the parameters and the cotangents do not."""
    params, x = {"w": randn(3, 4), "v": randn(4, 2)}, randn(5, 3)

    def f(p, x):
        return np.tanh(x @ p["w"]) @ p["v"]

    gl.check_grads(lambda p: gl.gramian(f, **settings)(p, x), (params,), order=2, atol=1e-4)
    gl.check_grads(lambda p: gl.gramian(f, **settings)(p, x, x[:2]), (params,), order=1, atol=1e-4)


def test_derivative_and_capture():
    def f(p, x):
        return np.tanh(np.tanh(x @ p["w"]) @ p["w"].T)

    def by_jacobian(p):
        j = gl.batch_jacobian(f, in_axes=(None, 0))(p, X)["w"].reshape(5, 3, 12)
        return np.sum(np.sin(np.einsum("bip,cjp->bcij", j, j)))

    got = gl.grad(lambda p: np.sum(np.sin(gramian(f)(p, X))))({"w": W})
    close(got["w"], gl.grad(by_jacobian)({"w": W})["w"], 1e-11)
    captured = gl.capture(gramian(f))
    for _ in range(2):
        close(captured({"w": W}, X), gramian(f)({"w": W}, X), 1e-13)


@pytest.mark.parametrize("piece", [None, 1])
@pytest.mark.parametrize("name", ["linear", "tokens", "many tokens", "twice", "scales"])
def test_on_a_device(name, piece, monkeypatch):
    if piece is not None:
        monkeypatch.setattr(module, "PIECE", piece)
        monkeypatch.setattr(module, "CACHED", piece)
    f, p, x = FUNCTIONS[name]
    want = gramian(f)(p, x)
    device = {k: to_standin(a) for k, a in p.items()}
    with rules_only():
        close(to_numpy(gramian(f)(device, to_standin(x))), want, 1e-13)


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: gramian(lambda w, x: np.sum(x @ w))(W, X), ValueError, "gramian: .*mixes samples"),
        (lambda: gramian(lambda w, x: x @ w - (x @ w).mean(0))(W, X), ValueError, "gramian: .*mixes samples"),
        (lambda: gramian(lambda w, x: (x @ w, x))(W, X), ValueError, "gramian: expected the function to return one"),
        (lambda: gramian(lambda w, x: w)(W, X), ValueError, "gramian: .*batch axis of 5 first"),
        (lambda: gramian(np.dot)(W, np.array(1.0)), ValueError, "gramian: expected a batch axis first"),
        (lambda: gramian(lambda w, x: x)(W, X, TOKENS), ValueError, r"one shape a sample, got .*5, 3\] and .*5, 3, 3"),
        (lambda: gramian(np.dot)(W.astype(int), X), TypeError, "gramian: expected floating-point"),
    ],
)
def test_bad_input(call, kind, words):
    with pytest.raises(kind, match=words):
        call()
