"""batch_jacobian: values against whole Jacobians and JAX, and every way to mix samples raises."""

import numpy as np
import pytest
import scipy.sparse as sp
from rulecheck import close, randn

import gradlib as gl
from gradlib.jacobian.dense import MODES
from gradlib.op import REGISTRY, Op

B = 5
X, W, BIAS = randn(B, 3), randn(3, 4), randn(4)
SEQ = randn(B, 4, 3)
PERM = np.random.default_rng(1).permutation(B)
LABELS = np.array([2, 0, 1, 1, 0])

SEPARATE = {
    "elementwise": (np.tanh, X),
    "product with a shared matrix": (lambda x: np.tanh(x @ W + BIAS), X),
    "linear and softmax": (lambda x: gl.softmax(gl.linear(x, W, BIAS, activation="gelu")), X),
    "shared vector": (lambda x: x * np.array([1.0, 2.0, 3.0]), X),
    "reductions": (lambda x: np.stack([x.sum(-1), x.max(1), np.prod(x, axis=1), x.mean(1), x.std(1)], axis=1), X),
    "keepdims": (lambda x: x / np.sum(x**2, axis=1, keepdims=True), X),
    "scalars a sample": (lambda x: x[:, 0] * x[:, 1], X),
    "one number a sample": (lambda x: np.sin(x), randn(B)),
    "tokens": (lambda s: np.tanh(s.reshape(-1, 3) @ W).reshape(B, 4, 4), SEQ),
    "tokens by linear": (lambda s: gl.linear(s.reshape(-1, 3), W, activation="tanh").reshape(B, -1), SEQ),
    "flatten": (lambda s: np.tanh(s.reshape(len(s), -1)), SEQ),
    "flip and roll inside": (lambda s: np.flip(s, 1) + np.roll(s, 1, axis=2), SEQ),
    "transposed there and back": (lambda s: (np.transpose(s, (2, 0, 1)) ** 2).transpose(1, 2, 0), SEQ),
    "moved to the end": (lambda s: np.moveaxis(np.exp(np.moveaxis(s, 0, -1)), -1, 0), SEQ),
    "cumsum inside": (lambda x: np.cumsum(x, axis=1), X),
    "batched matmul": (lambda s: s @ np.swapaxes(s, 1, 2), SEQ),
    "matrix on the left": (lambda s: np.ones((2, 4)) @ s, SEQ),
    "einsum": (lambda s: np.einsum("bij,bkj->bik", s, s), SEQ),
    "einsum shared": (lambda s: np.einsum("bij,jk->kib", s, W).transpose(2, 0, 1), SEQ),
    "attention": (lambda s: gl.softmax(np.einsum("bij,bkj->bik", s, s) / 2) @ s, SEQ),
    "slices": (lambda s: s[:, 1:, ::-1], SEQ),
    "array along another axis": (lambda s: s[:, [0, 0, 2]], SEQ),
    "own label": (lambda x: x[np.arange(B), LABELS], X),
    "along axis": (lambda x: np.take_along_axis(x, np.argsort(x, axis=1), axis=1), X),
    "argmax": (lambda x: x[np.arange(B), np.argmax(x, axis=1)], X),
    "cross entropy": (lambda x: gl.cross_entropy(x, LABELS, reduction="none"), X),
    "inner gradient of the sum": (lambda x: gl.grad(lambda z: np.sum(np.tanh(z @ W) ** 2))(x), X),
    "inner gradient of the mean": (lambda x: B * gl.grad(lambda z: np.mean(np.sum(np.sin(z), 1)))(x), X),
    "concatenate and stack": (lambda x: np.concatenate([x, np.stack([x, x], axis=2)[:, :, 0]], axis=1), X),
    "split": (lambda x: np.split(x, 3, axis=1)[1] * x, X),
    "expand and squeeze": (lambda x: np.squeeze(np.expand_dims(x, (1, 3)), (1, 3)), X),
    "broadcast_to inside": (lambda x: np.broadcast_to(x[:, None], (B, 2, 3)) * 2, X),
    "broadcast of a new axis": (lambda x: x[:, :, None] - x[:, None, :], X),
    "where and clip": (lambda x: np.where(x > 0, np.clip(x, -1, 1), 0.1 * x), X),
    "logsumexp": (lambda x: gl.logsumexp(x, axis=1), X),
    "statistics without derivative": (lambda x: x * gl.stop_gradient(np.float64(3.0)), X),
    "dropout": (lambda x: gl.dropout(x, 0.5, gl.Generator(0)), X),
    "repeat inside": (lambda x: np.repeat(x, 2, axis=1), X),
    "does not depend": (lambda x: np.ones((B, 2)), X),
    "constant in part": (lambda x: np.concatenate([x, np.ones((B, 1))], axis=1), X),
    "tuple": (lambda x: (x * 2, {"s": x.sum(1)}), X),
}


def diagonal_of(f, x):
    """Blocks [b, :, b] of the whole Jacobian, for each leaf of f's result."""
    leaves, structure = gl.tree.flatten(gl.jacobian(f)(x))
    outs = gl.tree.flatten(f(x))[0]
    blocks = [
        np.stack([np.moveaxis(j, y.ndim, 1)[b, b] for b in range(len(x))]) for j, y in zip(leaves, outs, strict=True)
    ]
    return gl.tree.unflatten(structure, blocks)


def same(a, b, tolerance=1e-12):
    a, b = gl.tree.flatten(a), gl.tree.flatten(b)
    assert a[1] == b[1]
    for p, q in zip(a[0], b[0], strict=True):
        close(p, np.asarray(q), tolerance)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SEPARATE)
def test_it_is_the_block_diagonal(name, mode):
    f, x = SEPARATE[name]
    got = gl.batch_jacobian(f, mode=mode)(x)
    same(got, diagonal_of(f, x))
    assert all(j.flags.c_contiguous and j.flags.writeable for j in gl.tree.flatten(got)[0])


MIXING = {
    "every sample in every row": (lambda x: x[np.arange(B), np.arange(B)[:, None] % 3], X),
    "the first sample alone": (lambda x: x[np.arange(1)] * x, X[:, :1]),
    "mean over the batch": (lambda x: x - x.mean(0), X),
    "sum over the batch": (lambda x: np.broadcast_to(x.sum(0), (B, 3)), X),
    "sum of everything": (lambda x: x * x.sum(), X),
    "max over the batch": (lambda x: x / x.max(axis=0), X),
    "standardised over the batch": (lambda x: (x - x.mean(0)) / np.std(x, axis=0), X),
    "gram matrix": (lambda x: x @ x.T, X),
    "matrix from the left": (lambda x: np.ones((B, B)) @ x, X),
    "einsum over the batch": (lambda x: np.einsum("bi,cb->ci", x, np.ones((B, B))), X),
    "einsum of pairs": (lambda x: np.einsum("bi,ci->bc", x, x), X),
    "reversed": (lambda x: x[::-1], X),
    "flip": (lambda x: np.flip(x, 0), X),
    "permuted": (lambda x: x[PERM], X),
    "permuted with labels": (lambda x: x[PERM, LABELS], X),
    "first sample": (lambda x: x - x[0], X),
    "shifted": (lambda x: np.concatenate([x[1:], x[:1]]), X),
    "roll": (lambda x: np.roll(x, 1, axis=0), X),
    "roll of everything": (lambda x: np.roll(x, 1), X),
    "softmax over the batch": (lambda x: gl.softmax(x, axis=0), X),
    "logsumexp over the batch": (lambda x: x - gl.logsumexp(x, axis=0), X),
    "cumsum": (lambda x: np.cumsum(x, axis=0), X),
    "cumsum of everything": (lambda x: np.cumsum(x).reshape(B, 3), X),
    "mean loss": (lambda x: x * gl.cross_entropy(x, LABELS), X),
    "square, transposed": (lambda x: x.T, randn(3, 3)),
    "square, plus transposed": (lambda x: x + x.T, randn(3, 3)),
    "outer sum": (lambda x: x[:, 0][:, None] + x[:, 0][None, :], X),
    "reshape that cuts elsewhere": (lambda s: s.reshape(-1, 4).T.reshape(B, -1), SEQ),
    "tokens summed": (lambda s: s.reshape(-1, 3).sum(0) * np.ones((B, 3)), SEQ),
    "tokens reversed": (lambda s: s.reshape(-1, 3)[::-1].reshape(B, 4, 3), SEQ),
    "tokens softmax": (lambda s: gl.softmax(s.reshape(-1, 3), axis=0).reshape(B, 4, 3), SEQ),
    "transposed tokens": (lambda s: s.transpose(1, 0, 2).reshape(-1, 3).reshape(B, 4, 3), SEQ),
    "inner gradient of a mixing loss": (lambda x: gl.grad(lambda z: np.sum(z.mean(0) ** 2))(x), X),
    "rank of the sample": (lambda x: x[np.argsort(x[:, 0])], X),
    "concatenated with itself": (lambda x: np.concatenate([x, x])[::2], X),
    "take": (lambda x: np.take(x, PERM, axis=0), X),
    "trace": (lambda x: x * np.trace(x), randn(4, 4)),
    "sort key of another sample": (lambda x: x * np.where(np.argmax(x, axis=0) > 1, 1.0, 2.0), X),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", MIXING)
def test_mixing_raises(name, mode):
    f, x = MIXING[name]
    with pytest.raises(ValueError, match=r"batch_jacobian: .*(mixes samples|batch axis)"):
        gl.batch_jacobian(f, mode=mode)(x)


def test_the_error_names_the_operation():
    for f, words in [
        (lambda x: x - x.mean(0), "mean reduces over the batch axis"),
        (lambda x: gl.softmax(x, 0), "softmax works along the batch axis"),
        (lambda x: x @ x.T, "matmul pairs the samples"),
        (lambda x: x[::-1], "indexing picks or reorders"),
        (lambda x: x * gl.cross_entropy(x, LABELS), 'use reduction="none"'),
    ]:
        with pytest.raises(ValueError, match=words):
            gl.batch_jacobian(f)(X)


def test_mixing_that_the_result_does_not_depend_on_is_fine():
    def f(x):
        assert float(np.sum(x)) < 1e9
        np.mean(x, axis=0)
        return np.sin(x)

    same(gl.batch_jacobian(f)(X), diagonal_of(np.sin, X))


PARAMETERS = {"w": W, "b": BIAS}


def model(p, x):
    return gl.softmax(np.tanh(x @ p["w"]) + p["b"])


def token_model(p, s):
    return np.tanh(s.reshape(-1, 3) @ p["w"] + p["b"]).reshape(B, 4, 4).sum(1)


def fused_token_model(p, s):
    return gl.linear(s.reshape(-1, 3), p["w"], p["b"], activation="tanh").reshape(B, 4, 4).sum(1)


@pytest.mark.parametrize("chunk_size", [None, 1, 3])
@pytest.mark.parametrize("f", [model, token_model, fused_token_model, lambda p, s: gl.linear(s, p["w"], p["b"])])
def test_shared_arguments(f, chunk_size):
    x = X if f is model else SEQ
    jx, jp = gl.batch_jacobian(f, (1, 0), in_axes=(None, 0), chunk_size=chunk_size)(PARAMETERS, x)
    same(jp, gl.jacobian(f)(PARAMETERS, x))
    same(jx, diagonal_of(lambda x: f(PARAMETERS, x), x))
    assert jp["w"].shape == (*f(PARAMETERS, x).shape, 3, 4) and jp["w"].flags.c_contiguous


def test_against_jax():
    jax = pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)

    def one(p, x):
        return jax.nn.softmax(jax.numpy.tanh(x @ p["w"]) + p["b"])

    for argnum in (0, 1):
        want = jax.jit(jax.vmap(jax.jacrev(one, argnum), (None, 0)))(PARAMETERS, X)
        same(gl.batch_jacobian(model, argnum, in_axes=(None, 0))(PARAMETERS, X), want)


def _scaled_rows(mixes):
    """An op without a `batch` rule: it doubles x, and with `mixes` adds the next sample's entries."""
    m = np.eye(B) * 2 + (np.eye(B, k=1) if mixes else 0)
    return Op(
        "unruled",
        forward=lambda xp, x: (xp.matmul(m, x), ()),
        vjp=lambda xp, s, dy, need: (xp.matmul(m.T, dy),),
        jvp=lambda xp, s, dx: xp.matmul(m, dx[0]),
    )


def test_an_op_without_a_rule_is_probed():
    try:
        same(gl.batch_jacobian(_scaled_rows(False))(X), diagonal_of(lambda x: 2 * x, X))
        for mode in ("rev", "fwd"):
            with pytest.raises(ValueError, match=r"mixes samples: unruled .found by probing"):
                gl.batch_jacobian(_scaled_rows(True), mode=mode)(X)
    finally:
        del REGISTRY["unruled"]


def _there_and_back(f):
    """f between two reshapes that split the batch axis, which no rule follows."""
    return lambda x: f(x.reshape(2, 2, 6)).reshape(4, 6)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_probing_where_a_derivative_is_not_finite():
    x = np.zeros((4, 6))
    got = gl.batch_jacobian(gl.checkpoint(np.sqrt))(x)
    np.testing.assert_array_equal(np.diagonal(got, axis1=1, axis2=2), np.inf)
    x[:], x[1, 2] = randn(4, 6), np.nan
    got = gl.batch_jacobian(_there_and_back(np.tanh))(x)
    np.testing.assert_array_equal(np.isnan(got).any(axis=(1, 2)), [False, True, False, False])
    with pytest.raises(ValueError, match="mixes samples: reshape or what follows it"):
        gl.batch_jacobian(_there_and_back(lambda x: np.tanh(np.roll(x, 1, axis=1))))(x)


def test_probing_a_function_with_one_rule():
    x = randn(4, 6)

    def ruled(f, **rules):
        return gl.custom_rules(**rules)(f)

    twice = ruled(lambda x: 2 * x, vjp=lambda p, y, dy: (2 * dy,))
    for mode in ("rev", "auto"):
        same(gl.batch_jacobian(lambda x: twice(x), mode=mode)(x), diagonal_of(lambda x: 2 * x, x))
    twice = ruled(lambda x: 2 * x, jvp=lambda p, y, dx: 2 * dx[0])
    same(gl.batch_jacobian(lambda x: twice(x), mode="fwd")(x), diagonal_of(lambda x: 2 * x, x))
    turned = ruled(lambda x: np.roll(x, 1, 0), vjp=lambda p, y, dy: (np.roll(dy, -1, 1),))
    with pytest.raises(ValueError, match=r"batch_jacobian: .* mixes samples: <lambda> "):
        gl.batch_jacobian(lambda x: turned(x), mode="rev")(x)


def test_shared_arguments_forward_are_refused_before_the_function_runs():
    with pytest.raises(ValueError, match="batch_jacobian: mode 'fwd' does not take shared arguments"):
        gl.batch_jacobian(lambda w, x: pytest.fail("it ran"), in_axes=(None, 0), mode="fwd")(W, X)


@pytest.mark.parametrize("size", [0, 1, 2, 7])
@pytest.mark.parametrize("mode", MODES)
def test_batches_of_any_size(size, mode):
    x = randn(size, 3)
    got = gl.batch_jacobian(lambda x: np.tanh(x @ W), mode=mode)(x)
    assert got.shape == (size, 4, 3)
    close(got, np.einsum("bj,ij->bji", 1 - np.tanh(x @ W) ** 2, W), 1e-14)


def test_one_sample_repeated_by_broadcasting_raises():
    with pytest.raises(ValueError, match="batch_jacobian"):
        gl.batch_jacobian(lambda x: x + np.ones((4, 3)))(randn(1, 3))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("chunk_size", [1, 2, 5, 99])
def test_chunks(mode, chunk_size):
    for f, x in (SEPARATE["attention"], SEPARATE["tuple"]):
        same(gl.batch_jacobian(f, mode=mode, chunk_size=chunk_size)(x), gl.batch_jacobian(f)(x), 1e-13)


@pytest.mark.parametrize("size", [1, 3])
def test_results_have_their_own_memory(size):
    x, y = np.ones((size, 3)), np.ones((size, 3))
    for a, b in (
        gl.batch_jacobian(lambda x, y: x + y, (0, 1))(x, y),
        gl.batch_jacobian(lambda x, y: (x + y).sum(1), (0, 1))(x, y),
        gl.batch_jacobian(lambda x, y: (x + y).sum(1), (0, 1), mode="fwd")(x, y),
        gl.per_sample_grad(lambda x, y: (x + y).sum(1), (0, 1), in_axes=(0, 0))(x, y),
    ):
        assert a.flags.writeable and b.flags.writeable and not np.shares_memory(a, b)


def test_the_function_is_called_once():
    calls = []

    def f(x):
        calls.append(x.shape)
        return np.sin(x)

    gl.batch_jacobian(f, chunk_size=1)(X)
    assert calls == [(B, 3)]


def test_several_batched_arguments_and_keywords():
    f = lambda x, y, *, k: np.sin(x) * y.sum(1, keepdims=True) * k  # noqa: E731
    jx, jy = gl.batch_jacobian(f, (0, 1))(X, X[:, :2], k=2.0)
    same(jx, diagonal_of(lambda x: f(x, X[:, :2], k=2.0), X))
    same(jy, diagonal_of(lambda y: f(X, y, k=2.0), X[:, :2]))
    tree = gl.batch_jacobian(lambda t: t["a"] * t["b"][:, None])({"a": X, "b": X[:, 0]})
    assert tree["a"].shape == (B, 3, 3) and tree["b"].shape == (B, 3)


def test_float32_stays_float32():
    assert gl.batch_jacobian(np.tanh)(X.astype("float32")).dtype == "float32"


def test_parameters_of_another_dtype_keep_it():
    for f in (lambda w, x: x @ w, lambda w, x: gl.linear(x, w, activation="tanh")):
        w, y = W.astype("float32"), f(W, X)
        assert gl.batch_jacobian(f, in_axes=(None, 0))(w, X).dtype == "float32"
        assert gl.jvp(lambda w, f=f: f(w, X), (w,), (w,))[1].dtype == y.dtype


def test_sparse_rows_of_data():
    rows = sp.csr_array(np.where(np.abs(X) > 0.5, X, 0))
    for loss in (
        lambda w, x: gl.cross_entropy(gl.linear(x, w), LABELS, reduction="none"),
        lambda w, x: np.sum(gl.linear(x, w, BIAS, activation="silu") ** 2, axis=1),
    ):
        close(gl.per_sample_grad(loss)(W, rows), gl.per_sample_grad(loss)(W, rows.toarray()), 1e-13)


def test_batched_jacobian_of_a_batched_jacobian():
    got = gl.batch_jacobian(gl.batch_jacobian(lambda x: np.tanh(x @ W)))(X)
    t = np.tanh(X @ W)
    close(got, np.einsum("bj,ij,kj->bjik", -2 * t * (1 - t**2), W, W), 1e-13)


def test_derivative_of_a_batched_jacobian():
    def norm(x):
        return np.sum(gl.batch_jacobian(np.tanh)(x) ** 2)

    close(gl.grad(norm)(X), gl.grad(lambda x: np.sum((1 - np.tanh(x) ** 2) ** 2))(X), 1e-12)


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: gl.batch_jacobian(np.sin)(np.array(1.0)), ValueError, "batch_jacobian: expected a batch axis first"),
        (lambda: gl.batch_jacobian(np.add)(np.ones((2, 3)), np.ones((3, 3))), ValueError, "has 2 samples, .* has 3"),
        (lambda: gl.batch_jacobian(np.sin, in_axes=1)(X), ValueError, "batch_jacobian: expected in_axes"),
        (lambda: gl.batch_jacobian(np.add, in_axes=(0,))(X, X), ValueError, "batch_jacobian: expected in_axes"),
        (lambda: gl.batch_jacobian(np.sin, in_axes=None)(X), ValueError, "at least one argument with a batch axis"),
        (lambda: gl.batch_jacobian(np.sin, mode="x")(X), ValueError, "batch_jacobian: expected mode"),
        (lambda: gl.batch_jacobian(np.sin)(np.arange(3)), TypeError, "batch_jacobian: expected floating-point"),
        (
            lambda: gl.batch_jacobian(np.sin)(X + 1j),
            TypeError,
            r"batch_jacobian: expected floating.* complex128\[5, 3\]",
        ),
        (lambda: gl.batch_jacobian(lambda x: x[:2])(X), ValueError, "batch_jacobian: .*(mixes|batch axis)"),
        (lambda: gl.batch_jacobian(lambda x: 3.0)(X), ValueError, "arrays with the batch axis of 5 first"),
        (
            lambda: gl.batch_jacobian(np.add, in_axes=(0, None), argnums=1, mode="fwd")(X, X[0]),
            ValueError,
            "mode 'fwd'",
        ),
        (lambda: gl.batch_jacobian(np.sin, 2)(X), ValueError, "batch_jacobian: argnums 2 does not fit"),
    ],
)
def test_bad_input(call, kind, words):
    with pytest.raises(kind, match=words):
        call()
