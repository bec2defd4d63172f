"""The kernels of masked and causal softmax against float64 NumPy, row by row; what is masked holds NaN."""

import numpy as np
import pytest
from kernel_device import DTYPES, call, close

from gradlib.kernels import softmax as kernels
from gradlib.kernels.launch import address

kernel = kernels.masked_softmax
# (keys, dtype): every shape of kernel, its edges, rows that are and are not aligned
LENGTHS = [(n, "float32") for n in (1, 2, 3, 4, 5, 31, 32, 33, 100, 127, 128, 129, 512, 513, 1027)]
LENGTHS += [(n, "float64") for n in (1, 3, 8, 31, 33, 130, 514)]
# shapes of masks for x (B, H, T_q, T_k) = (2, 3, 2, n), None for n: repeated nowhere, in one place, in two
PATTERNS = [
    (2, 3, 2, None),
    (2, 1, 1, None),
    (2, None),
    (None,),
    (2, 1, 2, None),
    (1, 3, 1, None),
    (2, 1, 2, 1),
    (3, 1, 1),
]


def attended(shape, mask, causal):
    """What may be attended to, entry by entry."""
    keep = np.ones(shape, bool) if mask is None else np.broadcast_to(mask, shape).copy()
    if causal:
        for i in range(shape[-2]):
            keep[..., i, max(0, i + 1 + shape[-1] - shape[-2]) :] = False
    return keep


def reference(x, keep):
    """Softmax of the entries of each row that may be attended to, in float64; 0 elsewhere."""
    y = np.zeros(x.shape)
    for at in np.ndindex(x.shape[:-1]):
        chosen = x[at][keep[at]].astype(float)
        if chosen.size and chosen.max() > -np.inf:
            e = np.exp(chosen - chosen.max())
            y[(*at, keep[at])] = e / e.sum()
    return y


def data(shape, dtype, keep, seed=0):
    x = 3 * np.random.default_rng(seed).normal(size=shape)
    return np.where(keep, x, np.nan).astype(dtype)


def some(shape, seed=1):
    return np.random.default_rng(seed).random(shape) < 0.6


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("n", "dtype"), LENGTHS)
def test_forward(n, dtype, causal):
    shape, mask = (2, 2, n), some((2, n))
    keep = attended(shape, mask, causal)
    x = data(shape, dtype, keep)
    y, saved = call(kernel.forward, x, mask, axis=2, causal=causal)
    close(y, reference(x, keep), dtype, scale=0.1)
    assert (y[~keep] == 0).all() and saved[0] is y
    keep = attended(shape, None, True)
    x = data(shape, dtype, keep)
    close(call(kernel.forward, x, axis=2, causal=True)[0], reference(x, keep), dtype, scale=0.1)


@pytest.mark.parametrize(("n", "dtype"), LENGTHS)
def test_causal_derivatives(n, dtype):
    """What is not attended to is NaN: it is not read."""
    shape = (3, n)
    keep = attended(shape, None, True)
    y = reference(data(shape, dtype, keep), keep).astype(dtype)
    d = np.where(keep, np.random.default_rng(n).normal(size=(3, *shape)), np.nan).astype(dtype)
    d64, y64 = np.where(keep, d, 0).astype(float), y.astype(float)
    y[~keep] = np.nan
    (dx,) = call(kernel.vjp, (y,), d, (True,), axis=1, causal=True)
    close(dx, y64 * (d64 - (d64 * y64).sum(-1, keepdims=True)), dtype, scale=0.5)
    assert (dx[:, ~keep] == 0).all()
    np.testing.assert_array_equal(call(kernel.jvp, (y,), (d,), axis=1, causal=True), dx)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("n", [4, 5, 36, 515])
def test_masks_of_any_shape(n, pattern):
    shape, mask = (2, 3, 2, n), some([n if s is None else s for s in pattern])
    keep = attended(shape, mask, False)
    x = data(shape, "float32", keep)
    y, _ = call(kernel.forward, x, mask, axis=3, causal=False)
    close(y, reference(x, keep), "float32", scale=0.1)


@pytest.mark.parametrize("queries", [1, 2, 7, 40])
@pytest.mark.parametrize("n", [1, 6, 40, 516])
def test_queries_and_keys_of_any_number(n, queries):
    if queries * n > 4000:
        queries = 9
    shape = (2, queries, n)
    keep = attended(shape, None, True)
    x = data(shape, "float32", keep)
    y, _ = call(kernel.forward, x, axis=2, causal=True)
    close(y, reference(x, keep), "float32", scale=0.1)
    d = np.random.default_rng(0).normal(size=(2, *shape)).astype("float32")
    (dx, none) = call(kernel.vjp, (y,), d, (True, False), axis=2, causal=True)
    y = y.astype(float)
    close(dx, y * (d - (d * y).sum(-1, keepdims=True)), "float32", scale=0.5)
    assert none is None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [5, 40, 130, 514])
def test_extreme_rows(n, dtype, schedule):
    mask, x = np.ones((6, n), bool), np.zeros((6, n), dtype)
    mask[0] = False
    mask[1, 1:] = False
    mask[2] = np.arange(n) % 2 == 0
    x[2], x[3, 1:], x[4], x[5] = np.where(mask[2], -np.inf, 7), -1e4, np.linspace(-1e4, 1e4, n), 1e4
    y, _ = call(kernel.forward, x, mask, axis=1, causal=False)
    close(y, reference(x, mask), dtype, scale=0.1)
    assert (y[[0, 2]] == 0).all() and y[1, 0] == 1
    for causal in (False, True):
        (dx, _) = call(kernel.vjp, (y,), np.ones((1, 6, n), dtype), (True, False), axis=1, causal=causal)
        assert np.isfinite(dx).all()


@pytest.mark.parametrize("n", [6, 140, 600])
def test_nan_that_may_be_attended_to_stays(n):
    x = np.zeros((3, n), "float32")
    x[1, 2] = np.nan
    y, _ = call(kernel.forward, x, np.ones(n, bool), axis=1, causal=False)
    assert np.isnan(y[1]).all() and np.isfinite(y[[0, 2]]).all()


@pytest.mark.parametrize("V", [0, 1, 5])
@pytest.mark.parametrize("n", [3, 40, 516])
def test_stacks_of_any_size(n, V, schedule):
    y = reference(np.zeros((4, n)), attended((4, n), None, True)).astype("float32")
    d = np.random.default_rng(n).normal(size=(V, 4, n)).astype("float32")
    for causal in (False, True):
        (dx,) = call(kernel.vjp, (y,), d, (True,), axis=1, causal=causal)
        close(dx, y * (d - (d * y).sum(-1, keepdims=True, dtype=float)), "float32", scale=0.5)


def test_strided_inputs_and_odd_addresses():
    x = np.random.default_rng(0).normal(size=(6, 36)).astype("float32")
    mask = some(1 + 6 * 36)[1:].reshape(6, 36)
    for view, keep in (
        (x, mask),
        (x[::2], mask[::2]),
        (x[:, ::-1], mask[:, ::-1]),
        (x[:, 1:], mask[:, 1:]),
        (np.asfortranarray(x), np.asfortranarray(mask)),
    ):
        y, _ = call(kernel.forward, view, keep, axis=1, causal=False)
        close(y, reference(view, keep), "float32", scale=0.1)
        words, *_ = kernels._mask_words(np, keep, keep.shape)  # the simulator would read them at any address
        assert address(words) % 4 == 0 and words.flags.c_contiguous


def test_what_is_left_to_the_rule():
    x, mask = np.ones((3, 4), "float32"), np.ones(4, bool)
    for bad, axis in ((x, 0), (x.astype("longdouble"), 1), (np.ones((0, 4), "float32"), 1)):
        assert call(kernel.forward, bad, mask, axis=axis, causal=False) is NotImplemented
        for causal in (False, True):
            assert call(kernel.vjp, (bad,), bad[None], (True,), axis=axis, causal=causal) is NotImplemented
    assert call(kernel.forward, x, np.ones(4), axis=1, causal=False) is NotImplemented
    assert call(kernel.vjp, (x,), x[None], (False, False), axis=1, causal=True) == (None, None)
    assert call(kernel.jvp, (x,), (None, None), axis=1, causal=True) is NotImplemented
