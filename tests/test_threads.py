"""Pieces shared among threads, and BLAS kept on one meanwhile."""

import os
import threading
import weakref
from functools import partial

import numpy as np
import pytest

from gradlib import threads


@pytest.fixture(params=[1, 2, 4])
def cores(request, monkeypatch):
    """Pretend that the machine has so many cores."""
    monkeypatch.setattr(threads, "cores", lambda: request.param)
    monkeypatch.setattr(threads, "_pool", None)
    return request.param


@pytest.mark.parametrize("count", [0, 1, 3, 500])
def test_every_piece_is_worked_on_once(cores, count):
    done = []
    threads.share(done.append, range(count))
    assert sorted(done) == list(range(count))


def test_helpers_take_part(cores):
    together = threading.Barrier(cores, timeout=30)
    threads.share(lambda piece: together.wait(), range(cores))  # breaks unless so many threads are in it at once


def test_what_a_piece_raises_is_raised(cores):
    def work(piece):
        if piece == 7:
            raise KeyError("piece 7")

    with pytest.raises(KeyError, match="piece 7"):
        threads.share(work, range(50))
    threads.share(lambda piece: None, range(50))


def test_shared_work_may_share(cores):
    done = []
    threads.share(lambda i: threads.share(lambda j: done.append((i, j)), range(5)), range(5))
    assert sorted(done) == [(i, j) for i in range(5) for j in range(5)]


def test_helpers_keep_the_callers_errstate(cores):
    together = threading.Barrier(cores, timeout=30)

    def work(piece):
        together.wait()
        return np.float32(1) / np.zeros(1, np.float32)

    with np.errstate(divide="raise"), pytest.raises(FloatingPointError):
        threads.share(work, range(cores))


def test_a_busy_pool_keeps_nothing_of_what_is_done(monkeypatch):
    monkeypatch.setattr(threads, "cores", lambda: 2)
    monkeypatch.setattr(threads, "_pool", None)
    free = threading.Event()
    busy = threads._submit(lambda: free.wait(30))
    array = np.ones(3)
    kept = weakref.ref(array)
    threads.share(partial(np.multiply.at, array, 0), [2.0, 3.0])
    del array
    assert kept() is None
    free.set()
    busy.result()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_makes_its_own_pool(monkeypatch):
    monkeypatch.setattr(threads, "cores", lambda: 2)
    threads.share(lambda piece: None, range(4))
    child = os.fork()
    if not child:
        together = threading.Barrier(2, timeout=30)
        threads.share(lambda piece: together.wait(), range(2))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def test_cores_follow_the_setting(monkeypatch):
    for told, most in (("1", 1), ("100000", os.cpu_count()), ("", os.cpu_count()), ("2,1", os.cpu_count())):
        monkeypatch.setenv("OMP_NUM_THREADS", told)
        assert 1 <= threads.cores.__wrapped__() <= most


class TestOneBlasThread:
    @pytest.fixture(autouse=True)
    def blas(self, monkeypatch):
        """A BLAS that remembers its number of threads."""
        self.threads = 8
        functions = (lambda: self.threads, lambda n: setattr(self, "threads", n))
        monkeypatch.setattr(threads._blas, "functions", lambda: functions)
        monkeypatch.setattr(threads, "cores", lambda: 2)

    def test_it_is_restored(self):
        with threads.one_blas_thread():
            assert self.threads == 1
            with threads.one_blas_thread():
                pass
            assert self.threads == 1
        assert self.threads == 8
        with pytest.raises(KeyError), threads.one_blas_thread():
            raise KeyError
        assert self.threads == 8

    def test_by_the_last_of_several_threads(self):
        inside, leave = threading.Event(), threading.Event()

        def other():
            with threads.one_blas_thread():
                inside.set()
                leave.wait(30)

        thread = threading.Thread(target=other)
        thread.start()
        assert inside.wait(30)
        with threads.one_blas_thread():
            leave.set()
            thread.join()
            assert self.threads == 1
        assert self.threads == 8

    def test_only_if_wanted(self):
        with threads.one_blas_thread(False):
            assert self.threads == 8


def test_another_blas_is_left_alone(monkeypatch):
    monkeypatch.setattr(threads._blas, "functions", lambda: None)
    with threads.one_blas_thread():
        pass


def test_numpys_openblas_is_found():
    config = np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"]
    if config != "scipy-openblas":
        pytest.skip(f"NumPy was built with {config}")
    get, _ = threads._blas.functions()
    before = get()
    with threads.one_blas_thread():
        assert get() == (1 if threads.cores() > 1 else before)
    assert get() == before
