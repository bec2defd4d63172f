"""Large arrays stand on memory that is used again."""

import gc

import numpy as np
import pytest

from gradlib import memory

LARGE = (300, 1000)


@pytest.fixture(autouse=True)
def nothing_kept():
    memory.release()
    yield
    memory.release()


def place(x):
    return x.ctypes.data


@pytest.mark.parametrize("dtype", [np.float32, np.float64, bool])
@pytest.mark.parametrize("shape", [LARGE, (0, 5), (), (7,), (1 << 19,)])
def test_it_is_an_array_like_any_other(shape, dtype):
    x = memory.empty(np, shape, dtype)
    assert type(x) is np.ndarray and x.shape == shape and x.dtype == dtype
    assert x.flags.c_contiguous and x.flags.writeable and x.flags.aligned
    x[...] = 1
    np.testing.assert_array_equal(x, np.ones(shape, dtype))


def test_freed_memory_is_used_again_only_when_the_last_view_is_gone():
    x = memory.empty(np, LARGE, np.float32)
    x[:] = 5
    at, view = place(x), x.reshape(-1)[3:]
    assert at % 64 == 0
    del x
    other = memory.empty(np, LARGE, np.float32)
    other[:] = 6
    assert place(other) != at and (view == 5).all()
    del view
    assert place(memory.empty(np, LARGE, np.float32)) == at


def test_also_through_a_memoryview_and_a_cycle():
    x = memory.empty(np, LARGE, np.float32)
    at, view = place(x), memoryview(x)
    del x
    assert place(memory.empty(np, LARGE, np.float32)) != at
    cycle = [view]
    cycle.append(cycle)
    del cycle, view
    gc.collect()
    taken = [memory.empty(np, LARGE, np.float32) for _ in range(2)]
    assert at in map(place, taken)


def test_other_sizes_get_their_own():
    x = memory.empty(np, LARGE, np.float32)
    at = place(x)
    del x
    assert place(memory.empty(np, (299, 1000), np.float32)) != at


def test_the_oldest_goes_beyond_the_cap(monkeypatch):
    monkeypatch.setattr(memory, "CAP", 3_000_000)
    arrays = [memory.empty(np, LARGE, np.float32) for _ in range(4)]  # 1.2 MB each
    arrays.clear()
    assert len(memory._kept.blocks) == 2
    x = memory.empty(np, (1000, 1000), np.float32)
    del x  # more than the cap: nothing else is kept, nor is it
    assert memory._kept.blocks == []


def test_release():
    x = memory.empty(np, LARGE, np.float32)
    del x
    assert len(memory._kept.blocks) == 1
    memory.release()
    assert memory._kept.blocks == []


def test_a_block_freed_while_the_lock_is_held():
    x = memory.empty(np, LARGE, np.float32)
    with memory._kept.lock:
        del x
    memory.empty(np, (2, 2), np.float32)
    assert place(memory.empty(np, LARGE, np.float32)) % 64 == 0
