"""clip_by_global_norm against the formula in float64, optax's and torch's conventions, and what it must refuse."""

import warnings

import numpy as np
import pytest
from rulecheck import close, randn
from standin import DeviceArray, rules_only, to_numpy, to_standin

import gradlib as gl
from gradlib.kernels import clipping as kernels
from gradlib.optim.clipping import clip_by_global_norm

SHAPES = [(3, 5), (5,), (), (1, 1), (0, 4), (257,)]


def gradients(dtype, scale=1.0):
    rng = np.random.default_rng(0)
    return {f"g{i}": np.asarray(scale * rng.standard_normal(s), dtype) for i, s in enumerate(SHAPES)}


def reference(grads, max_norm):
    """optax.clip_by_global_norm: g where norm < max_norm, else g / norm · max_norm; in float64."""
    norm = np.sqrt(sum(np.sum(g.astype(float) ** 2) for g in grads.values()))
    return {
        k: g.astype(float) if norm < max_norm else g.astype(float) / norm * max_norm for k, g in grads.items()
    }, norm


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2e-3), ("float32", 1e-6), ("float64", 1e-14)])
@pytest.mark.parametrize("max_norm", [1e-3, 1.0, 16.0, 1e3, np.inf])
def test_formula(dtype, tolerance, max_norm):
    grads = gradients(dtype)
    before = {k: g.copy() for k, g in grads.items()}
    clipped, norm = clip_by_global_norm(grads, max_norm)
    want, want_norm = reference(grads, max_norm)
    assert norm.shape == () and norm.dtype == ("float64" if dtype == "float64" else "float32")
    np.testing.assert_allclose(norm, want_norm, rtol=min(tolerance, 1e-6))
    for k, g in grads.items():
        np.testing.assert_array_equal(g, before[k])
        assert clipped[k].dtype == dtype and clipped[k].shape == g.shape
        assert not np.shares_memory(clipped[k], g)
        np.testing.assert_allclose(clipped[k], want[k], rtol=tolerance, atol=1e-7 if dtype == "float16" else 0)
        if max_norm > want_norm:
            np.testing.assert_array_equal(clipped[k], g)


def test_the_norm_of_what_is_clipped():
    grads = gradients("float64", 100.0)
    _, norm = clip_by_global_norm(clip_by_global_norm(grads, 0.5)[0], 1.0)
    np.testing.assert_allclose(norm, 0.5, rtol=1e-14)


def test_a_long_sum_in_float32_keeps_its_digits():
    g = np.full(3_000_001, 0.1, np.float32)
    clipped, norm = clip_by_global_norm([g[::-1]], 1.0)
    want = np.sqrt(np.sum(g.astype(float) ** 2))
    np.testing.assert_allclose(norm, want, rtol=1e-6)
    np.testing.assert_allclose(clipped[0], g / want, rtol=1e-6)


def test_strides_and_nesting():
    a = randn(4, 6)
    (x, (y, none)), norm = clip_by_global_norm((a[::2, ::-1], [a.T, None]), 1.0)
    want = np.sqrt(np.sum(a[::2] ** 2) + np.sum(a**2))
    close(norm, want, 1e-14)
    close(x, a[::2, ::-1] / want, 1e-15)
    close(y, a.T / want, 1e-15)
    assert none is None


@pytest.mark.parametrize("max_norm", [0.0, 1.0])
@pytest.mark.parametrize("empty", [{}, [], None, [np.zeros((0, 3))], [np.zeros(4)], np.zeros(())], ids=repr)
def test_nothing_to_clip(empty, max_norm):
    clipped, norm = clip_by_global_norm(empty, max_norm)
    assert norm == 0 and norm.shape == ()
    assert str(clipped) == str(empty)


def test_max_norm_zero_clips_to_zero():
    clipped, norm = clip_by_global_norm([np.array([3.0, -4.0])], 0.0)
    assert norm == 5 and np.all(clipped[0] == 0)


@pytest.mark.parametrize(
    ("entry", "norm", "finite", "itself"),
    [(np.inf, np.inf, 0.0, np.nan), (-np.inf, np.inf, 0.0, np.nan), (np.nan, np.nan, np.nan, np.nan)],
)
def test_infinite_and_nan(entry, norm, finite, itself):
    with np.errstate(all="raise"):
        (g,), got = clip_by_global_norm([np.array([entry, 1.0])], 1.0)
    np.testing.assert_array_equal(got, norm)
    np.testing.assert_array_equal(g, [itself, finite])


@pytest.mark.parametrize("big", [1e18, 3e38])
def test_large_float32(big):
    """Up to 1e19 as in the docstring; beyond, an infinite norm makes 0, as optax has it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (g,), norm = clip_by_global_norm([np.full(2, big, np.float32)], 1.0)
    want = [np.sqrt(2) * big, np.sqrt(0.5)] if big < 1e19 else [np.inf, 0]
    np.testing.assert_allclose([norm, g[0]], want, rtol=1e-6)


def test_dtypes_may_be_mixed():
    grads = [np.full(2, 3.0, t) for t in ("float16", "float32", "float64")]
    clipped, norm = clip_by_global_norm(grads, 1.0)
    assert [g.dtype for g in clipped] == [g.dtype for g in grads] and norm.dtype == "float64"
    np.testing.assert_allclose(norm, np.sqrt(54), rtol=1e-7)
    for g in clipped:
        np.testing.assert_allclose(g, 3 / np.sqrt(54), rtol=1e-3)


@pytest.mark.parametrize("max_norm", [0.5, 100.0, np.inf])
def test_derivatives_pass_through(max_norm):
    x = [randn(3), randn(2, 2)]

    def f(x, y):
        clipped, norm = clip_by_global_norm([np.sin(x), y * y], max_norm)
        return np.sum(clipped[0] ** 3) + np.sum(np.cos(clipped[1])) + norm

    gl.check_grads(f, tuple(x), order=2)


@pytest.mark.parametrize("max_norm", [0.0, 1.0, np.inf])
def test_derivative_at_zero_is_zero_or_one(max_norm):
    slope = gl.grad(lambda x: np.sum(clip_by_global_norm(x, max_norm)[0]) + clip_by_global_norm(x, max_norm)[1])
    np.testing.assert_array_equal(slope(np.zeros(3)), 1)


def test_training_with_capture():
    params, x = {"w": randn(3, 2), "b": randn(2)}, randn(5, 3)
    plain = {k: p.copy() for k, p in params.items()}

    def step(opt, p, x):
        grads = gl.grad(lambda p: np.sum((x @ p["w"] + p["b"]) ** 2))(p)
        clipped, norm = gl.optim.clip_by_global_norm(grads, 2.0)
        opt.step(clipped)
        return norm

    opt, other = gl.optim.SGD(params, lr=0.1), gl.optim.SGD(plain, lr=0.1)
    captured = gl.capture(lambda x: step(opt, params, x))
    for n in range(4):
        assert captured(x + n) == step(other, plain, x + n) > 2
    for k in params:
        np.testing.assert_array_equal(params[k], plain[k])


def test_on_device_arrays(monkeypatch):
    """Array code serves on any device; nothing goes by way of the host."""
    monkeypatch.setattr(kernels, "clip_by_global_norm", lambda *args: NotImplemented)
    with rules_only():
        for max_norm in (1.0, 100.0):
            grads = [randn(3), randn(2, 2)]
            clipped, norm = clip_by_global_norm(to_standin(grads), max_norm)
            want, want_norm = clip_by_global_norm(grads, max_norm)
            assert isinstance(norm, DeviceArray)
            for a, b in zip([*to_numpy(clipped), to_numpy(norm)], [*want, want_norm], strict=True):
                close(a, b, 1e-14)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: clip_by_global_norm([np.ones(2)], -1.0), ValueError, "clip_by_global_norm: expected max_norm >= 0"),
        (lambda: clip_by_global_norm([np.ones(2)], np.nan), ValueError, "got nan"),
        (lambda: clip_by_global_norm([np.ones(2)], "1"), ValueError, "got '1'"),
        (lambda: clip_by_global_norm({"w": np.ones(2, int)}, 1.0), TypeError, r"floating-point.*int64\[2\] at .*w"),
        (lambda: clip_by_global_norm([1.0], 1.0), TypeError, "floating-point arrays, got float"),
        (lambda: clip_by_global_norm(["a"], 1.0), TypeError, "floating-point arrays, got str"),
        (lambda: clip_by_global_norm([np.ones(2), to_standin(np.ones(2))], 1.0), TypeError, "standin, others on numpy"),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call()
