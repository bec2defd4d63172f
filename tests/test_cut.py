"""Calls cut over the batch: some samples alone give what they give among all, for every op that can be cut."""

import numpy as np
import pytest

import gradlib as gl
from gradlib.jacobian.batched import Batched
from gradlib.jacobian.batched_work import BatchedWork
from gradlib.jacobian.budget import budget
from gradlib.jacobian.cut import ALIGNED, DRAWING, MATRICES, REDUCING, SHAPING, cuttable, part

RNG = np.random.default_rng(0)
B = 7
X = RNG.standard_normal((B, 4, 6))
W, SQUARE = RNG.standard_normal((6, B)), RNG.standard_normal((B, B))
OWN = RNG.standard_normal((B, 1, 6))  # a row for each sample, from outside
MASK = RNG.standard_normal((B, 4, 6)) < 0.7
LABELS = RNG.integers(0, 6, (B, 4))


def flat(x):
    return x.reshape(len(x), -1)


def square(x):
    return x[:, :, 1:5]


def gram(x):
    """Symmetric matrices, positive definite."""
    return x @ x.swapaxes(1, 2) + 3 * np.eye(4)


OPS = {
    "elementwise": lambda x: np.tanh(x) * np.exp(-x) + OWN,
    "broadcasting": lambda x: x[:, :, :1] * x + np.ones((1, 6)) * 3 + OWN[:, :, 0][:, None] * x,
    "where": lambda x: np.where(x > 0, x * x, OWN),
    "softmax": lambda x: gl.softmax(x) + gl.softmax(x, axis=1),
    "masked_softmax": lambda x: gl.softmax(x, mask=MASK) * x,
    "log_softmax": lambda x: gl.log_softmax(x) * x,
    "layer_norm": lambda x: x + gl.layer_norm(x, np.arange(6.0), np.ones(6)),
    "rms_norm": lambda x: x + gl.rms_norm(x, np.arange(6.0)),
    "concatenate": lambda x: np.concatenate([x, x * x, np.broadcast_to(OWN, x.shape)], axis=2),
    "stack": lambda x: np.stack([x, np.sin(x)], axis=1),
    "sum": lambda x: x.sum(2) * np.sum(x, axis=2) + np.sum(x * x, axis=(1, 2))[:, None],
    "mean": lambda x: x - np.mean(x * x, axis=1, keepdims=True),
    "var": lambda x: x / np.std(x, axis=-1, keepdims=True),
    "max": lambda x: np.max(x, axis=2) * np.min(x, axis=2) + x[:, :, 0],
    "prod": lambda x: np.prod(x, axis=2) + x[:, :, 0],
    "p_norm": lambda x: np.linalg.norm(x, axis=2) * np.linalg.norm(x, 3, axis=2),
    "sort": lambda x: np.sort(x, axis=2) * x,
    "cumsum": lambda x: np.cumsum(x * x, axis=1) * x,
    "cumprod": lambda x: np.cumprod(x, axis=2) + x,
    "transpose": lambda x: np.transpose(np.transpose(x, (2, 0, 1)) * OWN[None, :, 0, :1], (1, 2, 0)) * x,
    "flip": lambda x: np.flip(x, axis=2) * np.roll(x, 1, axis=1),
    "astype": lambda x: (x * x).astype("float32").astype(float) + x,
    "reshape": lambda x: x + np.tanh(x.reshape(-1, 6) @ W @ W.T).reshape(x.shape),
    "broadcast_to": lambda x: np.broadcast_to(x[:, :1] ** 2, x.shape) * x,
    "getitem": lambda x: x[:, ::2, None, 1:4] * x[:, 1:3, None, :3],
    "linear": lambda x: gl.linear(gl.linear(x, W, np.ones(B), activation="gelu"), W.T, activation="tanh") + x,
    "matmul": lambda x: (x @ W) @ np.tanh(x @ W).swapaxes(1, 2),
    "matmul from the left": lambda x: np.tanh(SQUARE[:4, :4] @ x) * x,
    "matmul of columns": lambda x: (SQUARE @ (W.T @ x[:, 0].T) ** 2).T + flat(x)[:, :B],
    "einsum": lambda x: np.einsum("bij,bkj,jk->bi", x, np.sin(x)[:, :3], W[:, :3]),
    "cross_entropy": lambda x: gl.cross_entropy(x * x, LABELS, reduction="none") * x[:, :, 0],
    "logsumexp": lambda x: gl.logsumexp(x, axis=2) * gl.logsumexp(x, axis=2, keepdims=True)[:, :, 0],
    "dropout": lambda x: gl.dropout(x[:, :3, :5], 0.5, gl.Generator(3)) * x[:, :3, :5],
    "bias_dropout_add": lambda x: gl.bias_dropout_add(
        x, np.arange(6.0), OWN * x, activation="tanh", rate=0.5, rng=gl.Generator(3)
    ),
    "dropout of rows": lambda x: gl.dropout(x.reshape(-1, 6), 0.5, gl.Generator(3)).reshape(x.shape) * x,
    "bias_add": lambda x: gl.bias_dropout_add(x, np.arange(6.0), x * x),
    "an index for each sample": lambda x: (
        x[np.arange(B), LABELS[:, 0] % 4] ** 2 * x[np.arange(B), 1, LABELS[:, 1]][:, None]
    ),
    "indices for each sample": lambda x: np.take_along_axis(np.sin(x), LABELS[:, :, None], axis=2) * x,
    "as many indices as samples": lambda x: x[:, np.arange(B)[:, None, None] % 4] * x[:, :1, None, None],
    "the same indices for all": lambda x: x[:, [3, 1, 1]] * x[:, :3, LABELS[0]][:, :, :1],
    "matrices": lambda x: np.tril(x) * np.triu(x, 1) + np.tril(x),
    "solve": lambda x: (
        np.linalg.solve(flat(x)[:, :16].reshape(-1, 4, 4), x) + np.linalg.solve(square(x), SQUARE[0, :4])[:, :, None]
    ),
    "inv": lambda x: np.linalg.inv(square(x)) * np.linalg.det(square(x))[:, None, None],
    "slogdet": lambda x: np.linalg.slogdet(square(x))[1] * np.linalg.norm(np.linalg.pinv(x), axis=(1, 2)),
    "cholesky": lambda x: np.linalg.cholesky(gram(x)) * np.linalg.eigvalsh(gram(x))[:, :, None],
    "decompositions": lambda x: np.concatenate(
        [np.linalg.qr(x, mode="complete")[1], np.linalg.svd(x, full_matrices=True)[2][:, :4] ** 2], axis=2
    ),
}


def recorded(f, *args, shared=()):
    """A call of f, differentiated by its first argument, with the others batched unless `shared` names them."""
    axes = tuple(None if i in shared else 0 for i in range(len(args)))
    return Batched("batch_jacobian", f, args, axes, (0,), {})


def check(f, *args, modes=("auto", "rev", "fwd"), shared=(), tolerance=1e-12):
    call = recorded(f, *args, shared=shared)
    assert cuttable(call)
    in_axes = tuple(None if i in shared else 0 for i in range(len(args)))
    for mode in modes:
        want = gl.tree.flatten(gl.batch_jacobian(f, in_axes=in_axes, mode=mode)(*args))[0]
        for first, last in ((0, 3), (3, 4), (4, B), (0, B)):
            work = BatchedWork(part(call, first, last), mode, budget("batch_jacobian", None, None), False)
            for got, all_of_them in zip(work.whole(), want, strict=True):
                np.testing.assert_allclose(got, all_of_them[first:last], rtol=tolerance, atol=tolerance)
        of_a_part = BatchedWork(part(part(call, 1, B), 1, 3), mode, budget("batch_jacobian", None, None), False)
        for got, all_of_them in zip(of_a_part.whole(), want, strict=True):
            np.testing.assert_allclose(got, all_of_them[2:4], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("f", OPS.values(), ids=OPS.keys())
def test_some_samples_alone(f):
    tolerance = 1e-6 if f is OPS["astype"] else 1e-12
    check(f, X, tolerance=tolerance)
    check(lambda x: {"y": f(x), "x": np.sin(x)}, X, tolerance=tolerance)  # no chain: swept


@pytest.mark.parametrize("samples", [4, 6])
@pytest.mark.parametrize("f", OPS.values(), ids=OPS.keys())
def test_as_many_samples_as_a_row_has_entries(f, samples, monkeypatch):
    """Batch axes are told apart by what the ops do, not by their sizes."""
    for name in ("X", "OWN", "MASK", "LABELS"):
        monkeypatch.setitem(globals(), name, globals()[name][:samples])
    monkeypatch.setitem(globals(), "B", samples)
    monkeypatch.setitem(globals(), "W", W[:, :samples])
    monkeypatch.setitem(globals(), "SQUARE", SQUARE[:samples, :samples])
    tolerance = 1e-6 if f is OPS["astype"] else 1e-12
    check(f, X, modes=("auto",), tolerance=tolerance)


def test_every_op_that_is_listed_is_tested():
    names = {"embedding"}  # below
    for f in OPS.values():
        names.update(node.op.name for node in recorded(f, X).trace.nodes)
    named = {"linear", "matmul", "einsum", "cross_entropy", "logsumexp", "getitem"}
    assert named | ALIGNED | REDUCING | SHAPING | MATRICES | DRAWING <= names


@pytest.mark.parametrize(
    "f",
    [
        lambda w, x: np.tanh(x @ w),
        lambda w, x: np.tanh(x @ w) @ w.T + x,
        lambda w, x: np.sum(np.einsum("bi,ij,bj->b", x, w * w, x @ w), keepdims=False, axis=()),
        lambda w, x: gl.layer_norm(x @ w, w[0], w[1]) * w[2],
    ],
)
def test_parameters(f):
    check(f, SQUARE[:6, :6], X[:, 0], modes=("rev",), shared=(0,))


@pytest.mark.parametrize(
    "f",
    [
        lambda w, ids, x: np.sum(np.tanh(w[ids]) * x, axis=1),
        lambda w, ids, x: np.sum(gl.embedding(ids, w) ** 2 * x, axis=1),
        lambda w, ids, x: (
            np.tanh(w * x[:, :1])[np.arange(len(x)), ids[:, 0]] + gl.dropout(x[:, 0], 0.5, gl.Generator(3))
        ),
        lambda w, ids, x: gl.bias_dropout_add(x, w[0], activation="tanh", rate=0.5, rng=gl.Generator(3)) * w[1],
    ],
)
def test_parameters_of_which_rows_are_picked(f):
    check(f, SQUARE[:6, :6], LABELS, X, modes=("rev",), shared=(0,))


WHOLE = {
    "checkpoint": lambda x: gl.checkpoint(np.tanh)(x) * x,
    "rules of your own": lambda x: gl.custom_rules(vjp=lambda x, y, dy: (dy * 2,), jvp=lambda x, y, dx: dx[0] * 2)(
        lambda x: x * 2
    )(x),
    "a mask drawn across the batch": lambda x: gl.dropout(x.swapaxes(0, 1), 0.5, gl.Generator(3)).swapaxes(0, 1) * x,
}


@pytest.mark.parametrize("f", WHOLE.values(), ids=WHOLE.keys())
def test_what_is_not_cut(f):
    assert not cuttable(recorded(f, X))
    with pytest.raises(ValueError, match=r"one row of 7 samples"):
        gl.batch_jacobian(lambda x: (f(x), x), max_bytes=100)(X)


def test_a_shared_value_with_a_row_for_each_sample_is_not_cut():
    """∂y_b/∂w has all rows of w, of which row b alone is not 0."""

    def f(w, x):
        return w * x * x

    assert not cuttable(recorded(f, X, X + 1, shared=(0,)))
    j = gl.batch_jacobian(f, in_axes=(None, 0), max_bytes=10**6)(X, X + 1)
    want = np.zeros((*X.shape, *X.shape))
    for at in np.ndindex(X.shape):
        want[at + at] = (X[at] + 1) ** 2
    np.testing.assert_allclose(j, want)
