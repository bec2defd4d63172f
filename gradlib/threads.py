"""Work on pieces of a batch in several threads, for loops that free the GIL: one pool, one thread a core.

Our threads and those of a threaded BLAS do not get along: OpenBLAS keeps its own spinning for a while after a product,
on the cores that ours would use. So work that is shared here calls no BLAS, and `one_blas_thread` keeps what runs
before it from waking BLAS's threads.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ContextDecorator
from contextvars import copy_context
from functools import cache
from threading import Lock
from typing import Any

import numpy as np

_lock = Lock()
_pool: ThreadPoolExecutor | None = None


@cache
def cores() -> int:
    """How many threads to use: the cores this process may run on, or fewer if OMP_NUM_THREADS says so."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    told = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(allowed, int(told)) if told.isdigit() else allowed)


def share(work: Callable[[Any], None], pieces: Iterable[Any]) -> None:
    """`work(piece)` for every piece, each thread taking the next one as soon as it is free.

    The pieces must not depend on each other. What a piece raises is raised here. Helpers that have not begun when
    this thread is through are not waited for, so a busy pool costs nothing.
    """
    pieces = list(pieces)
    remaining = iter(pieces)  # a list's iterator hands every piece out once, also between threads

    def run() -> None:
        for piece in remaining:
            work(piece)

    helpers = [_submit(run) for _ in range(min(cores(), len(pieces)) - 1)]
    try:
        run()
    finally:
        remaining = iter(())
        started = [h for h in helpers if not h.cancel()]
        failures = [h.exception() for h in started]
        work = _nothing  # helpers that were cancelled stay in the pool's queue for a while, and would keep its arrays
    for failure in failures:
        if failure is not None:
            raise failure


def _nothing(piece: Any) -> None:
    """The work of helpers that come too late."""


def _submit(run: Callable[[], None]) -> Future:
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(cores() - 1, "gradlib")
        return _pool.submit(copy_context().run, run)  # np.errstate holds in the helpers too


def _forget_pool() -> None:
    """A forked child has no threads but the one that forked: it makes a pool of its own."""
    global _lock, _pool
    _lock, _pool = Lock(), None
    _blas.reset()


class _Blas:
    """The number of threads of NumPy's OpenBLAS, and how many have asked for a single one."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.lock, self.holders, self.before = Lock(), 0, 0

    @cache  # noqa: B019  (there is one)
    def functions(self) -> Any:
        """(get, set) the number of threads; None where NumPy uses another BLAS."""
        try:
            library = ctypes.CDLL(np._core._multiarray_umath.__file__)  # type: ignore[attr-defined]
            return library.scipy_openblas_get_num_threads64_, library.scipy_openblas_set_num_threads64_
        except (AttributeError, OSError):
            return None

    def hold(self) -> None:
        with self.lock:
            self.holders += 1
            if self.holders == 1:
                self.before = self.functions()[0]()
                self.functions()[1](1)

    def release(self) -> None:
        with self.lock:
            self.holders -= 1
            if not self.holders:
                self.functions()[1](self.before)


_blas = _Blas()


class one_blas_thread(ContextDecorator):
    """NumPy's OpenBLAS on one thread meanwhile, for the whole process; nothing for another BLAS or if not wanted."""

    __slots__ = ("wanted",)

    def __init__(self, wanted: bool = True) -> None:
        self.wanted = wanted and cores() > 1 and _blas.functions() is not None

    def __enter__(self) -> None:
        if self.wanted:
            _blas.hold()

    def __exit__(self, *error: object) -> None:
        if self.wanted:
            _blas.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
