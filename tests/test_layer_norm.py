"""layer_norm: rules, rows that are constant, huge or tiny, torch's semantics by JAX and mpmath, per-sample weights."""

import mpmath
import numpy as np
import pytest
from rulecheck import Case, RuleCheck, close, randn

import gradlib as gl
from gradlib.op import REGISTRY
from gradlib.ops.layer_norm import layer_norm

OP = REGISTRY["layer_norm"]
SHAPES = [(2, 3), (5,), (1,), (3, 1), (0, 3), (2, 3, 4), (2, 33), (1, 1, 2)]


def _case(*shape, weight=True, bias=True, eps=1e-3):
    n = shape[-1:]
    args = [randn(*shape, scale=2, shift=1)]
    if weight or bias:
        args.append(randn(*n, seed=1, shift=1) if weight else None)
    if bias:
        args.append(randn(*n, seed=2))
    return Case(OP, args, eps=eps)


CASES = [_case(*s) for s in SHAPES]
CASES += [_case(2, 5, weight=False, bias=False), _case(2, 5, bias=False), _case(2, 5, weight=False)]
ERRORS = [
    (lambda: layer_norm("a"), TypeError, "layer_norm: expected floating-point x, got str"),
    (lambda: layer_norm(np.arange(3)), TypeError, "layer_norm: … got int64[3]"),
    (lambda: layer_norm(np.ones(3), np.arange(3)), TypeError, "expected floating-point weight, got int64[3]"),
    (lambda: layer_norm(np.ones((2, 3)), np.ones(2)), ValueError, "weight of shape (3,) … got float64[2]"),
    (lambda: layer_norm(np.ones((2, 3)), None, np.ones((2, 3))), ValueError, "bias of shape (3,)"),
    (lambda: layer_norm(np.ones((2, 0))), ValueError, "at least one entry a row, got float64[2, 0]"),
    (lambda: layer_norm(np.array(1.0)), ValueError, "expected x (..., D)"),
    (lambda: layer_norm(np.ones(3), eps=0), ValueError, "layer_norm: expected a positive eps, got 0"),
    (lambda: layer_norm(np.ones(3), eps="1"), TypeError, "layer_norm: expected a number as eps, got str"),
]


class TestRules(RuleCheck):
    cases = CASES
    errors = ERRORS


def exact(row, eps):
    """The normalised row and its Jacobian, to 60 digits."""
    with mpmath.workdps(60):
        x = [mpmath.mpf(float(v)) for v in row]
        n, m = len(x), mpmath.fsum(x) / len(x)
        d = [v - m for v in x]
        r = 1 / mpmath.sqrt(mpmath.fsum([v * v for v in d]) / n + mpmath.mpf(eps))
        h = [v * r for v in d]
        slope = [[r * ((i == j) - (1 + h[i] * h[j]) / n) for j in range(n)] for i in range(n)]
        return np.array([float(v) for v in h]), np.array([[float(v) for v in row] for row in slope])


ROWS = {
    "near": [1e4, 1e4 + 1, 1e4 + 3],
    "huge": [1e30, -2e30, 3e30],
    "largest": [3e38, -3e38, 1e38],
    "tiny": [1e-30, -1e-30, 3e-30],
    "mixed": [1e20, 1.0, -1.0],
    "one outlier": [1e8, 1.0, 2.0, 3.0],
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ROWS)
def test_extreme_rows_against_mpmath(name, dtype):
    x = np.array(ROWS[name], dtype)
    h, slope = exact(x, 1e-5)
    eps = 16 * np.finfo(dtype).eps
    np.testing.assert_allclose(layer_norm(x), h, rtol=0, atol=eps * abs(h).max())
    # Rules that recompute x - mean know it to half an ulp of x.
    eps *= 1 + float(abs(x).max()) / np.std(x.astype(np.longdouble))
    np.testing.assert_allclose(gl.jacobian(layer_norm)(x), slope, rtol=0, atol=eps * abs(slope).max())


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("value", [0.0, 0.1, -1e-6, 1e4, 65504.0, 1e8, 3e38])
def test_constant_rows_give_the_bias(value, dtype):
    if value > float(np.finfo(dtype).max):
        return
    x = np.full((2, 7), value, dtype)
    b = np.arange(7).astype(dtype)
    np.testing.assert_array_equal(layer_norm(x, b + 1, b), np.broadcast_to(b, x.shape))
    assert np.isfinite(gl.grad(lambda x: (layer_norm(x) * b).sum())(x)).all()


def test_nan_and_infinity_stay_in_their_row():
    x = np.ones((3, 4)) * np.arange(4)
    x[0, 1], x[1, 2] = np.nan, np.inf
    y = layer_norm(x)
    assert np.isnan(y[0]).all() and not np.isfinite(y[1]).all()
    np.testing.assert_array_equal(y[2], layer_norm(np.arange(4.0)))


def test_large_float16_rows_are_computed_in_float32():
    x = np.linspace(-6e4, 6e4, 300).astype(np.float16)
    y = layer_norm(x)
    assert y.dtype == np.float16
    close(y.astype(float), exact(x, 1e-5)[0], 2e-3)


def test_jax_agrees():
    jax = pytest.importorskip("jax")
    x, w, b, dy = (randn(4, 6, scale=3), randn(6, seed=1), randn(6, seed=2), randn(4, 6, seed=3))

    def theirs(x, w, b):
        return jax.nn.standardize(x, axis=-1, epsilon=1e-5) * w + b

    with jax.enable_x64(True):
        y, pull = jax.vjp(theirs, *map(jax.numpy.asarray, (x, w, b)))
        want = [np.asarray(a) for a in (y, *pull(dy))]
    y, pull = gl.vjp(layer_norm, x, w, b)
    for got, expected in zip((y, *pull(dy)), want, strict=True):
        close(got, expected, 1e-12)


def test_shift_and_scale_of_the_input_do_not_matter():
    x, w, b = randn(4, 6), randn(6, seed=1), randn(6, seed=2)
    close(layer_norm(7 * x + 3, w, b, eps=1e-12), layer_norm(x, w, b, eps=1e-12), 1e-10)
    close(gl.jacobian(layer_norm)(x[0]).sum(1), np.zeros(6), 1e-14)


def test_second_and_third_order():
    x, w, b = randn(2, 4), randn(4, seed=1), randn(4, seed=2)
    gl.check_grads(lambda x, w, b: layer_norm(x, w, b, eps=0.1), (x, w, b), order=3, rtol=1e-4)


def apart(dy, axis):
    """A stack [V, *y] as [V * B, *y]: member (v, b) is dy[v] with all but entry b of the batch axis set to 0."""
    axis += dy.ndim
    owner = np.arange(dy.shape[axis]).reshape(-1, *(1,) * (dy.ndim - axis - 1))
    return np.concatenate([[np.where(owner == b, d, 0) for b in range(dy.shape[axis])] for d in dy] or [dy])


@pytest.mark.parametrize(
    ("shape", "axis", "v"), [((4, 3), -2, 2), ((4, 2, 3), -3, 1), ((2, 4, 3), -2, 2), ((3, 1), -2, 0)]
)
def test_per_sample_rule_is_the_one_hot_stack(shape, axis, v):
    case = _case(*shape)
    y, saved = case.forward()
    _, dy = case.stacks(v, y)
    each = OP.vjp_each(np, saved, dy, (False, True, True), axis, eps=1e-3)
    assert each[0] is None
    want = [g.reshape(v, shape[axis], *g.shape[1:]) for g in case.vjp(saved, apart(dy, axis))[1:]]
    for got, expected in zip(each[1:], want, strict=True):
        close(got.dense(), expected, 1e-13)


def test_batched_jacobians_and_per_sample_gradients():
    x, w, b = randn(5, 4), randn(4, seed=1), randn(4, seed=2)
    of_x, of_w, of_b = gl.batch_jacobian(layer_norm, (0, 1, 2), in_axes=(0, None, None))(x, w, b)
    for n in range(5):
        each = gl.jacobian(layer_norm, (0, 1, 2))(x[n], w, b)
        for got, want in zip((of_x, of_w, of_b), each, strict=True):
            close(got[n], want, 1e-13)
    close(gl.batch_jacobian(lambda x: layer_norm(x, w, b))(x), of_x, 1e-13)
    grads = gl.per_sample_grad(lambda w, x: (layer_norm(x, w) ** 2).sum(-1))(w, x)
    close(grads[2], gl.grad(lambda w: (layer_norm(x[2], w) ** 2).sum())(w), 1e-13)


def test_samples_are_not_mixed():
    with pytest.raises(ValueError, match="layer_norm works along the batch axis"):
        gl.batch_jacobian(lambda x: layer_norm(x.T).T)(randn(3, 2))
    with pytest.raises(ValueError, match="layer_norm takes weights that differ between samples"):
        gl.batch_jacobian(lambda x: layer_norm(np.ones((3, 3)), x))(randn(3))


def test_capture_replays_other_rows():
    f = gl.capture(gl.grad(lambda x, w: (layer_norm(x, w) ** 3).sum(), (0, 1)))
    for seed in (0, 1):
        x, w = randn(3, 4, seed=seed), randn(4, seed=seed)
        for got, want in zip(f(x, w), gl.grad(lambda x, w: (layer_norm(x, w) ** 3).sum(), (0, 1))(x, w), strict=True):
            np.testing.assert_array_equal(got, want)


def test_layers_have_the_functions_values():
    x = randn(2, 3, 4).astype(np.float32)
    for layer, keys in ((gl.nn.LayerNorm(4), {"w", "b"}), (gl.nn.LayerNorm(4, bias=False), {"w"})):
        params = layer.init(0)
        assert set(params) == keys and all(p.dtype == np.float32 for p in params.values())
        np.testing.assert_array_equal(layer(params, x), layer_norm(x, *params.values()))
    params = gl.nn.RMSNorm(4).init(0, np.float64)
    np.testing.assert_array_equal(gl.nn.RMSNorm(4)(params, x), gl.rms_norm(x, np.ones(4)))
    with pytest.raises(ValueError, match="RMSNorm: expected a positive int as features, got 0"):
        gl.nn.RMSNorm(0)
    with pytest.raises(TypeError, match=r"LayerNorm\(4\): expected its parameters as made by init, got a dict"):
        gl.nn.LayerNorm(4)({"w": x}, x)
