"""Carrying a plan out: written rows for each kind of block, pieces, threads and BLAS."""

import numpy as np
import pytest
from standin import DeviceArray, rules_only, to_numpy, to_standin

import gradlib as gl
from gradlib import threads
from gradlib.jacobian import chain, execute
from gradlib.jacobian.blocks import Diagonal, SharedDense

RNG = np.random.default_rng(0)


@pytest.fixture
def blas(monkeypatch):
    """A BLAS of 8 threads on a machine of 2 cores: the list holds its number of threads."""
    number = [8]
    functions = (lambda: number[0], lambda n: number.__setitem__(0, n))
    monkeypatch.setattr(threads._blas, "functions", lambda: functions)
    monkeypatch.setattr(threads, "cores", lambda: 2)
    monkeypatch.setattr(execute, "cores", lambda: 2)
    return number


@pytest.mark.parametrize("width, spared", [(20, 1), (300, 8)])
def test_f_runs_on_one_blas_thread_where_layers_are_small(width, spared, blas):
    w, seen = RNG.standard_normal((width, width)).astype(np.float32), []

    def f(x):
        seen.append(blas[0])
        return np.tanh(x @ w)

    x = RNG.standard_normal((3, width)).astype(np.float32)
    for first in ("call", "into"):  # which can't know yet
        seen.clear()
        jacobian = gl.batch_jacobian(f)
        out = jacobian(x) if first == "call" else jacobian.into(np.empty((3, width, width), np.float32), x)
        jacobian(x), jacobian.into(out, x), list(jacobian.chunks(x))
        assert seen == [8, *[spared] * 3] and blas == [8]


def test_f_keeps_its_blas_threads_where_the_jacobian_is_no_more_work(blas):
    w, seen = RNG.standard_normal((20, 1)).astype(np.float32), []

    def f(x):
        seen.append(blas[0])
        return np.tanh(x @ w)

    jacobian = gl.batch_jacobian(f)
    for _ in range(2):
        jacobian(RNG.standard_normal((3, 20)).astype(np.float32))
    assert seen == [8, 8]


def test_shared_pieces_run_on_one_blas_thread(blas, monkeypatch):
    monkeypatch.setattr(execute, "HAND_OVER", 0)
    seen = []
    plain = execute.execute
    monkeypatch.setattr(execute, "execute", lambda *a: seen.append(blas[0]) or plain(*a))
    gl.batch_jacobian(np.tanh)(RNG.standard_normal((5, 3)))
    assert seen and set(seen) == {1} and blas == [8]


@pytest.mark.parametrize("d", [False, True])
@pytest.mark.parametrize("rows", [(), (2,)])
def test_a_linear_block_written_both_ways(d, rows):
    w, like = RNG.standard_normal((4, 3)), np.empty((5, 1))
    slope = RNG.standard_normal((5, *rows, 3)) if d else None
    segment = chain.LinearSegment(SharedDense(w, (5, *rows), slope))
    each = np.ones((5, *rows, 3)) if slope is None else slope
    if rows:
        want = np.einsum("bto,io,ts->btosi", each, w, np.eye(2)).transpose(0, 1, 2, 3, 4).reshape(5, 6, 8)
    else:
        want = np.einsum("bo,io->boi", each, w)
    at = slice(1, 4)
    np.testing.assert_allclose(segment.dense(at, like), want[at], rtol=1e-14)
    np.testing.assert_allclose(segment.dense_ahead(at, like).swapaxes(1, 2), want[at], rtol=1e-14)


def test_a_diagonal_block_is_zero_beside_the_diagonal():
    """Also where the slope is inf: 0 times inf is not calculated."""
    d = np.array([[1.0, np.inf], [np.nan, 2.0]])
    segment = chain.DiagonalSegment(Diagonal(d))
    out = np.full((2, 2, 2), 7.0)
    assert segment.dense(slice(None), d, out) is out
    np.testing.assert_array_equal(out, [[[1, 0], [0, np.inf]], [[np.nan, 0], [0, 2]]])


@pytest.mark.parametrize("mode", ["auto", "rev", "fwd"])
@pytest.mark.parametrize(
    "f",
    [
        lambda x, w, v: gl.linear(gl.linear(x, w, activation="relu"), v),
        lambda x, w, v: gl.softmax(np.tanh(x @ w) @ v),
        lambda x, w, v: np.tanh(x),
        lambda x, w, v: gl.softmax(x),
    ],
)
def test_chains_on_device_arrays(f, mode):
    x, w, v = (RNG.standard_normal(s) for s in ((5, 4), (4, 3), (3, 2)))
    jacobian = gl.batch_jacobian(f, in_axes=(0, None, None), mode=mode)
    with rules_only():
        got = jacobian(*to_standin((x, w, v)))
    assert isinstance(got, DeviceArray)
    np.testing.assert_allclose(to_numpy(got), jacobian(x, w, v), rtol=1e-12, atol=1e-14)
