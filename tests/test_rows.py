"""gl.jacobian by parameters with the batch as a constant: when its rows are kept apart, and that it is always right."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parameters import BIAS, FUNCTIONS, TOKENS, B, W, X, unruled
from rulecheck import close, randn
from standin import rules_only, to_numpy, to_standin
from test_batched_random import MIXTURES, SHAPES, mixture

import gradlib as gl
from gradlib.jacobian import rows
from gradlib.jacobian.rows import RowsWork, rows_call, run_shaped


@pytest.fixture(autouse=True)
def small_ones_too(monkeypatch):
    monkeypatch.setattr(rows, "SMALL", 0)


LABELS = np.array([1, 0, 3, 2, 1])


def work_of(f, p, **options):
    return gl.jacobian(f, **options)._record((p,), {})


def taken(f, p, **options):
    return isinstance(work_of(f, p, **options), RowsWork)


def same(a, b, tolerance=1e-12):
    a, b = gl.tree.flatten(a), gl.tree.flatten(b)
    assert a[1] == b[1]
    for p, q in zip(a[0], b[0], strict=True):
        close(p, q, tolerance)


@pytest.mark.parametrize("mode", ["auto", "rev", "mixed"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_equal_to_the_sweep_ahead(name, mode):
    f, p, x = FUNCTIONS[name]
    got = gl.jacobian(lambda p: f(p, x), mode=mode)(p)
    same(got, gl.jacfwd(lambda p: f(p, x))(p))
    assert all(j.flags.c_contiguous and j.flags.writeable for j in got.values())


ROWS = {
    "network": lambda p: np.tanh(X @ p["w"] + p["b"]) @ np.ones((4, 2)),
    "fused": lambda p: gl.linear(X, p["w"], p["b"], activation="tanh"),
    "loss": lambda p: gl.cross_entropy(X @ p["w"] + p["b"], LABELS, reduction="none"),
    "picked": lambda p: np.tanh(X @ p["w"])[np.arange(B), LABELS] + p["b"][0] * 0,
    "tokens": lambda p: np.sum(np.tanh(TOKENS @ p["w"]) * p["b"], axis=1),
    "rows of tokens": lambda p: np.tanh(TOKENS.reshape(-1, 3) @ p["w"]).reshape(B, 3, 4) @ p["b"],
    "a mask of the values": lambda p: np.where(X @ p["w"] > 0, 1.0, 0.5) * (X @ p["w"]),
    "two results": lambda p: (X @ p["w"], {"s": np.sum(np.sin(X @ p["w"]), axis=1)}),
    "a branch without parameters": lambda p: np.tanh(X @ p["w"]) * np.sum(X**2, axis=1, keepdims=True),
}
PARAMETERS = {"w": W, "b": BIAS}


@pytest.mark.parametrize("f", [pytest.param(f, id=name) for name, f in ROWS.items() if name != "rows of tokens"])
def test_taken_where_the_batch_is_a_constant(f):
    assert taken(f, PARAMETERS, mode="rev") and not taken(f, PARAMETERS, mode="fwd")
    same(gl.jacobian(f, mode="rev")(PARAMETERS), gl.jacfwd(f)(PARAMETERS))


MIXING = {
    "a mean over the batch": lambda p: X @ p["w"] - np.mean(X @ p["w"], axis=0),
    "a sum over the batch": lambda p: np.sum(X @ p["w"], axis=0),
    "softmax along the batch": lambda p: gl.softmax(X @ p["w"], axis=0),
    "all pairs": lambda p: np.tanh(X @ p["w"]) @ np.tanh(X @ p["w"]).T,
    "another order": lambda p: (X @ p["w"])[::-1],
    "cumulative": lambda p: np.cumsum(X @ p["w"], axis=0),
    "from the left": lambda p: randn(B, B) @ (X @ p["w"]),
    "reshaped": lambda p: (TOKENS @ p["w"]).reshape(-1, B).T,
    "one row of the parameters for each": lambda p: X[:, :1] * np.concatenate([p["b"], p["b"][:1]])[:, None],
    "parameters alone": lambda p: np.concatenate([p["b"], p["w"][0, :1]]) ** 2,
    "beside the parameters": lambda p: np.concatenate([X[:, 0] * p["b"][0], p["b"]])[:B],
    "a number": lambda p: np.sum(p["w"]),
    "nothing": lambda p: 3.0,
}


@pytest.mark.parametrize("f", [pytest.param(f, id=name) for name, f in MIXING.items()])
def test_mixed_rows_are_swept_as_ever(f):
    assert not taken(f, PARAMETERS, mode="rev") or f is MIXING["one row of the parameters for each"]
    for mode in ("rev", "auto"):
        same(gl.jacobian(f, mode=mode)(PARAMETERS), gl.jacfwd(f)(PARAMETERS))


def test_constants_as_long_as_the_batch_by_chance():
    square, column = randn(B, B), randn(B)
    for f in (
        lambda p: np.tanh(np.sin(p["x"]) @ square) @ square,  # the parameters have B rows themselves
        lambda p: np.tanh(X @ p["w"] @ randn(4, B)) @ square,
        lambda p: np.tanh(X @ p["w"] @ randn(4, B)) * column,
        lambda p: np.tanh(X @ p["w"]) * column[:, None],
        lambda p: p["x"] * column + square,
        lambda p: p["x"] * column[:, None],
    ):
        p = {**PARAMETERS, "x": randn(B, B, seed=2)}
        same(gl.jacobian(f, mode="rev")(p), gl.jacfwd(f)(p))


def _program(steps, x):
    return lambda w: mixture(steps)(w, x)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(MIXTURES, SHAPES, st.sampled_from(["auto", "rev"]))
def test_random_programs(steps, shape, mode):
    """Axes of equal size: the batch axis cannot be told from the others by its length."""
    f, w = _program(steps, randn(*shape)), randn(4)
    try:
        want = gl.jacfwd(f)(w)
    except (ValueError, NotImplementedError):
        return
    close(gl.jacobian(f, mode=mode)(w), want, 1e-10)
    inside, outputs = run_shaped("test", f, (w,))
    call = rows_call(inside, outputs)
    if call is not None:  # also where the cost speaks against it
        got = RowsWork(call, gl.jacobian(f, mode="rev")._record((w,), {}))
        close(got.whole()[0], want, 1e-10)


def test_random_programs_take_it():
    """Taking it never would be right and useless."""
    rng = np.random.default_rng(0)
    names = ["sin", "w scales", "w as a matrix", "linear", "sum", "softmax", "matrix", "einsum", "stack", "expand"]
    count = 0
    for _ in range(100):
        f = _program([(names[rng.integers(len(names))], int(rng.integers(1, 12))) for _ in range(3)], randn(4, 3))
        try:
            count += rows_call(*run_shaped("test", f, (randn(4),))) is not None
        except (ValueError, NotImplementedError):
            continue
    assert count > 20


def test_an_op_without_a_batch_rule():
    with unruled() as product:
        assert not taken(lambda w: np.sin(product(X, w)), W, mode="rev")
        got = gl.jacobian(lambda w: np.sin(product(X, w)), mode="rev")(W)
        close(got, gl.jacfwd(lambda w: np.sin(X @ w))(W), 1e-13)


def test_the_other_methods():
    f = ROWS["network"]
    want = gl.jacfwd(f)(PARAMETERS)
    j = gl.jacobian(f)
    same(j.into({k: np.empty_like(d) for k, d in want.items()}, PARAMETERS), want)
    assert j.plan(PARAMETERS).mode == "rev" and "5 samples" in str(j.plan(PARAMETERS).explain())
    got = {k: np.zeros((B * 2, *p.shape)) for k, p in PARAMETERS.items()}
    for at, piece in j.chunks(PARAMETERS):
        for k, d in piece.items():
            got[k][at] = d
    same(got, {k: d.reshape(B * 2, *PARAMETERS[k].shape) for k, d in want.items()})
    for chunk_size in (1, 2, 100):
        same(gl.jacobian(f, chunk_size=chunk_size)(PARAMETERS), want)
    pair = gl.jacobian(lambda w, b: f({"w": w, "b": b}), (1, 0))(W, BIAS)
    same(pair, (want["b"], want["w"]))


def test_a_budget_that_it_does_not_fit():
    """Rows kept apart hold the cotangents of all layers at once."""
    x, w = randn(30, 3), randn(12, 3, 3)

    def f(w):
        y = x
        for layer in w:
            y = np.tanh(y @ layer)
        return y

    w, cost = list(w), work_of(f, list(w), mode="rev").costs()["rev"][1]
    needed = int(cost.peak + cost.sample)
    assert taken(f, w, mode="rev", max_bytes=needed + 1) and not taken(f, w, mode="rev", max_bytes=needed - 1)
    for max_bytes in (needed + 1, needed - 1):
        same(gl.jacobian(f, mode="rev", max_bytes=max_bytes)(w), gl.jacfwd(f)(w))


def test_inside_other_transforms_and_capture():
    def total(jacobian):
        return lambda p: sum(np.sum(np.sin(j)) for j in jacobian(ROWS["network"])(p).values())

    same(gl.grad(total(gl.jacobian))(PARAMETERS), gl.grad(total(gl.jacfwd))(PARAMETERS))
    captured = gl.capture(gl.jacobian(ROWS["fused"]))
    for _ in range(2):
        same(captured(PARAMETERS), gl.jacfwd(ROWS["fused"])(PARAMETERS))
    moving = gl.capture(lambda p, x: gl.jacobian(lambda p: np.tanh(x @ p["w"]) * p["b"])(p))
    moving(PARAMETERS, X)
    same(moving(PARAMETERS, 2 * X), gl.jacfwd(lambda p: np.tanh(2 * X @ p["w"]) * p["b"])(PARAMETERS))


def test_the_function_is_called_once_and_dtypes_stay():
    calls = []

    def f(w):
        calls.append(w.shape)
        return np.tanh(X.astype("float32") @ w)

    assert gl.jacobian(f)(W.astype("float32")).dtype == "float32"
    assert calls == [W.shape]


def test_batches_of_no_and_one_sample():
    for size in (0, 1, 2):
        got = gl.jacobian(lambda w, size=size: np.tanh(X[:size] @ w), mode="rev")(W)
        assert got.shape == (size, 4, 3, 4)
        close(got, gl.jacfwd(lambda w, size=size: np.tanh(X[:size] @ w))(W), 1e-13)


def test_indices_that_are_computed_from_the_parameters():
    """Positions are plain integers inside the function, as in any jacobian."""
    table = randn(4)

    def f(w):
        return table[np.argmax(X @ w, axis=1)][:, None] * (X @ w)

    close(gl.jacobian(f)(W), gl.jacfwd(f)(W), 1e-13)


def test_on_a_device():
    x, p = to_standin(X), {k: to_standin(a) for k, a in PARAMETERS.items()}
    with rules_only():
        got = gl.jacobian(lambda p: gl.linear(x, p["w"], p["b"], activation="tanh"), mode="rev")(p)
        assert taken(lambda p: gl.linear(x, p["w"], p["b"], activation="tanh"), p, mode="rev")
    for k, want in gl.jacfwd(ROWS["fused"])(PARAMETERS).items():
        close(to_numpy(got[k]), want, 1e-13)
