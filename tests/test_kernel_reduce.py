"""The kernels of reductions and of the 2-norm against float64 NumPy, and their exactness where NumPy is exact."""

import mmap
import sys

import numpy as np
import pytest
from kernel_device import DTYPES, call, close

import gradlib as gl
from gradlib.kernels import norm, reduce, reduce_axes, reduce_rows
from gradlib.kernels.launch import SIMULATED, simulate

KERNELS = {"sum": reduce.sum, "mean": reduce.mean, "max": reduce.max, "min": reduce.min, "p_norm": norm.p_norm}
# Rows of 8 lanes, a warp and a block, columns of 8 and 32 lanes, aligned and not, with and without a rest.
ROWS = [((3, n), (1,), "float32") for n in (2, 5, 33, 131)] + [((3, n), (1,), "float64") for n in (34, 67)]
ROWS += [((1, n), (1,), "float32") for n in (513, 4100)] + [((1, 1027), (1,), "float64")]
COLUMNS = [((n, m), (0,), "float32") for n, m in ((2, 3), (248, 4), (33, 35))] + [((70, 18), (0,), "float64")]
OTHERS = [
    ((4, 5, 6), (1,), "float32"),
    ((2, 3, 4, 5), (0, 2), "float64"),
    ((2, 3, 4, 5), (1, 3), "float32"),
    ((1, 7, 1, 3), (0, 1), "float32"),
    ((6, 7), (0, 1), "float64"),
    ((9,), (0,), "float32"),
]


def static(name, axis, keepdims=False):
    return {"axis": axis, "keepdims": keepdims} | ({"p": 2.0} if name == "p_norm" else {})


def reference(name, x, axis, keepdims=False):
    f = (lambda x, **k: np.sqrt(np.sum(x * x, **k))) if name == "p_norm" else getattr(np, name)
    return f(x.astype(float), axis=axis, keepdims=keepdims)


def weights(name, x, axis):
    """∂y/∂x for each entry, float64."""
    x = x.astype(float)
    y = reference(name, x, axis, keepdims=True)
    if name == "p_norm":
        return np.where(y == 0, 0, x / np.where(y == 0, 1, y))
    hit = x == y
    return hit / hit.sum(axis, keepdims=True)


def numbers(shape, dtype, seed=0):
    """Few different values, so that the largest occurs more than once."""
    return np.random.default_rng(seed).integers(-8, 9, shape).astype(dtype) / 4


@pytest.mark.parametrize(("shape", "axis", "dtype"), ROWS + COLUMNS + OTHERS)
@pytest.mark.parametrize("name", ["sum", "min", "p_norm"])
def test_forward(name, shape, axis, dtype):
    x = numbers(shape, dtype)
    y, saved = call(KERNELS[name].forward, x, **static(name, axis))
    assert saved[0] is x
    want = reference(name, x, axis)
    if name in ("sum", "max", "min"):  # multiples of 1/4: no rounding at all
        np.testing.assert_array_equal(y, want)
        assert y.dtype == dtype
    else:
        close(y, want, dtype)
    if len(saved) == 2:
        close(saved[1], reference(name, x, axis, keepdims=True), dtype)


@pytest.mark.parametrize(("shape", "axis"), [((1, 515), (1,)), ((140, 5), (0,))])
@pytest.mark.parametrize("name", ["mean", "max"])
def test_schedules_change_nothing(name, shape, axis, schedule):
    x = np.random.default_rng(1).normal(size=shape).astype("float32")
    y, _ = call(KERNELS[name].forward, x, **static(name, axis, keepdims=True))
    close(y, reference(name, x, axis, keepdims=True), "float32", 8.0)


@pytest.mark.parametrize("name", ["sum", "min", "p_norm"])
def test_several_spans(name, monkeypatch):
    """Rows and columns so long that results of spans are reduced in turn; what is squared is squared once."""
    monkeypatch.setattr(reduce_axes, "_rows_shape", lambda n, dtype: (8, 64))
    monkeypatch.setattr(reduce_axes, "_columns_shape", lambda B, dtype: (8, 64))
    for shape, axis in [((2, 327), (1,)), ((1030,), (0,)), ((200, 6), (0,)), ((2, 130, 3), (1,))]:
        x = numbers(shape, "float32")
        y, _ = call(KERNELS[name].forward, x, **static(name, axis))
        close(y, reference(name, x, axis), "float32")


def test_a_long_row_of_blocks():
    """The true span, of a float64 row: more than one block, and a rest."""
    x = np.zeros(8192 + 3)
    x[[0, 8191, 8192, 8194]] = 1, 2, 4, 8
    y, _ = call(reduce.sum.forward, x, axis=(0,), keepdims=False)
    assert y == 15


@pytest.mark.parametrize("layout", ["misaligned", "strided", "transposed"])
@pytest.mark.parametrize("axis", [(0,), (1,)])
@pytest.mark.parametrize("name", ["mean", "max"])
def test_layouts(name, axis, layout):
    x = np.random.default_rng(2).normal(size=(9, 41)).astype("float32")
    laid = {
        "misaligned": lambda: np.concatenate([x[0, :1], x.ravel()])[1:].reshape(x.shape),
        "strided": lambda: np.repeat(x, 2, axis=1)[:, ::2],
        "transposed": lambda: np.asfortranarray(x),
    }[layout]()
    y, _ = call(KERNELS[name].forward, laid, **static(name, axis))
    close(y, reference(name, x, axis), "float32", 4.0)


@pytest.mark.parametrize("axis", [(0,), (1,)])
@pytest.mark.parametrize("place", [0, 7, 8])
def test_not_a_number_wins(place, axis):
    x = numbers((9, 9), "float32")
    x[place, place] = np.nan
    x[3, 4], x[5, 6] = np.inf, -np.inf
    for name in KERNELS:
        y, _ = call(KERNELS[name].forward, x, **static(name, axis))
        np.testing.assert_array_equal(np.isnan(y), np.arange(9) == place, err_msg=name)
        if name in ("max", "min"):
            np.testing.assert_array_equal(y, getattr(np, name)(x, axis=axis))


@pytest.mark.parametrize("name", ["max", "min"])
def test_rows_of_infinities(name):
    x = np.full((2, 131), np.inf, "float32") * np.array([[1], [-1]], "float32")
    y, saved = call(KERNELS[name].forward, x, axis=(1,), keepdims=False)
    np.testing.assert_array_equal(y, x[:, 0])
    (dx,) = call(KERNELS[name].vjp, saved, np.ones((1, 2), "float32"), (True,), axis=(1,), keepdims=False)
    close(dx, np.full((1, 2, 131), 1 / 131), "float32")


def test_float32_sums_are_accurate():
    """Ones too small for a running total to take: 2^24 + 1 is 2^24 in float32."""
    x = np.ones((1, 8192), "float32")
    x[0, 0] = 2.0**24
    y, _ = call(reduce.sum.forward, x, axis=(1,), keepdims=False)
    assert abs(y[0] - (2.0**24 + 8191)) <= 300


@pytest.mark.parametrize(
    ("shape", "axis", "dtype"),
    [
        ((3, 7), (1,), "float32"),
        ((2, 132), (1,), "float32"),
        ((2, 34), (1,), "float64"),
        ((1, 1030), (1,), "float32"),
        ((1, 514), (1,), "float64"),
        ((2, 3, 6), (1, 2), "float32"),
        ((6, 7), (0, 1), "float64"),
        ((5, 4, 1), (1,), "float32"),
    ],
)
@pytest.mark.parametrize("name", ["max", "p_norm"])
def test_derivatives_along_rows(name, shape, axis, dtype):
    x, w = numbers(shape, dtype), weights(name, numbers(shape, dtype), axis)
    rng = np.random.default_rng(3)
    y = reference(name, x, axis, keepdims=True)
    saved = (x, y.astype(dtype))
    dy, dx = rng.normal(size=(2, *y.shape)).astype(dtype), rng.normal(size=(2, *shape)).astype(dtype)
    how = static(name, axis, keepdims=True)
    (back,) = call(KERNELS[name].vjp, saved, dy, (True,), **how)
    close(back, dy * w, dtype, 4.0)
    ahead = call(KERNELS[name].jvp, saved, (dx,), **how)
    close(ahead, (dx * w).sum(tuple(a + 1 for a in axis), keepdims=True), dtype, 16.0)
    how["keepdims"] = False
    (again,) = call(KERNELS[name].vjp, saved, dy.reshape(2, *np.squeeze(y, axis).shape), (True,), **how)
    np.testing.assert_array_equal(again, back)
    flat = call(KERNELS[name].jvp, saved, (dx,), **how)
    np.testing.assert_array_equal(flat, ahead.squeeze(tuple(a + 1 for a in axis)))


def test_the_norm_of_nothing_but_zeros_has_derivative_zero(schedule):
    x = np.zeros((2, 50), "float32")
    x[1, 3] = 2.0
    y, saved = call(norm.p_norm.forward, x, **static("p_norm", (1,)))
    np.testing.assert_array_equal(y, [0, 2])
    (dx,) = call(norm.p_norm.vjp, saved, np.ones((1, 2), "float32"), (True,), **static("p_norm", (1,)))
    np.testing.assert_array_equal(dx[0], x / 2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_jvp_of_sum_and_mean(dtype):
    x, dx = numbers((3, 4, 5), dtype), numbers((2, 3, 4, 5), dtype, 1)
    for axis in [(0,), (1, 2), (0, 2), (0, 1, 2)]:
        close(call(reduce.sum.jvp, (x,), (dx,), axis=axis, keepdims=False),
              dx.astype(float).sum(tuple(a + 1 for a in axis)), dtype)  # fmt: skip
        close(call(reduce.mean.jvp, (x,), (dx,), axis=axis, keepdims=True),
              dx.astype(float).mean(tuple(a + 1 for a in axis), keepdims=True), dtype)  # fmt: skip


@pytest.mark.parametrize(
    ("x", "axis"),
    [
        (np.ones((2, 3), "longdouble"), (0,)),
        (np.ones((2, 3), "int32"), (0,)),
        (np.ones((0, 3)), (0,)),
        (np.ones((3, 0)), (0,)),
        (np.ones((2, 3)), ()),
        (np.ones((2, 1)), (1,)),
        (np.ones((5000, 2, 2)), (1,)),  # many small columns
    ],
)
def test_what_is_left_to_the_rule(x, axis):
    for name in KERNELS:
        assert call(KERNELS[name].forward, x, **static(name, axis)) is NotImplemented


def test_other_orders_and_columns_are_left_to_the_rule():
    x, dy = np.ones((2, 3)), np.ones((1, 3))
    assert call(norm.p_norm.forward, x, axis=(0,), keepdims=False, p=3.0) is NotImplemented
    assert call(norm.p_norm.vjp, (x, x[:1]), dy, (True,), axis=(0,), keepdims=False, p=2.0) is NotImplemented
    assert call(reduce.max.jvp, (x, x[:1]), (x[None],), axis=(0,), keepdims=False) is NotImplemented
    assert call(reduce.max.vjp, (x, x[:1]), dy, (False,), axis=(0,), keepdims=False) == (None,)


@pytest.mark.parametrize(
    ("shape", "axis", "want"),
    [
        ((2, 3, 4), (2,), [(6, 4, 1)]),
        ((2, 3, 4), (0,), [(1, 2, 12)]),
        ((2, 3, 4), (1,), [(2, 3, 4)]),
        ((2, 3, 4), (0, 2), [(6, 4, 1), (1, 2, 3)]),
        ((2, 1, 4), (0, 2), [(1, 8, 1)]),
        ((2, 3), (), []),
    ],
)
def test_axes_become_rows_and_columns(shape, axis, want):
    assert reduce_axes.stages(shape, axis) == want


@pytest.mark.skipif(not SIMULATED, reason="compares NumPy arrays on both paths")
@pytest.mark.parametrize(
    "f",
    [
        lambda x: np.max(x, axis=1).sum(),
        lambda x: np.min(x * x, axis=0).mean(),
        lambda x: np.linalg.norm(x, axis=1).sum(),
        lambda x: np.mean(np.sum(x, axis=0) ** 2),
    ],
)
def test_gradients_agree_with_the_rules(f):
    x = np.random.default_rng(4).normal(size=(5, 12)).astype("float32")
    want = gl.grad(f)(x)
    with simulate():
        got = gl.grad(f)(x)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.fixture
def huge():
    """2^31 + 128 numbers, of which only those that are touched take memory."""
    if not SIMULATED or sys.platform != "linux":
        pytest.skip("needs addresses without memory behind them")
    flags = 0x4000 | mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # 0x4000: MAP_NORESERVE
    return np.frombuffer(mmap.mmap(-1, 4 * (2**31 + 128), flags=flags), "float32")


def test_numbers_beyond_two_to_the_31(huge):
    """The ends of two rows of 2^31 + 64 numbers, and of two columns' worth of them: what lies between is left out."""
    n = 2**31 + 64
    huge[:32], huge[n : n + 32] = 1, np.arange(32)
    sums, columns = np.full(2, np.nan, "float32"), np.full(32, np.nan, "float32")
    with simulate():
        reduce_rows.reduce_rows["float32", "sum", 8](1, 256, huge, sums, 2, n, 32, 1, 0, 0, 1.0, True)
        reduce_rows.reduce_columns["float32", "sum", 8](1, 256, huge, columns, 1, 2, n, 2, 1, 0, 0, 1.0, True)
    np.testing.assert_array_equal(sums, [32, 496])
    np.testing.assert_array_equal(columns, np.arange(32) + 1)
