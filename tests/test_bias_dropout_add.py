"""Bias, activation, dropout and residual as one op: rules, and equality with the functions one after the other."""

import numpy as np
import pytest
from rulecheck import Case, RuleCheck, close, randn

import gradlib as gl
from gradlib.op import REGISTRY
from gradlib.ops.activations import ACTIVATIONS
from gradlib.ops.bias_dropout_add import bias_dropout_add

SEED, COUNTER = np.array(7, np.uint64), np.array(2**33 + 5, np.uint64)


def _case(shape, bias, residual, mask, activation):
    args = (randn(*shape), randn(shape[-1], seed=1) if bias else None, randn(*shape, seed=2) if residual else None)
    state = (SEED, COUNTER) if mask else (None, None)
    return Case(REGISTRY["bias_dropout_add"], (*args, *state), activation=activation, rate=0.4)


CASES = [_case((2, 4), True, True, True, name) for name in (None, "relu", "gelu", "silu")]
CASES += [_case((2, 4), True, False, False, name) for name in ("relu", "gelu", "silu", "tanh", "leaky_relu")]
CASES += [_case((2, 3, 4), *flags, None) for flags in [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0), (1, 1, 0)]]
CASES += [
    _case((2, 3), True, True, True, "gelu"),
    _case((5,), True, True, True, "silu"),
    _case((0, 4), True, True, True, "gelu"),
    _case((1, 1), True, False, True, "relu"),
    _case((3, 8), False, True, True, "silu"),
]
X = np.ones((2, 3))
ERRORS = [
    (lambda: bias_dropout_add("a"), TypeError, "bias_dropout_add: expected floating-point x, got str"),
    (lambda: bias_dropout_add(X, np.arange(3)), TypeError, "bias_dropout_add: expected floating-point b, got int64[3]"),
    (lambda: bias_dropout_add(X, None, 1), TypeError, "expected floating-point residual, got int"),
    (lambda: bias_dropout_add(np.float64(1)), ValueError, "bias_dropout_add: expected x (..., D)"),
    (lambda: bias_dropout_add(X, np.ones(2)), ValueError, "expected b of shape (3,) … got float64[2]"),
    (lambda: bias_dropout_add(X, np.ones((1, 3))), ValueError, "expected b of shape (3,) … got float64[1, 3]"),
    (lambda: bias_dropout_add(X, None, np.ones(3)), ValueError, "residual of the shape of x … got float64[3]"),
    (lambda: bias_dropout_add(X, activation="step"), ValueError, "expected activation None or one of relu, … 'step'"),
    (lambda: bias_dropout_add(X, rate=1.0), ValueError, "bias_dropout_add: expected 0 <= rate < 1, got 1.0"),
    (lambda: bias_dropout_add(X, rate=0.5, rng=3), TypeError, "expected a gl.Generator or None as rng, got int"),
]


class TestRules(RuleCheck):
    cases = CASES
    errors = ERRORS


def _one_after_the_other(x, b, residual, activation, rate, rng):
    y = x + b
    if activation is not None:
        op = ACTIVATIONS[activation]
        y = op.op(y, **op.static)
    return residual + gl.dropout(y, rate, rng)


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
def test_it_is_the_functions_one_after_the_other(activation):
    x, b, residual = randn(3, 5), randn(5), randn(3, 5, seed=3)
    fused, plain = gl.Generator(11), gl.Generator(11)
    for _ in range(2):
        y, pullback = gl.vjp(
            lambda *a: bias_dropout_add(*a, activation=activation, rate=0.3, rng=fused), x, b, residual
        )
        want, pullback_of = gl.vjp(lambda *a: _one_after_the_other(*a, activation, 0.3, plain), x, b, residual)
        np.testing.assert_array_equal(y, want)
        dy = randn(3, 5, seed=4)
        for got, d in zip(pullback(dy), pullback_of(dy), strict=True):
            close(got, d, 1e-14)
    assert int(fused.counter) == int(plain.counter) == 2


def test_evaluation_and_rate_zero_draw_nothing():
    x, rng = randn(2, 3), gl.Generator(0)
    np.testing.assert_array_equal(bias_dropout_add(x, rate=0.9), x)
    np.testing.assert_array_equal(bias_dropout_add(x, rate=0.0, rng=rng), x)
    assert int(rng.counter) == 0
    assert not np.shares_memory(bias_dropout_add(x), x)


def test_extreme_values():
    x = np.array([[1e4, -1e4, 0.0, np.finfo(np.float32).max]], np.float32)
    with np.errstate(all="raise", under="ignore"):
        y, pullback = gl.vjp(lambda x: bias_dropout_add(x, activation="gelu"), x[:, :3])
        assert y.tolist() == [[1e4, 0, 0]] and pullback(np.ones_like(y))[0].tolist() == [[1, 0, 0.5]]
        y, pullback = gl.vjp(lambda x: bias_dropout_add(x, activation="relu"), x)
        assert y.tolist() == [[1e4, 0, 0, x[0, 3]]] and pullback(np.ones_like(y))[0].tolist() == [[1, 0, 0, 1]]


def test_jacobians_and_bias_gradients_of_each_sample():
    x, b, residual, w = randn(4, 3), randn(3), randn(4, 3, seed=1), randn(3, 3)

    def f(x, b, rng_of=lambda: gl.Generator(5)):
        return np.tanh(bias_dropout_add(x @ w, b, x * residual, activation="silu", rate=0.5, rng=rng_of()))

    whole = gl.jacobian(f)(x, b)
    close(gl.batch_jacobian(f, in_axes=(0, None))(x, b), np.stack([whole[n][:, n] for n in range(4)]), 1e-14)
    of_b = gl.batch_jacobian(f, argnums=1, in_axes=(0, None))(x, b)
    close(of_b, gl.jacobian(f, argnums=1)(x, b), 1e-14)
    each = gl.per_sample_grad(lambda b, x: f(x, b).sum(-1))(b, x)
    close(each, of_b.sum(1), 1e-14)


def test_replayed_masks_are_new():
    x, b, rng, other = randn(2, 4), randn(4), gl.Generator(3), gl.Generator(3)
    step = gl.capture(
        lambda x: gl.grad(lambda x: np.sum(bias_dropout_add(x, b, rate=0.5, rng=rng, activation="gelu")))(x)
    )
    for n in range(3):
        want = gl.grad(lambda x: np.sum(bias_dropout_add(x, b, rate=0.5, rng=other, activation="gelu")))(x + n)
        np.testing.assert_array_equal(step(x + n), want)
