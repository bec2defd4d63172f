"""Batched Jacobians of small networks take the fused kernel, with the values of the rules. In the simulator."""

from itertools import pairwise

import numpy as np
import pytest

import gradlib as gl
from gradlib.jacobian.one_launch import chain_in_one_launch
from gradlib.kernels import network_jacobian as kernels
from gradlib.kernels.launch import SIMULATED, Launchable, simulate

pytestmark = pytest.mark.skipif(not SIMULATED, reason="needs the simulator")


@pytest.fixture
def launches(monkeypatch):
    """The names of the kernels that are launched, blocks of two warps each of ours."""
    names, call = [], Launchable.__call__

    def counted(self, grid, block, *args):
        names.append(self.name.partition(".")[2])
        return call(self, grid, block, *args)

    monkeypatch.setattr(Launchable, "__call__", counted)
    monkeypatch.setattr(kernels, "THREADS", 64)
    return names


def network(dtype="float32", widths=(6, 9, 5, 3), activation="relu", batch=4):
    """(f, x)"""
    rng = np.random.default_rng(0)
    sizes = list(pairwise(widths))
    params = [(rng.normal(size=s).astype(dtype), rng.normal(size=s[1]).astype(dtype)) for s in sizes]

    def f(x):
        for w, b in params[:-1]:
            x = gl.linear(x, w, b, activation=activation)
        return gl.linear(x, *params[-1])

    return f, rng.normal(size=(batch, widths[0])).astype(dtype)


def close(got, want):
    rtol = {"float64": 1e-12, "float32": 2e-5, "float16": 2e-3}[want.dtype.name]
    np.testing.assert_allclose(got, want, rtol=rtol, atol=1e-2 if want.dtype == "float16" else 1e-5)
    assert got.dtype == want.dtype


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize(("activation", "kind"), [("relu", "masks"), ("tanh", "given"), ("gelu", "given")])
def test_networks(activation, kind, dtype, launches):
    f, x = network(dtype, activation=activation)
    want = gl.batch_jacobian(f)(x)
    assert not launches
    with simulate():
        got = gl.batch_jacobian(f)(x)
    close(got, want)
    assert launches.count(f"tiles_of_samples-{dtype}-{kind}") == 1


def test_written_with_numpy_and_behind_a_diagonal(launches):
    rng = np.random.default_rng(1)
    w1, w2, w3 = (rng.normal(size=s) for s in ((5, 6), (6, 7), (7, 2)))

    def f(x):
        return np.tanh(np.maximum(np.sin(x) @ w1 + 1, 0) @ w2) @ w3

    x = rng.normal(size=(3, 5))
    want = gl.batch_jacobian(f)(x)
    with simulate():
        close(gl.batch_jacobian(f)(x), want)
    assert launches.count("tiles_of_samples-float64-given") == 1


def test_pieces_and_arrays_of_the_caller(launches):
    f, x = network(batch=7)
    J, want = gl.batch_jacobian(f), gl.batch_jacobian(f)(x)
    with simulate():
        out = np.full_like(want, np.nan)
        close(J.into(out, x), want)
        pieces = list(gl.batch_jacobian(f, max_bytes=900).chunks(x))
    assert len(pieces) > 1
    for at, piece in pieces:
        close(piece, want[at])
    assert sum(name.startswith("tiles_of_samples") for name in launches) == 1 + len(pieces)


@pytest.mark.parametrize("what", ["one layer", "fwd", "forwards is cheaper", "softmax", "too large", "skip"])
def test_what_goes_the_other_way(what, launches):
    widths = {"one layer": (6, 3), "forwards is cheaper": (1, 8, 4, 9), "too large": (300, 250, 2)}.get(
        what, (6, 9, 5, 3)
    )
    net, x = network("float64", widths=widths)
    changed = {"softmax": lambda x: gl.softmax(net(x)), "skip": lambda x: net(x) + x[:, :3]}
    f, mode = changed.get(what, net), "fwd" if what == "fwd" else "auto"
    want = gl.batch_jacobian(f, mode=mode)(x)
    with simulate():
        close(gl.batch_jacobian(f, mode=mode)(x), want)
    assert not any(name.startswith("tiles_of_samples") for name in launches)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_captured_it_is_one_launch_and_f_is_not_run(dtype, launches):
    f, x = network(dtype, activation="silu")
    with simulate():
        J = gl.capture(gl.batch_jacobian(f))
        close(J(x), gl.batch_jacobian(f)(x))
        launches.clear()
        got = J(x[::-1])
    assert launches[-1] == f"tiles_of_samples-{dtype}-computed"
    assert len(launches) < 3, "f is run"
    close(got, gl.batch_jacobian(f)(x[::-1]))


def test_captured_layers_with_their_activations_behind_them(launches):
    rng = np.random.default_rng(5)
    w1, w2, w3, x = (rng.normal(size=s) for s in ((4, 5), (5, 6), (6, 2), (3, 4)))
    last = gl.batch_jacobian(lambda x: gl.linear(gl.relu(gl.linear(x, w1, activation="tanh")), w2))
    f = gl.batch_jacobian(lambda x: gl.linear(gl.gelu(gl.linear(gl.relu(gl.linear(x, w1)), w2), approximate=True), w3))
    with simulate():
        for J, kind in ((f, "computed"), (last, "given")):  # two activations in a row: no network that it knows
            captured = gl.capture(J)
            captured(x)
            launches.clear()
            got = captured(x + 1)
            assert f"tiles_of_samples-float64-{kind}" in launches
            close(got, J(x + 1))


def test_captured_with_parameters_that_change(launches):
    """Weights given as arguments, and a bias left out."""
    rng = np.random.default_rng(3)
    w1, w2, x = (rng.normal(size=s) for s in ((4, 5), (5, 2), (3, 4)))

    def jacobian(w1, w2, x):
        return gl.batch_jacobian(lambda x: gl.linear(gl.linear(x, w1, activation="tanh"), w2))(x)

    with simulate():
        J = gl.capture(jacobian)
        J(w1, w2, x)
        launches.clear()
        got = J(w1 + 1, w2, x)
    assert launches[-1] == "tiles_of_samples-float64-computed"
    close(got, jacobian(w1 + 1, w2, x))


def test_a_captured_chain_of_other_ops(launches):
    rng = np.random.default_rng(4)
    w1, w2, x = (rng.normal(size=s) for s in ((4, 5), (5, 2), (3, 4)))
    J = gl.batch_jacobian(lambda x: np.cos(x @ w1) @ w2)
    with simulate():
        captured = gl.capture(J)
        captured(x)
        launches.clear()
        got = captured(x + 1)
    assert "tiles_of_samples-float64-given" in launches
    close(got, J(x + 1))


def test_not_on_the_cpu():
    f, x = network()
    assert gl.batch_jacobian(f)(x).shape == (4, 3, 6)
    assert not chain_in_one_launch([None], x, slice(0, 4), None, "auto")
