"""embedding: rules, ids of any shape, repeated ids, per-sample tables, against plain loops."""

import numpy as np
import pytest
from rulecheck import Case, RuleCheck, close, randn
from standin import MODULE, rules_only, to_numpy, to_standin
from test_layer_norm import apart

import gradlib as gl
from gradlib.op import REGISTRY
from gradlib.ops.embedding import embedding

OP = REGISTRY["embedding"]
IDS = np.array([3, 0, 3, 3, 1])


def _case(ids, rows=4, width=3):
    return Case(OP, (np.asarray(ids), randn(rows, width)))


CASES = [_case(IDS), _case(IDS.reshape(5, 1)), _case([[[1, 2], [2, 2]]]), _case(2), _case(np.zeros((0,), int))]
CASES += [_case(IDS, width=1), _case([0, 0, 0], rows=1), _case(np.zeros((2, 0), int)), _case(IDS, width=9)]
ERRORS = [
    (lambda: embedding([1], randn(2, 2)), TypeError, "embedding: expected an integer array as ids, got list"),
    (lambda: embedding(np.ones(2), randn(2, 2)), TypeError, "embedding: … ids, got float64[2]"),
    (lambda: embedding(IDS > 0, randn(2, 2)), TypeError, "embedding: … ids, got bool[5]"),
    (lambda: embedding(IDS, np.ones((4, 2), int)), TypeError, "expected a floating-point table, got int64[4, 2]"),
    (lambda: embedding(IDS, randn(4)), ValueError, "table of shape (K, D), got float64[4]"),
    (lambda: embedding(IDS, randn(3, 2)), IndexError, "embedding: id 3 is out of range for a table of 3 rows"),
    (lambda: embedding(-IDS, randn(4, 2)), IndexError, "embedding: id -3 is out of range for a table of 4 rows"),
]


class TestRules(RuleCheck):
    cases = CASES
    errors = ERRORS


@pytest.mark.parametrize("kind", ["int8", "uint8", "int32", "uint32", "int64", "uint64"])
def test_any_integers(kind):
    table, dy = randn(4, 3), randn(5, 3, seed=1)
    ids = IDS.astype(kind)
    y, pull = gl.vjp(lambda t: embedding(ids, t), table)
    np.testing.assert_array_equal(y, [table[i] for i in IDS])
    want = np.zeros_like(table)
    for i, d in zip(IDS, dy, strict=True):
        want[i] += d
    np.testing.assert_array_equal(pull(dy)[0], want)  # in the order of the ids


def test_many_small_ids_in_per_sample_tables():
    """Offsets of the samples do not fit the ids' own dtype."""
    ids, table = np.full((9, 2), 99, np.int8), randn(100, 2)
    each = gl.per_sample_grad(lambda t, i: embedding(i, t).sum((1, 2)))(table, ids)
    assert each.shape == (9, 100, 2)
    assert (each[:, 99] == 2).all() and each.sum() == 36


def test_skewed_float16_sums_are_computed_in_float32():
    ids, table = np.zeros(5000, int), np.zeros((2, 3), np.float16)
    grad = gl.grad(lambda t: (embedding(ids, t) * np.float16(0.1)).sum())(table)
    close(grad[0].astype(float), np.full(3, 5000 * float(np.float16(0.1))), 1e-3)


def test_higher_orders():
    table = randn(4, 3)
    gl.check_grads(lambda t: np.sin(embedding(IDS, t)) * embedding(IDS[::-1], t), (table,), order=3, rtol=1e-4)
    hessian = gl.hessian(lambda t: (embedding(IDS, t) ** 3).sum())(table)
    counts = np.bincount(IDS, minlength=4)
    want = np.diag((6 * table * counts[:, None]).reshape(-1)).reshape(4, 3, 4, 3)
    close(hessian, want, 1e-13)


PER_SAMPLE = [(IDS, -2, 2), (IDS.reshape(5, 1), -3, 1), ([[1, 2, 1], [0, 1, 1]], -2, 2), (IDS, -2, 0)]


@pytest.mark.parametrize(("ids", "axis", "v"), PER_SAMPLE)
def test_per_sample_rule_is_the_one_hot_stack(ids, axis, v):
    case = _case(ids)
    y, saved = case.forward()
    _, dy = case.stacks(v, y)
    _, each = OP.vjp_each(np, saved, dy, (False, True), axis)
    want = case.vjp(saved, apart(dy, axis))[1]
    close(each.dense(), want.reshape(v, y.shape[axis], 4, 3), 1e-13)


def test_batched():
    ids, table, w = np.array([[0, 1, 1], [2, 1, 3]]), randn(4, 3), randn(3, 2)

    def f(ids, table, w):
        return np.tanh(embedding(ids, table) @ w).sum(1)

    of_table, of_w = gl.batch_jacobian(f, (1, 2), in_axes=(0, None, None))(ids, table, w)
    for n in range(2):
        want = gl.jacobian(lambda t, w, n=n: f(ids[n : n + 1], t, w)[0], (0, 1))(table, w)
        close(of_table[n], want[0], 1e-13)
        close(of_w[n], want[1], 1e-13)
    with pytest.raises(ValueError, match="embedding takes a table that differs between samples"):
        gl.batch_jacobian(lambda t: embedding(np.array([0, 1, 0]), t))(randn(3, 2))


def test_capture_checks_the_ids_of_every_replay():
    step = gl.capture(gl.grad(lambda t, ids: (embedding(ids, t) ** 2).sum()))
    table = randn(4, 3)
    step(table, IDS)
    other = np.array([1, 1, 1, 2, 0])
    np.testing.assert_array_equal(step(table, other), gl.grad(lambda t: (embedding(other, t) ** 2).sum())(table))
    with pytest.raises(IndexError, match="embedding: id 4 is out of range"):
        step(table, np.array([1, 1, 4, 2, 0]))


BAD = np.array([3, 4, 0, -1, 3])  # of four rows
GOOD = np.array([True, False, True, False, True])


@pytest.mark.parametrize("kind", ["int8", "int64", "uint8", "uint64"])
@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_on_a_device_an_id_of_no_row_gives_nan_and_no_gradient(kind, dtype):
    table, dy, tangent = (randn(*shape).astype(dtype) for shape in ((4, 3), (2, 5, 3), (2, 4, 3)))
    ids = np.where(BAD < 0, 250 if kind == "uint8" else -1, BAD).astype(kind)
    with rules_only():
        y, saved = OP.forward(MODULE, *to_standin((ids, table)))
        dy[:, ~GOOD] = np.nan
        dx = OP.vjp(MODULE, saved, to_standin(dy), (False, True))[1]
        dt = OP.jvp(MODULE, saved, (None, to_standin(tangent)))
    y, dx, dt = to_numpy((y, dx, dt))
    assert y.dtype == dx.dtype == dt.dtype == dtype
    np.testing.assert_array_equal(y[GOOD], table[BAD[GOOD]])
    np.testing.assert_array_equal(dt[:, GOOD], tangent[:, BAD[GOOD]])
    assert np.isnan(y[~GOOD]).all() and np.isnan(dt[:, ~GOOD]).all()
    close(dx.astype(float), OP.vjp(np, (BAD[GOOD], table), dy[:, GOOD], (False, True))[1].astype(float), 1e-15)


def test_on_a_device_nothing_waits_for_the_ids(monkeypatch):
    table, ids = to_standin((randn(4, 3), BAD))

    def read(self, *args):
        raise AssertionError("waits for the device")

    def loss(t, ids):
        return np.sum(embedding(ids, t)[::2] ** 3)

    with rules_only(), monkeypatch.context() as m:
        for name in ("__bool__", "__int__", "__float__", "get", "item"):
            m.setattr(type(table), name, read)
        first = gl.grad(loss)(table, ids)
        second = gl.hvp(lambda t: loss(t, ids), (table,), (table,))
        each = gl.per_sample_grad(lambda t, i: embedding(i, t).sum((1, 2)))(table, ids.reshape((5, 1)))
    kept = BAD[::2]
    close(first.get(), gl.grad(loss)(table.get(), np.repeat(kept, 2)), 1e-14)
    close(second.get(), gl.hvp(lambda t: loss(t, np.repeat(kept, 2)), (table.get(),), (table.get(),)), 1e-14)
    assert (each.get().sum((1, 2)) == 3 * GOOD).all()


def test_on_a_device_detect_anomaly_checks_the_ids():
    table, ids = to_standin((randn(4, 3), BAD))
    with rules_only(), gl.detect_anomaly(), pytest.raises(IndexError, match="id -1 is out of range for a table of 4"):
        embedding(ids, table)
    with pytest.raises(IndexError, match="out of range for a table of 0 rows"):
        embedding(ids, to_standin(randn(0, 3)))


def test_a_network_of_words_learns():
    """Embedding, LayerNorm, mean over words, Linear: the sign of a text is that of its words' sum."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 12, (80, 6))
    labels = (np.where(ids < 6, 1, -1).sum(1) > 0).astype(int)
    net = gl.nn.Sequential(gl.nn.Embedding(12, 8), gl.nn.LayerNorm(8), gl.nn.Linear(8, 2))
    params = net.init(0)
    assert params[0]["table"].shape == (12, 8)
    opt = gl.optim.Adam(params, lr=0.05)
    step = gl.value_and_grad(lambda p: gl.cross_entropy(net(p, ids).mean(1), labels))
    losses = []
    for _ in range(60):
        loss, grads = step(params)
        losses.append(float(loss))
        opt.step(grads)
    assert losses[0] > 0.5 and losses[-1] < 0.1
    few = ids[:3]
    gl.check_grads(lambda p: net(p, few), (net.init(1, np.float64),), order=1, rtol=1e-5)
    with pytest.raises(ValueError, match="Embedding: expected a positive int as count"):
        gl.nn.Embedding(0, 3)
