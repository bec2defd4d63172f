"""Arrays of more than 2^31 numbers, of which one block's part is looked at, and stacks larger than the grid."""

import mmap
import sys

import numpy as np
import pytest
from kernel_device import call, close

from gradlib.kernels import cross_entropy, cross_entropy_rows, csr, embedding, norm_rows, norm_streams, norm_sums, norms
from gradlib.kernels import softmax_masked_rows as masked
from gradlib.kernels import softmax_rows as softmax
from gradlib.kernels import softmax_streams as streams
from gradlib.kernels.launch import SIMULATED, THREADS, blocks
from gradlib.kernels.layer_norm import layer_norm

N = 36  # numbers of a row: 9 lanes of 4
BEYOND = 2**31
ROW, NUMBER, LABEL, SUMS = "rows of n", "a number a row", "a label a row", "two rows a block"  # kinds of arrays
ROWS = "how many rows"
WEIGHTS = np.linspace(1, 2, N).astype("float32")
ONE, NO_MASK = np.ones(1, "float32"), np.zeros(1, "uint32")
SHAPE, LAYER = ("float32", 32, 4), ("float32", "layer_norm")
STREAMED, HELD = THREADS, 32  # threads that share a row
ATTENTION = (1, 1, 1, 0, 0, 1)  # no causality, no mask, aligned
# (kernel, threads a row, arguments)
FAMILIES = {
    "softmax": (softmax.held_rows["float32", "softmax", 32, 4], HELD, (ROW, ROW, ROWS, N, 1)),
    "its derivative": (
        softmax.held_rows_derivative["float32", "softmax", 32, 4],
        HELD,
        (ROW, NUMBER, ROW, ROW, ROWS, N, 1, 1),
    ),
    "long softmax": (streams.streamed_rows["float32", "softmax"], STREAMED, (ROW, ROW, N, 1)),
    "its long derivative": (
        streams.streamed_rows_derivative["float32", "logsumexp"],
        STREAMED,
        (ROW, NUMBER, NUMBER, ROW, ROWS, N, 1, 1),
    ),
    "attention": (masked.held_attended[SHAPE], HELD, (ROW, NO_MASK, ROW, ROWS, N, *ATTENTION)),
    "long attention": (masked.streamed_attended["float32"], STREAMED, (ROW, NO_MASK, ROW, N, *ATTENTION)),
    "its slope": (masked.held_attended_derivative[SHAPE], HELD, (ROW, ROW, ROW, ROWS, N, 1, 1, 1)),
    "its long slope": (masked.streamed_attended_derivative["float32"], STREAMED, (ROW, ROW, ROW, ROWS, N, 1, 1, 1)),
    "losses": (
        cross_entropy_rows.held_loss[SHAPE],
        HELD,
        (ROW, LABEL, NUMBER, ROW, ROWS, N, 0, 0, 0.1, ONE, 1),
    ),
    "long losses": (
        cross_entropy_rows.streamed_loss["float32"],
        STREAMED,
        (ROW, LABEL, NUMBER, ROW, ROWS, N, 0, 0, 0.1, ONE, 1),
    ),
    "spread": (cross_entropy.spread["float32", 8], 8, (ROW, ONE, NUMBER, ROW, ROWS, N, 1, 1, 1)),
    "dots": (cross_entropy.row_dots["float32", 8], 8, (ROW, ROW, NUMBER, ROWS, N, 1, 1)),
    "norm": (
        norm_rows.held_forward[(*LAYER, 32, 4, "wide")],
        HELD,
        (ROW, WEIGHTS, WEIGHTS, ROW, NUMBER, NUMBER, ROWS, N, 1, 1, 1e-5),
    ),
    "long norm": (
        norm_streams.streamed_forward[LAYER],
        STREAMED,
        (ROW, WEIGHTS, WEIGHTS, ROW, NUMBER, NUMBER, N, 1, 1, 1, 1e-5),
    ),
    "norm's derivative": (
        norm_rows.held_derivative[(*LAYER, "vjp", 32, 4, "wide")],
        HELD,
        (ROW, NUMBER, NUMBER, WEIGHTS, ROW, ONE, ONE, ROW, ROWS, N, 1, 1, 1, 0, 0),
    ),
    "norm's long derivative": (
        norm_streams.streamed_derivative[(*LAYER, "vjp")],
        STREAMED,
        (ROW, NUMBER, NUMBER, WEIGHTS, ROW, ONE, ONE, ROW, ROWS, N, 1, 1, 1, 1, 0, 0),
    ),
    "norm's weights": (
        norm_sums.held_sums[(*LAYER, 32, 4, "wide")],
        HELD,
        (ROW, NUMBER, NUMBER, WEIGHTS, ROW, ROW, SUMS, ROWS, N, 1, 1, 1),
    ),
    "norm's columns": (
        norm_sums.column_sums[LAYER],
        norm_sums.LANES / norm_sums.DEPTH,
        (ROW, NUMBER, NUMBER, ROW, SUMS, ROWS, N, 1, 1),
    ),
}
needs_addresses = pytest.mark.skipif(
    not SIMULATED or sys.platform != "linux", reason="needs addresses without memory behind them"
)


def untouched(shape, dtype):
    """Zeros, of which only those that are written take memory."""
    size, dtype = int(np.prod(shape)), np.dtype(dtype)
    flags = 0x4000 | mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # 0x4000: MAP_NORESERVE
    return np.frombuffer(mmap.mmap(-1, size * dtype.itemsize, flags=flags), dtype).reshape(shape)


def run(kernel, grid, arguments, only=None):
    from gradlib.kernels.simulator import run_grid

    run_grid(kernel.name, kernel.body, grid, THREADS, kernel._marshal(arguments), only)


@needs_addresses
@pytest.mark.parametrize("name", FAMILIES)
def test_rows_beyond_two_to_the_31_numbers(name):
    """A block there writes what the first one writes of the same rows."""
    kernel, lanes, arguments = FAMILIES[name]
    count, rng = round(THREADS / lanes), np.random.default_rng(0)  # rows of a block
    before = blocks(BEYOND, count * N)  # blocks
    shapes = {ROW: (count, N), NUMBER: (count,), LABEL: (count,), SUMS: (1, 2, N)}
    near, far = [], []
    for a in arguments:
        if isinstance(a, str) and a in shapes:
            made = rng.integers(0, N, count) if a is LABEL else rng.uniform(0.5, 1, shapes[a]).astype("float32")
            large = untouched(((before + 1) * made.shape[0], *made.shape[1:]), made.dtype)
            large[-len(made) :] = made
            near.append(made)
            far.append(large)
        else:
            near.append(count if a is ROWS else a)
            far.append((before + 1) * count if a is ROWS else a)
    inputs = [np.copy(a) for a in near]
    run(kernel, (1,), near)
    run(kernel, (before + 1,), far, only=[(before, 0, 0)])
    changed = 0
    for a, b, was in zip(near, far, inputs, strict=True):
        if isinstance(a, np.ndarray):
            np.testing.assert_array_equal(b[-len(a) :], a)
            changed += not np.array_equal(a, was)
    assert changed


@needs_addresses
def test_tables_of_more_than_two_to_the_31_numbers():
    K = BEYOND // N + 2
    table, row, out = untouched((K, N), "float32"), WEIGHTS, np.zeros((2, N), "float32")
    table[-1], table[0] = row, 2 * row
    ids = np.array([K - 1, 0])
    run(embedding.gather_rows["float32", 32, "wide"], (1,), (table, ids, out, 0.0, 2, K, N, 1))
    np.testing.assert_array_equal(out, [row, 2 * row])
    out[...] = 0
    arguments = np.ones(2, "float32"), ids.astype("int32"), np.array([0, 2], "int32"), table, out[:1], 1, K, N, 1, 1
    run(csr.gather_rows["float32", 32], (1,), arguments)
    np.testing.assert_array_equal(out[0], 3 * row)


@pytest.mark.parametrize("n", [36, 4097])
def test_norms_of_more_members_than_the_grid_has(n, monkeypatch):
    """One block walks over a stack of three."""
    monkeypatch.setattr(norms, "FILL", 1)
    rng = np.random.default_rng(n)
    x, d = rng.normal(size=(1, n)).astype("float32"), rng.normal(size=(3, 1, n)).astype("float32")
    h = (x - x.mean(dtype=float)) / np.sqrt(x.var(dtype=float) + 1e-5)
    r = 1 / np.sqrt(x.var(dtype=float) + 1e-5)
    want = r * (d - d.mean(-1, keepdims=True, dtype=float) - h * (d * h).mean(-1, keepdims=True))
    _, saved = call(layer_norm.forward, x, eps=1e-5)
    close(call(layer_norm.vjp, saved, d, (True,), eps=1e-5)[0], want, "float32", 10)
    if n == 36:
        close(call(layer_norm.jvp, saved, (d,), eps=1e-5), want, "float32", 10)
