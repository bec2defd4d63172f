"""Jacobians of rows by array functions: every way to them gives the same numbers, narrow dtypes are rounded once."""

import numpy as np
import pytest

import gradlib as gl

bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
RNG = np.random.default_rng(0)
OPS = {"softmax": gl.softmax, "log_softmax": gl.log_softmax, "layer_norm": gl.layer_norm, "tanh": np.tanh}


@pytest.mark.parametrize("shape", [(3, 7), (2, 4, 5), (2, 3, 1), (1, 2, 3, 2)])
@pytest.mark.parametrize("name", OPS)
def test_every_way_gives_the_same(name, shape):
    x, f = RNG.standard_normal(shape), OPS[name]
    n, step = x[0].size, 1e-6
    want = np.empty((len(x), n, n))
    for i in range(n):
        e = step * np.eye(n)[i].reshape(shape[1:])
        want[:, :, i] = ((f(x + e) - f(x - e)) / (2 * step)).reshape(len(x), n)
    for settings in ({}, {"mode": "fwd"}, {"mode": "mixed"}, {"chunk_size": 1}, {"chunk_size": 3, "mode": "fwd"}):
        J = gl.batch_jacobian(f, **settings)
        np.testing.assert_allclose(J(x).reshape(want.shape), want, rtol=1e-6, atol=1e-8)
        for rows, piece in J.chunks(x):
            np.testing.assert_allclose(piece.reshape(-1, n, n), want[rows], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", ["float16", bfloat16])
@pytest.mark.parametrize("name", OPS)
def test_narrow_rows_are_summed_in_float32(name, dtype):
    """Behind rows of 1,024 entries, whose sums in the narrow dtype would be off by a third."""
    x = RNG.standard_normal((2, 1024)).astype(dtype)
    w = RNG.random((1024, 3)).astype(dtype)
    got = gl.batch_jacobian(lambda x: OPS[name](x) @ w)(x)
    want = gl.batch_jacobian(lambda x: OPS[name](x) @ w.astype(float))(x.astype(float))
    assert got.dtype == dtype
    np.testing.assert_allclose(got.astype(float), want, atol=0.02 * np.abs(want).max())


def test_an_infinite_slope_stays_where_it_is():
    x = np.array([[800.0, 0.0, 1.0]])
    for settings in ({}, {"chunk_size": 1}):
        with np.errstate(over="ignore"):
            J = gl.batch_jacobian(np.exp, **settings)(x)
        np.testing.assert_array_equal(J, np.diag([np.inf, 1, np.e])[None])
