"""The kernels of embedding against plain NumPy: gather, and sums by id with runs of every length."""

import numpy as np
import pytest
from kernel_device import DTYPES, call, close

import gradlib as gl
from gradlib.kernels import embedding as file
from gradlib.kernels.embedding import RUN, embedding
from gradlib.kernels.launch import SIMULATED, simulate

WIDTHS = [(n, "float32") for n in (1, 3, 4, 8, 33, 36, 130, 132, 516)] + [(n, "float64") for n in (1, 2, 9, 66, 70)]
NEED = (False, True)


def data(n, dtype, K=7, V=2, ids=None):
    rng = np.random.default_rng(n)
    ids = rng.integers(0, K, (3, 5)) if ids is None else np.asarray(ids)
    return ids, rng.normal(size=(K, n)).astype(dtype), rng.normal(size=(V, *ids.shape, n)).astype(dtype)


def check_sums(ids, table, dy, dtype):
    none, got = call(embedding.vjp, (ids, table), dy, NEED)
    want = np.zeros((len(dy), *table.shape))
    for v, d in enumerate(dy):
        np.add.at(want[v], ids, d.astype(float))
    assert none is None
    close(got, want, dtype, scale=1 + np.sqrt(np.bincount(ids.reshape(-1)).max()))
    return got


@pytest.mark.parametrize(("n", "dtype"), WIDTHS)
def test_forward_and_jvp(n, dtype):
    ids, table, _ = data(n, dtype)
    y, saved = call(embedding.forward, ids, table)
    np.testing.assert_array_equal(y, table[ids])
    assert saved[0] is ids and saved[1] is table
    tangent = np.random.default_rng(1).normal(size=(3, *table.shape)).astype(dtype)
    np.testing.assert_array_equal(call(embedding.jvp, saved, (None, tangent)), tangent[:, ids])


@pytest.mark.parametrize(("n", "dtype"), WIDTHS)
def test_sums_by_id(n, dtype):
    check_sums(*data(n, dtype), dtype)


# Runs that end at the end of a piece, fill pieces, reach over several, and one that is all there is.
LENGTHS = {
    "one": [1],
    "a piece": [RUN],
    "a piece and one": [RUN + 1],
    "ends of pieces": [RUN - 1, 1, RUN, RUN],
    "over borders": [RUN // 2, RUN, RUN, 3],
    "over many pieces": [5, 9 * RUN + 3, 1, 2 * RUN],
    "one word": [11 * RUN],
    "gaps": [0, 3, 0, 0, 2 * RUN, 0],
}


@pytest.mark.parametrize("name", LENGTHS)
def test_runs(name, schedule):
    counts = LENGTHS[name]
    ids = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    for n in (3, 12, 40):
        check_sums(*data(n, "float32", K=len(counts), V=2, ids=ids), "float32")


def test_skewed_ids():
    """Frequencies as of words: the n-th most frequent has 1/n of the first one's."""
    rng = np.random.default_rng(3)
    frequency = 1 / np.arange(1, 31)
    ids = rng.choice(30, size=700, p=frequency / frequency.sum())
    check_sums(*data(4, "float32", K=30, V=1, ids=ids), "float32")


def test_the_same_bits_every_time(monkeypatch):
    ids = np.random.default_rng(1).integers(0, 3, 200)
    arrays, results = data(5, "float32", K=3, ids=ids), []
    for order in ("forward", "reverse", "3"):
        monkeypatch.setenv("GRADLIB_SIM_SCHEDULE", order)
        results.append(call(embedding.vjp, arrays[:2], arrays[2], NEED)[1])
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@pytest.mark.parametrize("V", [0, 1, 3])
def test_stacks_of_any_size(V, monkeypatch, schedule):
    for limit in ("GRID_Z", "FILL"):
        monkeypatch.setattr(file, limit, 1)
    ids, table, dy = data(6, "float32", V=V, ids=np.random.default_rng(0).integers(0, 4, 3 * RUN))
    if V:
        check_sums(ids, table, dy, "float32")
    assert call(embedding.vjp, (ids, table), dy, NEED)[1].shape == (V, 7, 6)
    tangent = np.random.default_rng(1).normal(size=(V, *table.shape)).astype("float32")
    np.testing.assert_array_equal(call(embedding.jvp, (ids, table), (None, tangent)), tangent[:, ids])


@pytest.mark.parametrize("kind", ["int8", "uint16", "int64", "uint64"])
def test_any_integers_and_strides(kind):
    ids, table, dy = data(8, "float32", K=7)
    ids = np.asfortranarray(ids.astype(kind))
    check_sums(ids, table, dy[..., ::-1], "float32")
    for view in (table[:, ::-1], np.asfortranarray(table), table[:, 1:4]):
        np.testing.assert_array_equal(call(embedding.forward, ids, view)[0], view[ids])


@pytest.mark.parametrize("dtype", DTYPES)
def test_ids_of_no_axis(dtype):
    ids, table, dy = data(4, dtype, ids=2)
    np.testing.assert_array_equal(call(embedding.forward, ids, table)[0], table[2])
    check_sums(ids, table, dy, dtype)


FAR = {"int64": [2**32 + 1, -(2**32) + 1, 7, -1], "uint64": [2**64 - 6, 2**32 + 1, 7, 7], "int8": [7, -1, 127, -128]}


@pytest.mark.parametrize("kind", FAR)
@pytest.mark.parametrize("n", [3, 8])
def test_an_id_of_no_row_gives_nan_and_no_gradient(kind, n):
    """Far outside in the middle of a piece, and at the border of more than one."""
    good = np.random.default_rng(0).integers(0, 7, 5 * RUN)
    ids = np.concatenate([good.astype(kind), np.repeat(np.array(FAR[kind], kind), 3), np.full(2 * RUN, 7, kind)])
    known = np.arange(len(ids)) < len(good)
    order = np.random.default_rng(1).permutation(len(ids))
    ids, known = ids[order], known[order]
    _, table, dy = data(n, "float32", V=2, ids=ids)
    y, saved = call(embedding.forward, ids, table)
    np.testing.assert_array_equal(y[known], table[ids[known].astype(int)])
    assert np.isnan(y[~known]).all()
    tangent = call(embedding.jvp, saved, (None, np.stack([table, -table])))
    np.testing.assert_array_equal(tangent, np.stack([y, -y]))
    dy[:, ~known] = np.nan
    got = call(embedding.vjp, (ids, table), dy, NEED)[1]
    close(got, call(embedding.vjp, (ids[known].astype(int), table), dy[:, known], NEED)[1], "float32", scale=4)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_few_ids_of_no_row(dtype):
    ids, table, dy = data(6, dtype, ids=[1, 7, -1, 0])
    y, _ = call(embedding.forward, ids, table)
    np.testing.assert_array_equal(y[[0, 3]], table[[1, 0]])
    assert np.isnan(y[1:3]).all()
    got = call(embedding.vjp, (ids, table), dy, NEED)[1]
    np.testing.assert_array_equal(got[:, :2], dy[:, [3, 0]])
    assert not got[:, 2:].any()


def test_what_is_left_to_the_rule():
    ids, table, dy = data(4, "float32")
    assert call(embedding.forward, ids, table.astype("longdouble")) is NotImplemented
    assert call(embedding.forward, ids[:0], table) is NotImplemented
    assert call(embedding.forward, ids, table[:, :0]) is NotImplemented
    assert call(embedding.vjp, (ids, table), dy.astype(float), NEED) is NotImplemented
    assert call(embedding.vjp, (ids, table), dy, (False, False)) == (None, None)


@pytest.mark.skipif(not SIMULATED, reason="compares NumPy arrays on both paths: needs the simulator")
def test_public_function_takes_the_kernels():
    ids, table, _ = data(5, "float32")

    def results():
        def f(t):
            return np.sum(np.sin(gl.embedding(ids, t)))

        _, tangent = gl.jvp(f, (table,), (np.cos(table),))
        return gl.grad(f)(table), tangent, gl.hvp(f, (table,), (table,))

    expected = results()
    with simulate():
        got = results()
    for a, e in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6)
