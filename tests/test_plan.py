"""The chain of blocks and its planner: every order gives the same Jacobian, and the order chosen is the cheapest."""

import itertools

import numpy as np
import pytest

import gradlib as gl
from gradlib.jacobian.batched import Batched
from gradlib.jacobian.chain import chain_of
from gradlib.jacobian.plan import best_step

RNG = np.random.default_rng(0)
MODES = ("auto", "mixed", "rev", "fwd")


def layers(widths, dtype):
    return [RNG.standard_normal((a, b)).astype(dtype) / a**0.5 for a, b in itertools.pairwise(widths)]


def random_function(rng, width, depth, dtype):
    """A function (B, width) -> (B, n) of random layers: chains, skip connections, tokens, shapes."""
    steps = []
    for _ in range(depth):
        kind = rng.choice(["linear", "fused", "tanh", "softmax", "skip", "log_softmax", "tokens", "scale", "gelu"])
        new = int(rng.integers(1, 7))
        w, v = (rng.standard_normal((width, new)).astype(dtype) for _ in range(2))
        steps.append((kind, w, v))
        width = {"linear": new, "fused": new, "skip": new, "tokens": 2 * new}.get(kind, width)

    def f(x):
        for kind, w, v in steps:
            if kind == "linear":
                x = x @ w
            elif kind == "fused":
                x = gl.linear(x, w, activation="silu")
            elif kind == "skip":
                x = np.tanh(x @ w) + x @ v
            elif kind == "tokens":
                x = np.stack([x, x * x], axis=1).reshape(-1, x.shape[1])
                x = np.sin(x @ w).reshape(-1, 2 * w.shape[1])
            elif kind == "scale":
                x = x * w[:, 0]
            else:
                x = {"tanh": np.tanh, "softmax": gl.softmax, "log_softmax": gl.log_softmax, "gelu": gl.gelu}[kind](x)
        return x

    return f


@pytest.mark.parametrize("seed", range(40))
def test_all_orders_agree_on_random_graphs(seed):
    rng = np.random.default_rng(seed)
    width, samples = int(rng.integers(1, 6)), int(rng.integers(1, 6))
    f = random_function(rng, width, int(rng.integers(1, 7)), np.float64)
    x = rng.standard_normal((samples, width))
    full = gl.jacobian(f)(x)
    want = np.stack([full[b, ..., b, :] for b in range(samples)])
    for mode in MODES:
        got = gl.batch_jacobian(f, mode=mode)(x)
        assert got.flags.c_contiguous
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12, err_msg=mode)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_batches_are_worked_on_in_pieces(dtype):
    ws = layers((40, 30, 20), dtype)
    x = RNG.standard_normal((700, 40)).astype(dtype)

    def f(x):
        return gl.linear(gl.linear(x, ws[0], activation="relu"), ws[1], activation="tanh")

    got = gl.batch_jacobian(f)(x)
    assert got.dtype == dtype
    h = x.astype(float) @ ws[0]
    y = np.tanh(np.maximum(h, 0) @ ws[1])
    want = np.einsum("bo,ho,bh,ih->boi", 1 - y**2, ws[1].astype(float), h > 0, ws[0].astype(float))
    np.testing.assert_allclose(got, want, rtol=2e-4 if dtype == np.float32 else 1e-10, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("shape", [(5, 7), (3, 4, 6), (2, 1)])
@pytest.mark.parametrize("function", [gl.softmax, gl.log_softmax], ids=["softmax", "log_softmax"])
def test_softmax_is_written_down(shape, function):
    x = RNG.standard_normal(shape) * 3
    p = np.exp(x - x.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    left = p if function is gl.softmax else np.ones_like(p)
    rows = -left[..., :, None] * p[..., None, :] + np.eye(shape[-1]) * left[..., :, None]
    want = rows if len(shape) == 2 else np.einsum("btij,ts->btisj", rows, np.eye(shape[1]))
    np.testing.assert_allclose(gl.batch_jacobian(function)(x), want, rtol=1e-12, atol=1e-15)


SEVERAL_RESULTS = {
    "values": lambda m: np.linalg.eigh(m)[0],
    "vectors": lambda m: np.linalg.eigh(m)[1],
    "used on": lambda m: np.sin(np.linalg.slogdet(m)[1]),
}


@pytest.mark.parametrize("f", SEVERAL_RESULTS.values(), ids=SEVERAL_RESULTS.keys())
def test_the_result_may_be_one_of_several_of_an_op(f):
    x = RNG.standard_normal((3, 4))

    def of_rows(x):
        m = np.cos(x).reshape(*x.shape[:-1], 2, 2)
        return f(m @ np.swapaxes(m, -1, -2))

    for mode in MODES:
        whole = gl.jacobian(of_rows, mode="rev")(x)
        want = np.stack([whole[b, ..., b, :] for b in range(3)])
        np.testing.assert_allclose(gl.batch_jacobian(of_rows, mode=mode)(x), want, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(gl.jacobian(of_rows, mode=mode)(x[0]), want[0], rtol=1e-9, atol=1e-12)


def plan(f, x, mode="auto"):
    call = Batched("test", f, (x,), (0,), (0,), {})
    segments = chain_of(call)
    return best_step(segments, x.dtype.itemsize, mode), segments


def test_a_bottleneck_is_multiplied_from_both_ends():
    ws = layers((64, 64, 4, 64, 64), np.float32)

    def f(x):
        for w in ws:
            x = gl.linear(x, w, activation="tanh")
        return x

    x = RNG.standard_normal((3, 64)).astype(np.float32)
    best, segments = plan(f, x)
    assert [s.kind for s in segments] == ["shared matrix"] * 4
    assert best.do == "product"
    assert best.parts[0].first == 2  # the last two layers, times the first two
    assert best.flops < 0.5 * min(plan(f, x, "rev")[0].flops, plan(f, x, "fwd")[0].flops)


def test_few_outputs_go_back_and_few_inputs_go_ahead():
    narrow = layers((50, 40, 30, 2), np.float32)
    wide = layers((2, 30, 40, 50), np.float32)

    def net(ws):
        def f(x):
            for w in ws:
                x = gl.linear(x, w, activation="tanh")
            return x

        return f

    back = plan(net(narrow), np.ones((3, 50), np.float32))[0]
    assert {back.do, back.parts[0].do} == {"back"}
    ahead = plan(net(wide), np.ones((3, 2), np.float32))[0]
    assert ahead.do == "turn"
    assert ahead.parts[0].do == "ahead"


def test_values_used_again_stay_in_one_segment():
    w = RNG.standard_normal((4, 4))
    _, segments = plan(lambda x: np.tanh(np.sin(x) + x @ w), np.ones((2, 4)))
    assert [s.kind for s in segments] == ["rules", "diagonal"]


def test_a_function_of_another_array_of_samples():
    x, z = RNG.standard_normal((3, 4)), RNG.standard_normal((3, 4))
    got = gl.batch_jacobian(lambda x, z: np.tanh(x) * z)(x, z)
    np.testing.assert_allclose(got, np.einsum("bi,ij->bij", z / np.cosh(x) ** 2, np.eye(4)), rtol=1e-12)


def test_under_an_outer_transform_it_is_differentiated():
    w = RNG.standard_normal((3, 3))
    gl.check_grads(
        lambda w: np.sum(gl.batch_jacobian(lambda x: np.tanh(x @ w))(np.ones((2, 3))) ** 2), (w,), order=2, rtol=1e-4
    )


ONE = {
    "bottleneck": (layers((40, 40, 3, 40, 40), np.float64), lambda x, ws: _deep(x, ws, np.tanh)),
    "fused": (layers((30, 4, 30), np.float64), lambda x, ws: gl.softmax(_fused(x, ws))),
    "tokens": (layers((6, 2, 6), np.float64), lambda x, ws: _fused(x.reshape(-1, 6), ws).reshape(-1)),
    "residual": (layers((30, 30, 30), np.float64), lambda x, ws: gl.log_softmax(x + np.tanh(x @ ws[0])) @ ws[1]),
    "split": (layers((12, 3, 12), np.float64), lambda x, ws: np.split(_fused(x, ws), 3)[1] * 2),
    "elementwise": ([], lambda x, ws: np.exp(np.sin(x)) * 2),
}


def _deep(x, ws, activation):
    for w in ws:
        x = activation(x @ w)
    return x


def _fused(x, ws):
    for w in ws:
        x = gl.linear(x[None], w, activation="gelu")[0]
    return x


@pytest.mark.parametrize("settings", [{}, {"chunk_size": 2}, {"max_bytes": 60_000}])
@pytest.mark.parametrize(("ws", "f"), ONE.values(), ids=ONE.keys())
def test_without_a_batch_it_is_a_chain_too(ws, f, settings):
    x = RNG.standard_normal((len(ws[0]) if ws else 7) * 1)
    want = gl.jacobian(lambda x: f(x, ws), mode="rev")(x)
    for mode in MODES:
        got = gl.jacobian(lambda x: f(x, ws), mode=mode, **settings)(x)
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-13)


def test_without_a_batch_a_bottleneck_is_multiplied_from_both_ends():
    ws, x = layers((200, 200, 10, 200, 200), np.float64), RNG.standard_normal(200)
    plan = gl.jacobian(lambda x: _deep(x, ws, np.tanh)).plan(x)
    assert plan.mode == "mixed" and plan.samples is None
    assert plan.flops < 0.5 * gl.jacobian(lambda x: _deep(x, ws, np.tanh), mode="rev").plan(x).flops
    want = gl.jacobian(lambda x: _deep(x, ws, np.tanh), mode="rev")(x)
    np.testing.assert_allclose(gl.jacobian(lambda x: _deep(x, ws, np.tanh))(x), want, rtol=1e-9, atol=1e-13)
    assert gl.jacobian(lambda x: np.sum(_deep(x, ws, np.tanh))).plan(x).mode == "rev"
    few = [w[:3, :3] for w in ws]  # too small for anything but a sweep to pay
    assert gl.jacobian(lambda x: _deep(x, few, np.tanh)).plan(x[:3]).mode == "rev"
    assert gl.jacobian(lambda x: _deep(x, few, np.tanh), mode="mixed").plan(x[:3]).mode in ("rev", "mixed")
