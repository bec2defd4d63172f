"""The kernels of clipping by the global norm against float64 NumPy, over many tensors at once."""

import numpy as np
import pytest
from kernel_device import DTYPES, call

import gradlib as gl
from gradlib.kernels import clipping as kernels
from gradlib.kernels.launch import SIMULATED, simulate

SHAPES = [(3,), (), (0,), (33, 5), (1,), (4096,), (4097,), (2, 4098)]


def clip(grads, max_norm):
    """Call the kernels where they run."""
    return call(lambda xp, *grads: kernels.clip_by_global_norm(xp, grads, max_norm), *grads)


def tensors(dtype, shapes=SHAPES):
    rng = np.random.default_rng(0)
    return [np.asarray(rng.normal(size=s), dtype) for s in shapes]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("max_norm", [1.0, 1e3])
def test_clipping(max_norm, dtype, schedule):
    grads = tensors(dtype)
    want = np.sqrt(sum(np.sum(g.astype(float) ** 2) for g in grads))
    clipped, norm = clip(grads, max_norm)
    eps = 8 * np.finfo(dtype).eps
    assert norm.shape == () and norm.dtype == dtype
    np.testing.assert_allclose(norm, want, rtol=eps)
    for a, g in zip(clipped, grads, strict=True):
        assert a.dtype == g.dtype and a.shape == g.shape
        np.testing.assert_allclose(a, g * min(1.0, max_norm / want), rtol=eps)


@pytest.mark.parametrize("dtype", DTYPES)
def test_more_partial_sums_than_a_block_has_threads(dtype, schedule):
    """The second stage alone, on partial sums of any number."""
    for count in (1, 3, 255, 1024, 1025, 2500):
        partial = np.random.default_rng(count).random(count).astype(dtype)
        result = np.full(2, np.nan, dtype)

        def run(xp, partial, result=result, count=count):
            result = xp.asarray(result)
            kernels.norm_and_scale[dtype](1, 256, partial, count, 2.0, result)
            return result

        norm, scale = call(run, partial)
        want = np.sqrt(partial.sum(dtype=float))
        np.testing.assert_allclose([norm, scale], [want, min(1, 2 / want)], rtol=8 * np.finfo(dtype).eps)


def test_odd_addresses_and_strides():
    base = np.arange(130.0, dtype="float32")
    grads = [base[1:], base[:64].reshape(8, 8).T, base[::2]]
    clipped, norm = clip(grads, 1.0)
    want = np.sqrt(sum(np.sum(g.astype(float) ** 2) for g in grads))
    np.testing.assert_allclose(norm, want, rtol=1e-6)
    for a, g in zip(clipped, grads, strict=True):
        np.testing.assert_allclose(a, g / want, rtol=1e-6)


@pytest.mark.parametrize(
    ("entries", "max_norm", "norm", "clipped"),
    [
        ([0.0, 0.0], 1.0, 0.0, [0.0, 0.0]),
        ([0.0, 0.0], 0.0, 0.0, [0.0, 0.0]),
        ([3.0, 4.0], 0.0, 5.0, [0.0, 0.0]),
        ([3.0, 4.0], np.inf, 5.0, [3.0, 4.0]),
        ([np.inf, 1.0], 1.0, np.inf, [np.nan, 0.0]),
        ([np.nan, 1.0], 1.0, np.nan, [np.nan, np.nan]),
        ([np.nan, 1.0], np.inf, np.nan, [np.nan, np.nan]),
    ],
)
def test_special_values(entries, max_norm, norm, clipped):
    (got,), got_norm = clip([np.array(entries, "float32")], max_norm)
    np.testing.assert_array_equal(got_norm, np.float32(norm))
    np.testing.assert_array_equal(got, np.array(clipped, "float32"))


def test_what_is_left_to_the_rule():
    for grads in ([np.ones(3, "float32"), np.ones(3)], [np.ones(3, "float16"), np.ones(3)], [np.zeros((0, 3))]):
        assert clip(grads, 1.0) is NotImplemented


@pytest.mark.skipif(not SIMULATED, reason="compares NumPy arrays on both paths")
@pytest.mark.parametrize(
    "grads", [tensors("float32"), tensors("float16"), [*tensors("float32"), np.ones(3)], [np.zeros(0)]]
)
def test_the_public_function_agrees(grads):
    want, want_norm = gl.optim.clip_by_global_norm(grads, 1.0)
    with simulate():
        got, norm = gl.optim.clip_by_global_norm(grads, 1.0)
    np.testing.assert_allclose(norm, want_norm, rtol=1e-6)
    assert norm.dtype == want_norm.dtype
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-6 if b.dtype != "float16" else 2e-3)
