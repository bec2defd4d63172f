"""float16 and bfloat16 in the kernels of layers, dropout, optimisers and clipping, against float64 NumPy."""

import numpy as np
import pytest
import scipy.sparse as sp
from kernel_device import call
from test_kernel_bias_dropout_add import COUNTER, SEED, slope, value
from test_kernel_linear import activation_of
from test_kernel_optim import run

import gradlib as gl
from gradlib.kernels import bias_dropout_add, clipping, csr, dropout, linear, optim
from gradlib.kernels.elementwise import ACTIVATIONS
from gradlib.kernels.launch import SIMULATED, simulate
from gradlib.ops.dropout import keep_mask

pytest.importorskip("ml_dtypes")
from test_kernel_half import BFLOAT16, DTYPES, HALF_UNIT, close, normal

RATE = 0.3


@pytest.fixture(params=DTYPES)
def dtype(request):
    return DTYPES[request.param]


def mask(shape):
    return keep_mask(np, shape, SEED, COUNTER, RATE) / (1 - RATE)


@pytest.mark.parametrize("shape", [(), (3,), (8,), (5, 7), (2, 520), (0, 3)])
def test_dropout(shape, dtype):
    x, d = np.asarray(normal(shape, dtype)), normal((3, *shape), dtype, 1)
    y, saved = call(dropout.dropout.forward, x, SEED, COUNTER, rate=RATE)
    close(y, x.astype(float) * mask(shape), dtype)
    dx, *_ = call(dropout.dropout.vjp, saved, d, (True, False, False), rate=RATE)
    close(dx, d.astype(float) * mask(shape), dtype)
    np.testing.assert_array_equal(call(dropout.dropout.jvp, saved, (d, None, None), rate=RATE), dx)


# one block and several, of rows and of columns
@pytest.mark.parametrize("shape", [(8,), (3, 2, 16), (2, 264), (70, 8)])
@pytest.mark.parametrize("name", [None, "relu", "gelu", "silu"])
def test_bias_dropout_add(name, shape, dtype):
    x, b, r, dy = (normal(s, dtype, i) for i, s in enumerate((shape, shape[-1:], shape, (2, *shape))))
    z, m, static = x.astype(float) + b.astype(float), mask(shape), {"activation": name, "rate": RATE}
    y, saved = call(bias_dropout_add.bias_dropout_add.forward, x, b, r, SEED, COUNTER, **static)
    close(y, value(name, z) * m + r.astype(float), dtype, 1)
    need = (True, True, True, False, False)
    dx, db, dr, *_ = call(bias_dropout_add.bias_dropout_add.vjp, saved, dy, need, **static)
    want = dy.astype(float) * slope(name, z) * m
    close(dx, want, dtype, 1)
    close(db, want.sum(tuple(range(1, want.ndim - 1))), dtype, 8)
    np.testing.assert_array_equal(dr, dy)


def test_bias_dropout_add_of_parts(dtype):
    x, other = normal((4, 16), dtype), normal((4, 20), dtype)[:, 2:18]  # rows that are apart and start anywhere
    arguments = (None, None), {"activation": "silu", "rate": 0.0}
    forward = bias_dropout_add.bias_dropout_add.forward
    for given in (x, other):
        y, _ = call(forward, given, None, None, *arguments[0], **arguments[1])
        close(y, value("silu", given.astype(float)), dtype, 1)
    y, _ = call(forward, x, None, other, *arguments[0], **arguments[1])
    close(y, value("silu", x.astype(float)) + other.astype(float), dtype, 1)
    assert call(forward, x[:, :12], None, None, *arguments[0], **arguments[1]) is NotImplemented  # not whole draws
    assert call(forward, x, x[0].astype("float32"), None, *arguments[0], **arguments[1]) is NotImplemented


def layer(rows, n, dtype):
    """x, w, b whose product is exact in 8 bits, and cotangents."""
    rng = np.random.default_rng(n)
    x, w = rng.integers(-1, 2, (rows, 5)), rng.integers(-8, 9, (5, n)) / 8
    return x.astype(dtype), w.astype(dtype), normal(n, dtype, n), normal((2, rows, n), dtype, n + 1)


def check_linear(activation, rows, n, dtype):
    x, w, b, dy = layer(rows, n, dtype)
    x64, w64 = x.astype(float), w.astype(float)
    act, act_slope = activation_of(activation)
    z = x64 @ w64 + b.astype(float)
    y, saved = call(linear.linear.forward, x, w, b, activation=activation)
    close(y, act(z), dtype, 1)
    if activation is None:
        dz = dy
    else:
        kept = saved[3] if saved[4] is not y or saved[3] is not None else y
        if saved[3] is not None:
            close(saved[3], z, dtype, 1)
        dz, sums = call(linear.slope_and_sums, kept, dy, activation)
        k = kept.astype(float)
        of_y = {"relu": (k > 0) * 1.0, "sigmoid": k * (1 - k), "tanh": 1 - k * k}
        want = dy.astype(float) * (of_y[activation] if activation in of_y else act_slope(k))
        close(dz, want, dtype, 1)
        close(sums, want.sum(1), dtype, np.sqrt(rows) * 4)
    dx, dw, db = call(linear.linear.vjp, saved, dy, (True, True, True), activation=activation)
    dz64 = dz.astype(float)
    close(dx, dz64 @ w64.T, dtype, 10)
    close(dw, x64.T @ dz64, dtype, 10)
    if activation is None:
        close(db, dz64.sum(1), dtype, 10)
    else:
        np.testing.assert_array_equal(db, sums)
    without_db = call(linear.linear.vjp, saved, dy, (True, True, False), activation=activation)
    np.testing.assert_array_equal(without_db[0], dx)
    np.testing.assert_array_equal(without_db[1], dw)
    assert without_db[2] is None


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
def test_linear(activation, dtype):
    check_linear(activation, 6, 16, dtype)


@pytest.mark.parametrize(("rows", "n"), [(1, 1), (3, 13), (2, 264), (130, 8)])
def test_linear_of_other_shapes(rows, n, dtype):
    check_linear("silu" if n % 2 else "relu", rows, n, dtype)


def test_linear_without_bias_and_what_is_left_to_the_rule(dtype):
    x, w, b, dy = layer(4, 8, dtype)
    z = x.astype(float) @ w.astype(float)
    for activation in (None, "gelu"):
        y, saved = call(linear.linear.forward, x, w, activation=activation)
        close(y, activation_of(activation)[0](z), dtype, 1)
        assert len(call(linear.linear.vjp, saved, dy, (True, True), activation=activation)) == 2
    mixed = x, w.astype("float32"), b
    assert call(linear.linear.forward, *mixed, activation="elu") is NotImplemented
    assert call(linear.linear.vjp, (*mixed, x, x), dy, (True,) * 3, activation="elu") is NotImplemented


@pytest.mark.parametrize(
    ("rows", "columns", "n", "density"), [(5, 7, 3, 0.6), (2, 37, 20, 1.0), (37, 2, 13, 1.0), (3, 4, 264, 0.6)]
)
def test_sparse_rows(rows, columns, n, density, dtype):
    """The products of few and of many entries of a row and of a column, summed in float32, rounded once."""
    rng = np.random.default_rng(n)
    s = sp.random_array((rows, columns), density=density, rng=rng, data_sampler=rng.normal, format="csr")
    pattern, at = (s.indices, s.indptr), np.repeat(np.arange(rows), np.diff(s.indptr))
    values, w, dz = s.data.astype(dtype), normal((columns, n), dtype, n), normal((2, rows, n), dtype, n + 1)
    dense, w64, d64 = np.zeros((rows, columns)), w.astype(float), dz.astype(float)
    dense[at, s.indices] = values.astype(float)
    y, saved = call(csr.csr_product.forward, values, *pattern, w)
    close(y, dense @ w64, dtype, 10)
    dvalues, _, _, dw = call(csr.csr_product.vjp, saved, dz, (True, False, False, True))
    dots = np.einsum("vjn,jn->vj", d64[:, at], w64[s.indices])
    close(dvalues, dots, dtype, 40)
    close(dw, dense.T @ d64, dtype, 20)
    close(call(csr.csr_transposed.forward, values, *pattern, dz[0], width=columns)[0], dense.T @ d64[0], dtype, 20)
    close(call(csr.csr_dots.forward, dz[0], w, *pattern)[0], dots[0], dtype, 40)


@pytest.mark.parametrize("activation", [None, "relu", "softplus"])
def test_linear_of_sparse_rows(activation, dtype):
    """Entries, weights and bias whose product is exact in 8 bits, as in `layer`."""
    x, w, b, dy = layer(6, 16, dtype)
    s = sp.csr_array(x.astype(float))
    values, z = s.data.astype(dtype), x.astype(float) @ w.astype(float) + b.astype(float)
    y, saved = call(linear.csr_linear.forward, values, s.indices, s.indptr, w, b, activation=activation)
    act, slope = activation_of(activation)
    close(y, act(z), dtype, 1)
    need = (True, False, False, True, True)
    dvalues, _, _, dw, db = call(linear.csr_linear.vjp, saved, dy, need, activation=activation)
    dz = dy.astype(float) * slope(z)
    unit = 3 * HALF_UNIT[dtype.name]  # dz and what it is made of are rounded
    at = np.repeat(np.arange(6), np.diff(s.indptr))
    for got, want, terms in (
        (dvalues, np.einsum("vjn,jn->vj", dz[:, at], w.astype(float)[s.indices]), 16),
        (dw, x.astype(float).T @ dz, 6),
        (db, dz.sum(1), 6),
    ):
        assert got.dtype == dtype
        np.testing.assert_allclose(got.astype(float), want, rtol=unit, atol=unit * terms)
    assert call(linear.linear.forward, x, w, b.astype("float32"), activation="relu") is NotImplemented


SHAPES = [(3,), (), (0,), (33, 5), (4100,)]


def tensors(seed, dtype, shapes=SHAPES):
    return [np.asarray(normal(s, dtype, seed + i)) for i, s in enumerate(shapes)]


def zeros(arrays):
    return [np.zeros(a.shape, np.float32) for a in arrays]


def states_close(got, want):
    for a, b in zip(got, want, strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd(momentum, nesterov, dtype):
    p, lr = tensors(0, dtype), np.array(0.1)
    v, v64 = zeros(p) if momentum else [], [0.0] * len(p)
    for step in (1, 2):
        old, g = [a.astype(float) for a in p], tensors(10 * step, dtype)
        _, (p, _, v, _) = run(optim.sgd, p, g, v, lr, momentum=momentum, nesterov=nesterov, weight_decay=0.01)
        for i, (a, d) in enumerate(zip(old, g, strict=True)):
            d = d.astype(float) + 0.01 * a
            v64[i] = momentum * v64[i] + d
            close(p[i], a - 0.1 * (d + momentum * v64[i] if nesterov else v64[i]), dtype, 1)
    if momentum:
        states_close(v, v64)


@pytest.mark.parametrize("decoupled", [False, True])
def test_adam(decoupled, dtype):
    p, lr = tensors(0, dtype), np.array(0.01)
    m, v, m64, v64 = zeros(p), zeros(p), [0.0] * len(p), [0.0] * len(p)
    settings = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1, "decoupled": decoupled}
    for t in (1, 2):
        old, g = [a.astype(float) for a in p], tensors(10 * t, dtype)
        _, (p, _, m, v, *_) = run(optim.adam, p, g, m, v, np.array(t), lr, **settings)
        for i, (a, d) in enumerate(zip(old, g, strict=True)):
            d = d.astype(float) + (0 if decoupled else 0.1 * a)
            m64[i], v64[i] = 0.9 * m64[i] + 0.1 * d, 0.999 * v64[i] + 0.001 * d**2
            step = 0.01 * (m64[i] / (1 - 0.9**t)) / (np.sqrt(v64[i] / (1 - 0.999**t)) + 1e-8)
            close(p[i], a * (1 - 0.001 * decoupled) - step, dtype, 1)
    states_close(m, m64)
    states_close(v, v64)


def test_squares_of_small_gradients_are_not_lost():
    """0.001 g² is below the smallest float16: the state must not be one."""
    p, g = [np.zeros(9, "float16")], [np.full(9, 2.0**-20, "float16")]
    m, v = zeros(p), zeros(p)
    settings = {"beta1": 0.9, "beta2": 0.999, "eps": 0.0, "weight_decay": 0.0, "decoupled": False}
    for t in (1, 2):
        _, (p, _, m, v, *_) = run(optim.adam, p, g, m, v, np.array(t), np.array(0.25), **settings)
        np.testing.assert_allclose(p[0].astype(float), -0.25 * t, rtol=1e-3)


def test_updates_of_several_dtypes_at_odd_addresses():
    base = np.zeros(33, "float16")
    p = [base[1:], np.zeros(7), np.zeros(9, BFLOAT16), np.zeros(4097, BFLOAT16)[1:], np.zeros(3, "float32")]
    g = [np.ones(a.shape, a.dtype) for a in p]
    v = [np.full(a.shape, 2, np.result_type(a.dtype, np.float32)) for a in p]
    _, (q, _, moved, _) = run(optim.sgd, p, g, v, np.array(0.25), momentum=0.5, nesterov=False, weight_decay=0.0)
    for a, b in zip(q, moved, strict=True):
        np.testing.assert_array_equal(a.astype(float), -0.5)
        np.testing.assert_array_equal(b, 2)


def test_state_of_another_dtype_changes_nothing(dtype):
    p = [np.ones(8, dtype)]
    settings = {"momentum": 0.5, "nesterov": False, "weight_decay": 0.0}
    for g, v in (([p[0]], [np.ones(8, dtype)]), ([np.ones(8, "float32")], zeros(p))):
        result, (q, *_) = run(optim.sgd, p, g, v, np.array(0.1), **settings)
        assert result is NotImplemented and (q[0] == 1).all()


def clip(grads, max_norm):
    return call(lambda xp, *grads: clipping.clip_by_global_norm(xp, grads, max_norm), *grads)


def check_clipping(grads, max_norm):
    want = np.sqrt(sum(np.sum(g.astype(float) ** 2) for g in grads))
    clipped, norm = clip(grads, max_norm)
    assert norm.shape == () and norm.dtype == np.float32
    np.testing.assert_allclose(norm, want, rtol=1e-6)
    for a, g in zip(clipped, grads, strict=True):
        exact = g.astype(float) * min(1.0, max_norm / want)
        if g.dtype == np.float32:
            np.testing.assert_allclose(a, exact, rtol=1e-6)
        else:
            close(a, exact, g.dtype)


@pytest.mark.parametrize("max_norm", [1.0, 1e3])
def test_clipping(max_norm, dtype):
    check_clipping(tensors(0, dtype), max_norm)


def test_norms_beyond_the_range_of_the_gradients():
    check_clipping([np.full(4100, 60000, "float16")], 100.0)
    check_clipping([np.full(9, 2.0**-14, "float16")], 2.0**-14)


def test_clipping_of_several_dtypes_at_odd_addresses():
    halves = [a for d in DTYPES.values() for a in tensors(0, d)]
    shifted = [normal(4100, d)[1:] for d in DTYPES.values()]
    check_clipping([*tensors(5, np.float32), *halves, *shifted, normal((8, 8), BFLOAT16).T], 2.0)
    assert clip([*halves, np.ones(3)], 1.0) is NotImplemented


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_clipping_of_what_is_not_finite(bad, dtype):
    (got,), norm = clip([np.array([bad, 1.0]).astype(dtype)], 1.0)
    np.testing.assert_array_equal(norm, np.float32(bad))
    np.testing.assert_array_equal(got.astype(float), [np.nan, 0 if bad == np.inf else np.nan])


@pytest.mark.skipif(not SIMULATED, reason="compares NumPy arrays on both paths")
def test_kernels_and_rules_agree_in_a_training_step(dtype):
    def train():
        params = {"w": normal((8, 16), dtype, 1), "b": normal(16, dtype, 2), "v": normal((16, 8), dtype, 3)}
        opt, rng = gl.optim.AdamW(params, lr=0.1), gl.Generator(3)

        def loss(p):
            x = normal((3, 8), dtype)
            h = gl.dropout(gl.linear(x, p["w"], p["b"], activation="gelu"), 0.25, rng)
            h = gl.bias_dropout_add(h @ p["v"], p["b"][:8], x, activation="silu", rate=0.5, rng=rng)
            return (h * h).mean()

        clipped, norm = gl.optim.clip_by_global_norm(gl.grad(loss)(params), 0.5)
        opt.step(clipped)
        return params, norm

    want, want_norm = train()
    with simulate():
        got, norm = train()
    unit = 2 * HALF_UNIT[dtype.name]
    np.testing.assert_allclose(norm, want_norm, rtol=8 * unit)
    for k, a in got.items():
        assert a.dtype == dtype
        exact = want[k].astype(float)
        np.testing.assert_allclose(a.astype(float), exact, rtol=0, atol=4 * unit * abs(exact).max())
