"""per_sample_norms against the gradients of single samples, for every way a parameter can be used."""

import tracemalloc

import numpy as np
import pytest
from parameters import FUNCTIONS, LONG, TOKENS, W, X, jacobians, unruled
from rulecheck import close, randn
from standin import rules_only, to_numpy, to_standin

import gradlib as gl
from gradlib.jacobian import norms
from gradlib.jacobian.norms import per_sample_norms

WEIGHTS = randn(4, seed=3)


def loss_of(f):
    return lambda p, x: f(p, x) @ WEIGHTS


def expected(name, x=None):
    """{parameter: (B,)}: norms of the gradients, one call a sample."""
    f, p, given = FUNCTIONS[name]
    every = jacobians(f, p, given if x is None else x)
    return {k: np.linalg.norm(np.einsum("bip,i->bp", j, WEIGHTS), axis=1) for k, j in every.items()}


@pytest.mark.parametrize("piece", [None, 1, 500])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_norms_of_the_gradients(name, piece, monkeypatch):
    if piece is not None:  # few samples at a time
        monkeypatch.setattr(norms, "PIECE", piece)
    f, p, x = FUNCTIONS[name]
    want = expected(name)
    got = per_sample_norms(loss_of(f), per_leaf=True)(p, x)
    assert got.keys() == p.keys()
    for k, n in want.items():
        close(got[k], n, 1e-12, k)
    close(per_sample_norms(loss_of(f))(p, x), np.sqrt(sum(n**2 for n in want.values())), 1e-12)


@pytest.mark.parametrize("name", ["linear", "tokens", "many tokens", "scales", "gather"])
@pytest.mark.parametrize("size", [0, 1, 2])
def test_batches_of_any_size(name, size):
    f, p, x = FUNCTIONS[name]
    got = per_sample_norms(loss_of(f))(p, x[:size])
    assert got.shape == (size,)
    close(got, np.sqrt(sum(n[:size] ** 2 for n in expected(name).values())), 1e-12)


def test_against_jax():
    jax = pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)

    def one(p, x):
        h = jax.numpy.tanh(x @ p["w"] + p["b"])
        return jax.numpy.sum(jax.nn.softmax(jax.numpy.sum(h, 0) @ p["s"]) ** 2)

    def loss(p, x):
        h = gl.linear(x, p["w"], p["b"], activation="tanh")
        return np.sum(gl.softmax(np.sum(h, axis=1) @ p["s"]) ** 2, axis=1)

    p = {"w": W, "b": randn(4), "s": randn(4, 4)}
    each = jax.vmap(jax.grad(one), (None, 0))
    for x in (TOKENS, LONG):
        want = np.sqrt(sum(np.sum(np.asarray(g) ** 2, axis=tuple(range(1, g.ndim))) for g in each(p, x).values()))
        close(per_sample_norms(loss)(p, x), want, 1e-13)


def test_uses_of_one_parameter_add_before_the_norm():
    """Two uses that cancel: the norm is 0, not the root of twice the square."""
    got = per_sample_norms(lambda w, x: np.sum(x @ w - (2 * x) @ w * 0.5, axis=1))(W, X)
    assert got.shape == (len(X),) and (got < 1e-7).all()
    twice = per_sample_norms(lambda w, x: np.sum(x @ w + x @ w, axis=1))(W, X)
    close(twice, 2 * per_sample_norms(lambda w, x: np.sum(x @ w, axis=1))(W, X), 1e-14)


def test_batched_arguments_and_tuples():
    def loss(w, x):
        return np.sum(np.tanh(x @ w), axis=1)

    gw, gx = gl.per_sample_grad(loss, (0, 1), in_axes=(None, 0))(W, X)
    want = np.sqrt(np.sum(gw**2, axis=(1, 2))), np.linalg.norm(gx, axis=1)
    by_leaf = per_sample_norms(loss, (0, 1), in_axes=(None, 0), per_leaf=True)(W, X)
    for got, n in zip(by_leaf, want, strict=True):
        close(got, n, 1e-13)
    close(per_sample_norms(loss, (0, 1), in_axes=(None, 0))(W, X), np.hypot(*want), 1e-13)
    close(per_sample_norms(loss, 1, in_axes=(None, 0))(W, X), want[1], 1e-13)


def test_an_op_without_a_batch_rule(monkeypatch):
    with unruled() as product:
        for piece in (norms.PIECE, 1):
            monkeypatch.setattr(norms, "PIECE", piece)
            got = per_sample_norms(lambda w, x: np.sum(np.sin(product(x, w)), axis=1))(W, X)
            close(got, per_sample_norms(lambda w, x: np.sum(np.sin(x @ w), axis=1))(W, X), 1e-13)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("float16", 5e-3)])
def test_dtypes(dtype, tolerance):
    def loss(w, x):
        return np.sum(np.tanh(x @ w), axis=tuple(range(1, x.ndim)))

    for x in (X, TOKENS):
        got = per_sample_norms(loss)(W.astype(dtype), x.astype(dtype))
        assert got.dtype == dtype
        close(got.astype(float), per_sample_norms(loss)(W, x), tolerance)


def test_half_precision_sums_in_single():
    """300² does not fit float16."""
    x = np.full((2, 4), 300, "float16")
    got = per_sample_norms(lambda w, x: x @ w * np.float16(0.01))(np.ones(4, "float16"), x)
    assert got.dtype == "float16" and np.allclose(got.astype(float), 6, rtol=1e-2)


def test_layouts_and_inputs_unchanged():
    x, w = np.asfortranarray(TOKENS), W[::-1][::-1]
    before = x.copy(), w.copy()

    def loss(w, x):
        return np.sum(np.tanh(x @ w), axis=(1, 2))

    close(per_sample_norms(loss)(w, x), per_sample_norms(loss)(W, TOKENS), 1e-15)
    close(per_sample_norms(loss)(w, np.flip(TOKENS, 0)), per_sample_norms(loss)(W, TOKENS)[::-1], 1e-15)
    assert (x == before[0]).all() and (w == before[1]).all()


@pytest.mark.parametrize(
    ("use", "most"), [(lambda w: w, 4e6), (lambda w: w.T, 4e6), (lambda w: w * w, 4 * norms.PIECE)], ids="wts"
)
def test_gradients_are_not_formed_all_at_once(use, most):
    x, w = randn(256, 256).astype("float32"), randn(256, 256).astype("float32")
    function = per_sample_norms(lambda w, x: np.sum(np.tanh(x @ use(w)), axis=1))
    function(w, x)
    tracemalloc.start()
    function(w, x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < most  # the gradients are 67 MB


def test_the_function_is_called_once(monkeypatch):
    monkeypatch.setattr(norms, "PIECE", 1)
    calls = []

    def loss(w, x):
        calls.append(x.shape)
        return np.sum(x @ (w * w), axis=1)

    per_sample_norms(loss)(W, X)
    assert calls == [X.shape]


def test_the_norm_of_no_gradient_has_derivative_0():
    x = np.array([[1.0, 2.0], [0.0, 0.0]])
    loss = lambda w, x: np.sum((x @ w) ** 2, axis=1)  # noqa: E731
    at = lambda w: np.sum(per_sample_norms(loss)(w, x) * np.array([0.0, 1.0]))  # noqa: E731
    for w in (np.zeros((2, 3)), randn(2, 3)):
        assert gl.grad(at)(w).tolist() == np.zeros((2, 3)).tolist()
    gl.check_grads(lambda w: per_sample_norms(loss)(w, x[:1]), (randn(2, 3),), order=2, atol=1e-4)


def test_derivative_of_norms_and_capture():
    def loss(p, x):
        return np.sum(np.tanh(np.tanh(x @ p["w"]) @ p["w"].T), axis=1)

    def by_gradients(p):
        return np.sum(np.sqrt(np.sum(gl.per_sample_grad(loss)(p, X)["w"] ** 2, axis=(1, 2))))

    got = gl.grad(lambda p: np.sum(per_sample_norms(loss)(p, X)))({"w": W})
    close(got["w"], gl.grad(by_gradients)({"w": W})["w"], 1e-12)
    for name in ("linear", "tokens", "twice", "scales", "rows"):
        f, p, x = FUNCTIONS[name]
        plain = per_sample_norms(loss_of(f))
        captured = gl.capture(plain)
        for _ in range(2):
            close(captured(p, x), plain(p, x), 1e-13)


@pytest.mark.parametrize("name", ["linear", "matmul", "tokens", "many tokens", "rows", "twice", "scales"])
def test_on_a_device(name):
    f, p, x = FUNCTIONS[name]
    want = per_sample_norms(lambda p, x: np.sum(f(p, x) ** 2, axis=1))(p, x)
    device = {k: to_standin(a) for k, a in p.items()}
    with rules_only():
        got = per_sample_norms(lambda p, x: np.sum(f(p, x) ** 2, axis=1))(device, to_standin(x))
    close(to_numpy(got), want, 1e-13)


norms_of = per_sample_norms


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: norms_of(lambda w, x: x @ w)(W, X), ValueError, r"one loss a sample, shape \(5,\), got .*5, 4"),
        (lambda: norms_of(lambda w, x: np.sum(x @ w))(W, X), ValueError, "per_sample_norms: .*mixes samples"),
        (lambda: norms_of(lambda w, x: np.sum(x @ w, 1) + x.mean())(W, X), ValueError, "mixes samples: mean|sum"),
        (lambda: norms_of(lambda w, x: (x[:, 0], x[:, 1]))(W, X), ValueError, "one loss a sample"),
        (lambda: norms_of(np.dot, in_axes=(None,))(W, X), ValueError, "per_sample_norms: expected in_axes"),
        (lambda: norms_of(np.dot, in_axes=(None, None))(W, X), ValueError, "at least one argument with a batch"),
        (lambda: norms_of(np.dot, 2)(W, X), ValueError, "per_sample_norms: argnums 2 does not fit"),
        (lambda: norms_of(np.dot)(W.astype(int), X), TypeError, "per_sample_norms: expected floating-point"),
        (lambda: norms_of(np.dot)(W.astype(complex), X), TypeError, "per_sample_norms: expected floating-point"),
        (lambda: norms_of(lambda w, x, y: x @ w)(W, X, X[:2]), ValueError, "has 5 samples, .* has 2"),
    ],
)
def test_bad_input(call, kind, words):
    with pytest.raises(kind, match=words):
        call()
