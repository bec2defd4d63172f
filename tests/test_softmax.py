"""softmax, log_softmax, logsumexp: rules on any axis, extreme logits, masks."""

import mpmath
import numpy as np
import pytest
from rulecheck import Case, RuleCheck, close, randn

import gradlib as gl
from gradlib.op import REGISTRY

NAMES = ("softmax", "log_softmax", "logsumexp")
SHAPES = [((2, 3), 1), ((2, 3), 0), ((5,), 0), ((2, 1), 1), ((0, 3), 1), ((2, 3, 2), 1)]


def _case(name, shape, axis, keepdims=False):
    return Case(
        REGISTRY[name], (randn(*shape, scale=2),), axis=axis, **({"keepdims": keepdims} if "sum" in name else {})
    )


CASES = [_case(name, *s) for name in NAMES for s in SHAPES]
CASES += [_case("logsumexp", *s, keepdims=True) for s in SHAPES]
CASES += [_case(name, (2, n), 1) for name in NAMES for n in (17, 33)]
ERRORS = [
    (lambda: gl.softmax("a"), TypeError, "softmax: expected a floating-point array, got str"),
    (lambda: gl.softmax(np.arange(3)), TypeError, "softmax: expected … got int64[3]"),
    (lambda: gl.log_softmax(np.array(["a"])), TypeError, "log_softmax: expected … got <U1[1]"),
    (lambda: gl.logsumexp(np.array([None])), TypeError, "logsumexp: expected … got object[1]"),
    (lambda: gl.softmax(np.ones((2, 0))), ValueError, "softmax: expected at least one entry … got float64[2, 0]"),
    (lambda: gl.softmax(np.ones((2, 3)), axis=2), ValueError, "softmax: axis 2 is out of range"),
    (lambda: gl.softmax(np.ones((2, 3)), axis=1.0), TypeError, "softmax: expected an int as axis, got float"),
    (lambda: gl.logsumexp(np.array(1.0)), ValueError, "logsumexp: axis -1 is out of range"),
]


class TestRules(RuleCheck):
    cases = CASES
    errors = ERRORS


EXTREME = np.array([[1e4, -1e4, 0], [-np.inf, 1, 2], [-np.inf, -1e4, -np.inf], [1e4, 1e4, -1e4]])


def _exact(row):
    with mpmath.workdps(30):
        x = [mpmath.mpf(float(v)) for v in row]
        total = mpmath.fsum(map(mpmath.exp, x))
        return (
            [float(mpmath.exp(v) / total) for v in x],
            [float(v - mpmath.log(total)) for v in x],
            float(mpmath.log(total)),
        )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_extreme_logits_against_mpmath(dtype):
    x = EXTREME.astype(dtype)
    with np.errstate(all="raise", under="ignore"):
        y, log_y, s = gl.softmax(x), gl.log_softmax(x), gl.logsumexp(x)
        slopes = [gl.jacobian(f)(x) for f in (gl.softmax, gl.log_softmax, gl.logsumexp)]
    for n, row in enumerate(x):
        p, log_p, total = _exact(row)
        eps = 4 * np.finfo(dtype).eps
        close(y[n], np.array(p), eps)
        np.testing.assert_allclose(log_y[n], log_p, rtol=eps)
        np.testing.assert_allclose(s[n], total, rtol=eps)
        close(slopes[0][n, :, n], np.diag(p) - np.outer(p, p), eps)
        close(slopes[1][n, :, n], np.eye(3) - np.array(p), eps)
        close(slopes[2][n, n], np.array(p), eps)


def test_a_row_of_minus_infinity():
    x = np.full((1, 3), -np.inf)
    with np.errstate(all="raise"):
        assert gl.softmax(x).tolist() == [[0, 0, 0]]
        assert gl.log_softmax(x).tolist() == [[-np.inf] * 3]
        assert gl.logsumexp(x).tolist() == [-np.inf]
        for f in (gl.softmax, gl.logsumexp):
            assert gl.grad(lambda x, f=f: f(x).sum())(x).tolist() == [[0, 0, 0]]
            assert (gl.hessian(lambda x, f=f: (f(x) * 1.5).sum())(x) == 0).all()


def test_shift_invariance_and_sums():
    x = randn(4, 6, scale=3)
    np.testing.assert_allclose(gl.softmax(x + 50), gl.softmax(x), rtol=1e-12)
    np.testing.assert_allclose(gl.softmax(x).sum(-1), 1, rtol=1e-14)
    np.testing.assert_allclose(gl.jacobian(gl.softmax)(x).sum((-1, -2)), 0, atol=1e-15)


def test_axis_defaults_to_the_last():
    x = randn(2, 3)
    np.testing.assert_array_equal(gl.softmax(x), gl.softmax(x, axis=1))
    np.testing.assert_array_equal(gl.softmax(x, axis=-2), gl.softmax(x.T).T)
    assert gl.logsumexp(x, keepdims=True).shape == (2, 1)
