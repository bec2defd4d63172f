"""The compiled CPU loops of layer_norm and rms_norm against their NumPy rules."""

import numpy as np
import pytest
from rulecheck import close, randn

import gradlib as gl
from gradlib.op import REGISTRY
from gradlib.ops import norm_rows

SIZES = [(70, 130), (9, 1000), (1, 9000), (3000, 3), (9000, 1), (4, 30, 80)]
NEEDS = [(True, True, True), (True, False, False), (False, True, False), (False, False, True), (False, True, True)]


@pytest.fixture
def rule(monkeypatch):
    """Calls a function with the loops left out."""

    def call(function, *args, **static):
        with monkeypatch.context() as patch:
            patch.setattr(norm_rows, "LEAST", 1 << 62)
            return function(np, *args, **static)

    return call


def data(name, shape, dtype, V=2):
    x, w, b = randn(*shape, scale=2, shift=1), randn(shape[-1], seed=1), randn(shape[-1], seed=2)
    args = (x, w, b) if name == "layer_norm" else (x, w)
    return [a.astype(dtype) for a in args], randn(V, *shape, seed=3).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
def test_loops_are_the_rules(name, shape, dtype, rule):
    op, (args, dy) = REGISTRY[name], data(name, shape, dtype)
    assert norm_rows.loops(np, *args) is not None
    tolerance = (1e-5 if dtype == "float32" else 1e-13) * np.sqrt(1 + args[0].size // shape[-1])
    for count in range(1, len(args) + 1):
        y, saved = op.forward(np, *args[:count], eps=1e-5)
        want, same = rule(op.forward, *args[:count], eps=1e-5)
        for got, expected in zip((y, *saved), (want, *same), strict=True):
            if expected is not None:
                assert got.dtype == expected.dtype
                close(got, expected, tolerance)
        for need in {n[:count] for n in NEEDS}:
            results = op.vjp(np, saved, dy, need, eps=1e-5), rule(op.vjp, saved, dy, need, eps=1e-5)
            for got, expected in zip(*results, strict=True):
                assert (got is None) == (expected is None)
                if got is not None:
                    assert got.dtype == expected.dtype
                    close(got, expected, tolerance)


@pytest.mark.parametrize("V", [0, 1, 3])
def test_stacks_and_layouts(V, rule):
    op, (args, _) = REGISTRY["layer_norm"], data("layer_norm", (100, 90), "float64")
    dy = np.asfortranarray(randn(V, 100, 180))[..., ::2]
    _, saved = op.forward(np, np.asfortranarray(args[0]), args[1][::-1], args[2], eps=1e-5)
    need = (True, True, True)
    for got, want in zip(op.vjp(np, saved, dy, need, eps=1e-5), rule(op.vjp, saved, dy, need, eps=1e-5), strict=True):
        close(got, want, 1e-11)


def test_rows_the_rule_has_to_shrink():
    x = np.random.default_rng(0).uniform(-0.9, 0.9, (20, 500)).astype(np.float32)
    large = x * np.linspace(1, 3e38, 20, dtype=np.float32)[:, None]
    for f in (gl.layer_norm, gl.rms_norm):
        close(f(large, eps=1e-30), f(x, eps=1e-30), 2e-5)


def test_constant_rows_and_a_large_mean():
    x = np.repeat(np.array([[0.1], [1e4], [1e8], [-3.3e37]], np.float32), 3000, axis=1)
    np.testing.assert_allclose(gl.layer_norm(x), 0, atol=1e-3)
    rows = np.random.default_rng(0).normal(1e4, 1, (30, 900)).astype(np.float32)
    exact = rows.astype(np.float64)
    mean = exact.mean(1, keepdims=True)
    _, (_, got, r, _) = REGISTRY["layer_norm"].forward(np, rows, eps=1e-5)
    assert (abs(got - mean) <= np.spacing(got)).all()
    np.testing.assert_allclose(r, 1 / np.sqrt(exact.var(1, keepdims=True) + 1e-5), rtol=2e-6)


def test_nan_stays_in_its_row():
    x = randn(100, 100)
    x[3, 4] = np.nan
    y = gl.layer_norm(x)
    assert np.isnan(y[3]).all() and np.isfinite(np.delete(y, 3, 0)).all()


def test_what_is_left_to_the_rule():
    x, w = randn(100, 100), randn(100)
    assert norm_rows.loops(np, x, w) is not None
    for args in ((x[:5], w), (x, w.astype("float32")), (x.astype("float16"), w.astype("float16"))):
        assert norm_rows.loops(np, *args) is None
    assert norm_rows.loops(np, randn(1, 20000)) is None
    assert gl.layer_norm(x, w.astype("float32")).dtype == np.float64
    gl.grad(lambda x: (gl.layer_norm(gl.layer_norm(x, w)) ** 2).sum())(x)


def test_jacobian_of_many_rows():
    x, w = randn(60, 150), randn(150)
    for f in (gl.layer_norm, gl.rms_norm):
        got = gl.batch_jacobian(lambda x, f=f: f(x, w))(x)
        close(got[7], gl.jacobian(lambda x, f=f: f(x, w))(x[7]), 1e-12)
