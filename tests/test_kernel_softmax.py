"""The kernels of softmax, log_softmax and logsumexp against float64 NumPy."""

import numpy as np
import pytest
from kernel_device import DTYPES, call, close

from gradlib.kernels import softmax as kernels

# (length, dtype): every shape of kernel, its edges, rows that are and are not aligned
CASES = [(n, "float32") for n in (1, 2, 3, 7, 8, 9, 31, 32, 33, 100, 127, 128, 129, 512, 513, 1000)]
CASES += [(n, "float64") for n in (1, 3, 8, 31, 33, 130, 514)]
# one row each: aligned rows of a warp and of a block, their edges, rows of two chunks that are and are not aligned
LONG = [(n, "float32") for n in (1024, 1028, 4096, 4099, 4100)] + [(2050, "float64")]


def reference(x):
    """(softmax, log_softmax, logsumexp) over the last axis, in float64."""
    x = x.astype(float)
    m = x.max(-1, keepdims=True)
    e = np.exp(x - m)
    s = e.sum(-1, keepdims=True)
    return e / s, x - m - np.log(s), (m + np.log(s))[..., 0]


def data(n, dtype, rows=(2, 3), V=3):
    rng, rows = np.random.default_rng(n), rows if n < 513 else (1,) * len(rows)
    x = (3 * rng.normal(size=(*rows, n))).astype(dtype)
    return x, rng.normal(size=(V, *x.shape)).astype(dtype)


@pytest.mark.parametrize(("n", "dtype"), CASES)
def test_forward(n, dtype):
    forward(data(n, dtype)[0], dtype)


# the edge of what is held, and three of the longest chunks
@pytest.mark.parametrize(("n", "dtype"), [*LONG, (16384, "float32"), (32772, "float32")])
def test_forward_of_long_rows(n, dtype, schedule):
    forward(data(n, dtype)[0], dtype)


def forward(x, dtype):
    p, log_p, lse = reference(x)
    y, saved = call(kernels.softmax.forward, x, axis=2)
    close(y, p, dtype, scale=0.1)
    assert saved[0] is y
    close(call(kernels.log_softmax.forward, x, axis=2)[0], log_p, dtype, scale=1)
    y, saved = call(kernels.logsumexp.forward, x, axis=2, keepdims=False)
    close(y, lse, dtype, scale=1)
    assert saved[0] is x and saved[1] is y
    close(call(kernels.logsumexp.forward, x, axis=2, keepdims=True)[0], lse[..., None], dtype, scale=1)


@pytest.mark.parametrize(("n", "dtype"), CASES)
def test_derivatives(n, dtype):
    derivatives(*data(n, dtype, rows=(3,), V=3 if n < 513 else 2), dtype)


@pytest.mark.parametrize(("n", "dtype"), [*LONG, (8192, "float32"), (8196, "float32")])
def test_derivatives_of_long_rows(n, dtype, monkeypatch):
    monkeypatch.setattr(kernels, "FILL", 1)  # a block walks the stack
    derivatives(*data(n, dtype, rows=(1,), V=2 if n < 8192 else 1), dtype)


def derivatives(x, d, dtype):
    p, log_p, lse = (a.astype(dtype) for a in reference(x))
    exact, d64 = reference(x)[0], d.astype(float)
    dot = (d64 * exact).sum(-1, keepdims=True)
    (dx,) = call(kernels.softmax.vjp, (p,), d, (True,), axis=1)
    close(dx, exact * (d64 - dot), dtype, scale=0.5)
    np.testing.assert_array_equal(call(kernels.softmax.jvp, (p,), (d,), axis=1), dx)
    scale = 1 + abs(d64).sum(-1).max() / 4
    (dx,) = call(kernels.log_softmax.vjp, (log_p,), d, (True,), axis=1)
    close(dx, d64 - exact * d64.sum(-1, keepdims=True), dtype, scale=scale)
    close(call(kernels.log_softmax.jvp, (log_p,), (d,), axis=1), d64 - dot, dtype, scale=2)
    e = d[..., 0]
    (dx,) = call(kernels.logsumexp.vjp, (x, lse), e, (True,), axis=1, keepdims=False)
    close(dx, e[..., None].astype(float) * exact, dtype, scale=0.5)
    close(call(kernels.logsumexp.jvp, (x, lse), (d,), axis=1, keepdims=False), dot[..., 0], dtype, scale=2)
    assert call(kernels.softmax.vjp, (p,), d, (False,), axis=1) == (None,)


@pytest.mark.parametrize("n", [3, 40, 515, 1028])
@pytest.mark.parametrize("V", [0, 1, 5])
def test_stacks_of_any_size(n, V, schedule):
    x, d = data(n, "float32", rows=(5,), V=V)
    p = reference(x)[0].astype("float32")
    (dx,) = call(kernels.softmax.vjp, (p,), d, (True,), axis=1)
    close(dx, p * (d - (d * p).sum(-1, keepdims=True, dtype=float)), "float32", scale=0.5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [5, 40, 130, 514])
def test_extreme_rows(n, dtype, schedule):
    x = np.zeros((4, n), dtype)
    x[0], x[1, 1:], x[2, ::2], x[3] = -np.inf, -1e4, 1e4, np.linspace(-1e4, 1e4, n)
    y, _ = call(kernels.softmax.forward, x, axis=1)
    log_y, _ = call(kernels.log_softmax.forward, x, axis=1)
    lse, _ = call(kernels.logsumexp.forward, x, axis=1, keepdims=False)
    assert (y[0] == 0).all() and (log_y[0] == -np.inf).all() and lse[0] == -np.inf
    p, log_p, exact = reference(x[1:])
    close(y[1:], p, dtype, scale=0.1)
    close(log_y[1:], log_p, dtype)
    close(lse[1:], exact, dtype)
    d = np.ones((1, 4, n), dtype)
    for result in (
        call(kernels.softmax.vjp, (y,), d, (True,), axis=1)[0],
        call(kernels.log_softmax.vjp, (log_y,), d, (True,), axis=1)[0],
        call(kernels.logsumexp.vjp, (x, lse), d[..., 0], (True,), axis=1, keepdims=False)[0],
    ):
        assert np.isfinite(result).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_small_entries_keep_their_digits(dtype):
    """Of themselves, not of the largest: x_j - m is rounded, and in float32 its product with log2 e."""
    x = np.linspace(-80, 5, 500).astype(dtype)[None]
    p, _, _ = reference(x)
    y, _ = call(kernels.softmax.forward, x, axis=1)
    assert (abs(y / p - 1) <= (2.3 * (5 - x) + 16) * np.finfo(dtype).eps / 2).all()
    x[0, :250] = -1e3
    assert (call(kernels.softmax.forward, x, axis=1)[0][0, :250] == 0).all()


def extreme(n, rows):
    """All -inf; a maximum that moves from chunk to chunk; one at the very end; NaN."""
    x = np.zeros((4, n), "float32")
    x[0], x[1], x[2, -1], x[3, -1] = -np.inf, np.linspace(0, 20, n), 1e4, np.nan
    return x[:rows]


@pytest.mark.parametrize("n", [1024, 4099, 4100, 16388])
def test_extreme_long_rows(n):
    x = extreme(n, 4)
    y, log_y = (call(k.forward, x, axis=1)[0] for k in (kernels.softmax, kernels.log_softmax))
    assert (y[0] == 0).all() and (log_y[0] == -np.inf).all()
    for got, exact, scale in zip((y, log_y), reference(x[1:3]), (0.001, 1), strict=False):
        close(got[1:3], exact, "float32", scale)
        assert np.isnan(got[3]).all()


@pytest.mark.parametrize("n", [1024, 4099])
def test_derivatives_of_extreme_long_rows(n):
    x, d = extreme(n, 3), np.ones((1, 3, n), "float32")
    y, saved = call(kernels.logsumexp.forward, x, axis=1, keepdims=False)
    p, _, exact = reference(x[1:])
    assert y[0] == -np.inf
    close(y[1:], exact, "float32")
    (dx,) = call(kernels.logsumexp.vjp, saved, d[..., 0], (True,), axis=1, keepdims=False)
    assert (dx[0, 0] == 0).all()
    close(dx[0, 1:], p, "float32", scale=0.001)
    (dx,) = call(kernels.log_softmax.vjp, (call(kernels.log_softmax.forward, x, axis=1)[0],), d, (True,), axis=1)
    assert (dx[0, 0] == 1).all()
    close(dx[0, 1:], 1 - n * p, "float32", scale=10)


@pytest.mark.parametrize("n", [5, 40, 514])
def test_nan_spreads_over_its_row(n):
    x = np.zeros((3, n), "float32")
    x[1, 2] = np.nan
    y, log_y = (call(k.forward, x, axis=1)[0] for k in (kernels.softmax, kernels.log_softmax))
    lse, _ = call(kernels.logsumexp.forward, x, axis=1, keepdims=False)
    d = np.ones((2, 3), "float32")
    (dx,) = call(kernels.logsumexp.vjp, (x, lse), d, (True,), axis=1, keepdims=False)
    for a in (y, log_y, lse, dx[0]):
        assert np.isnan(a[1]).all() and np.isfinite(a[[0, 2]]).all()


def test_masked_entries():
    x = np.random.default_rng(0).normal(size=(3, 50)).astype("float32")
    x[:, 10:30] = -np.inf
    y, _ = call(kernels.softmax.forward, x, axis=1)
    assert (y[:, 10:30] == 0).all()
    keep = np.r_[0:10, 30:50]
    close(y[:, keep], reference(x[:, keep])[0], "float32", scale=0.1)


def test_strided_input():
    x = np.random.default_rng(0).normal(size=(6, 37)).astype("float32")
    for view in (x[::2], x[:, ::-1], x[:, 1:], np.asfortranarray(x)):
        close(call(kernels.softmax.forward, view, axis=1)[0], reference(view)[0], "float32", scale=0.1)


def test_what_is_left_to_the_rule():
    x = np.ones((3, 4), "float32")
    for bad, axis in ((x, 0), (x.astype("longdouble"), 1), (np.ones((3, 0), "float32"), 1), (np.ones((0, 4)), 1)):
        assert call(kernels.softmax.forward, bad, axis=axis) is NotImplemented
        assert call(kernels.softmax.vjp, (bad,), bad[None], (True,), axis=axis) is NotImplemented
