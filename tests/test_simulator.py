"""The simulator: what must work, and what must be reported, because hardware would leave it undefined."""

import numpy as np
import pytest

from gradlib.kernels.launch import SIMULATED

if not SIMULATED:
    pytest.skip("needs the simulator", allow_module_level=True)

from gradlib.kernels.intrinsics import cuda, reductions, tile_access
from gradlib.kernels.simulator import SimulationError, run_grid

FULL = 0xFFFFFFFF


def run(body, threads, *args, grid=(1,)):
    run_grid("kernel", body, grid, threads, args)


def test_threads_blocks_and_grid(schedule):
    seen = np.zeros((2, 3, 4), np.int64)

    def body(out):
        b, d, g = cuda.blockIdx, cuda.blockDim, cuda.gridDim
        assert (d.x, g.x, g.y, g.z) == (4, 3, 2, 1)
        out[(b.y * g.x + b.x) * d.x + cuda.threadIdx.x] += 1

    run(body, 4, seen, grid=(3, 2))
    np.testing.assert_array_equal(seen, 1)


def test_barrier_orders_shared_memory(schedule):
    def body(x, y):
        shared, t = cuda.shared.array(64, np.float32), cuda.threadIdx.x
        shared[t] = x[t]
        cuda.syncthreads()
        y[t] = shared[63 - t]

    x, y = np.arange(64, dtype=np.float32), np.zeros(64, np.float32)
    run(body, 64, x, y)
    np.testing.assert_array_equal(y, x[::-1])


def test_missing_barrier_shows(schedule):
    def body(x, y):
        shared, t = cuda.shared.array(64, np.float32), cuda.threadIdx.x
        shared[t] = x[t]
        y[t] = shared[63 - t]

    x, y = np.arange(64, dtype=np.float32), np.zeros(64, np.float32)
    run(body, 64, x, y)
    assert np.isnan(y).any()


def test_warps_run_ahead(schedule):
    """Memory that is used again before the slow warp has read it."""

    def body(x, y):
        shared, t = cuda.shared.array(64, np.float32), cuda.threadIdx.x
        for i in range(3):
            shared[t] = x[t] + i
            cuda.syncthreads()
            y[t] += shared[63 - t]

    x, y = np.arange(64, dtype=np.float32), np.zeros(64, np.float32)
    run(body, 64, x, y)
    assert (y != 3 * x[::-1] + 3).any()


def test_two_arrays_on_one_line_differ_and_blocks_do_not_share():
    def body(y):
        a, b = cuda.shared.array(1, np.float32), cuda.shared.array(1, np.float32)
        assert np.isnan(a[0])
        a[0], b[0] = 1, 2
        y[cuda.blockIdx.x] = a[0] + b[0]

    y = np.zeros(2)
    run(body, 1, y, grid=(2,))
    np.testing.assert_array_equal(y, 3)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda l: cuda.shfl_xor_sync(FULL, l, 3), lambda l: l ^ 3),
        (lambda l: cuda.shfl_sync(FULL, l, 5), lambda l: 5),
        (lambda l: cuda.shfl_down_sync(FULL, l, 4), lambda l: l + 4 if l < 28 else l),
        (lambda l: cuda.shfl_up_sync(FULL, l, 4), lambda l: l - 4 if l >= 4 else l),
        (lambda l: cuda.ballot_sync(FULL, l % 2), lambda l: 0xAAAAAAAA),
        (lambda l: cuda.any_sync(FULL, l == 3), lambda l: True),
        (lambda l: cuda.all_sync(FULL, l == 3), lambda l: False),
        (lambda l: cuda.syncwarp() or l, lambda l: l),
    ],
)
def test_warp_calls(call, expected, schedule):
    def body(out):
        t = cuda.threadIdx.x
        out[t] = call(t % 32)

    out = np.zeros(64, np.int64)
    run(body, 64, out)
    np.testing.assert_array_equal(out, [expected(t % 32) for t in range(64)])


@pytest.mark.parametrize("lanes", [1, 2, 4, 8, 16, 32, None])
def test_reductions(lanes, schedule):
    add, largest = reductions(np.float64, lanes)

    def body(x, sums, tops):
        t = cuda.threadIdx.x
        sums[t], tops[t] = add(x[t]), largest(x[t])

    x = np.random.default_rng(0).normal(size=96)
    sums, tops = np.zeros(96), np.zeros(96)
    run(body, 96, x, sums, tops)
    groups = x.reshape(-1, lanes or 96)
    np.testing.assert_allclose(sums, np.repeat(groups.sum(1), lanes or 96), rtol=1e-14)
    np.testing.assert_array_equal(tops, np.repeat(groups.max(1), lanes or 96))


@pytest.mark.parametrize("i", [-1, 4, 5])
def test_index_outside_is_an_error(i):
    def body(x):
        if cuda.threadIdx.x == 2:
            x[i] = 1

    with pytest.raises(IndexError, match=rf"x\[{i}\] lies outside 0\.\.3") as error:
        run(body, 4, np.zeros(4))
    assert "thread 2" in error.value.__notes__[0]


def test_local_and_shared_memory_start_as_nan():
    def body(y):
        y[0] = cuda.local.array(2, np.float32)[1]
        y[1] = cuda.shared.array(2, np.float32)[1]

    y = np.zeros(2)
    run(body, 1, y)
    assert np.isnan(y).all()


def test_shuffle_from_a_lane_that_ended_is_nan():
    def body(y):
        if cuda.threadIdx.x != 3:
            y[cuda.threadIdx.x] = cuda.shfl_sync(FULL, np.float32(1), 3)

    y = np.zeros(32)
    run(body, 32, y)
    assert np.isnan(np.delete(y, 3)).all()


def test_thread_that_leaves_before_a_barrier():
    def body(x):
        if cuda.threadIdx.x:
            cuda.syncthreads()

    with pytest.raises(SimulationError, match="1 threads ended before a syncthreads"):
        run(body, 4, np.zeros(1))


def test_lanes_in_different_calls():
    def body(x):
        if cuda.threadIdx.x % 2:
            cuda.syncwarp()
        else:
            cuda.shfl_sync(FULL, 1, 0)

    with pytest.raises(SimulationError, match="different calls"):
        run(body, 32, np.zeros(1))


def test_lane_outside_its_mask():
    def body(x):
        cuda.shfl_sync(0xFFFF, 1, 0)

    with pytest.raises(SimulationError, match="mask 0xffff"):
        run(body, 32, np.zeros(1))


def test_barrier_against_warp_call():
    def body(x):
        if cuda.threadIdx.x % 2:
            cuda.syncthreads()
        else:
            cuda.syncwarp()

    with pytest.raises(SimulationError, match="deadlock"):
        run(body, 32, np.zeros(1))


@pytest.mark.parametrize(
    ("grid", "threads", "word"),
    [
        ((1,), 257, "257 threads"),
        ((1,), 0, "0 threads"),
        ((2**31,), 1, "grid of"),
        ((1, 65536), 1, "grid of"),
        ((1, 1, 65536), 1, "grid of"),
    ],
)
def test_launches_that_cuda_refuses(grid, threads, word):
    ran = []
    with pytest.raises(SimulationError, match=f"kernel kernel: .*{word}"):
        run(lambda: ran.append(1), threads, grid=grid)
    assert not ran


def test_misaligned_vector():
    load, _ = tile_access(np.float32, 4)

    def body(x):
        load(x, 1, 8, cuda.local.array(4, np.float32), 0, True)

    x = np.zeros(16, np.float32)
    with pytest.raises(SimulationError, match="not aligned"):
        run(body, 1, x[-x.ctypes.data % 16 // 4 :])
