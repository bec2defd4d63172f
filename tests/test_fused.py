"""The compiled loops for small layers against the NumPy rule, which is the specification."""

import itertools
import os
import threading
import time

import numpy as np
import pytest

import gradlib as gl
from gradlib.jacobian import execute, fused, known
from gradlib.kernels import row_loops, small_products

RNG = np.random.default_rng(0)
DTYPES = [np.float32, np.float64]


@pytest.fixture(autouse=True)
def small_batches_too(monkeypatch):
    monkeypatch.setattr(fused, "WORTH", 0)
    known._known.clear()


def rounding(dtype):
    return 3e-5 if dtype == np.float32 else 1e-12


def by_rule(monkeypatch, f, x, **options):
    """The Jacobian without the loops."""
    with monkeypatch.context() as patch:
        patch.setattr(execute, "looped", lambda segments, like: segments)
        return gl.batch_jacobian(f, **options)(x)


def close(got, want, dtype):
    assert got.dtype == want.dtype == dtype and got.shape == want.shape and got.flags.c_contiguous
    np.testing.assert_allclose(
        got, want, rtol=rounding(dtype), atol=rounding(dtype) * (np.abs(want).max(initial=0) + 1)
    )


def network(widths, activations, dtype, rng=RNG):
    ws = [(rng.standard_normal((a, b)) / a**0.5).astype(dtype) for a, b in itertools.pairwise(widths)]

    def f(x):
        for w, name in zip(ws, activations, strict=True):
            rows = {"softmax": gl.softmax, "layer_norm": gl.layer_norm, "rms_norm": gl.rms_norm}.get(name)
            x = gl.linear(x, w, activation=name) if rows is None else rows(x @ w)
        return x

    return f, ws


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stack", [*range(1, 13), 23])
def test_products_of_every_tile(stack, dtype):
    for inner, width in itertools.product((0, 1, 7, 40), (16, 17, 33, 100)):
        m = RNG.standard_normal((3, stack, inner)).astype(dtype)
        d = (RNG.standard_normal((3, inner)) * (RNG.random((3, inner)) > 0.5)).astype(dtype)
        w = RNG.standard_normal((inner, width)).astype(dtype)
        out = np.full((3, stack, width), np.nan, dtype)
        small_products.products(m, [(d, w)], out)
        want = (m.astype(float) * d[:, None]) @ w.astype(float)
        np.testing.assert_allclose(out, want, rtol=rounding(dtype), atol=20 * rounding(dtype))
        small_products.products(m[:1], [(np.ones((1, inner), dtype), w)], out)  # one for all samples
        np.testing.assert_allclose(out, np.repeat(m[:1].astype(float) @ w, 3, 0), atol=20 * rounding(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(4, 1, 5), (2, 3, 7), (3, 4, 1), (1, 2, 40)])
@pytest.mark.parametrize("rank", [1, 2])
def test_rows(rank, shape, dtype):
    B, R, C = shape
    d, u, v = (RNG.standard_normal(s).astype(dtype) for s in (shape, (B, rank, R, C), (B, rank, R, C)))
    want = np.zeros((B, R, C, R, C))
    for r in range(R):
        outer = np.einsum("bki,bkj->bij", u[:, :, r].astype(float), v[:, :, r])
        want[:, r, :, r] = np.eye(C) * d[:, r, :, None] - outer
    want = want.reshape(B, R * C, R * C)
    out = np.full(want.shape, np.nan, dtype)
    row_loops.write(d, u, v, out.reshape(B, R, C, R, C))
    np.testing.assert_allclose(out, want, rtol=rounding(dtype), atol=4 * rounding(dtype))
    m = RNG.standard_normal((B, 3, R * C)).astype(dtype)
    y = np.full((B, 3, R, C), np.nan, dtype)
    row_loops.apply(m.reshape(y.shape), d, v, u, y)
    np.testing.assert_allclose(y.reshape(m.shape), m @ want, rtol=rounding(dtype), atol=4 * C * rounding(dtype))


@pytest.mark.parametrize("seed", range(30))
def test_random_chains_agree_with_the_rule(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    dtype = DTYPES[seed % 2]
    depth, samples = int(rng.integers(1, 5)), int(rng.integers(1, 40))
    widths = [int(rng.integers(1, 70)) for _ in range(depth + 1)]
    names = [rng.choice(["relu", "tanh", "silu", "softmax", "layer_norm", "rms_norm", None]) for _ in range(depth)]
    f, _ = network(widths, names, dtype, rng)
    x = rng.standard_normal((samples, 2 * widths[0])).astype(dtype)[:, ::2]  # not contiguous
    for mode in ("auto", "rev", "fwd"):
        close(gl.batch_jacobian(f, mode=mode)(x), by_rule(monkeypatch, f, x, mode=mode), dtype)


@pytest.mark.parametrize("widths", [(100, 10), (20, 1), (1, 20), (3, 2, 3), (40, 30, 20, 17), (17, 64, 2)])
@pytest.mark.parametrize("samples", [0, 1, 9])
def test_shapes(widths, samples, monkeypatch):
    f, _ = network(widths, ["relu"] * (len(widths) - 2) + [None], np.float32)
    x = RNG.standard_normal((samples, widths[0])).astype(np.float32)
    close(gl.batch_jacobian(f)(x), by_rule(monkeypatch, f, x), np.float32)


def test_the_loops_are_used(monkeypatch):
    """By their rule: small finite matrices, one row a sample, a stack of at least 2, columns that fill a tile."""
    calls = []

    def record(last, factors, out):
        if not all(np.isfinite(w).all() for _, w in factors):
            return False
        calls.extend(w.shape[::-1] for _, w in factors)
        out.fill(0)
        return True

    monkeypatch.setattr(small_products, "chain", record)
    monkeypatch.setattr(small_products, "products", None)  # would raise

    def used(f, x, **options):
        calls.clear()
        gl.batch_jacobian(f, mode="rev")(x)
        return list(calls)

    x = RNG.standard_normal((5, 50)).astype(np.float32)
    f, ws = network((50, 40, 30, 4), ["relu", "relu", None], np.float32)
    assert used(f, x) == [(30, 40), (40, 50)]
    assert used(network((50, 40, 1), ["relu", None], np.float32)[0], x) == []  # a gradient
    assert used(network((3, 40, 4), ["relu", None], np.float32)[0], x[:, :3]) == []  # 3 inputs
    assert used(network((50, 2000, 4), ["relu", None], np.float32)[0], x) == []  # 100,000 entries
    assert used(f, x.astype(np.float64)) == []  # matrices of another dtype
    ws[0][3, 4] = np.inf
    with np.errstate(invalid="ignore"):
        assert used(f, x) == []  # neighbours go one way together


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("layer", range(3))
def test_inf_and_nan_come_out_as_the_rule_gives_them(value, layer, monkeypatch):
    """A masked column times inf is nan: leaving columns out must not hide it."""
    f, ws = network((40, 30, 20, 5), ["relu", "relu", None], np.float32)
    x = RNG.standard_normal((6, 40)).astype(np.float32)
    ws[layer][2, 3] = value
    with np.errstate(all="ignore"):
        got, want = gl.batch_jacobian(f)(x), by_rule(monkeypatch, f, x)
    assert not np.isfinite(want).all()
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_an_overflow_behind_a_mask(monkeypatch):
    """Finite matrices whose product overflows: inf times a mask's 0 is nan, in both."""
    w, b = np.full((16, 16), 1e20, np.float32), RNG.standard_normal(16).astype(np.float32)

    def f(x):
        for _ in range(3):
            x = gl.linear(x, w, b, activation="relu")
        return x

    x = np.zeros((3, 16), np.float32)
    with np.errstate(all="ignore"):
        got, want = gl.batch_jacobian(f)(x), by_rule(monkeypatch, f, x)
    assert np.isnan(want).any()
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))


@pytest.mark.parametrize("activation", ["relu", "tanh", None])
def test_neither_pieces_nor_threads_change_a_bit(activation, monkeypatch):
    f, _ = network((40, 30, 20, 5), [activation] * 2 + [None], np.float32)
    x = RNG.standard_normal((333, 40)).astype(np.float32)
    whole = gl.batch_jacobian(f)(x)
    monkeypatch.setattr(execute, "CACHE", 1 << 12)
    np.testing.assert_array_equal(gl.batch_jacobian(f)(x), whole)
    monkeypatch.setattr(execute, "HAND_OVER", 0)
    monkeypatch.setattr(execute, "cores", lambda: 3)
    jacobian = gl.batch_jacobian(f)
    for _ in range(3):
        np.testing.assert_array_equal(jacobian(x), whole)


def test_the_matrices_stay_as_they_are():
    f, ws = network((40, 30, 20), ["relu", None], np.float32)
    before = [w.copy() for w in ws]
    x = RNG.standard_normal((9, 40)).astype(np.float32)
    kept = x.copy()
    gl.batch_jacobian(f)(x)
    for a, b in zip([x, *ws], [kept, *before], strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_capture_replays_new_values():
    """What the loops lay out once belongs to one call."""
    _, ws = network((40, 30, 20), ["relu", None], np.float32)
    jacobian = gl.capture(lambda ws, x: gl.batch_jacobian(lambda x: gl.relu(x @ ws[0]) @ ws[1])(x))
    x = RNG.standard_normal((9, 40)).astype(np.float32)
    jacobian(ws, x)
    new = [2 * w[::-1].copy() for w in ws]
    want = np.einsum("ho,bh,ih->boi", new[1], (x @ new[0]) > 0, new[0])
    np.testing.assert_allclose(jacobian(new, x), want, rtol=1e-4, atol=1e-4)


def test_half_precision_and_small_batches_are_left_to_the_rule(monkeypatch):
    assert fused.looped([None, None], np.ones((2, 3), np.float16)) == [None, None]
    monkeypatch.undo()
    monkeypatch.setattr(fused, "_loops", None)  # would raise
    f, _ = network((40, 30, 20), ["relu", None], np.float32)
    assert gl.batch_jacobian(f)(np.ones((9, 40), np.float32)).shape == (9, 20, 40)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 4])
def test_diagonals_of_bools(rows, dtype):
    """A relu's slopes."""
    m, w = RNG.standard_normal((4, 3, 37)).astype(dtype), RNG.standard_normal((37, 20)).astype(dtype)
    v, masks = RNG.standard_normal((20, 18)).astype(dtype), [RNG.random((rows, n)) > 0.5 for n in (37, 20)]
    out = np.full((4, 3, 18), np.nan, dtype)
    small_products.products(m, list(zip(masks, (w, v), strict=True)), out)
    want = ((m.astype(float) * masks[0][:, None]) @ w * masks[1][:, None]) @ v
    np.testing.assert_allclose(out, want, rtol=rounding(dtype), atol=20 * rounding(dtype))


def deep(samples, dtype, seed=0):
    """A chain of layers 50 -> 33 -> 7 -> 40 -> 6: its matrices from the last to the first, slopes, and the result."""
    rng = np.random.default_rng(seed)
    last, *matrices = [rng.standard_normal(shape).astype(dtype) for shape in ((40, 6), (7, 40), (33, 7), (50, 33))]
    factors = [(rng.standard_normal((samples, w.shape[1])).astype(dtype), w) for w in matrices]
    return last, factors, np.full((samples, 6, 50), np.nan, dtype)


def layer_by_layer(last, factors, out):
    """The same by `products`, on one core."""
    turned = [(d, np.ascontiguousarray(w.T)) for d, w in factors]
    small_products.products(np.ascontiguousarray(last.T)[None], turned, out)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("samples", [1, 2, 3, 17, 500])
def test_layers_at_once_and_all_cores_together(samples, dtype):
    last, factors, out = deep(samples, dtype)
    want = last.T.astype(float)
    for d, w in factors:
        want = (want * d[:, None]) @ w.T.astype(float)
    layer_by_layer(last, factors, out)
    np.testing.assert_allclose(out, want, rtol=rounding(dtype), atol=200 * rounding(dtype))
    for _ in range(20):
        again = np.full_like(out, np.nan)
        assert small_products.chain(last, factors, again)
        np.testing.assert_array_equal(again, out)  # to the bit


@pytest.mark.parametrize("layers", [1, 40])
def test_any_number_of_layers_is_shared(layers, monkeypatch):
    """Each core takes several samples through a layer, more of them than it takes at a time."""
    monkeypatch.setattr(small_products, "cores", lambda: 2)
    helped, run = [], small_products._chain
    monkeypatch.setattr(small_products, "_chain", lambda *a: helped.append(a[-1]) or run(*a))
    rng = np.random.default_rng(layers)
    last, out = rng.standard_normal((17, 3)), np.full((150, 3, 17), np.nan)
    factors = [(rng.random((150, 17)) < 0.7, rng.standard_normal((17, 17)) / 3) for _ in range(layers)]
    want = last.T
    for d, w in factors:
        want = (want * d[:, None]) @ w.T
    assert small_products.chain(last, factors, out) and helped == [True]
    np.testing.assert_allclose(out, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_chain_with_a_matrix_that_is_not_finite_is_refused(value, cores, monkeypatch):
    monkeypatch.setattr(small_products, "cores", lambda: cores)
    last, factors, out = deep(9, np.float32)
    for _, w in factors:
        w[-1, -1], kept = value, w[-1, -1]
        assert not small_products.chain(last, factors, out)
        assert np.isnan(out).all()  # as it was
        w[-1, -1] = kept
    assert small_products.chain(last, factors, out)
    last[0, 0] = value  # the first of the products may be anything: no column of it that is not finite is left out
    assert small_products.chain(last, factors, out)
    assert not np.isfinite(out[:, 0]).any()


def test_many_callers_and_helpers_that_sleep():
    """One of the callers has the helpers, the others go on alone; nobody waits for who sleeps."""

    def call(seed, found):
        last, factors, out = deep(50, DTYPES[seed % 2], seed)
        want = out.copy()
        layer_by_layer(last, factors, want)
        for i in range(200):
            out.fill(np.nan)
            small_products.chain(last, factors, out)
            found.append(np.array_equal(out, want))
            if i % 50 == 0:
                time.sleep(0.005)

    found = []
    threads = [threading.Thread(target=call, args=(seed, found)) for seed in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(found) == 800 and all(found)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_has_helpers_of_its_own():
    last, factors, out = deep(50, np.float32)
    small_products.chain(last, factors, out)
    child = os.fork()
    if child == 0:
        again = np.full_like(out, np.nan)
        small_products.chain(last, factors, again)
        os._exit(0 if np.array_equal(again, out) else 1)
    assert os.waitpid(child, 0)[1] == 0
