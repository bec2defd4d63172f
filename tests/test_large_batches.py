"""Batches whose values are more than a budget: they are cut, and each part is worked on as a call of its own."""

import tracemalloc

import numpy as np
import pytest
from test_budget import BESIDE, FACTOR, cases, check, layers, measured, net, rows

import gradlib as gl

WIDE, NARROW, LAST = layers(64, 256, 64, 3)


def bottleneck(x):
    return (x + np.tanh(x @ WIDE) @ NARROW) @ LAST


LARGE = {  # whose values are more than the limit: one row of all samples would be too
    "residual": (bottleneck, rows(5001, 64)),
    "losses": (lambda x: np.sum((x + np.tanh(x @ WIDE) @ NARROW) ** 2, axis=1), rows(6001, 64)),
    "logsumexp": (lambda x: gl.logsumexp(gl.linear(x, WIDE, activation="gelu"), axis=1), rows(9001, 64)),
    "a chain": (net(layers(64, 256, 3)), rows(12_001, 64)),
    "branches": (lambda x: np.concatenate([np.sin(x @ WIDE) @ NARROW @ LAST, x[:, :1]], axis=1), rows(5001, 64)),
    "several": (lambda x: {"a": bottleneck(x), "b": gl.softmax(x @ LAST)}, rows(5001, 64)),
    "dropout": (
        lambda x: (
            gl.bias_dropout_add(gl.dropout(x @ WIDE, 0.5, gl.Generator(0)) @ NARROW, residual=x, activation="gelu")
            @ LAST
        ),
        rows(5001, 64),
    ),
    "an entry for each sample": (
        lambda x: np.take_along_axis(bottleneck(x), np.arange(len(x))[:, None] % 3, axis=1) + x[:, :2],
        rows(5001, 64),
    ),
    "matrices": (
        lambda x: np.linalg.solve(x.reshape(-1, 8, 8) + 9 * np.eye(8, dtype="f"), x[:, :8, None])[:, :3, 0] + x[:, :3],
        rows(9001, 64),
    ),
    "tokens": (lambda s: np.mean(np.einsum("btk,bsk->bts", s, np.tanh(s) * s), axis=2), rows(5001, 4, 16)),
}
LARGE_SHARED = {
    "losses": (lambda w, x: np.sum(np.tanh(x @ WIDE) @ w, axis=1), (LAST.repeat(4, axis=0), *rows(9001, 64))),
    "a function of it": (lambda w, x: np.sum(np.tanh(x @ WIDE) @ (w * w), 1), (NARROW[:, :2], *rows(9001, 64))),
    "used twice": (
        lambda w, x: np.sum(np.tanh(x @ w @ WIDE) @ NARROW @ w, axis=1),
        (LAST[:, :1] * LAST.T[:1], *rows(701, 64)),
    ),
}


@pytest.mark.parametrize(("mode", "max_bytes"), [("auto", None), ("rev", 1_000_000)])
@cases(LARGE)
def test_large_batches_are_cut(f, args, mode, max_bytes):
    cut(f, args, mode, max_bytes)


@pytest.mark.parametrize("name", ["residual", "matrices"])
def test_large_batches_are_cut_ahead(name):
    cut(*LARGE[name], "fwd", None)


def cut(f, args, mode, max_bytes):
    plan, peak, out = measured(gl.batch_jacobian, f, args, mode=mode, max_bytes=max_bytes)
    check(plan, peak, out, limit=max_bytes, factor=FACTOR if f is LARGE["matrices"][0] else 2)
    assert plan.samples < len(args[0])
    same(out, gl.batch_jacobian(f, max_bytes="10GB")(*args))


@pytest.mark.parametrize("max_bytes", [None, 3_000_000])
@cases(LARGE_SHARED)
def test_large_batches_are_cut_for_parameters(f, args, max_bytes):
    plan, peak, out = measured(gl.batch_jacobian, f, args, in_axes=(None, 0), max_bytes=max_bytes)
    check(plan, peak, out, limit=max_bytes)
    assert plan.samples < len(args[1])
    same(out, gl.batch_jacobian(f, in_axes=(None, 0), max_bytes="10GB")(*args))


@pytest.mark.parametrize("max_bytes", [None, 2_000_000])
def test_gradients_of_many_samples_are_cut(max_bytes):
    """For gradients alone as for Jacobians: within the limit, in pieces, into an array."""

    def loss(w, x):
        return np.sum(np.tanh(gl.dropout(np.tanh(x @ WIDE), 0.5, gl.Generator(0)) @ w), axis=1)

    w, (x,) = np.tile(LAST, (4, 1)), rows(9001, 64)
    plan, peak, out = measured(gl.per_sample_grad, loss, (w, x), max_bytes=max_bytes)
    check(plan, peak, out, limit=max_bytes)
    assert plan.samples < len(x)
    same(out, gl.batch_jacobian(loss, in_axes=(None, 0), max_bytes="10GB")(w, x))
    for at, piece in gl.per_sample_grad(loss, max_bytes=max_bytes).chunks(w, x):
        same(piece, out[at])


@cases(LARGE)
def test_pieces_of_large_batches(f, args):
    """Each is made of its own samples, and the memory with it stays within the limit."""
    want, x = gl.batch_jacobian(f, max_bytes="10GB")(*args), args[0]
    pieces, at = gl.batch_jacobian(f, max_bytes=2_000_000).chunks(x), 0
    tracemalloc.start()
    try:
        for where, piece in pieces:
            assert where.start == at
            at = where.stop
            peak = tracemalloc.get_traced_memory()[1]
            assert peak <= 2_000_000 + BESIDE
            same(piece, gl.tree.map(lambda a, where=where: a[where], want))
            del piece
            tracemalloc.reset_peak()
    finally:
        tracemalloc.stop()
    assert at == len(x)


def same(a, b):
    for x, y in zip(gl.tree.flatten(a)[0], gl.tree.flatten(b)[0], strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


def test_a_plan_of_parts_counts_all_of_them():
    f, (x,) = LARGE["residual"]
    cut, whole = (gl.batch_jacobian(f, max_bytes=n).plan(x) for n in (None, "10GB"))
    assert cut.samples < whole.samples == len(x) and cut.peak < whole.peak
    assert (
        cut.mode == whole.mode and abs(cut.flops / whole.flops - 1) < 1e-6 and abs(cut.bytes / whole.bytes - 1) < 1e-6
    )
    assert f"{cut.samples} samples and a stack of {cut.rows} at a time" in cut.explain()
    assert cut.explain().startswith("5001 samples, 64 -> 3: float32[5001, 3, 64]")
