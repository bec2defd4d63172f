"""The kernels of cross entropy against float64 NumPy."""

import contextlib
from functools import partial

import numpy as np
import pytest
from kernel_device import DTYPES, back, call, close, to, where

import gradlib as gl
from gradlib.kernels import cross_entropy as kernels
from gradlib.kernels.cross_entropy import cross_entropy
from gradlib.kernels.launch import SIMULATED, simulate

CASES = [(n, "float32") for n in (1, 3, 8, 10, 31, 33, 128, 500, 513)] + [(n, "float64") for n in (3, 33, 514)]
# two rows each: aligned rows of a warp and of a block, their edges, rows of several chunks that are and are not aligned
LONG = [(n, "float32") for n in (1024, 1028, 4096, 4099, 4100, 16384, 32772)] + [(2049, "float64")]
STATIC = {"ignore_index": None, "label_smoothing": 0.0}


def data(n, dtype, rows=(5,)):
    rng = np.random.default_rng(n)
    return (3 * rng.normal(size=(*rows, n))).astype(dtype), rng.integers(0, n, rows)


def reference(x, labels, ignore_index, label_smoothing):
    """(loss of each row, g) in float64."""
    x, n = x.astype(float), x.shape[-1]
    m = x.max(-1, keepdims=True)
    s = np.exp(x - m).sum(-1, keepdims=True)
    target = (1 - label_smoothing) * (np.arange(n) == labels[..., None] % n) + label_smoothing / n
    keep = np.ones(labels.shape, bool) if ignore_index is None else labels != ignore_index
    loss = -(target * (x - m - np.log(s))).sum(-1)
    return np.where(keep, loss, 0), np.where(keep[..., None], np.exp(x - m) / s - target, 0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("n", "dtype"), CASES)
def test_rows(n, dtype, smoothing):
    x, labels = data(n, dtype)
    labels[1] = -100
    static = {"ignore_index": -100, "label_smoothing": smoothing}
    losses, g = reference(x, labels, **static)
    y, (got, count) = call(cross_entropy.forward, x, labels, reduction="none", **static)
    close(y, losses, dtype, scale=4)
    close(got, g, dtype, scale=0.3)
    assert count == 1 and (got[1] == 0).all() and y[1] == 0


@pytest.mark.parametrize(("n", "dtype"), LONG)
def test_long_rows(n, dtype, schedule):
    """Labels are the first class and the last; the maximum stands among the first numbers, or the last, and is huge."""
    x, _ = data(n, dtype, rows=(2,))
    x[0, 5], x[1, -2] = 30, 1000
    labels = np.array([0, n - 1])
    static = {"ignore_index": None, "label_smoothing": 0.3}
    y, (g, _) = call(cross_entropy.forward, x, labels, reduction="none", **static)
    losses, exact = reference(x, labels, **static)
    close(y, losses, dtype, scale=1)
    close(g, exact, dtype, scale=0.001)


@pytest.mark.parametrize("n", [1024, 4099, 4100, 16388])
def test_long_rows_without_a_loss(n):
    """Ignored, of -inf or NaN, or labelled with what is no class: as short rows."""
    found = []
    for columns in (8, n):
        x = np.zeros((5, columns), "float32")
        x[0, -1], x[1], x[2, 1] = np.nan, -np.inf, np.inf
        labels, static = np.array([-100, 1, 1, -1, columns]), {"ignore_index": -100, "label_smoothing": 0.1}
        y, (g, _) = call(cross_entropy.forward, x, labels, reduction="none", **static)
        assert y[0] == 0 and (g[0] == 0).all() and np.isnan(y[3:]).all() and np.isnan(g[3:]).all()
        found.append((y, g[:, 1:3]))
    for short, long in zip(*found, strict=True):
        np.testing.assert_array_equal(long, short)


@pytest.mark.parametrize("labels_dtype", ["int32", "int64", "uint8"])
@pytest.mark.parametrize("n", [4, 600])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_reductions_and_derivatives(reduction, n, labels_dtype, schedule):
    x, labels = data(n, "float32", rows=(2, 3))
    labels %= 250
    labels[0, 1] = 2
    static = {"ignore_index": 2, "label_smoothing": 0.2}
    losses, g = reference(x, labels, **static)
    labels = labels.astype(labels_dtype)
    count = np.count_nonzero(labels != 2) if reduction == "mean" else 1
    y, saved = call(cross_entropy.forward, x, labels, reduction=reduction, **static)
    close(y, losses.sum() / count, "float32")
    close(saved[0] / saved[1], g / count, "float32", scale=0.3)
    assert saved[1].shape == () and saved[1].dtype == "float32"
    rng = np.random.default_rng(0)
    for V in (0, 1, 3):
        dy, d = rng.normal(size=V).astype("float32"), rng.normal(size=(V, *x.shape)).astype("float32")
        dx, none = call(cross_entropy.vjp, saved, dy, (True, False), reduction=reduction, **static)
        assert none is None
        close(dx, dy[:, None, None, None] * g / count, "float32", scale=0.5)
        dloss = call(cross_entropy.jvp, saved, (d, None), reduction=reduction, **static)
        close(dloss, (d.astype(float) * g).sum((1, 2, 3)) / count, "float32", scale=4)


@pytest.mark.parametrize(("n", "dtype"), CASES)
def test_row_derivatives(n, dtype):
    x, labels = data(n, dtype)
    _, saved = call(cross_entropy.forward, x, labels, reduction="none", **STATIC)
    g = reference(x, labels, **STATIC)[1]
    rng = np.random.default_rng(1)
    dy, d = rng.normal(size=(3, 5)).astype(dtype), rng.normal(size=(3, 5, n)).astype(dtype)
    dx, _ = call(cross_entropy.vjp, saved, dy, (True, False), reduction="none", **STATIC)
    close(dx, dy[..., None].astype(float) * g, dtype, scale=0.5)
    dloss = call(cross_entropy.jvp, saved, (d, None), reduction="none", **STATIC)
    close(dloss, (d.astype(float) * g).sum(-1), dtype, scale=4)
    assert call(cross_entropy.vjp, saved, dy, (False, False), reduction="none", **STATIC) == (None, None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [5, 601, 1028])
def test_extreme_logits(n, dtype, schedule):
    x = np.zeros((3, n), dtype)
    x[0], x[1, 0], x[2] = 1e4, 1e4, np.linspace(-1e4, 1e4, n)
    labels = np.array([1, 1, n - 1])
    for smoothing in (0.0, 0.1):
        static = {"ignore_index": None, "label_smoothing": smoothing}
        y, (g, _) = call(cross_entropy.forward, x, labels, reduction="none", **static)
        losses, exact = reference(x, labels, **static)
        close(y, losses, dtype, scale=1)
        close(g, exact, dtype, scale=0.1)


@pytest.mark.parametrize("n", [6, 600, 601])
def test_forbidden_classes(n):
    """Logits of -inf outside the label change nothing without smoothing."""
    x, labels = data(n, "float32")
    x[:, n // 2 :] = -np.inf
    labels %= n // 2
    y, (g, _) = call(cross_entropy.forward, x, labels, reduction="none", **STATIC)
    losses, exact = reference(x[:, : n // 2], labels, **STATIC)
    close(y, losses, "float32")
    close(g[:, : n // 2], exact, "float32", scale=0.3)
    assert (g[:, n // 2 :] == 0).all()


@pytest.mark.parametrize("label", [-1, 7, 700])
@pytest.mark.parametrize("n", [7, 601])
def test_label_that_is_no_class_gives_nan(n, label):
    x, labels = data(n, "float32")
    label = label if label < 0 else n + label
    labels[2] = label
    y, (g, _) = call(cross_entropy.forward, x, labels, reduction="none", **STATIC)
    assert np.isnan(y[2]) and np.isnan(g[2]).all() and np.isfinite(np.delete(y, 2)).all()


def doubled_in_place(primals, y, dy):
    dy *= 2
    return (dy,)


scaled_in_place = gl.custom_rules(vjp=doubled_in_place)(lambda x: x + 0)


@pytest.mark.parametrize("ignore_index", [None, 2])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_the_gradient_of_the_loss_itself_is_what_was_kept(dtype, reduction, ignore_index, monkeypatch):
    """Its cotangent is known to be 1: nothing is multiplied by it, but in float16. Any other one is."""
    x, labels = data(9, dtype, rows=(4,))
    labels[1], calls = 2, []

    def recorded(*key):
        calls.append(key)
        return launchable[key]

    launchable = kernels.spread
    monkeypatch.setattr(kernels, "spread", type("Spread", (), {"__getitem__": lambda self, key: recorded(*key)})())
    loss = partial(gl.cross_entropy, reduction=reduction, ignore_index=ignore_index)
    _, g = reference(x, labels, ignore_index, 0.0)
    want = g / (np.count_nonzero(labels != ignore_index) if reduction == "mean" else 1)
    with simulate() if SIMULATED else contextlib.nullcontext():
        given, places = to(x), to(labels)
        once, captured = gl.grad(loss)(given, places), gl.capture(gl.grad(loss))
        again = [captured(given, places) for _ in range(3)]
        assert bool(calls) == (dtype == "float16" and reduction == "mean")
        calls.clear()
        doubled = gl.grad(lambda x: 2 * loss(x, places))(given)
        by_hand = gl.vjp(lambda x: loss(x, places), given)[1](where().asarray(1.0, dtype))[0]
        mine = gl.grad(lambda x: scaled_in_place(loss(x, places)))(given)
        assert len(calls) == 3
    for result in (once, *again, by_hand):
        np.testing.assert_array_equal(back(result), back(once))
    close(back(once), want, dtype, scale=0.3)
    close(back(doubled), 2 * want, dtype, scale=0.6)
    close(back(mine), 2 * want, dtype, scale=0.6)


def test_a_mean_over_no_row_is_nan_with_a_gradient_of_zero():
    x, _ = data(7, "float32")
    static = {"reduction": "mean", "ignore_index": 3, "label_smoothing": 0.0}
    with np.errstate(invalid="ignore"):
        y, saved = call(cross_entropy.forward, x, np.full(5, 3), **static)
    dx, _ = call(cross_entropy.vjp, saved, np.ones(1, "float32"), (True, False), **static)
    assert np.isnan(y) and saved[1] == 1 and (dx == 0).all()


def test_what_is_left_to_the_rule():
    x, labels = data(4, "float32")
    for bad in (x.astype("longdouble"), x[:0]):
        result = call(cross_entropy.forward, bad, labels[: len(bad)], reduction="sum", **STATIC)
        assert result is NotImplemented
