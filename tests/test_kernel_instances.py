"""Kernels of dtypes and lengths that the other tests of an op do not come by."""

import os
from functools import partial

import numpy as np
import pytest
import test_kernel_cross_entropy as losses
import test_kernel_half as halves
import test_kernel_layer_norm as norms
import test_kernel_linear as layers
from kernel_device import DTYPES, call, close

from gradlib.kernels import embedding
from gradlib.kernels.linear import ACTIVATIONS, slope_and_sums

pytestmark = pytest.mark.skipif("GRADLIB_SIM_SCHEDULE" in os.environ, reason="one order of the threads is enough")


@pytest.mark.parametrize("n", [3, 4, 18, 33])
def test_runs_of_float64_over_many_pieces(n):
    """Few and many lanes, aligned and single."""
    dy = np.random.default_rng(n).normal(size=(2, 70, n))
    ids = np.repeat([2, 0], [66, 4])
    want = np.stack([dy[:, 66:].sum(1), np.zeros((2, n)), dy[:, :66].sum(1)], axis=1)
    close(call(embedding.summed, ids, dy, 3), want, "float64", scale=10)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bias_cotangents_of_many_columns(activation, dtype):
    """A warp across the columns."""
    z, dy = np.random.default_rng(1).normal(size=(2, 3, 36)).astype(dtype)
    act, slope = layers.activation_of(activation)
    saved = act(z.astype(float)).astype(dtype) if activation in layers.FROM_OUTPUT else z
    dz, db = call(slope_and_sums, saved, dy[None], activation)
    want = dy.astype(float) * slope(z.astype(float))
    close(dz[0], want, dtype, scale=10)
    close(db[0], want.sum(0), dtype, scale=20)


@pytest.mark.parametrize("kind", norms.KERNELS)
def test_norms_of_float64(kind, monkeypatch):
    monkeypatch.setattr(norms, "data", partial(norms.data, rows=(1,), V=1))
    for n in (35, 2050):
        norms.test_forward(kind, n, "float64")
    for n in (35, 2050, 257):
        norms.test_vjp_and_jvp_of_rows(kind, n, "float64")
    for n in (35, 130):
        norms.test_gradients_of_parameters(kind, n, "float64")


@pytest.mark.parametrize("dtype", halves.DTYPES.values(), ids=str)
@pytest.mark.parametrize("n", [16, 520])
def test_cotangents_of_half_rows_alone(n, dtype):
    x, dy = halves.normal((2, n), dtype, n), halves.normal((1, 2, n), dtype, n + 1)
    w, b = halves.normal(n, dtype, n + 2), halves.normal(n, dtype, n + 3)
    h, r = halves.normalised(x, True, 1e-5)
    t = dy.astype(float) * w.astype(float)
    want = r * (t - t.mean(-1, keepdims=True) - h * (t * h).mean(-1, keepdims=True))
    _, saved = call(halves.layer_norm.layer_norm.forward, x, w, b, eps=1e-5)
    dx, *none = call(halves.layer_norm.layer_norm.vjp, saved, dy, (True, False, False), eps=1e-5)
    halves.close(dx, want, dtype, 10)
    assert none == [None, None]


def test_losses_of_float64():
    losses.test_rows(300, "float64", 0.1)


def test_short_half_rows_that_are_not_aligned():
    """All the eight numbers that eight lanes hold, but three."""
    for dtype in halves.DTYPES.values():
        halves.test_softmax(61, dtype)
