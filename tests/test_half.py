"""float16 and bfloat16: stored narrow, computed in float32, through the whole library. Reference: float64."""

import numpy as np
import pytest
import scipy.sparse
import scipy.special
from standin import rules_only, to_numpy, to_standin

import gradlib as gl
from gradlib.precision import is_floating, is_narrow, is_real, smallest, working

ml_dtypes = pytest.importorskip("ml_dtypes")
DTYPES = {"float16": np.dtype("float16"), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
UNIT = {"float16": 2.0**-10, "bfloat16": 2.0**-7}  # of the last place, relative to the number


@pytest.fixture(params=DTYPES)
def dtype(request):
    return DTYPES[request.param]


def normal(shape, dtype, seed=0, scale=1.0):
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(dtype)


def close(got, want, dtype, units=1.0, scale=1.0):
    """Assert that `got`, of the dtype, is within so many units of the last place of the largest entry of `want`."""
    assert got.dtype == dtype
    assert got.shape == np.shape(want)
    atol = units * UNIT[dtype.name] * np.max(np.abs(want), initial=0) * scale
    np.testing.assert_allclose(np.asarray(got, float), want, rtol=0, atol=atol)


def test_what_is_floating():
    for dtype in DTYPES.values():
        assert is_floating(dtype) and is_real(dtype) and is_narrow(dtype) and working(dtype) == np.float32
        assert smallest(dtype) == float(ml_dtypes.finfo(dtype).min)
    for name in ("float32", "float64"):
        assert is_floating(np.dtype(name)) and working(np.dtype(name)) == name and not is_narrow(np.dtype(name))
    for name in ("int16", "uint16", "bool", "V2", "U1", "datetime64[s]"):
        assert not is_floating(np.dtype(name)) and not is_narrow(np.dtype(name))
    assert is_real(np.dtype("int16")) and not is_real(np.dtype("V2")) and not is_real(np.dtype("complex64"))
    assert not is_floating(np.dtype(ml_dtypes.float8_e4m3))


# Each one of some arrays of shapes; the units are those of one rounding, or more where a value is rounded on the way.
VECTOR, MATRIX = (5,), (3, 5)
FUNCTIONS = {
    "softmax": (gl.softmax, [MATRIX]),
    "softmax axis 0": (lambda x: gl.softmax(x, axis=0), [MATRIX]),
    "causal softmax": (lambda x: gl.softmax(x, causal=True), [(4, 4)]),
    "log_softmax": (gl.log_softmax, [MATRIX]),
    "masked log_softmax": (lambda x: np.exp(gl.log_softmax(x, mask=np.arange(5) > 1)), [MATRIX]),
    "logsumexp": (gl.logsumexp, [MATRIX]),
    "cross_entropy": (lambda x: gl.cross_entropy(x, np.array([0, 4, 2])), [MATRIX]),
    "cross_entropy none": (lambda x: gl.cross_entropy(x, np.array([0, 4, 2]), reduction="none"), [MATRIX]),
    "layer_norm": (gl.layer_norm, [MATRIX, VECTOR, VECTOR]),
    "rms_norm": (gl.rms_norm, [MATRIX, VECTOR]),
    "linear": (gl.linear, [MATRIX, (5, 4), (4,)]),
    "linear gelu": (lambda *a: gl.linear(*a, activation="gelu"), [MATRIX, (5, 4), (4,)]),
    "linear tanh": (lambda *a: gl.linear(*a, activation="tanh"), [MATRIX, (5, 4), (4,)]),
    "matmul": (lambda a, b: a @ b, [MATRIX, (5, 4)]),
    "embedding": (lambda t: gl.embedding(np.array([[1, 1], [0, 2]]), t), [MATRIX]),
    "dropout": (lambda x: gl.dropout(x, 0.25, gl.Generator(1)), [(4, 6)]),
    "bias_dropout_add": (lambda *a: gl.bias_dropout_add(*a, activation="silu"), [MATRIX, VECTOR, MATRIX]),
    "sum": (lambda x: np.sum(x, axis=0), [MATRIX]),
    "mean": (np.mean, [MATRIX]),
    "max": (lambda x: np.max(x, axis=1), [MATRIX]),
    "products and quotients": (lambda a, b: a * b - a / (b * b + a * a), [MATRIX, MATRIX]),
    "maximum": (np.maximum, [MATRIX, VECTOR]),
    **{name: (getattr(gl, name), [MATRIX]) for name in ("relu", "sigmoid", "tanh", "silu", "softplus", "erf", "elu")},
    "norm": (lambda x: np.linalg.norm(x, axis=1), [MATRIX]),
    "norm 3": (lambda x: np.linalg.norm(x, 3, axis=0), [MATRIX]),
    "einsum": (lambda a, b: np.einsum("ij,kj->ik", a, b), [MATRIX, (4, 5)]),
    "erfc": (scipy.special.erfc, [MATRIX]),
    "gelu": (gl.gelu, [MATRIX]),
    "gelu tanh": (lambda x: gl.gelu(x, approximate=True), [MATRIX]),
    "leaky_relu": (gl.leaky_relu, [MATRIX]),
    **{f.__name__: (f, [MATRIX]) for f in (np.exp, np.sin, np.square, np.arctan, np.sinh)},
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_derivatives(name, dtype):
    f, shapes = FUNCTIONS[name]
    args = [normal(s, dtype, i + 1) for i, s in enumerate(shapes)]
    exact = [a.astype(float) for a in args]
    y, pullback = gl.vjp(f, *args)
    y64, pullback64 = gl.vjp(f, *exact)
    close(y, y64, dtype, 2 if name == "products and quotients" else 0.6)
    dy, dx = normal(y.shape, dtype, 7), [normal(a.shape, dtype, 8 + i) for i, a in enumerate(args)]
    for got, want in zip(pullback(dy), pullback64(dy.astype(float)), strict=True):
        close(got, want, dtype, 4)
    ahead = gl.jvp(f, tuple(args), tuple(dx))[1]
    close(ahead, gl.jvp(f, tuple(exact), tuple(d.astype(float) for d in dx))[1], dtype, 4)


@pytest.mark.parametrize("name", ["softmax", "layer_norm", "linear gelu", "rms_norm", "gelu", "log_softmax"])
def test_jacobians(name, dtype):
    f, shapes = FUNCTIONS[name]
    x, *shared = [normal(s, dtype, i + 1) for i, s in enumerate(shapes)]
    want = gl.batch_jacobian(lambda x: f(x, *[a.astype(float) for a in shared]))(x.astype(float))
    close(gl.batch_jacobian(lambda x: f(x, *shared))(x), want, dtype, 2)
    close(gl.jacobian(lambda x: f(x, *shared))(x[:1])[0, :, 0], want[0], dtype, 2)


def test_second_derivatives(dtype):
    x = normal(6, dtype)
    inner = gl.grad(lambda x: np.sum(gl.softmax(x) * np.tanh(x)))
    outer = gl.grad(lambda x: np.sum(inner(x) * x))
    close(outer(x), outer(x.astype(float)), dtype, 6)


def test_sums_do_not_stop_growing(dtype):
    """256 + 1 is 256 in bfloat16, 2048 + 1 is 2048 in float16."""
    ones = np.ones((3000, 2), dtype)
    traced = {}
    gl.grad(lambda x: traced.setdefault("y", np.sum(x, axis=0))[0])(ones)
    assert gl.vjp(lambda x: np.sum(x, axis=0), ones)[0].astype(float) == pytest.approx(
        [3000, 3000], rel=UNIT[dtype.name]
    )
    bias = gl.grad(lambda b: np.sum(ones + b))(np.zeros(2, dtype))
    close(bias, [3000, 3000], dtype)
    weight = gl.grad(lambda w: np.sum(gl.linear(ones, w)))(np.ones((2, 1), dtype))
    close(weight, [[3000], [3000]], dtype)
    table = gl.grad(lambda t: np.sum(gl.embedding(np.zeros(3000, int), t)))(np.ones((2, 3), dtype))
    close(table, [[3000] * 3, [0] * 3], dtype)
    assert float(gl.vjp(np.mean, ones)[0]) == 1
    loss = gl.cross_entropy(np.zeros((70000, 4), dtype), np.zeros(70000, int))
    close(loss, np.log(4.0), dtype)


@pytest.mark.parametrize("shape", [(0, 4), (1, 1), (3, 1)])
def test_empty_and_single(shape, dtype):
    x = normal(shape, dtype)
    for f in (gl.softmax, gl.log_softmax, gl.layer_norm, gl.rms_norm, gl.gelu, np.tanh, gl.sigmoid):
        y, pullback = gl.vjp(f, x)
        close(y, f(x.astype(float)), dtype)
        assert pullback(y)[0].dtype == dtype and pullback(y)[0].shape == shape


def test_extreme_numbers(dtype):
    largest = -smallest(dtype)
    x = np.array([[largest, -largest, 0.0], [-np.inf, 1.0, 1.0], [-np.inf] * 3]).astype(dtype)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(gl.softmax(x).astype(float), [[1, 0, 0], [0, 0.5, 0.5], [0, 0, 0]])
        assert float(gl.logsumexp(x)[0]) == largest
    assert np.isfinite(gl.rms_norm(x[:1]).astype(float)).all()
    big = np.array([[60000.0, -60000.0, 30000.0]]).astype(dtype)
    close(gl.layer_norm(big), gl.layer_norm(big.astype(float)), dtype)
    tiny = np.array([[3.0, 4.0]]).astype(dtype) * dtype.type(2.0**-24)
    close(gl.rms_norm(tiny, eps=1e-30), gl.rms_norm(tiny.astype(float), eps=1e-30), dtype)
    assert np.isnan(float(gl.softmax(np.array([np.nan, 1.0]).astype(dtype))[1]))


def test_strided_input_is_left_as_it_is(dtype):
    base = normal((6, 10), dtype)
    x, before = base[::-2, 1::2], base.copy()
    for f in (gl.softmax, gl.layer_norm, gl.silu):
        close(f(x), f(x.astype(float)), dtype)
    assert base.tobytes() == before.tobytes()


def test_sparse_rows(dtype):
    x = scipy.sparse.csr_array(np.array([[0, 1.5, 0], [2.0, 0, 0.5]]))
    w = normal((3, 2), dtype)
    rows = gl.CSR(x.data.astype(dtype), gl.CSR.from_scipy(x).pattern)
    f = lambda w, x: np.sum(gl.linear(x, w, activation="tanh"))  # noqa: E731
    close(gl.grad(f)(w, rows), gl.grad(f)(w.astype(float), x), dtype, 4)


@pytest.mark.parametrize("make", [gl.optim.SGD, gl.optim.Adam, gl.optim.AdamW])
def test_optimisers_keep_their_state_in_float32(make, dtype):
    start = normal((4, 3), dtype)
    settings = {"momentum": 0.9} if make is gl.optim.SGD else {}
    p, exact = start.copy(), start.astype("float32")
    opt, reference = make({"w": p}, lr=0.01, **settings), make({"w": exact}, lr=0.01, **settings)
    for step in range(5):
        g = normal(p.shape, dtype, step + 1, 0.1)
        opt.step({"w": g})
        reference.step({"w": g.astype("float32")})
    close(p, exact, dtype, 3)
    assert p.dtype == dtype and not np.array_equal(p, start)
    state = [v[0] for v in vars(opt).values() if isinstance(v, list) and v and v[0] is not p]
    assert any(s.dtype == np.float32 for s in state if hasattr(s, "dtype"))


def test_updates_too_small_for_the_state_in_half(dtype):
    """v = (1 - β2) g² is 1e-9 here, which float16 cannot hold."""
    p = np.ones(3, dtype)
    gl.optim.Adam([p], lr=0.25).step([np.full(3, 1e-3, dtype)])
    close(p, [0.75] * 3, dtype)


def test_clipping(dtype):
    grads = {"a": normal((30, 4), dtype, 1, 100), "b": normal(7, dtype, 2, 100)}
    clipped, norm = gl.optim.clip_by_global_norm(grads, 1.0)
    want = np.sqrt(sum(float((g.astype(float) ** 2).sum()) for g in grads.values()))
    assert norm.dtype == np.float32 and float(norm) == pytest.approx(want, rel=1e-6)
    for k, g in grads.items():
        close(clipped[k], g.astype(float) / want, dtype)


def test_training_through_modules(dtype):
    net = gl.nn.Sequential(gl.nn.Linear(6, 8), gl.nn.LayerNorm(8), gl.nn.Linear(8, 3))
    params = net.init(0, dtype=dtype)
    x, labels = normal((20, 6), dtype), np.arange(20) % 3
    opt = gl.optim.Adam(params, lr=0.05)
    loss = lambda p: gl.cross_entropy(net(p, x), labels)  # noqa: E731
    first = loss(params)
    for _ in range(20):
        opt.step(gl.grad(loss)(params))
    assert first.dtype == dtype and float(loss(params)) < 0.8 * float(first)


def test_mixed_with_float32(dtype):
    """What is computed of both is float32, and each gets a gradient of its own dtype."""
    x, w = normal((2, 3), dtype), normal((3, 4), np.float32)
    assert gl.linear(x, w).dtype == np.float32 and gl.vjp(np.multiply, x, w[:2, :3])[0].dtype == np.float32
    dx, dw = gl.grad(lambda x, w: np.sum(gl.linear(x, w)), (0, 1))(x, w)
    assert dx.dtype == dtype and dw.dtype == np.float32


def test_rules_work_on_a_device(dtype):
    args = normal((6, 8), dtype, 1), normal((8, 8), dtype, 2), normal(8, dtype, 3)

    def loss(args):
        x, w, b = args
        h = gl.layer_norm(gl.linear(x, w, b, activation="gelu"), b)
        h = gl.bias_dropout_add(gl.softmax(h), b, gl.rms_norm(h), activation="silu")
        h = gl.embedding(np.asarray([5, 5, 0], like=x), h) + np.max(np.tanh(x), axis=0)
        return gl.cross_entropy(h, np.asarray([0, 7, 3], like=x)) + np.mean(h @ w)

    want, want_grads = gl.value_and_grad(loss)(args)
    with rules_only():
        got, grads = gl.value_and_grad(loss)(to_standin(args))
    close(np.asarray(to_numpy(got)), float(want), dtype)
    for g, exact in zip(to_numpy(grads), want_grads, strict=True):
        close(g, exact.astype(float), dtype, 2)


def test_other_dtypes_are_named():
    x = np.zeros((2, 3), ml_dtypes.float8_e4m3)
    with pytest.raises(TypeError, match=r"softmax: .* got float8_e4m3\[2, 3\]"):
        gl.softmax(x)
    with pytest.raises(TypeError, match=r"grad.* got float8_e4m3"):
        gl.grad(np.sum)(x)
    with pytest.raises(ValueError, match=r"got bfloat16\[2\]"):
        gl.embedding(np.array([0]), np.zeros(2, ml_dtypes.bfloat16))
