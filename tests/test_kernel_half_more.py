"""float16 and bfloat16 in the kernels of attention, reductions, Jacobians and tangents, against float64 NumPy."""

import numpy as np
import pytest
from kernel_device import call

import gradlib as gl
from gradlib.kernels import cross_entropy, layer_norm, norm, reduce, rms_norm, softmax
from gradlib.kernels.launch import SIMULATED, simulate

pytest.importorskip("ml_dtypes")
from test_kernel_half import DTYPES, HALF_UNIT, close, normal, normalised, probabilities
from test_kernel_masked_softmax import attended, reference, some
from test_kernel_reduce import reference as reduced
from test_kernel_reduce import static, weights

REDUCTIONS = {"sum": reduce.sum, "mean": reduce.mean, "max": reduce.max, "min": reduce.min, "p_norm": norm.p_norm}


@pytest.fixture(params=DTYPES)
def dtype(request):
    return DTYPES[request.param]


def numbers(shape, dtype, seed=0):
    """Few different values, exact in both dtypes, so that the largest occurs more than once."""
    return (np.random.default_rng(seed).integers(-8, 9, shape) / 4).astype(dtype)


@pytest.mark.parametrize("n", [1, 8, 65, 504, 521])
def test_logsumexp(n, dtype):
    rows = 3 if n < 520 else 1
    x, d, e = normal((rows, n), dtype, n, 3), normal((2, rows, n), dtype, n + 1), normal((2, rows), dtype, n + 2)
    top = x.astype(float).max(-1)
    lse = top + np.log(np.exp(x.astype(float) - top[:, None]).sum(-1))
    y, saved = call(softmax.logsumexp.forward, x, axis=1, keepdims=False)
    close(y, lse, dtype, 1)
    np.testing.assert_array_equal(call(softmax.logsumexp.forward, x, axis=1, keepdims=True)[0], y[:, None])
    p = probabilities(x)
    (dx,) = call(softmax.logsumexp.vjp, saved, e, (True,), axis=1, keepdims=False)
    close(dx, e.astype(float)[..., None] * p, dtype, 1e-1)
    dy = call(softmax.logsumexp.jvp, saved, (d,), axis=1, keepdims=False)
    close(dy, (d.astype(float) * p).sum(-1), dtype, 1)


def test_logsumexp_of_extreme_rows(dtype):
    """A row without a number, and one whose sum is rounded by more than 1: its derivative is normalised anew."""
    x = np.array([[-np.inf] * 4, [60000, 60000, 0, -60000]]).astype(dtype)
    y, saved = call(softmax.logsumexp.forward, x, axis=1, keepdims=False)
    np.testing.assert_array_equal(y.astype(float), [-np.inf, float(x[1, 0])])
    (dx,) = call(softmax.logsumexp.vjp, saved, np.ones((1, 2), dtype), (True,), axis=1, keepdims=False)
    np.testing.assert_array_equal(dx[0].astype(float), [[0] * 4, [0.5, 0.5, 0, 0]])


@pytest.mark.parametrize("n", [1, 6, 8, 61, 64, 65, 500, 512, 521])
def test_masked_and_causal_softmax(n, dtype):
    """What is masked holds NaN: it is not read."""
    shape = (2, 3, n) if n < 500 else (1, 2, n)
    mask = some(shape[1:], n)
    for given, causal in ((mask, False), (mask, True), (None, True))[: 3 if n < 500 else 2]:
        keep = attended(shape, given, causal)
        x = np.where(keep, 3 * np.random.default_rng(n).normal(size=shape), np.nan).astype(dtype)
        y, saved = call(softmax.masked_softmax.forward, x, *(() if given is None else (given,)), axis=2, causal=causal)
        close(y, reference(x, keep), dtype, 1e-2)
        assert (y[~keep] == 0).all()
        y[~keep] = 0 if not causal else np.where(attended(shape, None, True), 0, np.nan)[~keep]
        d = np.where(keep, np.random.default_rng(n + 1).normal(size=(2, *shape)), np.nan if causal else 0)
        d[:, ~keep & attended(shape, None, causal)] = 0
        d = d.astype(dtype)
        y64, d64 = np.where(keep, y, 0).astype(float), np.where(keep, d, 0).astype(float)
        want = y64 * (d64 - (d64 * y64).sum(-1, keepdims=True))
        dx, *_ = call(softmax.masked_softmax.vjp, (y,), d, (True,), axis=2, causal=causal)
        close(dx, want, dtype, 1)
        np.testing.assert_array_equal(call(softmax.masked_softmax.jvp, (y,), (d,), axis=2, causal=causal), dx)


@pytest.mark.parametrize("shape", [(3, 1, 1, None), (1, 2, 2, None), (2, 1, None), (1,)])
@pytest.mark.parametrize("n", [13, 72, 516])
def test_masks_that_are_repeated(n, shape, dtype):
    mask, x = some([n if s is None else s for s in shape], n), normal((3, 2, 2, n), dtype, n)
    y, _ = call(softmax.masked_softmax.forward, x, mask, axis=3, causal=False)
    close(y, reference(x, attended(x.shape, mask, False)), dtype, 1e-2)


@pytest.mark.parametrize("n", [16, 520, 37, 4104])  # held by a warp and by a block; streamed, not aligned and aligned
@pytest.mark.parametrize("kernel", [layer_norm.layer_norm, rms_norm.rms_norm], ids=["layer", "rms"])
def test_tangents_of_norms(kernel, n, dtype):
    centred = kernel is layer_norm.layer_norm
    rows = 2 if n < 600 else 1
    x, w, dx = normal((rows, n), dtype, n), normal(n, dtype, n + 1), normal((2, rows, n), dtype, n + 2)
    dw, db = normal((2, n), dtype, n + 3), normal((2, n), dtype, n + 4)
    _, saved = call(kernel.forward, x, w, eps=1e-5)
    h, r = normalised(x, centred, 1e-5)
    t = dx.astype(float)
    mean = lambda a: a.mean(-1, keepdims=True)  # noqa: E731
    moved = r * (t - (mean(t) if centred else 0) - h * mean(t * h)) * w.astype(float)
    parameters = h * dw.astype(float)[:, None] + (db.astype(float)[:, None] if centred else 0)
    both = (dw, db) if centred else (dw,)
    close(call(kernel.jvp, saved, (dx, *both), eps=1e-5), moved + parameters, dtype, 10)
    close(call(kernel.jvp, saved, (dx, *[None] * len(both)), eps=1e-5), moved, dtype, 10)
    close(call(kernel.jvp, saved, (None, *both), eps=1e-5), parameters, dtype, 10)


@pytest.mark.parametrize("n", [8, 13, 264])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_tangents_of_cross_entropy(n, reduction, dtype):
    x, d, labels = normal((4, n), dtype, n, 2), normal((2, 4, n), dtype, n + 1), np.arange(4) % n
    how = {"reduction": reduction, "ignore_index": None, "label_smoothing": 0.0}
    _, saved = call(cross_entropy.cross_entropy.forward, x, labels, **how)
    dots = (d.astype(float) * saved[0].astype(float)).sum(-1)
    want = dots if reduction == "none" else dots.sum(1) / float(saved[1])
    assert saved[1] == (4 if reduction == "mean" and dtype == "float16" else 1)  # bfloat16: g is divided by it already
    close(call(cross_entropy.cross_entropy.jvp, saved, (d, None), **how), want, dtype, 4)


# rows of a warp and of a block, columns; each aligned and not, the last of one span and of two
SHAPES = [((3, 5), (1,)), ((2, 40), (1,)), ((2, 130), (1,)), ((1, 1040), (1,)), ((1, 1031), (1,))]
SHAPES += [((2, 3), (0,)), ((33, 72), (0,)), ((140, 8), (0,)), ((515, 8), (0,)), ((4, 5, 6), (0, 2)), ((9,), (0,))]


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions(name, shape, axis, dtype):
    x = numbers(shape, dtype)
    y, saved = call(REDUCTIONS[name].forward, x, **static(name, axis))
    close(y, reduced(name, x, axis), dtype, 1e-3)
    if len(saved) == 2:
        close(saved[1], reduced(name, x, axis, keepdims=True), dtype, 1e-3)
    d = numbers((2, *shape), dtype, 1)
    if name in ("sum", "mean"):
        dy = call(REDUCTIONS[name].jvp, saved, (d,), **static(name, axis))
        close(dy, reduced(name, d, tuple(a + 1 for a in axis)), dtype, 1e-3)


@pytest.mark.parametrize(("shape", "axis"), [(s, a) for s, a in SHAPES if a[-1] == len(s) - 1 and len(s) < 3])
@pytest.mark.parametrize("name", ["max", "min", "p_norm"])
def test_derivatives_along_rows(name, shape, axis, dtype):
    x = numbers(shape, dtype)
    y = reduced(name, x, axis, keepdims=True).astype(dtype)
    w = weights(name, x, axis)
    if name == "p_norm":
        w = x.astype(float) / y.astype(float)  # by the norm that was saved, which is rounded
    dy, dx = normal((2, *y.shape), dtype, 1), normal((2, *shape), dtype, 2)
    how = static(name, axis, keepdims=True)
    (back,) = call(REDUCTIONS[name].vjp, (x, y), dy, (True,), **how)
    close(back, dy.astype(float) * w, dtype, 1)
    ahead = call(REDUCTIONS[name].jvp, (x, y), (dx,), **how)
    close(ahead, (dx.astype(float) * w).sum(tuple(a + 1 for a in axis), keepdims=True), dtype, 4)


@pytest.mark.parametrize("axis", [(0,), (1,)])
def test_sums_are_float32s(axis, dtype):
    """Ones that a running total of 16 bits would not take, and a total beyond float16's range on the way to a mean."""
    x = np.ones((600, 600), dtype)[: 600 if axis == (0,) else 3, : 600 if axis == (1,) else 3]
    y, _ = call(reduce.sum.forward, x, axis=axis, keepdims=False)
    close(y, np.full(3, 600.0), dtype)
    y, _ = call(reduce.mean.forward, (x.astype(float) * 30000).astype(dtype), axis=axis, keepdims=False)
    close(y, np.full(3, 30000.0), dtype, roundings=2)


@pytest.mark.parametrize("axis", [(0,), (1,)])
def test_not_a_number_wins(axis, dtype):
    x = numbers((9, 9), dtype)
    x[4, 4], x[3, 1], x[5, 6] = np.nan, np.inf, -np.inf
    for name, kernel in REDUCTIONS.items():
        y = call(kernel.forward, x, **static(name, axis))[0].astype(float)
        np.testing.assert_array_equal(np.isnan(y), np.arange(9) == 4, err_msg=name)
        if name in ("max", "min"):
            np.testing.assert_array_equal(y, getattr(np, name)(x.astype(float), axis=axis))


def test_strided_and_misaligned_input(dtype):
    x, base = numbers((6, 40), dtype), np.zeros(6 * 16 + 1, dtype)
    shifted = base[1:].reshape(6, 16)
    shifted[:] = x[:, :16]
    for a in (x[:, ::2], x[::-1, :16], np.asfortranarray(x), shifted):
        for axis in ((0,), (1,)):
            close(call(reduce.sum.forward, a, axis=axis, keepdims=False)[0], reduced("sum", a, axis), dtype)
        mask = some(a.shape)
        y, _ = call(softmax.masked_softmax.forward, a, mask, axis=1, causal=False)
        close(y, reference(a, mask), dtype, 1e-2)
        y, _ = call(softmax.logsumexp.forward, a, axis=1, keepdims=True)
        close(y, np.log(np.exp(a.astype(float)).sum(1, keepdims=True)), dtype, 1)


@pytest.mark.skipif(not SIMULATED, reason="compares NumPy arrays on both paths")
def test_kernels_and_rules_agree(dtype):
    functions = [
        lambda x: np.max(x, axis=1).sum() + np.mean(np.min(x, axis=0)),
        lambda x: np.linalg.norm(x, axis=1).sum(),
        lambda x: gl.logsumexp(gl.softmax(x, causal=True)).sum(),
    ]
    x, t = normal((5, 24), dtype, 3), normal((5, 24), dtype, 4)
    for f in functions:
        want, pushed = gl.grad(f)(x), gl.jvp(f, (x,), (t,))[1]
        with simulate():
            got, ahead = gl.grad(f)(x), gl.jvp(f, (x,), (t,))[1]
        unit = 8 * HALF_UNIT[dtype.name]
        exact = want.astype(float)
        np.testing.assert_allclose(got.astype(float), exact, rtol=0, atol=unit * abs(exact).max())
        assert got.dtype == ahead.dtype == dtype
        np.testing.assert_allclose(float(ahead), float(pushed), atol=2 * unit * np.linalg.norm(exact * t.astype(float)))
