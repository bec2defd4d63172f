"""The kernel that writes Jacobians of rows, against plain NumPy, and the public functions that reach it."""

import math

import numpy as np
import pytest
from kernel_device import DTYPES, call, close

import gradlib as gl
from gradlib.kernels import jacobian_rows
from gradlib.kernels.launch import SIMULATED, empty, simulate

try:
    import ml_dtypes  # noqa: F401

    HALVES = ("float16", "bfloat16")
except ImportError:
    HALVES = ("float16",)


def written(xp, d, u, v, dtype):
    out = empty(xp, (len(d), *[math.prod(d.shape[1:])] * 2), dtype)
    return NotImplemented if jacobian_rows.write(xp, d, u, v, out) is NotImplemented else out


def expected(d, u, v):
    """J (B, rows * C, rows * C) in float64, a block for each row."""
    B, rows, C = d.shape[0], d.shape[1] if d.ndim > 2 else 1, d.shape[-1]
    d, u, v = (np.asarray(a, float).reshape(-1, B, rows, C) for a in (d, u, v))
    blocks = np.eye(C) * d[0][..., None] - np.einsum("kbri,kbrj->brij", u, v)
    J = np.zeros((B, rows, C, rows, C))
    for r in range(rows):
        J[:, r, :, r] = blocks[:, r]
    return J.reshape(B, rows * C, rows * C)


def data(shape, rank, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    d, *factors = rng.normal(size=(1 + 2 * rank, *shape)).astype(dtype)
    return d, tuple(factors[:rank]), tuple(factors[rank:])


SHAPES = [(2, 1), (3, 3), (2, 8), (2, 36), (1, 64), (2, 133), (2, 3, 4), (2, 2, 5), (1, 5, 16), (1, 3, 33), (2, 4, 1)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rank", jacobian_rows.RANKS)
def test_every_entry(rank, shape, dtype):
    d, u, v = data(shape, rank, dtype)
    close(call(written, d, u, v, dtype), expected(d, u, v), dtype, 2)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("shape", [(2, 1), (2, 5), (1, 72), (2, 3, 8)], ids=str)
@pytest.mark.parametrize("rank", jacobian_rows.RANKS)
def test_halves_are_rounded_once(rank, shape, dtype):
    d, u, v = data(shape, rank, dtype)
    want = expected(d, u, v)
    np.testing.assert_array_equal(call(written, d, u, v, dtype), want.astype("float32").astype(dtype))
    wide = data(shape, rank, "float32")
    got = call(written, *wide, dtype)  # what the norms save of narrow rows is float32
    np.testing.assert_allclose(got.astype(float), expected(*wide), rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("rank", jacobian_rows.RANKS)
def test_any_schedule(rank, schedule):
    d, u, v = data((3, 2, 20), rank)
    J = expected(d, u, v)
    close(call(written, d, u, v, "float32"), J, "float32", 2)
    if rank:
        m = np.random.default_rng(5).normal(size=(3, 4, 40)).astype("float32")
        close(call(jacobian_rows.apply, m, d, v, u), m @ J, "float32", 40)


@pytest.mark.parametrize("dtype", [*DTYPES, *HALVES])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rank", [1, 2])
def test_applied_to_stacks(rank, shape, dtype):
    d, u, v = data(shape, rank, dtype)
    n, V = math.prod(shape[1:]), 3
    m = np.random.default_rng(5).normal(size=(shape[0], V, n)).astype(dtype)
    want = m.astype(float) @ expected(d, u, v)  # rows times the matrices
    got = call(jacobian_rows.apply, m, d, v, u)
    if dtype in HALVES:
        np.testing.assert_allclose(got.astype(float), want, rtol=1e-2, atol=1e-2)
    else:
        close(got, want, dtype, 8 * math.sqrt(n))
    out = np.empty((shape[0], V, 2 * n), dtype)[:, :, ::2]  # not contiguous: filled by way of another array
    if SIMULATED:
        with simulate():
            assert jacobian_rows.apply(np, np.repeat(m, 2, 2)[:, :, ::2], d, v, u, out) is out
        np.testing.assert_array_equal(out, got)


def test_applied_to_no_stack_or_too_many_factors():
    d, u, v = data((2, 4), 1)
    assert call(jacobian_rows.apply, np.ones((2, 0, 4), "float32"), d, u, v).shape == (2, 0, 4)
    m = np.ones((2, 3, 4), "float32")
    assert call(jacobian_rows.apply, m, d, 3 * u, 3 * v) is NotImplemented
    assert call(jacobian_rows.apply, m.astype("longdouble"), d, u, v) is NotImplemented


def test_strided_repeated_and_misaligned_factors():
    d, (u,), (v,) = data((4, 2, 16), 1)
    turned = np.asfortranarray(d)
    shared = np.broadcast_to(u[:1], u.shape)
    odd = np.empty(v.size + 1, "float32")[1:].reshape(v.shape)
    odd[...] = v
    close(call(written, turned[::2], (shared[::2],), (odd[::2],), "float32"),
          expected(d[::2], shared[::2], v[::2]), "float32", 2)  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_cancels_in_a_saturated_softmax(dtype):
    p = np.array([[1 - 2.0**-20, 2.0**-20, 2.0**-60]], dtype)
    exact = p.astype(np.longdouble)
    got = call(written, p, (p,), (p,), dtype)[0].diagonal()
    np.testing.assert_allclose(got, (exact * (1 - exact))[0], rtol=4 * np.finfo(dtype).eps)


def test_what_is_left_to_the_rule():
    d, u, v = data((2, 4), 1)
    assert call(written, d, 3 * u, 3 * v, "float32") is NotImplemented
    assert call(written, d, u, v, "longdouble") is NotImplemented
    out = np.zeros((2, 4, 8), "float32")[:, :, ::2]
    assert jacobian_rows.write(np, d, u, v, out) is NotImplemented and not out.any()
    assert call(written, *data((0, 4), 1), "float32").shape == (0, 4, 4)
    assert call(written, *data((3, 0), 1), "float32").shape == (3, 0, 0)


@pytest.mark.skipif(not SIMULATED, reason="compares NumPy arrays on both paths: needs the simulator")
@pytest.mark.parametrize("mode", ["rev", "fwd"])
@pytest.mark.parametrize("name", ["softmax", "layer_norm"])
def test_rows_in_the_middle_of_a_chain(name, mode, monkeypatch):
    rng, taken, apply = np.random.default_rng(0), [], jacobian_rows.apply
    a, b, x = rng.normal(size=(7, 12)), rng.normal(size=(12, 4)), rng.normal(size=(3, 2, 7))

    def spy(xp, m, *args):
        taken.append(m.shape)
        return apply(xp, m, *args)

    monkeypatch.setattr(jacobian_rows, "apply", spy)
    J = gl.batch_jacobian(lambda x: getattr(gl, name)(x @ a) @ b, mode=mode)
    rule = J(x)
    assert not taken
    with simulate():
        np.testing.assert_allclose(J(x), rule, rtol=1e-12, atol=1e-12)
    assert taken


W = np.linspace(0.5, 2, 6)
MASK = np.tri(6, dtype=bool)
FUNCTIONS = {
    "tanh": np.tanh,
    "silu": lambda x: x * gl.sigmoid(x),
    "softmax": gl.softmax,
    "masked softmax": lambda x: gl.softmax(x, mask=MASK[2]),
    "log_softmax": lambda x: 2 * gl.log_softmax(x),
    "layer_norm": lambda x: gl.layer_norm(x, W.astype(x.dtype)),
    "rms_norm": lambda x: gl.rms_norm(x) * x.dtype.type(3) + x,
}


@pytest.mark.skipif(not SIMULATED, reason="compares NumPy arrays on both paths: needs the simulator")
@pytest.mark.parametrize("dtype", ["float32", "float64", *HALVES])
@pytest.mark.parametrize("rows", [(), (3,)], ids=["row", "rows"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_public_functions_take_the_kernel(name, rows, dtype, monkeypatch):
    taken, write = [], jacobian_rows.write

    def spy(xp, d, u, v, out):
        taken.append(out.shape)
        return write(xp, d, u, v, out)

    monkeypatch.setattr(jacobian_rows, "write", spy)
    f, x = FUNCTIONS[name], np.random.default_rng(1).normal(size=(4, *rows, 6)).astype(dtype)
    J = gl.batch_jacobian(f)
    rule = J(x)
    assert not taken
    with simulate():
        got = J(x)
        into = J.into(np.empty_like(rule), x)
    n = x[0].size
    assert taken and all(shape[1:] == (n, n) for shape in taken)
    assert got.dtype == rule.dtype == dtype
    close_to = 2e-2 if dtype in HALVES else 1e-5
    np.testing.assert_allclose(got.astype(float), rule.astype(float), rtol=close_to, atol=close_to)
    np.testing.assert_array_equal(into, got)
    wide = x.astype("float64")
    for b in range(4):
        one = gl.jacobian(f)(wide[b : b + 1]).reshape(n, n)
        np.testing.assert_allclose(got[b].reshape(n, n).astype(float), one, rtol=close_to, atol=close_to)
