"""softmax, log_softmax, logsumexp: rules on any axis, extreme logits; masked and causal softmax."""

import jax
import mpmath
import numpy as np
import pytest
import scipy.special
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


def _mask(*shape, seed=0):
    """Bools, True for two in three."""
    return np.random.default_rng(seed + sum(shape)).random(shape) < 2 / 3


NOTHING = np.arange(2)[:, None] * np.ones((2, 3)) > 0  # a row without any entry to attend to
# (shape of x, mask, axis, causal)
MASKED = [
    ((2, 3), NOTHING, 1, False),
    ((3, 2), _mask(3, 2), 0, False),
    ((2, 3, 4), _mask(4), 2, False),
    ((2, 2, 3, 5), _mask(2, 1, 1, 5), 3, False),
    ((2, 2, 3, 4), _mask(1, 2, 1, 4), 3, True),
    ((2, 3, 3), _mask(2, 3, 1), 2, True),
    ((3,), np.array(True), 0, False),
    ((1, 1), None, 1, True),
    ((3, 5), None, 1, True),
    ((5, 3), None, 1, True),
    ((2, 3, 12), None, 2, True),
    ((0, 3), _mask(3), 1, True),
]
CASES += [
    Case(
        REGISTRY["masked_softmax"],
        (randn(*shape, scale=2), *(() if mask is None else (mask,))),
        axis=axis,
        causal=causal,
    )
    for shape, mask, axis, causal in MASKED
]
ERRORS = [
    (lambda: gl.softmax("a"), TypeError, "softmax: expected a floating-point array, got str"),
    (lambda: gl.softmax(np.arange(3)), TypeError, "softmax: expected … got int64[3]"),
    (lambda: gl.log_softmax(np.array(["a"])), TypeError, "log_softmax: expected … got <U1[1]"),
    (lambda: gl.logsumexp(np.array([None])), TypeError, "logsumexp: expected … got object[1]"),
    (lambda: gl.softmax(np.ones((2, 0))), ValueError, "softmax: expected at least one entry … got float64[2, 0]"),
    (lambda: gl.softmax(np.ones((2, 3)), axis=2), ValueError, "softmax: axis 2 is out of range"),
    (lambda: gl.softmax(np.ones((2, 3)), axis=1.0), TypeError, "softmax: expected an int as axis, got float"),
    (lambda: gl.logsumexp(np.array(1.0)), ValueError, "logsumexp: axis -1 is out of range"),
    (lambda: gl.softmax(X34, mask=np.ones((3, 4))), TypeError, "softmax: expected a mask of bools … float64[3, 4]"),
    (lambda: gl.softmax(X34, mask=[True] * 4), TypeError, "softmax: expected a mask of bools … got list"),
    (lambda: gl.softmax(X34, mask=np.ones(3, bool)), ValueError, "must broadcast to x: bool[3] and float64[3, 4]"),
    (lambda: gl.softmax(X34, mask=np.ones((2, 3, 4), bool)), ValueError, "softmax: the mask must broadcast … bool[2"),
    (lambda: gl.log_softmax(X34, mask=np.ones(5, bool)), ValueError, "log_softmax: the mask must broadcast"),
    (lambda: gl.softmax(X34, 0, causal=True), ValueError, "softmax: causal needs the last axis, got axis 0"),
    (lambda: gl.softmax(np.ones(3), causal=True), ValueError, "softmax: causal needs two axes (T_q, T_k)"),
    (lambda: gl.softmax(X34, causal=X34), TypeError, "softmax: expected True or False as causal"),
]
X34 = np.ones((3, 4))


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


def _attended(shape, mask, causal):
    """What may be attended to, entry by entry."""
    keep = np.ones(shape, bool) if mask is None else np.broadcast_to(mask, shape).copy()
    if causal:
        for i in range(shape[-2]):
            keep[..., i, max(0, i + 1 + shape[-1] - shape[-2]) :] = False
    return keep


def _by_rows(x, keep, axis):
    """(masked softmax, masked log_softmax) in float64: of each row, the entries to attend to alone."""
    y, log_y = np.zeros(x.shape), np.full(x.shape, -np.inf)
    rows, keeps = np.moveaxis(x, axis, -1).astype(float), np.moveaxis(keep, axis, -1)
    for at in np.ndindex(rows.shape[:-1]):
        chosen = rows[at][keeps[at]]
        if chosen.size:
            log_p = chosen - chosen.max() - np.log(np.sum(np.exp(chosen - chosen.max())))
            np.moveaxis(log_y, axis, -1)[(*at, keeps[at])] = log_p
            np.moveaxis(y, axis, -1)[(*at, keeps[at])] = np.exp(log_p)
    return y, log_y


@pytest.mark.parametrize("hidden", [0.0, np.nan, np.inf, -np.inf, 1e4])
@pytest.mark.parametrize("case", range(len(MASKED)))
def test_what_is_masked_does_not_matter(case, hidden):
    shape, mask, axis, causal = MASKED[case]
    keep = _attended(shape, mask, causal)
    x = np.where(keep, randn(*shape, scale=3), hidden)
    before = x.copy()
    with np.errstate(all="raise", under="ignore"):
        y = gl.softmax(x, axis, mask=mask, causal=causal)
        log_y = gl.log_softmax(x, axis, mask=mask, causal=causal)
        dy = randn(*shape, seed=1)
        (dx,) = gl.vjp(lambda x: gl.softmax(x, axis, mask=mask, causal=causal), x)[1](dy)
        (log_dx,) = gl.vjp(lambda x: gl.log_softmax(x, axis, mask=mask, causal=causal), x)[1](dy)
        _, log_t = gl.jvp(lambda x: gl.log_softmax(x, axis, mask=mask, causal=causal), (x,), (dy,))
    np.testing.assert_array_equal(x, before)
    p, log_p = _by_rows(x, keep, axis)
    close(y, p, 1e-14)
    np.testing.assert_allclose(log_y, log_p, rtol=1e-13, atol=1e-14)
    assert (y[~keep] == 0).all() and (dx[~keep] == 0).all() and (log_dx[~keep] == 0).all()
    close(dx, p * (dy - np.sum(p * dy, axis, keepdims=True)), 1e-13)
    seen = np.where(keep, dy, 0)
    close(log_dx, seen - p * np.sum(seen, axis, keepdims=True), 1e-13)
    close(log_t, np.where(keep, dy - np.sum(p * dy, axis, keepdims=True), 0), 1e-13)


@pytest.mark.parametrize("causal", [False, True])
def test_masked_against_jax(causal):
    x, mask = randn(2, 4, 6, scale=2), _mask(2, 1, 6)
    keep = _attended(x.shape, mask, causal) | (np.arange(6) == 0)  # JAX gives NaN in rows without an entry
    mask = mask | (np.arange(6) == 0)
    jax.config.update("jax_enable_x64", True)
    f = lambda x: jax.nn.softmax(x, where=keep)  # noqa: E731
    close(gl.softmax(x, mask=mask, causal=causal), np.array(f(x)), 1e-14)
    g = lambda x: gl.softmax(x, mask=mask, causal=causal)  # noqa: E731
    close(gl.jacobian(g)(x), np.array(jax.jacobian(f)(x)), 1e-14)
    hessian = gl.hessian(lambda x: np.sum(g(x) ** 3))(x)
    close(hessian, np.array(jax.hessian(lambda x: (f(x) ** 3).sum())(x)), 1e-13)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_extreme_masked_logits(dtype):
    x = np.array([[1e4, 0, -1e4], [1e4, 1e4, np.nan], [-np.inf, -np.inf, 3], [-1e4, 2, -np.inf]], dtype)
    mask = np.array([[0, 1, 1], [1, 1, 0], [1, 1, 0], [1, 0, 1]], bool)
    f = lambda x: gl.softmax(x, mask=mask)  # noqa: E731
    with np.errstate(all="raise", under="ignore"):
        assert f(x).tolist() == [[0, 1, 0], [0.5, 0.5, 0], [0, 0, 0], [1, 0, 0]]
        slopes = gl.jacobian(f)(x)
        curved = gl.hessian(lambda x: np.sum(f(x) ** 2))(x)
    want = np.zeros((4, 3, 4, 3))
    want[1, :2, 1, :2] = [[0.25, -0.25], [-0.25, 0.25]]
    np.testing.assert_array_equal(slopes, want)
    assert np.isfinite(curved).all() and (curved[[0, 2, 3]] == 0).all()


def _apart(f, x):
    """The Jacobian of each sample with itself, from the whole one."""
    whole = gl.jacobian(f)(x)
    return np.stack([whole[n][:, :, n] for n in range(len(x))])


def test_each_sample_has_its_mask():
    x, mask = randn(4, 3, 5), _mask(4, 1, 5)
    for causal in (False, True):
        f = lambda x, mask=mask, causal=causal: np.tanh(gl.softmax(x * x, mask=mask, causal=causal))  # noqa: E731
        want = _apart(f, x)
        close(gl.batch_jacobian(f)(x), want, 1e-14)
        close(gl.batch_jacobian(f)(x, mask), want, 1e-14)
        close(
            gl.batch_jacobian(lambda x, f=f: f(x, _mask(3, 5)))(x), _apart(lambda x, f=f: f(x, _mask(3, 5)), x), 1e-14
        )


def test_masks_that_mix_samples():
    x = randn(3, 3)
    with pytest.raises(ValueError, match="combines the batch axis of one argument with another axis"):
        gl.batch_jacobian(lambda x, mask: gl.softmax(x, mask=np.swapaxes(mask, 0, 1)))(x, _mask(3, 3))
    with pytest.raises(ValueError, match="softmax works along the batch axis"):
        gl.batch_jacobian(lambda x: gl.softmax(x, 0, mask=_mask(3, 3)))(x)


def test_masked_softmax_is_replayed():
    x, mask = randn(2, 3, 4), _mask(2, 1, 4)
    f = gl.capture(gl.grad(lambda x, mask: np.sum(gl.softmax(x, mask=mask, causal=True) ** 2)))
    f(x, mask)
    for seed in (1, 2):
        x, mask = randn(2, 3, 4, seed=seed), _mask(2, 1, 4, seed=seed)
        want = gl.grad(lambda x, mask=mask: np.sum(gl.softmax(x, mask=mask, causal=True) ** 2))(x)
        np.testing.assert_array_equal(f(x, mask), want)


AXES = [None, (0, 2), (1,), (-1, 0), ()]


@pytest.mark.parametrize("axis", AXES)
def test_several_axes_are_scipys(axis):
    x = randn(2, 3, 4, scale=2)
    for ours, theirs in ((gl.softmax, scipy.special.softmax), (gl.log_softmax, scipy.special.log_softmax)):
        if axis != ():
            close(ours(x, axis), theirs(x, axis), 1e-14)
            gl.check_grads(lambda x, f=ours: f(x, axis), (x,), order=2)
    for keepdims in (False, True):
        y = gl.logsumexp(x, axis, keepdims)
        want = scipy.special.logsumexp(x, axis, keepdims=keepdims) if axis != () else x
        assert y.shape == want.shape
        close(y, want, 1e-14)
    gl.check_grads(lambda x: gl.logsumexp(x, axis, True), (x,), order=2)


def test_logsumexp_with_weights_is_scipys():
    x, b = randn(2, 3, 4, scale=2), np.abs(randn(3, 1)) + 0.1
    b[0] = 0
    for axis, keepdims in ((None, False), ((0, 1), True), (1, False), (-1, True)):
        for weights in (b, 2.0, b - 0.05 * (b > 0)):
            y, want = gl.logsumexp(x, axis, keepdims, b=weights), scipy.special.logsumexp(x, axis, weights, keepdims)
            assert y.shape == want.shape
            close(np.exp(y), np.exp(want), 1e-13)
            gl.check_grads(lambda x, a=axis, w=weights: np.exp(gl.logsumexp(x, a, b=w)), (x,), order=2)
    gl.check_grads(lambda x, b: gl.logsumexp(x, None, b=b), (x, b), order=2)
    assert gl.vjp(lambda x: gl.logsumexp(x, b=2.0), np.float32(x))[0].dtype == np.float32


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_weights_of_zero_and_below():
    x = np.array([1e4, np.inf, 2.0])
    assert gl.logsumexp(x, b=np.array([1.0, 0, 1])) == 1e4
    np.testing.assert_array_equal(gl.grad(lambda x: gl.logsumexp(x, b=np.array([1.0, 0, 1])))(x), [1, 0, 0])
    np.testing.assert_array_equal(gl.grad(lambda x: gl.logsumexp(x, b=0.0))(x), [0, 0, 0])
    assert np.isnan(gl.logsumexp(np.zeros(2), b=-1.0))
    slope = gl.grad(lambda b: gl.logsumexp(np.array([1.0, 2.0]), b=b))(np.array([1.0, 0.0]))
    close(slope, [1, np.e], 1e-14)


def test_masks_need_one_axis():
    with pytest.raises(ValueError, match="softmax: mask and causal need one axis, got None"):
        gl.softmax(np.zeros((2, 2)), None, causal=True)
    with pytest.raises(TypeError, match="logsumexp: expected a floating-point array"):
        gl.logsumexp(np.zeros(2, int), axis=None)
    with pytest.raises(ValueError, match="softmax: expected at least one entry"):
        gl.softmax(np.zeros((2, 0)), None)


def test_the_advice_for_scipys_functions_gives_what_they_give():
    x = randn(2, 3)
    for f in (scipy.special.logsumexp, scipy.special.softmax):
        with pytest.raises(TypeError, match=r"use gl\.logsumexp\(x, axis=None\) and gl\.softmax\(x, axis=None\)"):
            gl.grad(lambda x, f=f: np.sum(f(x)))(x)
    close(gl.logsumexp(x, axis=None), scipy.special.logsumexp(x), 1e-14)
    close(gl.softmax(x, axis=None), scipy.special.softmax(x), 1e-14)
