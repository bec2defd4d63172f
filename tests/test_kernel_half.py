"""The kernels of float16 and bfloat16 against float64 NumPy: computed in float32, rounded once."""

from types import SimpleNamespace

import numpy as np
import pytest
from kernel_device import call
from scipy.special import erf

import gradlib as gl
from gradlib.kernels import cross_entropy, elementwise, embedding, layer_norm, rms_norm, softmax
from gradlib.kernels.launch import CATALOGUE, SIMULATED, simulate

ml_dtypes = pytest.importorskip("ml_dtypes")
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = {"float16": np.dtype("float16"), "bfloat16": BFLOAT16}
HALF_UNIT = {"float16": 2.0**-11, "bfloat16": 2.0**-8}  # what one rounding may change, relative to the number
LEAST = {"float16": 2.0**-25, "bfloat16": 2.0**-134}  # half the distance of subnormal numbers


@pytest.fixture(params=DTYPES)
def dtype(request):
    return DTYPES[request.param]


def close(got, want, dtype, scale=0.0, roundings=1):
    """Assert that `got` is `want` after so many roundings, and a float32's error of numbers of size `scale`."""
    assert got.dtype == dtype and got.shape == want.shape
    rtol = roundings * 1.02 * HALF_UNIT[dtype.name]
    np.testing.assert_allclose(got.astype(float), want, rtol=rtol, atol=LEAST[dtype.name] + 4e-6 * scale)


def normal(shape, dtype, seed=0, scale=1.0):
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(dtype)


def probabilities(x):
    e = np.exp(x.astype(float) - x.astype(float).max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


# every shape of kernel and its edges: rows that are aligned and rows that are not
@pytest.mark.parametrize("n", [1, 8, 65, 504, 521, 1024, 4104])
def test_softmax(n, dtype):
    rows = 3 if n < 520 else 1
    x, d = normal((rows, n), dtype, n, 3), normal((2, rows, n), dtype, n + 1)
    p = probabilities(x)
    y, saved = call(softmax.softmax.forward, x, axis=1)
    assert saved[0] is y
    close(y, p, dtype, 1e-2)
    log_y, _ = call(softmax.log_softmax.forward, x, axis=1)
    close(log_y, np.log(p), dtype, 1)
    y64, q, d64 = y.astype(float), np.exp(log_y.astype(float)), d.astype(float)
    dot = (d64 * y64).sum(-1, keepdims=True)
    (dx,) = call(softmax.softmax.vjp, (y,), d, (True,), axis=1)
    close(dx, y64 * (d64 - dot), dtype, 1)
    np.testing.assert_array_equal(call(softmax.softmax.jvp, (y,), (d,), axis=1), dx)
    scale = 1 + abs(d64).sum(-1).max()
    (dx,) = call(softmax.log_softmax.vjp, (log_y,), d, (True,), axis=1)
    close(dx, d64 - q * d64.sum(-1, keepdims=True), dtype, scale)
    close(call(softmax.log_softmax.jvp, (log_y,), (d,), axis=1), d64 - (d64 * q).sum(-1, keepdims=True), dtype, scale)


@pytest.mark.parametrize("n", [4096, 16384, 16392])
def test_softmax_of_long_rows(n, dtype):
    """The edges of what is held."""
    x = normal((1, n), dtype, n, 3)
    p = probabilities(x)
    close(call(softmax.softmax.forward, x, axis=1)[0], p, dtype, 1e-3)
    close(call(softmax.log_softmax.forward, x, axis=1)[0], np.log(p), dtype, 1)


def test_extreme_logits(dtype):
    largest = 65504 if dtype.name == "float16" else 3e38
    least = 2.0**-24 if dtype.name == "float16" else 2.0**-133
    inf, nan = np.inf, np.nan
    rows = [[largest, -largest, 0, 1], [-inf, 0, 0, -inf], [-inf] * 4, [nan, 0, 1, 2], [inf, 0, 0, 0], [least] * 4]
    x = np.array(rows).astype(dtype)
    y = call(softmax.softmax.forward, x, axis=1)[0].astype(float)
    np.testing.assert_array_equal(y[:3], [[1, 0, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0, 0]])
    assert np.isnan(y[3:5]).all()
    np.testing.assert_array_equal(y[5], 0.25)
    log_y = call(softmax.log_softmax.forward, x, axis=1)[0].astype(float)
    assert log_y[0, 0] == 0 and log_y[0, 1] < -largest / 2 and (log_y[2] == -inf).all()


def normalised(x, centred, eps):
    x = x.astype(float)
    d = x - x.mean(-1, keepdims=True) if centred else x
    r = 1 / np.sqrt((d * d).mean(-1, keepdims=True) + eps)
    return d * r, r


@pytest.mark.parametrize("n", [7, 16, 264, 520])
@pytest.mark.parametrize("kernel", [layer_norm.layer_norm, rms_norm.rms_norm], ids=["layer", "rms"])
def test_norms(kernel, n, dtype):
    centred = kernel is layer_norm.layer_norm
    rows = 3 if n < 256 else 2
    x, dy = normal((rows, n), dtype, n), normal((2, rows, n), dtype, n + 1)
    w, b = normal(n, dtype, n + 2), normal(n, dtype, n + 3)
    xhat, r = normalised(x, centred, 1e-5)
    y, saved = call(kernel.forward, x, *((w, b) if centred else (w,)), eps=1e-5)
    close(y, xhat * w.astype(float) + (b.astype(float) if centred else 0), dtype, 4)
    assert all(s.dtype == np.float32 for s in saved[1:-1])
    np.testing.assert_allclose(saved[-2], r, rtol=1e-5)
    d64 = dy.astype(float)
    t = d64 * w.astype(float)
    mean = lambda a: a.mean(-1, keepdims=True)  # noqa: E731
    want = r * (t - (mean(t) if centred else 0) - xhat * mean(t * xhat))
    need = (True,) * (3 if centred else 2)
    dx, dw, *db = call(kernel.vjp, saved, dy, need, eps=1e-5)
    close(dx, want, dtype, 10)
    close(dw, (d64 * xhat).sum(1), dtype, 10)
    if centred:
        close(db[0], d64.sum(1), dtype, 10)
    close(call(kernel.vjp, saved, dy, (True, *need[1:-1], False), eps=1e-5)[0], want, dtype, 10)


def test_norms_whose_squares_leave_the_range(dtype):
    x = np.array([[60000.0, -60000.0] * 8, [1e-7, 3e-7] * 8]).astype(dtype)
    y, _ = call(rms_norm.rms_norm.forward, x, eps=1e-30)
    close(y, normalised(x, False, 1e-30)[0], dtype, 1)


LOSSES = [(n, reduction) for n in (8, 13, 256, 264) for reduction in ("none", "mean")]


@pytest.mark.parametrize(("n", "reduction"), [*LOSSES, (265, "none"), (4104, "mean")])
def test_cross_entropy(n, reduction, dtype):
    x = normal((4, n), dtype, n, 2)
    labels = np.random.default_rng(n).integers(0, n, 4)
    labels[1] = -1
    static = {"reduction": reduction, "ignore_index": -1, "label_smoothing": 0.125}
    p, keep = probabilities(x), (labels >= 0)[:, None]
    q = np.eye(n)[labels] * 0.875 + 0.125 / n
    losses, g = -(q * np.log(p)).sum(-1) * keep[:, 0], (p - q) * keep
    y, saved = call(cross_entropy.cross_entropy.forward, x, labels, **static)
    close(y, losses if reduction == "none" else np.array(losses.sum() / 3), dtype, 4)
    kept = 1 if reduction == "none" or dtype == "bfloat16" else 3  # of float16, g is not divided by it yet
    close(saved[0], g * kept / (1 if reduction == "none" else 3), dtype, 1)
    assert saved[1].dtype == np.float32 and saved[1] == kept
    dy = normal((2, 4) if reduction == "none" else 2, dtype)
    (dx, _) = call(cross_entropy.cross_entropy.vjp, saved, dy, (True, False), **static)
    each = dy.astype(float).reshape(2, -1, 1) / kept
    close(dx, each * saved[0].astype(float), dtype)


FUNCTIONS = {
    "exp": (np.exp, lambda x, y: y),
    "log": (np.log, lambda x, y: 1 / x),
    "log1p": (np.log1p, lambda x, y: 1 / (1 + x)),
    "expm1": (np.expm1, lambda x, y: np.exp(x)),
    "sqrt": (np.sqrt, lambda x, y: 0.5 / y),
    "square": (np.square, lambda x, y: 2 * x),
    "reciprocal": (np.reciprocal, lambda x, y: -(y**2)),
    "sin": (np.sin, lambda x, y: np.cos(x)),
    "cos": (np.cos, lambda x, y: -np.sin(x)),
    "erf": (erf, lambda x, y: 2 / np.sqrt(np.pi) * np.exp(-(x**2))),
    "negative": (np.negative, lambda x, y: -np.ones_like(x)),
    "absolute": (np.abs, lambda x, y: np.sign(x)),
    "tanh": (np.tanh, lambda x, y: 1 - y * y),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), lambda x, y: y * (1 - y)),
    "relu": (lambda x: np.maximum(x, 0), lambda x, y: (y > 0) * 1.0),
    "silu": (
        lambda x: x / (1 + np.exp(-x)),
        lambda x, y: (1 + x * (1 - 1 / (1 + np.exp(-x)))) / (1 + np.exp(-x)),
    ),
    "softplus": (lambda x: np.log1p(np.exp(x)), lambda x, y: 1 / (1 + np.exp(-x))),
    "elu": (lambda x: np.where(x > 0, x, 0.75 * np.expm1(x)), lambda x, y: np.where(x > 0, 1, 0.75 * np.exp(x))),
    "leaky_relu": (lambda x: np.where(x > 0, x, 0.125 * x), lambda x, y: np.where(x > 0, 1, 0.125)),
}
STATIC = {"elu": {"alpha": 0.75}, "leaky_relu": {"negative_slope": 0.125}}
POSITIVE = ("log", "log1p", "sqrt")  # functions of x > 0


@pytest.mark.parametrize(("name", "n"), [*((name, 21) for name in FUNCTIONS), *(("exp", n) for n in (0, 1, 8, 16))])
def test_elementwise(name, n, dtype):
    f, df = FUNCTIONS[name]
    kernel, static = getattr(elementwise, name), STATIC.get(name, {})
    x, d = normal(n, dtype, n, 2), normal((3, n), dtype, n + 1)
    x = abs(x) if name in POSITIVE else x
    y, saved = call(kernel.forward, x, **static)
    close(y, f(x.astype(float)), dtype, 1e-2)
    (dx,) = call(kernel.vjp, saved, d, (True,), **static)
    close(dx, d.astype(float) * df(x.astype(float), y.astype(float)), dtype, 1e-1)
    np.testing.assert_array_equal(call(kernel.jvp, saved, (d,), **static), dx)


def test_gelu(dtype):
    x = normal(19, dtype, 0, 2)
    x64 = x.astype(float)
    close(call(elementwise.gelu.forward, x, approximate=False)[0], x64 / 2 * (1 + erf(x64 / 2**0.5)), dtype, 0.2)
    u = (2 / np.pi) ** 0.5 * (x64 + 0.044715 * x64**3)
    close(call(elementwise.gelu.forward, x, approximate=True)[0], x64 / 2 * (1 + np.tanh(u)), dtype, 0.2)


def nearest_even(x):
    """float32 numbers as bfloat16, by their bits: an implementation of its own."""
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16).view(BFLOAT16)


def test_ties_are_rounded_to_even():
    y = (1 + np.arange(128) / 128).astype(BFLOAT16)
    d = np.stack([np.full(128, a, BFLOAT16) for a in (1.5, -1.25, 2.0**-130)])  # the last gives subnormal numbers
    (dx,) = call(elementwise.exp.vjp, (y, y), d, (True,))
    products = d.astype(np.float32) * y.astype(np.float32)  # exact: 16 bits, subnormal ones too
    ties = (products.view(np.uint32) & 0xFFFF) == 0x8000
    assert ties.sum() > 40
    np.testing.assert_array_equal(dx.view(np.uint16), nearest_even(products).view(np.uint16))


def test_special_numbers_pass(dtype):
    largest = float(ml_dtypes.finfo(dtype).max)
    x = np.array([np.inf, -np.inf, np.nan, -0.0, largest, -largest, 2.0**-24]).astype(dtype)
    y, saved = call(elementwise.relu.forward, x)
    np.testing.assert_array_equal(y.astype(float), [np.inf, 0, np.nan, 0, largest, 0, 2.0**-24])
    (dx,) = call(elementwise.relu.vjp, saved, x[None], (True,))
    assert np.isposinf(dx[0, 0]) and dx[0, 4] == x[4]
    assert np.isposinf(call(elementwise.exp.forward, x[4:5])[0][0])  # out of range after rounding


@pytest.mark.parametrize("n", [2, 7, 24, 264])
def test_embedding(n, dtype):
    rng = np.random.default_rng(n)
    ids, table = rng.integers(0, 5, (2, 40)), normal((6, n), dtype, n)
    ids[:, :30] = 3  # a run over several pieces
    gathered = call(embedding.embedding.forward, ids, table)
    if n % 2:
        assert gathered is NotImplemented
    else:
        np.testing.assert_array_equal(gathered[0], table[ids])
        np.testing.assert_array_equal(
            call(embedding.embedding.jvp, (ids, table), (None, table[None])), table[ids][None]
        )
    dy = normal((2, *ids.shape, n), dtype, n + 1)
    _, dtable = call(embedding.embedding.vjp, (ids, table), dy, (False, True))
    want = np.zeros((2, 6, n))
    for v in range(2):
        np.add.at(want[v], ids, dy[v].astype(float))
    close(dtable, want, dtype, 60)
    bits = np.arange(0, 6 * 8 * 1300, 1300, dtype=np.uint16)[: 6 * n].reshape(6, -1)[:, : n // 2 * 2]  # NaNs too
    if bits.shape[1]:
        moved = call(embedding.embedding.forward, ids, np.ascontiguousarray(bits).view(dtype))[0]
        np.testing.assert_array_equal(moved.view(np.uint16), bits[ids])


def test_strided_and_misaligned_input(dtype):
    x = normal((4, 40), dtype)
    base = np.zeros(4 * 16 + 1, dtype)
    shifted = base[1:].reshape(4, 16)
    shifted[:] = x[:, :16]
    for a in (x[:, ::2], x[::-1, :16], shifted):
        close(call(softmax.softmax.forward, a, axis=1)[0], probabilities(a), dtype, 1e-2)
        close(call(rms_norm.rms_norm.forward, a, eps=1e-6)[0], normalised(a, False, 1e-6)[0], dtype, 4)
        close(call(elementwise.silu.forward, a)[0], FUNCTIONS["silu"][0](a.astype(float)), dtype, 0.1)
    y, d = x[:, ::2], x[None, ::-1, ::2]
    y64, d64 = y.astype(float), d.astype(float)
    want = y64 * (d64 - (d64 * y64).sum(-1, keepdims=True))
    close(call(softmax.softmax.vjp, (y,), d, (True,), axis=1)[0], want, dtype, 40)
    ids = np.array([1, 3])
    np.testing.assert_array_equal(call(embedding.embedding.forward, ids, x[:, ::2])[0], x[ids][:, ::2])
    assert call(embedding.embedding.forward, ids, shifted) is NotImplemented  # no float32 starts there


def test_dtypes_are_not_mixed(dtype):
    x, other = normal((2, 8), dtype), normal((2, 8), np.float32)
    assert call(softmax.softmax.vjp, (x,), other[None], (True,), axis=1) is NotImplemented
    assert call(layer_norm.layer_norm.forward, x, other[0], eps=1e-5) is NotImplemented
    statistics = np.ones((2, 1), dtype)  # the rule's are float32
    assert call(rms_norm.rms_norm.vjp, (x, statistics, None), x[None], (True, False), eps=1e-5) is NotImplemented


@pytest.mark.skipif(not SIMULATED, reason="compares NumPy arrays on both paths")
def test_kernels_and_rules_agree_in_a_model(dtype):
    params = {"w": normal((8, 8), dtype, 1), "b": normal(8, dtype, 2), "t": normal((5, 8), dtype, 3)}

    def loss(p):
        h = gl.layer_norm(gl.embedding(np.array([0, 3, 3]), p["t"]), p["b"])
        h = gl.rms_norm(np.tanh(gl.linear(h, p["w"], p["b"], activation="gelu")) + gl.softmax(h), p["b"])
        return gl.cross_entropy(h, np.array([1, 0, 7]))

    want, want_grads = gl.value_and_grad(loss)(params)
    with simulate():
        got, grads = gl.value_and_grad(loss)(params)
    unit = 2 * HALF_UNIT[dtype.name]
    np.testing.assert_allclose(float(got), float(want), rtol=2 * unit)
    for k, g in grads.items():
        assert g.dtype == dtype
        exact = want_grads[k].astype(float)
        np.testing.assert_allclose(g.astype(float), exact, rtol=0, atol=4 * unit * abs(exact).max())


def test_a_launch_takes_bfloat16_of_a_device_as_bits():
    launchable = CATALOGUE["elementwise.pointwise"][BFLOAT16, "relu"]
    array = SimpleNamespace(dtype=BFLOAT16, flags=SimpleNamespace(c_contiguous=True), view=lambda dtype: dtype)
    args = launchable._marshal((array, array, 8, 1, 0.0))
    assert args[:2] == (np.uint16, np.uint16)
    wrong = SimpleNamespace(dtype=np.dtype("float16"), flags=array.flags, strides=(2,))
    with pytest.raises(TypeError, match="must be contiguous bfloat16, got float16"):
        launchable._marshal((wrong, array, 8, 1, 0.0))
