"""The kernels of bias, activation, dropout and residual against float64 formulas and dropout's mask."""

import math

import numpy as np
import pytest
from kernel_device import DTYPES, call

from gradlib.kernels import bias_dropout_add as kernels
from gradlib.ops.dropout import keep_mask

kernel = kernels.bias_dropout_add
SEED, COUNTER = np.array(0x1234567890ABCDEF, np.uint64), np.array(2**40 + 3, np.uint64)
ERF = np.vectorize(math.erf, otypes=[float])
CDF = {"gelu": lambda z: 0.5 * (1 + ERF(z / math.sqrt(2))), "silu": lambda z: 1 / (1 + np.exp(-z))}
PDF = {
    "gelu": lambda z: np.exp(-z * z / 2) / math.sqrt(2 * math.pi),
    "silu": lambda z: np.exp(-z) / (1 + np.exp(-z)) ** 2,
}


def value(name, z):
    """act(z): relu, or z times a distribution function."""
    return z if name is None else np.maximum(z, 0) if name == "relu" else z * CDF[name](z)


def slope(name, z):
    return np.ones_like(z) if name is None else (z > 0) * 1.0 if name == "relu" else CDF[name](z) + z * PDF[name](z)


def data(shape, dtype, V=2):
    rng = np.random.default_rng(sum(shape))
    x, residual, dy = (rng.normal(size=s).astype(dtype) for s in (shape, shape, (V, *shape)))
    return x, rng.normal(size=shape[-1:]).astype(dtype), residual, dy


def close(got, want, dtype, scale=1.0):
    assert got.dtype == dtype and got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=16 * np.finfo(dtype).eps * scale)


def check(shape, dtype, name, bias=True, residual=True, mask=True, V=2):
    x, b, r, dy = data(shape, dtype, V)
    m = keep_mask(np, shape, SEED, COUNTER, 0.3) / 0.7 if mask else np.ones(shape)
    b, r, state = b if bias else None, r if residual else None, (SEED, COUNTER) if mask else (None, None)
    z = x.astype(float) + (b.astype(float) if bias else 0)
    y, saved = call(kernel.forward, x, b, r, *state, activation=name, rate=0.3)
    close(y, value(name, z) * m + (r.astype(float) if residual else 0), dtype, scale=4)
    assert not np.shares_memory(y, x)
    need = (True, bias, residual, False, False)
    dx, db, dr, *none = call(kernel.vjp, saved, dy, need, activation=name, rate=0.3)
    want = dy.astype(float) * slope(name, z) * m
    close(dx, want, dtype, scale=4)
    assert none == [None, None] and (dr is None) == (not residual) and (db is None) == (not bias)
    if bias:
        close(db, want.sum(tuple(range(1, want.ndim - 1))), dtype, scale=8)
    if residual:
        np.testing.assert_array_equal(dr, dy)
    tangents = (
        dy,
        dy[(slice(None), *(0,) * (dy.ndim - 2))] if bias else None,
        2 * dy if residual else None,
        None,
        None,
    )
    got = call(kernel.jvp, saved, tangents, activation=name, rate=0.3)
    along = dy.astype(float) + (tangents[1].reshape(V, *(1,) * (x.ndim - 1), x.shape[-1]) if bias else 0)
    close(got, along * slope(name, z) * m + (2.0 * dy if residual else 0), dtype, scale=16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [None, "relu", "gelu", "silu"])
def test_activations(name, dtype, schedule):
    check((3, 2, 12), dtype, name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("flags", [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1)], ids=str)
def test_parts(flags, dtype):
    check((3, 8), dtype, None, *map(bool, flags))
    check((3, 8), dtype, "silu", *map(bool, flags))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(4,), (1, 4), (1, 132), (130, 4), (9, 260)])
def test_shapes(shape, dtype, schedule):
    """One row, more rows than a block, more columns than a block, and a rest of both."""
    check(shape, dtype, "relu")


@pytest.mark.parametrize("V", [0, 1, 3])
def test_stacks(V):
    check((3, 8), "float32", "gelu", V=V)


def test_the_mask_is_dropouts():
    from gradlib.kernels.dropout import dropout

    x = np.random.default_rng(0).normal(size=(5, 16)).astype("float32")
    want, _ = call(dropout.forward, x, SEED, COUNTER, rate=0.5)
    got, saved = call(kernel.forward, x, None, None, SEED, COUNTER, activation=None, rate=0.5)
    np.testing.assert_array_equal(got, want)
    assert saved[0] is None and int(saved[3]) == COUNTER and saved[4].shape == x.shape


def test_saved_counter_does_not_move_with_its_owner():
    counter = COUNTER.copy()
    _, saved = call(kernel.forward, np.ones((1, 8), "float32"), None, None, SEED, counter, activation=None, rate=0.5)
    counter += np.uint64(1)
    assert int(saved[3]) == COUNTER


def test_strides_and_odd_addresses():
    base = np.random.default_rng(0).normal(size=(9, 25)).astype("float32")
    b, r = np.arange(9, dtype="float32")[1:], np.zeros((4, 8), "float32")
    for x in (base[:4, :8], base[:8:2, 1:9], base[:4, 7::-1], base.reshape(-1)[1:33].reshape(4, 8)):
        y, saved = call(kernel.forward, x, b, r, None, None, activation="relu", rate=0.0)
        close(y, np.maximum(x.astype(float) + b, 0), "float32")
        dx, db, *_ = call(kernel.vjp, saved, x[None], (True, True, False, False, False), activation="relu", rate=0.0)
        want = np.where(x.astype(float) + b > 0, x, 0)
        close(dx[0], want, "float32")
        close(db[0], want.sum(0), "float32", scale=4)


def test_extreme_values():
    x = np.array([[1e4, -1e4, 0, 3e38], [-3e38, 1, -1, np.nan]], "float32")
    for name in ("relu", "silu", "gelu"):
        y, saved = call(kernel.forward, x, None, None, None, None, activation=name, rate=0.0)
        dx, *_ = call(
            kernel.vjp, saved, np.ones((1, 2, 4), "float32"), (True, *(False,) * 4), activation=name, rate=0.0
        )
        assert y[0, 0] == 1e4 and y[0, 1] == 0 and y[0, 3] == np.float32(3e38) and np.isnan(y[1, 3])
        assert dx[0, 0, 0] == 1 and dx[0, 0, 1] == 0


def test_what_is_left_to_the_rule():
    of_other_types = [(np.ones((2, 4), name), None) for name in ("float16", "longdouble")]
    for x, name in ((np.ones((2, 6)), None), (np.ones((2, 4)), "tanh"), *of_other_types, (np.ones((0, 4)), None)):
        y = call(kernel.forward, x, None, None, None, None, activation=name, rate=0.0)
        assert y is NotImplemented
        saved, need = (x, None, None, None, x), (True, *(False,) * 4)
        assert call(kernel.vjp, saved, x[None], need, activation=name, rate=0.0) is NotImplemented
    dy = np.ones((1, 2, 4))
    only = call(
        kernel.vjp, (None, None, None, None, dy[0]), dy, (False, False, True, False, False), activation=None, rate=0.0
    )
    assert only[2] is dy and [d for d in only if d is not None] == [dy]
