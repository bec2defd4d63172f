"""rms_norm: rules, rows of any size, mpmath and JAX, per-sample weights."""

import mpmath
import numpy as np
import pytest
from rulecheck import Case, RuleCheck, close, randn
from test_layer_norm import ROWS, SHAPES, apart

import gradlib as gl
from gradlib.op import REGISTRY
from gradlib.ops.rms_norm import rms_norm

OP = REGISTRY["rms_norm"]


def _case(*shape, weight=True, eps=1e-3):
    x = randn(*shape, scale=2, shift=1)
    return Case(OP, (x, randn(*shape[-1:], seed=1, shift=1)) if weight else (x,), eps=eps)


CASES = [_case(*s) for s in SHAPES] + [_case(2, 5, weight=False)]
ERRORS = [
    (lambda: rms_norm("a"), TypeError, "rms_norm: expected floating-point x, got str"),
    (lambda: rms_norm(np.ones(3), np.ones(3, int)), TypeError, "rms_norm: expected floating-point weight"),
    (lambda: rms_norm(np.ones((2, 3)), np.ones(2)), ValueError, "weight of shape (3,) … got float64[2]"),
    (lambda: rms_norm(np.ones((2, 0))), ValueError, "at least one entry a row, got float64[2, 0]"),
    (lambda: rms_norm(np.ones(3), eps=-1e-5), ValueError, "rms_norm: expected a positive eps, got -1e-05"),
    (lambda: rms_norm(np.ones(3), eps=True), TypeError, "rms_norm: expected a number as eps, got bool"),
]


class TestRules(RuleCheck):
    cases = CASES
    errors = ERRORS


def exact(row, eps):
    """The normalised row and its Jacobian, to 60 digits."""
    with mpmath.workdps(60):
        x = [mpmath.mpf(float(v)) for v in row]
        n = len(x)
        r = 1 / mpmath.sqrt(mpmath.fsum([v * v for v in x]) / n + mpmath.mpf(eps))
        h = [v * r for v in x]
        slope = [[r * ((i == j) - h[i] * h[j] / n) for j in range(n)] for i in range(n)]
        return np.array([float(v) for v in h]), np.array([[float(v) for v in row] for row in slope])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ROWS)
def test_extreme_rows_against_mpmath(name, dtype):
    x = np.array(ROWS[name], dtype)
    h, slope = exact(x, 1e-5)
    eps = 16 * np.finfo(dtype).eps
    np.testing.assert_allclose(rms_norm(x, eps=1e-5), h, rtol=0, atol=eps * abs(h).max())
    jacobian = gl.jacobian(lambda x: rms_norm(x, eps=1e-5))(x)
    np.testing.assert_allclose(jacobian, slope, rtol=0, atol=eps * (abs(slope).max() + 1 / abs(x).max()))


def test_rows_of_zeros():
    x = np.zeros((2, 3))
    assert (rms_norm(x) == 0).all()
    close(gl.jacobian(rms_norm)(x[0]), 1000 * np.eye(3), 1e-12)


def test_large_float16_rows_are_computed_in_float32():
    x = np.linspace(1, 6e4, 300).astype(np.float16)
    y = rms_norm(x)
    assert y.dtype == np.float16
    close(y.astype(float), exact(x, 1e-6)[0], 2e-3)


def test_jax_agrees():
    jax = pytest.importorskip("jax")
    x, w, dy = randn(4, 6, scale=3), randn(6, seed=1), randn(4, 6, seed=3)

    def theirs(x, w):
        return x / jax.numpy.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * w

    with jax.enable_x64(True):
        y, pull = jax.vjp(theirs, *map(jax.numpy.asarray, (x, w)))
        want = [np.asarray(a) for a in (y, *pull(dy))]
    y, pull = gl.vjp(rms_norm, x, w)
    for got, expected in zip((y, *pull(dy)), want, strict=True):
        close(got, expected, 1e-12)


def test_second_and_third_order():
    x, w = randn(2, 4), randn(4, seed=1)
    gl.check_grads(lambda x, w: rms_norm(x, w, eps=0.1), (x, w), order=3, rtol=1e-4)


@pytest.mark.parametrize(("shape", "axis", "v"), [((4, 3), -2, 2), ((4, 2, 3), -3, 1), ((2, 4, 3), -2, 2)])
def test_per_sample_rule_is_the_one_hot_stack(shape, axis, v):
    case = _case(*shape)
    y, saved = case.forward()
    _, dy = case.stacks(v, y)
    _, each = OP.vjp_each(np, saved, dy, (False, True), axis, eps=1e-3)
    want = case.vjp(saved, apart(dy, axis))[1]
    close(each.dense(), want.reshape(v, shape[axis], *want.shape[1:]), 1e-13)


@pytest.mark.parametrize("shape", [(5, 4), (3, 2, 4)])
def test_batched_jacobian(shape):
    x, w = randn(*shape), randn(4, seed=1)
    of_x, of_w = gl.batch_jacobian(rms_norm, (0, 1), in_axes=(0, None))(x, w)
    close(gl.batch_jacobian(lambda x: rms_norm(x, w))(x), of_x, 1e-13)
    for n in range(shape[0]):
        for got, want in zip((of_x, of_w), gl.jacobian(rms_norm, (0, 1))(x[n], w), strict=True):
            close(got[n], want, 1e-13)


def test_samples_are_not_mixed():
    with pytest.raises(ValueError, match="rms_norm works along the batch axis"):
        gl.batch_jacobian(lambda x: rms_norm(x.T).T)(randn(3, 2))
