"""The kernels of linear layers, dense and sparse, against float64 NumPy."""

import numpy as np
import pytest
import scipy.sparse as sp
from kernel_device import DTYPES, call, close
from test_kernel_elementwise import CASES as FUNCTIONS

from gradlib.kernels import csr
from gradlib.kernels import linear as kernels
from gradlib.kernels.linear import ACTIVATIONS, FROM_OUTPUT, csr_linear, linear, slope_and_sums

SHAPES = [((1,), 1, 1), ((5,), 7, 3), ((2, 3), 4, 33), ((65,), 3, 8), ((7,), 5, 64), ((), 4, 9), ((3,), 2, 131)]
PARAMETER = {"elu": (np.expm1, np.exp, 1.0), "leaky_relu": (lambda z: 0.01 * z, lambda z: 0.01 + 0 * z, 0.01)}


def activation_of(name):
    """(act, act') in float64; elu and leaky_relu with their default parameters."""
    if name is None:
        return (lambda z: z), np.ones_like
    if name in PARAMETER:
        f, df, _ = PARAMETER[name]
        return (lambda z: np.where(z > 0, z, f(z))), (lambda z: np.where(z > 0, 1, df(z)))
    return FUNCTIONS[name][:2]


def data(lead, k, n, dtype, V=3):
    rng = np.random.default_rng(n)
    arrays = rng.normal(size=(*lead, k)), rng.normal(size=(k, n)), rng.normal(size=n), rng.normal(size=(V, *lead, n))
    return [a.astype(dtype) for a in arrays]


def check(x, w, b, dy, activation, dtype):
    """forward and vjp of `linear` on these arrays."""
    args = (x, w) if b is None else (x, w, b)
    y, saved = call(linear.forward, *args, activation=activation)
    act, slope = activation_of(activation)
    x64, w64, d64 = (a.astype(float) for a in (x, w, dy))
    z = x64 @ w64 + (0 if b is None else b)
    close(y, act(z), dtype, scale=10)
    assert saved[:2] == (x, w) or (saved[0] is x and saved[1] is w)
    kept_z, kept_y = saved[3:]
    assert (kept_z is None) == (activation is None or activation in FROM_OUTPUT) and (kept_y is None) == (
        activation is None
    )
    if kept_z is not None:
        close(kept_z, z, dtype, scale=10)
    need = (True, True, True)[: len(args)]
    got = call(linear.vjp, saved, dy, need, activation=activation)
    dz = d64 * slope(z)
    rows = dz.reshape(len(dy), -1, w.shape[1])
    scale = 10 * np.sqrt(1 + rows.shape[1]) * 4
    close(got[0], dz @ w64.T, dtype, scale=10 * scale)
    close(got[1], x64.reshape(-1, x.shape[-1]).T @ rows, dtype, scale=scale)
    if b is not None:
        close(got[2], rows.sum(1), dtype, scale=scale)
    assert len(got) == len(args)
    dx, dw, db = (
        np.random.default_rng(0).normal(size=(len(dy), *s)).astype(dtype) for s in (x.shape, w.shape, w.shape[1:])
    )
    tangents = (dx, dw, db)[: len(args)]
    along = np.stack([dx[v].astype(float) @ w64 + x64 @ dw[v] + (0 if b is None else db[v]) for v in range(len(dy))])
    close(call(linear.jvp, saved, tangents, activation=activation), along * slope(z), dtype, scale=40)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
def test_activations(activation, dtype):
    x, w, b, dy = data((6,), 5, 12, dtype)
    check(x, w, b, dy, activation, dtype)
    check(x, w, None, dy, activation, dtype)


@pytest.mark.parametrize(("lead", "k", "n"), SHAPES)
@pytest.mark.parametrize("V", [1, 3])
def test_shapes(lead, k, n, V, schedule):
    check(*data(lead, k, n, "float32", V), "silu" if V > 1 else "tanh", "float32")


def test_many_rows_are_added_block_by_block():
    """More rows than one block adds up: partial sums."""
    x, w, b, dy = data((300,), 3, 40, "float32", V=2)
    check(x, w, b, dy, "relu", "float32")


def test_bias_cotangent_is_the_same_every_time(monkeypatch):
    y, dy = np.random.default_rng(0).normal(size=(2, 1, 150, 9)).astype("float32")
    results = []
    for schedule in ("forward", "reverse", "3"):
        monkeypatch.setenv("GRADLIB_SIM_SCHEDULE", schedule)
        results.append(call(slope_and_sums, y[0], dy, "tanh")[1])
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_empty_stack_and_partial_need():
    x, w, b, dy = data((4,), 3, 5, "float32")
    _, saved = call(linear.forward, x, w, b, activation="gelu")
    dx, dw, db = call(linear.vjp, saved, dy[:0], (True, True, True), activation="gelu")
    assert (dx.shape, dw.shape, db.shape) == ((0, 4, 3), (0, 3, 5), (0, 5))
    assert call(linear.vjp, saved, dy, (False, False, False), activation="gelu") == (None, None, None)


def sparse(rows, columns, dtype, density=0.3):
    s = sp.random_array((rows, columns), density=density, rng=np.random.default_rng(rows), dtype=float, format="csr")
    return s.data.astype(dtype), s.indices.astype(np.int32), s.indptr.astype(np.int32), s.toarray().astype(dtype)


@pytest.mark.parametrize(
    ("rows", "columns", "n", "activation", "dtype"),
    [
        (5, 7, 3, None, "float32"),
        (1, 20, 8, "relu", "float32"),
        (4, 6, 33, "silu", "float32"),
        (3, 4, 130, "relu", "float32"),
        (4, 3, 12, "silu", "float64"),
        (2, 3, 65, "tanh", "float64"),
    ],
)
def test_sparse_rows(rows, columns, n, activation, dtype):
    values, indices, indptr, dense = sparse(rows, columns, dtype)
    _, w, b, dy = data((rows,), columns, n, dtype, V=2)
    act, slope = activation_of(activation)
    z = dense.astype(float) @ w + b
    y, saved = call(csr_linear.forward, values, indices, indptr, w, b, activation=activation)
    close(y, act(z), dtype, scale=5)
    dz = dy.astype(float) * slope(z)
    need = (True, False, False, True, True)
    ddata, none, nothing, dw, db = call(csr_linear.vjp, saved, dy, need, activation=activation)
    assert none is None and nothing is None
    at = np.repeat(np.arange(rows), np.diff(indptr))
    close(ddata, np.einsum("vjn,jn->vj", dz[:, at], w[indices].astype(float)), dtype, scale=60)
    close(dw, dense.T.astype(float) @ dz, dtype, scale=20)
    close(db, dz.sum(1), dtype, scale=20)
    moved, ahead, add = (np.random.default_rng(1).normal(size=(2, *a.shape)).astype(dtype) for a in (values, w, b))
    got = call(csr_linear.jvp, saved, (None, None, None, ahead, add), activation=activation)
    along = dense.astype(float) @ ahead + add[:, None]
    close(got, along * slope(z), dtype, scale=20)
    got = call(csr_linear.jvp, saved, (moved, None, None, None, None), activation=activation)
    along = np.stack([sp.csr_array((m, indices, indptr), dense.shape).toarray().astype(float) @ w for m in moved])
    close(got, along * slope(z), dtype, scale=20)


@pytest.mark.parametrize("n", [3, 40])
def test_rows_of_many_entries(n):
    """More entries in a row, and in a column, than groups of threads share it."""
    for rows, columns in ((2, 75), (75, 2)):
        values, indices, indptr, dense = sparse(rows, columns, "float32", density=1.0)
        _, w, _, dy = data((rows,), columns, n, "float32", V=1)
        y, saved = call(csr_linear.forward, values, indices, indptr, w, activation=None)
        close(y, dense @ w.astype(float), "float32", scale=5)
        _, _, _, dw = call(csr_linear.vjp, saved, dy, (False, False, False, True), activation=None)
        close(dw, dense.T.astype(float) @ dy, "float32", scale=5)


def test_stacks_larger_than_the_grid(monkeypatch, schedule):
    """Blocks walk the stack where it has more members than a grid has blocks."""
    for module in (csr, kernels):
        monkeypatch.setattr(module, "GRID_Z", 1)
    check(*data((70,), 2, 5, "float32", V=3), "relu", "float32")
    values, indices, indptr, dense = sparse(3, 40, "float32", density=1.0)
    _, w, _, dy = data((3,), 40, 5, "float32", V=3)
    saved = call(csr_linear.forward, values, indices, indptr, w, activation=None)[1]
    ddata, _, _, dw = call(csr_linear.vjp, saved, dy, (True, False, False, True), activation=None)
    close(dw, dense.T.astype(float) @ dy, "float32", scale=5)
    close(ddata, (dy[:, np.repeat(np.arange(3), 40)] * w[indices]).sum(2), "float32", scale=10)


def test_empty_rows_and_columns():
    indptr, indices = np.array([0, 0, 2, 2]), np.array([1, 3])
    w = np.arange(20, dtype="float32").reshape(5, 4)
    y, saved = call(csr_linear.forward, np.ones(2, "float32"), indices, indptr, w, activation=None)
    np.testing.assert_array_equal(y, [w[0] * 0, w[1] + w[3], w[0] * 0])
    dy = np.ones((1, 3, 4), "float32")
    _, _, _, dw = call(csr_linear.vjp, saved, dy, (True, False, False, True), activation=None)
    np.testing.assert_array_equal(dw[0, :, 0], [0, 1, 0, 1, 0])


def test_the_three_products():
    values, indices, indptr, dense = sparse(6, 5, "float32", density=0.5)
    rng = np.random.default_rng(2)
    w, z = rng.normal(size=(5, 9)).astype("float32"), rng.normal(size=(6, 9)).astype("float32")
    close(call(csr.csr_product.forward, values, indices, indptr, w)[0], dense @ w, "float32", scale=5)
    transposed = call(csr.csr_transposed.forward, values, indices, indptr, z, width=5)[0]
    close(transposed, dense.T @ z, "float32", scale=5)
    dots = call(csr.csr_dots.forward, z, w, indices, indptr)[0]
    at = np.repeat(np.arange(6), np.diff(indptr))
    close(dots, (z[at] * w[indices]).sum(1), "float32", scale=10)
    dy = rng.normal(size=(2, 6, 9)).astype("float32")
    ddata, _, _, dw = call(csr.csr_product.vjp, (values, indices, indptr, w), dy, (True, False, False, True))
    close(ddata, (dy[:, at] * w[indices]).sum(2), "float32", scale=10)
    close(dw, dense.T @ dy, "float32", scale=5)


def test_what_is_left_to_the_rule():
    x, w, b, dy = data((4,), 3, 5, "float32")
    for args in ((x.astype("float16"), w, b), (x.astype("longdouble"),) * 2, (x, w.astype(float), b), (x[:0], w, b)):
        assert call(linear.forward, *args, activation="relu") is NotImplemented
    nothing = np.ones(0, "float32"), np.ones(0, int), np.zeros(5, int)
    assert call(csr_linear.forward, *nothing, w, b, activation=None) is NotImplemented


def test_more_rows_than_blocks_add_up(monkeypatch):
    """The bias's cotangent is then a sum of its own."""
    monkeypatch.setattr(kernels, "GRID_Z", 1)
    monkeypatch.setattr(kernels, "slope_sums", None)
    check(*data((513,), 2, 3, "float32", V=1), "tanh", "float32")


def test_more_entries_rows_and_columns_than_are_numbered():
    """Views of one number, which no kernel could be given."""

    def many(shape, dtype="float32"):
        return np.broadcast_to(np.ones((), dtype), shape)

    few, far = (many(3), many(3, int), many(4, int)), 2**30 + 1
    entries = many(far), many(far, int), few[2]
    for pattern, w in ((entries, many((5, 4))), ((*few[:2], many(far, int)), many((5, 4))), (few, many((far, 4)))):
        assert csr.csr_product.forward(np, *pattern, w) is NotImplemented
        assert csr_linear.forward(np, *pattern, w, activation="relu") is NotImplemented
    assert csr.csr_product.forward(np, *few, many((5, 65535 * 64 + 1))) is NotImplemented
    assert csr.csr_transposed.forward(np, *few, many((3, 4)), width=far) is NotImplemented
    assert csr.csr_dots.forward(np, many((far, 4)), many((5, 4)), *few[1:]) is NotImplemented
    assert csr.serves(*few, many((2**30, 65535 * 64)))
