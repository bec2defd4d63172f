"""The fused Jacobian of small networks against float64 NumPy and finite differences."""

import sys
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from kernel_device import DTYPES, call, close
from test_kernel_linear import activation_of

from gradlib.kernels import network_jacobian as kernels
from gradlib.kernels.launch import SIMULATED, Launchable
from gradlib.kernels.machine import Machine, device_machine
from gradlib.kernels.network_jacobian import LAYERS, Plan, chain_jacobian, network_jacobian, plan
from gradlib.kernels.network_tiles import ACTIVATIONS

H200 = Machine(132, 227 << 10, 228 << 10)
WIDTHS = [(7, 9, 5, 3), (1, 1, 1), (8, 12, 4), (33, 2, 1), (2, 3, 4, 5, 6, 7, 2), (3, 16, 17)]


@pytest.fixture(autouse=True)
def few_threads(monkeypatch):
    """Blocks of two warps, in which threads make several tiles."""
    monkeypatch.setattr(kernels, "THREADS", 64)


@pytest.fixture
def tiles_of_two(monkeypatch):
    """One block that takes two samples after another."""

    def small(widths, itemsize, batch, machine, computed):
        return Plan(2, 1, *kernels._layout(widths, itemsize, 2, computed))

    monkeypatch.setattr(kernels, "plan", small)


@pytest.fixture(params=["float16", "bfloat16"])
def half(request, monkeypatch):
    """A dtype to store in; results are compared after one rounding."""
    halves = pytest.importorskip("test_kernel_half")
    monkeypatch.setattr(sys.modules[__name__], "close", halves.close)
    return halves.DTYPES[request.param]


def network(widths, batch, dtype):
    """x, weights, biases."""
    rng = np.random.default_rng(sum(widths))
    weights = [rng.normal(size=(m, n)) / np.sqrt(m) for m, n in pairwise(widths)]
    arrays = rng.normal(size=(batch, widths[0])), *weights, *[rng.normal(size=n) for n in widths[1:]]
    x, *rest = (a.astype(dtype) for a in arrays)
    return x, rest[: len(weights)], rest[len(weights) :]


def chain(weights, diagonals):
    """J in float64."""
    J = weights[-1].T.astype(float)[None]
    J = J if diagonals[-1] is None else J * diagonals[-1].astype(float)[:, :, None]
    for w, d in zip(weights[-2::-1], diagonals[-2::-1], strict=True):
        J = (J if d is None else J * d.astype(float)[:, None, :]) @ w.astype(float).T
    return J


def run(x, weights, biases, names):
    """(y, diagonals) in float64."""
    h, diagonals = x.astype(float), []
    for w, b, name in zip(weights, biases, names, strict=True):
        act, slope = activation_of(None if name == "identity" else name)
        with np.errstate(invalid="ignore"):
            z = h @ w.astype(float) + (0 if b is None else b)
        h = act(z)
        diagonals.append(np.asarray(slope(z), float))
    return h, diagonals


def check_chain(widths, batch, dtype, without=()):
    _, weights, _ = network(widths, batch, dtype)
    rng = np.random.default_rng(1)
    diagonals = [
        None if l in without else (rng.normal(size=(batch, n)) * (rng.random((batch, n)) > 0.4)).astype(dtype)
        for l, n in enumerate(widths[1:])
    ]
    J = call(chain_jacobian, weights, diagonals, batch)
    want = np.broadcast_to(chain(weights, diagonals), J.shape)
    close(J, want, dtype, scale=np.abs(want).max(initial=1))


def test_masks():
    """Bools, all of them or beside other diagonals."""
    _, weights, _ = network((7, 9, 6, 3), 5, "float32")
    rng = np.random.default_rng(2)
    masks = [rng.random((5, n)) > 0.5 for n in (9, 6)]
    for d in ([*masks, None], [*masks, rng.normal(size=(5, 3)).astype("float32")]):
        close(call(chain_jacobian, weights, d, 5), chain(weights, d), "float32", scale=4)


def check_network(widths, batch, dtype, names, without=()):
    x, weights, biases = network(widths, batch, dtype)
    biases = [None if l in without else b for l, b in enumerate(biases)]
    y, J = call(network_jacobian, x, weights, biases, names)
    want, diagonals = run(x, weights, biases, names)
    close(y, want, dtype, scale=4 * np.abs(want).max(initial=1))
    want = chain(weights, diagonals)
    close(J, want, dtype, scale=4 * np.abs(want).max(initial=1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("widths", WIDTHS)
def test_chain_of_matrices_and_diagonals(widths, dtype):
    check_chain(widths, 3, dtype)
    check_chain(widths, 1, dtype, without=(len(widths) - 2,))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("widths", WIDTHS)
def test_network(widths, dtype):
    check_network(widths, 3, dtype, ["tanh"] * (len(widths) - 2) + [None])
    check_network(widths, 1, dtype, ["relu"] * (len(widths) - 1), without=(0,))


def test_numbers_of_16_bits(half):
    """Aligned and not; what is between the layers is not rounded."""
    for widths in ((8, 12, 4), (7, 9, 5, 3)):
        check_chain(widths, 3, half)
        check_chain(widths, 2, half, without=(0, 1))
        check_network(widths, 3, half, ["tanh", "gelu", None][-len(widths) + 1 :])
    _, weights, _ = network((8, 6, 3), 5, half)
    masks = [np.random.default_rng(2).random((5, 6)) > 0.5, None]
    close(call(chain_jacobian, weights, masks, 5), chain(weights, masks), half, 4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("names", [ACTIVATIONS[:5], ACTIVATIONS[5:]])
def test_every_activation(names, dtype):
    check_network((3, 5, 4, 6, 5, 2), 2, dtype, names)


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_tiles_in_one_block(dtype, schedule, tiles_of_two):
    """Samples left over in the last tile; memory is used again from tile to tile."""
    check_chain((9, 6, 4, 3), 5, dtype)
    check_network((9, 6, 4, 3), 5, dtype, ["silu", "sigmoid", None])


def test_more_rows_than_a_thread_makes(schedule):
    check_chain((5, 7, 19), 2, "float32")
    check_network((4, 6, 9, 18), 2, "float32", ["gelu", "tanh", "tanh"])


def test_finite_differences():
    x, weights, biases = network((4, 6, 5, 3), 2, "float64")
    names, step = ["silu", "softplus", "tanh"], 1e-6
    _, J = call(network_jacobian, x, weights, biases, names)
    for i in range(4):
        more, less = (call(network_jacobian, x + s * np.eye(4)[i], weights, biases, names)[0] for s in (step, -step))
        np.testing.assert_allclose(J[:, :, i], (more - less) / (2 * step), rtol=1e-7, atol=1e-8)


def test_empty_batch():
    x, weights, biases = network((4, 3, 2), 0, "float32")
    y, J = call(network_jacobian, x, weights, biases, ["relu", None])
    assert y.shape == (0, 2) and J.shape == (0, 2, 4)
    assert call(chain_jacobian, weights, [None, None], 0).shape == (0, 2, 4)


def test_no_diagonals_at_all():
    """Of a linear network all samples have one Jacobian."""
    check_chain((4, 3, 2), 3, "float32", without=(0, 1))


def test_strided_and_misaligned_inputs():
    x, weights, biases = network((8, 4, 4), 3, "float32")
    views = x[:, ::-1], [np.asfortranarray(w) for w in weights], [np.concatenate([b[:1], b])[1:] for b in biases]
    y, J = call(network_jacobian, *views, ["tanh", None])
    want, diagonals = run(views[0], weights, biases, ["tanh", None])
    close(y, want, "float32", scale=4)
    close(J, chain(weights, diagonals), "float32", scale=4)


def test_nan_and_inf_go_where_numpy_lets_them():
    """A sample's own entries alone; 0 · inf is nan."""
    _, weights, _ = network((6, 5, 7, 3), 4, "float32")
    weights[1][2, 3] = np.inf
    d = [np.ones((4, n), "float32") for n in (5, 7, 3)]
    d[1][0, 3], d[0][1, 2], d[2][2, 1], d[0][3, 4] = 0, np.nan, np.inf, -np.inf
    J = call(chain_jacobian, weights, d, 4)
    with np.errstate(invalid="ignore"):
        want = chain(weights, d)
    np.testing.assert_array_equal(np.isnan(J), np.isnan(want))
    np.testing.assert_array_equal(np.isposinf(J), np.isposinf(want))
    x, weights, biases = network((3, 6, 5, 2), 3, "float32")
    x[1, 0] = np.nan
    weights[0][1, 4] = -np.inf
    y, J = call(network_jacobian, np.abs(x), weights, biases, ["relu", "relu", None])
    assert np.isnan(y[1]).all() and np.isfinite(y[[0, 2]]).all()
    assert np.isnan(J[:, :, 1]).all() and np.isfinite(J[[0, 2]][:, :, [0, 2]]).all()  # a mask of 0 by -inf


def test_inf_does_not_reach_what_fills_the_tiles():
    """Widths that are no multiple of a tile: 0 · inf beside a row must not come back as nan."""
    _, weights, _ = network((6, 5, 7, 3), 2, "float32")
    weights = [np.abs(w) for w in weights]
    d = [np.ones((2, n), "float32") for n in (5, 7, 3)]
    d[2][0, 1] = np.inf
    J = call(chain_jacobian, weights, d, 2)
    assert np.isposinf(J[0, 1]).all()
    np.testing.assert_array_equal(np.isfinite(J), np.isfinite(chain(weights, d)))
    x, weights, biases = network((6, 5, 7, 3), 2, "float32")
    x[0, 2], weights[0][2] = np.inf, -1  # relu(-inf) = 0
    y, J = call(network_jacobian, x, weights, biases, ["relu", "tanh", None])
    want, diagonals = run(x, weights, biases, ["relu", "tanh", None])
    close(y, want, "float32", scale=8)
    close(J, chain(weights, diagonals), "float32", scale=8)


def test_into_an_array_of_the_caller():
    _, weights, _ = network((5, 4, 2), 3, "float32")
    d = [np.ones((3, 4), "float32"), None]
    if SIMULATED:
        from gradlib.kernels.launch import simulate

        out = np.full((3, 2, 5), np.nan, "float32")
        with simulate():
            assert chain_jacobian(np, weights, d, 3, out) is out
        close(out, np.broadcast_to(chain(weights, d), out.shape), "float32")


def test_what_is_left_to_the_rule():
    x, weights, biases = network((4, 3, 2), 2, "float32")
    assert call(network_jacobian, x.astype("float16"), weights, biases, ["relu", None]) is NotImplemented
    assert call(network_jacobian, x.astype(float), weights, biases, ["relu", None]) is NotImplemented
    assert call(network_jacobian, x, weights, biases, ["relu", "exp"]) is NotImplemented
    assert call(network_jacobian, x, weights[:1], biases[:1], ["relu"]) is NotImplemented
    _, many, _ = network((2,) * (LAYERS + 2), 1, "float32")
    assert call(chain_jacobian, many, [None] * len(many), 1) is NotImplemented
    _, large, _ = network((300, 300, 2), 1, "float32")
    assert call(chain_jacobian, large, [None] * 2, 1) is NotImplemented


@pytest.mark.parametrize("itemsize", [4, 8])
@pytest.mark.parametrize("computed", [False, True])
@pytest.mark.parametrize("batch", [1, 100, 8192])
def test_plans_fit_and_cover_the_batch(batch, computed, itemsize):
    for widths in ((100, 64, 32, 10), (30, 50, 50, 50, 4), (64, 64, 64, 1), (1, 1, 1)):
        made = plan(widths, itemsize, batch, H200, computed)
        assert made.size * itemsize <= H200.block_bytes
        assert 1 <= made.grid <= min(3 * 132, -(-batch // made.samples))
        assert made.slots <= made.even <= made.odd <= made.inputs <= made.size
        if batch == 8192:
            assert made.grid > 100, "multiprocessors idle"
    assert plan((784, 512, 10), itemsize, batch, H200, computed) is None


def test_the_launch_asks_for_its_shared_memory(monkeypatch):
    """A stand-in for CuPy: the limit is raised once a device, each launch says what it takes."""
    log = []
    attributes = {"MultiProcessorCount": 9, "MaxSharedMemoryPerBlockOptin": 200_000}
    attributes["MaxSharedMemoryPerMultiprocessor"] = 210_000
    driver = SimpleNamespace(
        CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=8, funcSetAttribute=lambda *args: log.append(args)
    )
    cuda = SimpleNamespace(Device=lambda number: SimpleNamespace(attributes=attributes), driver=driver)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda))
    monkeypatch.setitem(sys.modules, "cupy.cuda", cuda)

    class Function:
        ptr = 77

        def __call__(self, grid, block, args, shared_mem=0):
            log.append((grid, block, args, shared_mem))

    monkeypatch.setattr(Launchable, "_function", lambda self: (5, Function()))
    device_machine.cache_clear()

    def body(n: np.int32):
        pass

    launch = kernels._Sized(Launchable("k", body), 60_000)
    launch(3, 64, 1)
    launch(4, 64, 2)
    device_machine.cache_clear()
    assert log == [(77, 8, 200_000), ((3,), (64,), (1,), 60_000), ((4,), (64,), (2,), 60_000)]
