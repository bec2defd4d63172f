"""Large arrays stand on memory that is used again."""

import gc
import threading

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


def test_no_more_than_the_cap_is_kept(monkeypatch):
    monkeypatch.setattr(memory, "CAP", 3_000_000)
    arrays = [memory.empty(np, LARGE, np.float32) for _ in range(4)]  # 1.2 MB each
    for i, x in enumerate(arrays):
        x[:] = i
    assert len(memory._blocks.kept) == 2 and [x[0, 0] for x in arrays] == [0, 1, 2, 3]
    first = place(arrays[0])
    del arrays, x
    x = memory.empty(np, (300, 1200), np.float32)  # the one used first makes room
    assert len(memory._blocks.kept) == 2 and first not in [block.ctypes.data + at for block, at in memory._blocks.kept]
    assert memory.empty(np, (2000, 1000), np.float32).shape == (2000, 1000)  # more than the cap
    assert [block.nbytes for block, _ in memory._blocks.kept] == [x.nbytes + 64]


def test_release():
    x = memory.empty(np, LARGE, np.float32)
    x[:] = 3
    memory.release()
    assert memory._blocks.kept == [] and place(memory.empty(np, LARGE, np.float32)) != place(x) and (x == 3).all()


def test_no_two_threads_get_one_block():
    wrong = []

    def work(number):
        for _ in range(300):
            x = memory.empty(np, LARGE, np.float32)
            x[0] = number
            x[-1] = number
            if not (x[0] == number).all() or not (x[-1] == number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
