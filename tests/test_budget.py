"""Memory budgets: what is measured is what the plan says, within what is allowed; texts of bytes; errors."""

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gradlib as gl
from gradlib import memory
from gradlib.jacobian import batched_work, known
from gradlib.jacobian import budget as budgets
from gradlib.jacobian.budget import FLOOR, SHARE, budget, readable

RNG = np.random.default_rng(0)
BESIDE = 150_000  # bytes of Python's own objects, and of index arrays
FACTOR, SPARE = 4, 1_000_000  # a prediction is at most 4 times what is measured, and 1 MB


def layers(*widths):
    return [(RNG.standard_normal(s) / s[0] ** 0.5).astype("f") for s in itertools.pairwise(widths)]


def net(weights, activation="tanh"):
    def f(x):
        for w in weights:
            x = gl.linear(x, w, activation=activation)
        return x

    return f


SQUARES = layers(80, 80, 80, 80)
HEADS = SQUARES[0].reshape(5, 5, 16, 16)[:, 0]
PARAMS = [{"w": w, "b": np.zeros(w.shape[1], "f")} for w in layers(100, 64, 32, 10)]


def residual(x):
    for w in SQUARES:
        x = x + gl.linear(x, w, activation="gelu")
    return gl.softmax(x)


def branching(x):
    return np.tanh(x @ SQUARES[0]) * np.sin(x) + x[:, :1]


def logits(params, x):
    for p in params:
        x = gl.linear(x, p["w"], p["b"], activation="tanh")
    return x


def rows(*shape):
    return (RNG.standard_normal(shape).astype("f"),)


def measured(transform, f, args, **settings):
    """(plan, bytes allocated at most by J.into beyond what f leaves behind, result)."""
    left = []

    def watched(*args):
        y = f(*args)
        tracemalloc.reset_peak()
        left.append(tracemalloc.get_traced_memory()[0])
        return y

    plan = transform(f, **settings).plan(*args)
    out = transform(f, **settings)(*args)  # what is imported and compiled at first use is there now
    target = gl.tree.map(lambda a: np.full_like(a, np.nan), out)
    memory._blocks.reset()  # buffers kept from that call would not be seen
    tracemalloc.start()
    try:
        transform(watched, **settings).into(target, *args)
        peak = tracemalloc.get_traced_memory()[1] - left[0]
    finally:
        tracemalloc.stop()
    for a, b in zip(gl.tree.flatten(out)[0], gl.tree.flatten(target)[0], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    return plan, peak, out


BATCHED = {
    "chain": (net(layers(100, 64, 32, 10), "relu"), rows(500, 100)),
    "bottleneck": (net(layers(128, 128, 8, 128, 128)), rows(40, 128)),
    "one sample": (net(layers(400, 600, 700)), rows(1, 400)),
    "large matrices": (net(layers(300, 270, 300)), rows(20, 300)),
    "softmax": (gl.softmax, rows(20, 400)),
    "softmax of several rows": (gl.softmax, rows(10, 20, 20)),
    "layer_norm": (gl.layer_norm, rows(20, 400)),
    "layer_norm within": (lambda x: gl.layer_norm(x @ SQUARES[0]) @ SQUARES[1], rows(100, 80)),
    "elementwise": (np.tanh, rows(10, 400)),
    "log_softmax of a product": (lambda x: gl.log_softmax(x @ SQUARES[0]), rows(100, 80)),
    "residual": (residual, rows(100, 80)),
    "branching": (branching, rows(100, 80)),
    "tokens": (lambda s: np.tanh(s.reshape(-1, 8) @ SQUARES[0][:8, :8]).reshape(len(s), -1), rows(100, 10, 8)),
    "losses": (lambda x: gl.logsumexp(np.tanh(x @ SQUARES[0]), axis=1), rows(300, 80)),
    "rows to numbers": (lambda x: gl.logsumexp(np.tanh(x).reshape(-1, 8, 10), axis=2), rows(400, 80)),
    "several": (lambda x: (x @ SQUARES[0], {"s": np.sin(x)}), rows(100, 80)),
}
SHARED = {
    "layers": (logits, (PARAMS, *rows(200, 100))),
    "one matrix": (lambda w, x: np.tanh(x @ w), (SQUARES[0], *rows(30, 80))),
    "used twice": (lambda w, x: np.tanh(x @ w) @ w, (SQUARES[0], *rows(30, 80))),
    "a function of it": (lambda w, x: np.sum(np.tanh(x @ (w * w)), axis=1), (SQUARES[0], *rows(200, 80))),
    "on the left": (lambda w, x: np.tanh(w @ x[:, :, None])[:, :3, 0], (SQUARES[0], *rows(200, 80))),
    "several matrices": (lambda w, x: np.tanh(x.reshape(-1, 1, 5, 16) @ w)[:, :, 0, 0], (HEADS, *rows(200, 80))),
    "matrices side by side": (
        lambda w, x: np.sum(np.einsum("bthd,hde->bthe", x.reshape(-1, 2, 5, 16), w), axis=(1, 2, 3)),
        (HEADS, *rows(100, 160)),
    ),
    "no rule": (lambda w, x: np.einsum("bi,ij,bj->b", x, w, x), (SQUARES[0], *rows(200, 80))),
}
WHOLE = {
    "residual": (residual, rows(15, 80)),
    "branching": (branching, rows(15, 80)),
    "vector": (net(layers(900, 400, 1100)), rows(900)),
    "tree": (lambda p: logits(p, np.ones((9, 100), "f")), (PARAMS,)),
}


def cases(table):
    return pytest.mark.parametrize(("f", "args"), table.values(), ids=table.keys())


def check(plan, peak, result, limit=None, factor=FACTOR):
    size = sum(a.nbytes for a in gl.tree.flatten(result)[0])
    allowed = FLOOR + SHARE * size if limit is None else limit
    assert peak <= allowed + BESIDE
    assert peak <= plan.peak + BESIDE, "more than predicted"
    assert plan.peak <= factor * peak + SPARE, "far less than predicted"
    assert plan.peak <= plan.limit <= allowed


@pytest.mark.parametrize("mode", ["auto", "rev", "fwd"])
@cases(BATCHED)
def test_without_a_budget_a_batch_stays_within_a_share_of_its_result(f, args, mode):
    check(*measured(gl.batch_jacobian, f, args, mode=mode))


@cases(SHARED)
def test_without_a_budget_parameters_stay_within_a_share_of_their_result(f, args):
    check(*measured(gl.batch_jacobian, f, args, in_axes=(None, 0)))


@pytest.mark.parametrize("mode", ["auto", "rev", "fwd"])
@cases(WHOLE)
def test_without_a_budget_a_whole_jacobian_stays_within_a_share_of_its_result(f, args, mode):
    check(*measured(gl.jacobian, f, args, mode=mode))


@pytest.mark.parametrize("mode", ["auto", "rev", "fwd"])
@pytest.mark.parametrize("max_bytes", [2_000_000, 700_000])
@cases(BATCHED)
def test_a_budget_bounds_a_batch(f, args, max_bytes, mode):
    check(*measured(gl.batch_jacobian, f, args, mode=mode, max_bytes=max_bytes), limit=max_bytes)


@pytest.mark.parametrize("mode", ["auto", "rev", "fwd"])
@pytest.mark.parametrize("max_bytes", [1_000_000, 500_000])
def test_rows_of_small_layers_need_no_room_for_matrices(max_bytes, mode):
    f, x = net(layers(256, 256, 16, 256, 256)), rows(64, 256)
    check(*measured(gl.batch_jacobian, f, x, mode=mode, max_bytes=max_bytes), limit=max_bytes)


@pytest.mark.parametrize("max_bytes", [None, 700_000])
@pytest.mark.parametrize("f", [gl.softmax, gl.layer_norm, np.tanh])
def test_a_budget_bounds_what_float16_needs(f, max_bytes):
    x = (rows(4, 1000)[0].astype("float16"),)
    plan, peak, _ = measured(gl.batch_jacobian, f, x, max_bytes=max_bytes)
    assert peak <= plan.peak + BESIDE and plan.peak <= plan.limit


@pytest.mark.parametrize("max_bytes", [9_000_000, 3_000_000])
@cases(SHARED)
def test_a_budget_bounds_parameters(f, args, max_bytes):
    check(*measured(gl.batch_jacobian, f, args, in_axes=(None, 0), max_bytes=max_bytes), limit=max_bytes)


@pytest.mark.parametrize("mode", ["auto", "rev", "fwd"])
@cases(WHOLE)
def test_a_budget_bounds_a_whole_jacobian(f, args, mode):
    check(*measured(gl.jacobian, f, args, mode=mode, max_bytes=2_000_000), limit=2_000_000)


@cases(BATCHED)
def test_a_chunk_size_bounds_the_rows(f, args):
    plan, peak, _ = measured(gl.batch_jacobian, f, args, chunk_size=2)
    assert plan.rows <= 2 and peak <= plan.peak + BESIDE


def test_plans_of_many_budgets_are_forgotten():
    f, (x,) = net(layers(8, 8, 8)), rows(4, 8)
    for extra in range(100):
        call = gl.batch_jacobian(f, max_bytes=100_000 + extra)
        call(x)
    assert all(len(k.plans) <= batched_work.PLANS for k in known._known.values())


@pytest.mark.parametrize("transform", [gl.batch_jacobian, gl.jacobian])
@pytest.mark.parametrize("f", [net(layers(40, 30, 20)), branching])
def test_too_small_a_budget_says_what_is_needed(transform, f):
    x = np.ones((30, 80 if f is branching else 40), "f")
    with pytest.raises(ValueError, match=r"jacobian: max_bytes=100 is too small: one row .* needs \d+ bytes") as error:
        transform(f, max_bytes=100)(x)
    needed = int(str(error.value).split("needs ")[1].split(" bytes")[0])
    np.testing.assert_allclose(transform(f, max_bytes=needed)(x), transform(f)(x), rtol=1e-4, atol=1e-6)
    for small in (lambda: transform(f, max_bytes=needed - 1)(x), lambda: transform(f, max_bytes=100).chunks(x)):
        with pytest.raises(ValueError, match="is too small"):
            small()


def test_too_small_a_budget_writes_nothing():
    out = np.full((3, 80, 80), 7, "f")
    with pytest.raises(ValueError, match="is too small"):
        gl.batch_jacobian(branching, max_bytes=10).into(out, np.ones((3, 80), "f"))
    assert (out == 7).all()


@pytest.mark.parametrize("f", [net(layers(12, 5, 9)), residual, branching], ids=["chain", "residual", "branching"])
@pytest.mark.parametrize("mode", ["auto", "mixed", "rev", "fwd"])
@pytest.mark.parametrize(
    "settings", [{"chunk_size": 1}, {"chunk_size": 3}, {"max_bytes": 400_000}, {"max_bytes": "auto"}]
)
def test_every_budget_gives_the_same_numbers(f, mode, settings):
    (x,) = rows(7, 12 if f not in (residual, branching) else 80)
    for transform in (gl.batch_jacobian, gl.jacobian):
        want = transform(f)(x)
        np.testing.assert_allclose(transform(f, mode=mode, **settings)(x), want, rtol=1e-4, atol=1e-6)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_rows_of_a_chain_in_any_order(data):
    """Every order and every number of rows at a time gives the same, down to the least memory."""
    widths = data.draw(st.lists(st.integers(1, 9), min_size=2, max_size=6))
    weights, rng = layers(*widths), np.random.default_rng(0)
    kinds = [data.draw(st.sampled_from([None, "tanh", "relu"])) for _ in weights]
    last = data.draw(st.sampled_from([gl.softmax, np.sin, lambda x: x]))

    def f(x):
        for w, kind in zip(weights, kinds, strict=True):
            x = gl.linear(x, w.astype(float), activation=kind)
        return last(x)

    x = rng.standard_normal((data.draw(st.integers(1, 4)), widths[0]))
    whole = gl.jacobian(f, mode="rev")(x)
    want = np.stack([whole[b, :, b] for b in range(len(x))])
    mode, chunk = data.draw(st.sampled_from(["auto", "rev", "fwd"])), data.draw(st.integers(1, 9))
    np.testing.assert_allclose(gl.batch_jacobian(f, mode=mode, chunk_size=chunk)(x), want, rtol=1e-9, atol=1e-12)
    try:
        gl.batch_jacobian(f, mode=mode, max_bytes=1)(x)
        return  # a result that is written straight down
    except ValueError as error:
        needed = int(str(error).split("needs ")[1].split(" bytes")[0])
    np.testing.assert_allclose(gl.batch_jacobian(f, mode=mode, max_bytes=needed)(x), want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("given", "size"),
    [
        (1000, 1000),
        ("1GB", 10**9),
        ("1 B", 1),
        ("200 MB", 2 * 10**8),
        ("512KiB", 2**19),
        ("1.5 gib", 3 * 2**29),
        ("64", 64),
    ],
)
def test_bytes_as_text(given, size):
    assert budget("f", None, given).limit(0) == size


@pytest.mark.parametrize(
    "given", [0, -1, 1.5, "", "GB", "1 XB", "-1GB", "1e9", True, "0 MB", ["1GB"], "many", np.array([3, 4])]
)
def test_bad_bytes(given):
    for transform in (gl.batch_jacobian, gl.jacobian, gl.jacrev, gl.jacfwd, gl.hessian):
        with pytest.raises(ValueError, match=f"{transform.__name__}: expected max_bytes as a positive number of bytes"):
            transform(np.sin, max_bytes=given)


def test_ints_of_numpy():
    J = gl.batch_jacobian(np.tanh, chunk_size=np.int64(3), max_bytes=np.uint32(300_000))
    plain = gl.batch_jacobian(np.tanh, chunk_size=3, max_bytes=300_000)
    x = np.ones((4, 6))
    np.testing.assert_array_equal(J(x), plain(x))
    assert str(J.plan(x)) == str(plain.plan(x))


@pytest.mark.parametrize("given", [0, -1, 1.5, "3", True, np.True_, np.int64(0), np.float64(3), np.array([3, 4])])
def test_bad_chunk_size(given):
    with pytest.raises(ValueError, match="batch_jacobian: expected a positive int or None as chunk_size"):
        gl.batch_jacobian(np.sin, chunk_size=given)


def test_integers_of_numpy():
    assert budget("f", np.int64(3), np.int32(5000)) == budget("f", 3, 5000)


def test_auto_is_a_quarter_of_what_is_free(monkeypatch):
    monkeypatch.setattr(budgets, "free_bytes", lambda xp: 5 << 30)
    assert budget("f", None, "auto").limit(0) == 1 << 30  # the power of two below 1.25 GB
    monkeypatch.setattr(budgets, "free_bytes", lambda xp: 400)
    with pytest.raises(ValueError, match=r"max_bytes='auto', now 64 is too small"):
        gl.batch_jacobian(branching, max_bytes="auto")(np.ones((3, 80), "f"))


def test_what_is_free(monkeypatch):
    assert 1 << 20 < budgets.free_bytes(np) < 1 << 50
    monkeypatch.setattr(budgets, "_machine_bytes", lambda: [])
    monkeypatch.setattr(budgets, "_group_bytes", lambda: [])
    assert budgets.free_bytes(np) == 1 << 30  # where nobody tells

    class Device:
        class cuda:
            class runtime:
                memGetInfo = staticmethod(lambda: (100, 200))

        @staticmethod
        def get_default_memory_pool():
            return type("Pool", (), {"free_bytes": lambda self: 11})()

    assert budgets.free_bytes(Device) == 111


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (123_456, "123 kB"), (99_960, "100 kB"), (2.5e9, "2.5 GB")],
)
def test_readable(size, text):
    assert readable(size) == text


PIECES = {
    "batch": (gl.batch_jacobian, net(layers(64, 256)), rows(1000, 64)),
    "swept batch": (gl.batch_jacobian, branching, rows(200, 80)),
    "rows": (gl.jacobian, net(layers(1500, 1500)), rows(1500)),
}


@pytest.mark.parametrize(("transform", "f", "args"), PIECES.values(), ids=PIECES.keys())
def test_pieces_that_are_dropped_are_not_kept_beside_the_next(transform, f, args):
    pieces, count = transform(f, max_bytes=6_000_000).chunks(*args), 0
    tracemalloc.start()
    try:
        for _, piece in pieces:
            del piece
            count += 1
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count > 1 and peak <= 6_000_000 + BESIDE


@pytest.mark.parametrize(("transform", "f", "args"), PIECES.values(), ids=PIECES.keys())
def test_pieces_are_as_small_as_a_budget_asks_for(transform, f, args):
    """The sum of a piece and the memory to make it is what an error says, and enough; more is never refused."""
    with pytest.raises(ValueError, match=r"max_bytes=9 is too small: a (piece of one sample|row) with") as error:
        transform(f, max_bytes=9).chunks(*args)
    needed = int(str(error.value).split("needs ")[1].split(" bytes")[0])
    want = transform(f)(*args).reshape(-1, args[0].shape[-1])
    for max_bytes in (needed, needed + needed // 3, 2 * needed):
        at = 0
        for _, piece in transform(f, max_bytes=max_bytes).chunks(*args):
            rows = piece.reshape(-1, piece.shape[-1])
            np.testing.assert_allclose(rows, want[at : at + len(rows)], rtol=1e-4, atol=1e-5)
            at += len(rows)
        assert at == len(want)
    with pytest.raises(ValueError, match="is too small"):
        transform(f, max_bytes=needed - 1).chunks(*args)
