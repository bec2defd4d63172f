"""The kernels of layer_norm and rms_norm against float64 NumPy."""

import numpy as np
import pytest
from kernel_device import call, close

import gradlib as gl
from gradlib.kernels import norm_rows, norm_sums, norms
from gradlib.kernels.launch import SIMULATED, simulate
from gradlib.kernels.layer_norm import layer_norm
from gradlib.kernels.machine import Machine
from gradlib.kernels.rms_norm import rms_norm

KERNELS = {"layer_norm": layer_norm, "rms_norm": rms_norm}
EPS = 1e-3
# (length, dtype): every shape of kernel and its edges, rows that are and are not multiples of 16 bytes
LENGTHS = [(n, "float32") for n in (1, 3, 4, 7, 32, 33, 36, 127, 128, 131, 252, 255, 257, 512, 516, 1029, 2052)]
LENGTHS += [(n, "float64") for n in (1, 2, 5, 32, 34, 129, 258, 514)]


def rows_of(x, kind, eps=EPS):
    """(h, mean, r) in extended precision and range."""
    x = x.astype(np.longdouble)
    mean = x.mean(-1, keepdims=True) if kind == "layer_norm" else 0 * x[..., :1]
    r = 1 / np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + eps)
    return (x - mean) * r, mean, r


def project(t, h, r, kind):
    """The derivative of the rows h, applied to t."""
    left = t - h * (t * h).mean(-1, keepdims=True)
    return r * (left - t.mean(-1, keepdims=True) if kind == "layer_norm" else left)


def data(n, dtype, rows=None, V=2):
    """x, w, b and stacks like each; of long rows fewer."""
    rows = (3 if n < 256 else 2 if n < 2000 else 1,) if rows is None else rows
    rng = np.random.default_rng(n)
    shapes = (*rows, n), (n,), (n,), (V, *rows, n), (V, n), (V, n)
    x, *others = [rng.normal(size=s).astype(dtype) for s in shapes]
    return (2 * x + 1).astype(dtype), *others


def saved_of(kind, x, w, dtype):
    _, mean, r = rows_of(x, kind)
    kept = (mean, r) if kind == "layer_norm" else (r,)
    return x, *(a.astype(dtype) for a in kept), w


def weights_of(kind, w, b):
    return (w, b) if kind == "layer_norm" else (w,)


@pytest.mark.parametrize(("n", "dtype"), [*LENGTHS, (4100, "float32"), (8196, "float32"), (4097, "float32")])
@pytest.mark.parametrize("kind", KERNELS)
def test_forward(kind, n, dtype):
    x, w, b, *_ = data(n, dtype)
    h, mean, r = rows_of(x, kind)
    scale = 4 + abs(h).max()
    y, saved = call(KERNELS[kind].forward, x, *weights_of(kind, w, b), eps=EPS)
    close(y, h * w + (b if kind == "layer_norm" else 0), dtype, scale)
    assert saved[0] is x and saved[-1] is w
    close(saved[-2], r, dtype)
    if kind == "layer_norm":
        close(saved[1], mean, dtype, scale)
        close(call(layer_norm.forward, x, None, b, eps=EPS)[0], h + b, dtype, scale)
    close(call(KERNELS[kind].forward, x, eps=EPS)[0], h, dtype, scale)


@pytest.mark.parametrize(("n", "dtype"), [*LENGTHS, (4100, "float32")])
@pytest.mark.parametrize("kind", KERNELS)
def test_vjp_and_jvp_of_rows(kind, n, dtype):
    x, w, b, d, dw, db = data(n, dtype)
    saved, (h, _, r) = saved_of(kind, x, w, dtype), rows_of(x, kind)
    scale = 4 * (1 + abs(h).max())
    none = (False,) * len(weights_of(kind, w, b))
    (dx, *others) = call(KERNELS[kind].vjp, saved, d, (True, *none), eps=EPS)
    close(dx, project(d.astype(float) * w, h, r, kind), dtype, scale)
    assert others == [None] * len(none)
    moved = project(d.astype(float), h, r, kind)
    tangents = weights_of(kind, dw, db)
    got = call(KERNELS[kind].jvp, saved, (d, *tangents), eps=EPS)
    by_weights = h * dw[:, None] + (db[:, None] if kind == "layer_norm" else 0)
    close(got, moved * w + by_weights, dtype, 2 * scale)
    close(call(KERNELS[kind].jvp, saved, (None, *tangents), eps=EPS), by_weights, dtype, scale)
    bare = (*saved[:-1], None)
    close(call(KERNELS[kind].jvp, bare, (d,), eps=EPS), moved, dtype, scale)
    close(call(KERNELS[kind].vjp, bare, d, (True,), eps=EPS)[0], moved, dtype, scale)


def check_cotangents(kind, x, w, b, d, dtype, need_dx=True):
    saved, (h, _, r) = saved_of(kind, x, w, dtype), rows_of(x, kind)
    d64, axes = d.astype(float), tuple(range(1, d.ndim - 1))
    need = (need_dx, *(True for _ in weights_of(kind, w, b)))
    dx, dw, *db = call(KERNELS[kind].vjp, saved, d, need, eps=EPS)
    scale = 4 * (1 + abs(h).max()) * (1 + np.sqrt(x.size // x.shape[-1]))
    if need_dx:
        close(dx, project(d64 * w, h, r, kind), dtype, scale)
    else:
        assert dx is None
    close(dw, (d64 * h).sum(axes), dtype, scale)
    assert len(db) == (kind == "layer_norm")
    for one in db:
        close(one, d64.sum(axes), dtype, scale)


@pytest.mark.parametrize(("n", "dtype"), LENGTHS)
@pytest.mark.parametrize("kind", KERNELS)
def test_gradients_of_parameters(kind, n, dtype):
    x, w, b, d, *_ = data(n, dtype)
    check_cotangents(kind, x, w, b, d, dtype)


@pytest.mark.parametrize("n", [8, 7, 128, 260, 257])
@pytest.mark.parametrize("kind", KERNELS)
def test_blocks_walk_over_many_rows(kind, n, monkeypatch, schedule):
    """More rows than blocks that stay, and more members of a stack than the grid has room for."""
    multiprocessors(1, monkeypatch, staying=2)
    monkeypatch.setattr(norms, "FILL", 1)
    monkeypatch.setattr(norms, "GRID_Z", 1)
    rows = {8: 150, 7: 150, 128: 35, 260: 5, 257: 130}[n]
    x, w, b, d, *_ = data(n, "float32", rows=(rows,), V=2)
    check_cotangents(kind, x, w, b, d, "float32", need_dx=n != 257)


@pytest.mark.parametrize("count", [1, 7, 144])
@pytest.mark.parametrize(("n", "lanes"), [(8, 8), (4096, 256)])
def test_one_wave_of_blocks_on_any_device(n, lanes, count, monkeypatch):
    """Four blocks a multiprocessor, of the longest rows two, but no more than there are rows for."""
    multiprocessors(count, monkeypatch)
    shapes, empty = [], norms.empty
    monkeypatch.setattr(norms, "empty", lambda xp, shape, dtype: shapes.append(shape) or empty(xp, shape, dtype))
    rows = {8: 130, 4096: 3}[n]
    x, w, b, d, *_ = data(n, "float32", rows=(rows,), V=1)
    check_cotangents("layer_norm", x, w, b, d, "float32")
    across = min(-(-rows * lanes // 256), count * {8: 4, 4096: 2}[n])
    assert (1, across, 2, n) in shapes


def multiprocessors(count, monkeypatch, staying=norms.STAYING):
    """A device of so many, on each of which so many blocks stay."""
    monkeypatch.setattr(norms, "STAYING", staying)
    monkeypatch.setattr(norms, "machine_of", lambda xp: Machine(count, 227 << 10, 228 << 10))


def test_gradients_of_parameters_alone():
    for n in (12, 2052):
        x, w, b, d, *_ = data(n, "float32")
        check_cotangents("layer_norm", x, w, b, d, "float32", need_dx=False)
    x, w, b, d, *_ = data(12, "float32")
    dx, dw, db = call(layer_norm.vjp, saved_of("layer_norm", x, w, "float32"), d, (False, False, True), eps=EPS)
    assert dx is None and dw is None
    close(db, d.astype(float).sum(1), "float32", 8)


@pytest.mark.parametrize("n", [8, 132, 516])
@pytest.mark.parametrize("kind", KERNELS)
def test_schedules(kind, n, schedule):
    x, w, b, d, dw, db = data(n, "float32", rows=(2, 3 if n < 256 else 1), V=2)
    h, _, r = rows_of(x, kind)
    y, saved = call(KERNELS[kind].forward, x, *weights_of(kind, w, b), eps=EPS)
    close(y, h * w + (b if kind == "layer_norm" else 0), "float32", 10)
    check_cotangents(kind, x, w, b, d, "float32")
    got = call(KERNELS[kind].jvp, saved, (d, *(None for _ in weights_of(kind, w, b))), eps=EPS)
    close(got, project(d.astype(float), h, r, kind) * w, "float32", 20)


@pytest.mark.parametrize("n", [1027, 1028])
def test_streamed_rows_under_schedules(n, schedule, monkeypatch):
    """Aligned rows would be held, were there shapes that hold them."""
    for shapes in ("GROUPS", "LONG", "SUM_GROUPS"):
        monkeypatch.setattr(norms, shapes, ())
    x, w, b, d, *_ = data(n, "float32", rows=(1,), V=1)
    y, _ = call(layer_norm.forward, x, w, b, eps=EPS)
    close(y, rows_of(x, "layer_norm")[0] * w + b, "float32", 10)
    check_cotangents("layer_norm", x, w, b, d, "float32")


@pytest.mark.parametrize("kind", KERNELS)
def test_the_same_bits_every_time(kind, monkeypatch):
    multiprocessors(3, monkeypatch, staying=1)
    x, w, b, d, *_ = data(40, "float32", rows=(26,))
    results = []
    for order in ("forward", "reverse", "3"):
        monkeypatch.setenv("GRADLIB_SIM_SCHEDULE", order)
        y, saved = call(KERNELS[kind].forward, x, *weights_of(kind, w, b), eps=EPS)
        results.append([y, *call(KERNELS[kind].vjp, saved, d, (True, True, True)[: len(saved) - 1], eps=EPS)])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("V", [0, 1, 5])
@pytest.mark.parametrize("n", [5, 40])
def test_stacks_of_any_size(n, V):
    x, w, b, d, dw, db = data(n, "float32", rows=(5,), V=V)
    check_cotangents("layer_norm", x, w, b, d, "float32")
    saved, (h, _, r) = saved_of("layer_norm", x, w, "float32"), rows_of(x, "layer_norm")
    got = call(layer_norm.jvp, saved, (d, dw, db), eps=EPS)
    close(got, project(d.astype(float), h, r, "layer_norm") * w + h * dw[:, None] + db[:, None], "float32", 30)


EXTREME = {"float32": (1e30, 3e38, 1e-30, 1e19), "float64": (1e300, 1.7e308, 1e-300, 1e155)}


@pytest.mark.parametrize(
    ("n", "dtype"), [*((n, "float32") for n in (3, 8, 40, 130, 259, 516)), *((n, "float64") for n in (8, 130, 259))]
)
@pytest.mark.parametrize("kind", KERNELS)
def test_rows_of_any_size(kind, n, dtype):
    """Huge rows (squares overflow), tiny and constant ones, and one entry that outweighs all."""
    base = np.random.default_rng(n).uniform(-0.9, 0.9, size=(4, n))
    x = np.concatenate([base * np.array(EXTREME[dtype])[:, None], base[:2], base[:1]]).astype(dtype)
    x[4] = 1e8
    x[5, 0] = 1e6
    y, saved = call(KERNELS[kind].forward, x, eps=1e-5)
    exact = rows_of(x, kind, 1e-5)[0]
    for i in (0, 1, 2, 3, 5, 6):
        close(y[i], exact[i], dtype, 4 + abs(exact[i]).max())
    if kind == "layer_norm":
        assert abs(y[4]).max() <= 1e-3
    d = np.ones((1, *x.shape), dtype)
    (dx,) = call(KERNELS[kind].vjp, saved, d, (True,), eps=1e-5)
    assert np.isfinite(dx).all()


@pytest.mark.parametrize("n", [4, 33, 128, 129, 259, 516, 2052, 4100])
def test_the_mean_is_corrected(n, schedule):
    """Its sum is rounded at 10,000; what is saved is the nearest number, and held rows are centred better than that."""
    x = np.random.default_rng(n).normal(1e4, 1, size=(4, n)).astype("float32")
    y, (_, mean, r, _) = call(layer_norm.forward, x, eps=1e-5)
    h, exact, exact_r = rows_of(x, "layer_norm", 1e-5)
    assert (abs(mean - exact) <= 0.51 * np.spacing(mean)).all()
    close(r, exact_r, "float32", 4)
    assert abs(y - h).max() <= (np.spacing(np.float32(1e4)) if n == 259 else 2e-5)  # 259 is streamed


def test_constant_rows_give_the_bias():
    for n in (3, 40, 516):
        x, b = np.full((2, n), 1e8, "float32"), np.arange(n, dtype="float32")
        np.testing.assert_allclose(call(layer_norm.forward, x, b, b, eps=1e-5)[0], [b, b], atol=1e-4 * n)


def test_strided_and_misaligned_rows():
    wide = data(40, "float32", rows=(6,))[0]
    whole = np.zeros(6 * 40 + 1, "float32")
    whole[1:] = wide.reshape(-1)
    for view in (wide[::2], wide[:, ::-1], wide[:, 3:35], np.asfortranarray(wide), whole[1:].reshape(6, 40)):
        h, _, r = rows_of(view, "layer_norm")
        y, saved = call(layer_norm.forward, view, eps=EPS)
        close(y, h, "float32", 5)
        dx, dw = call(layer_norm.vjp, saved, view[None], (True, True), eps=EPS)
        close(dx, project(view[None].astype(float), h, r, "layer_norm"), "float32", 20)
        close(dw[0], (view.astype(float) * h).sum(0), "float32", 40)


def test_every_shape_of_kernel_is_met():
    """The lengths above reach every shape: wide and single, held and streamed."""
    met = {norm_rows.group_of(n, n % 4 == 0) for n, dtype in LENGTHS if dtype == "float32"}
    assert met >= {*norm_rows.GROUPS, None}
    assert {norm_rows.group_of(n, n % 4 == 0, norm_sums.GROUPS) for n, _ in LENGTHS} >= {*norm_sums.GROUPS, None}


def test_what_is_left_to_the_rule():
    x, w, b, d, *_ = data(4, "float32")
    nothing = np.ones((0, 4), "float32")
    for args in ((x.astype("longdouble"), w, b), (x, w.astype(float), b), (nothing, w, b)):
        assert call(layer_norm.forward, *args, eps=EPS) is NotImplemented
    saved = saved_of("layer_norm", x, w, "float32")
    assert call(layer_norm.vjp, saved, d.astype(float), (True, True, True), eps=EPS) is NotImplemented
    assert call(layer_norm.jvp, saved, (d.astype(float), None, None), eps=EPS) is NotImplemented


@pytest.mark.skipif(not SIMULATED, reason="compares NumPy arrays on both paths: needs the simulator")
def test_public_functions_take_the_kernels():
    x, w, b, *_ = data(6, "float32", rows=(4,))
    functions = {
        "layer": lambda x, w: gl.layer_norm(x, w, b) * gl.layer_norm(x),
        "rms": lambda x, w: gl.rms_norm(gl.rms_norm(x, w)),
    }

    def results(f):
        tangent = gl.jvp(f, (x, w), (w * x, x[0]))[1]
        return *gl.vjp(f, x, w)[1](x), tangent, gl.batch_jacobian(lambda x: f(x, w))(x)

    for f in functions.values():
        expected = results(f)
        with simulate():
            got = results(f)
        for a, e in zip(got, expected, strict=True):
            assert a.dtype == e.dtype
            np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-5)
