"""The compiled loop of outer products against float64 einsum, and where `factors` uses it: the same bits as without."""

import numpy as np
import pytest

import gradlib as gl
from gradlib.jacobian import factors
from gradlib.kernels import outer_loops

RNG = np.random.default_rng(0)
DTYPES = [np.float32, np.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (3, 2, 5, 7), (9, 4, 1, 16), (17, 3, 33, 65), (5, 1, 0, 3), (0, 2, 3, 4)]
)
def test_loop(shape, dtype, monkeypatch):
    monkeypatch.setattr(outer_loops, "SHARED", 0)  # all cores, whatever the size
    B, V, K, N = shape
    x, d = RNG.standard_normal((B, K)).astype(dtype), RNG.standard_normal((V, B, N)).astype(dtype)
    memory = np.full((B, V + 2, K, N), np.nan, dtype)
    out = memory[:, 1:-1].swapaxes(0, 1)  # some rows of a larger result
    outer_loops.write(x, d, out)
    want = np.einsum("bk,vbn->vbkn", x.astype(float), d.astype(float))
    np.testing.assert_allclose(out, want, rtol=np.finfo(dtype).eps)
    assert np.isnan(memory[:, [0, -1]]).all()


def network(dtype):
    ws = [RNG.standard_normal(s).astype(dtype) for s in ((20, 7), (7,), (7, 3), (3,))]
    x = RNG.standard_normal((2 * 150, 20)).astype(dtype)[::2]

    def f(p, x):
        return np.tanh(x @ p[0] + p[1]) @ p[2] + p[3]

    return f, ws, x


def all_ways(f, ws, x):
    loss = lambda p, x: (f(p, x) ** 2).sum(axis=1)  # noqa: E731
    yield "batch", gl.batch_jacobian(f, in_axes=(None, 0))(ws, x)
    yield "rows at a time", gl.batch_jacobian(f, in_axes=(None, 0), chunk_size=2)(ws, x)
    yield "jacobian", gl.jacobian(lambda p: f(p, x))(ws)
    yield "gradients", gl.per_sample_grad(loss)(ws, x)
    captured = gl.capture(gl.per_sample_grad(loss))
    captured(ws, x)
    yield "captured", captured(ws, x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_as_without(dtype, monkeypatch):
    f, ws, x = network(dtype)
    calls = []
    monkeypatch.setattr(factors, "LOOPED", 1)
    monkeypatch.setattr(outer_loops, "SHARED", 0)
    write = outer_loops.write
    monkeypatch.setattr(outer_loops, "write", lambda *args: (calls.append(1), write(*args)))
    looped = dict(all_ways(f, ws, x))
    assert len(calls) >= 2 * len(looped)
    monkeypatch.setattr(factors, "LOOPED", 1 << 60)
    for name, want in all_ways(f, ws, x):
        for got, expected in zip(looped[name], want, strict=True):
            assert got.dtype == dtype and np.array_equal(got, expected), name
