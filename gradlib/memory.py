"""Memory that is freed and asked for again, kept in the process instead of going back to the system.

The system hands out zeroed pages one fault at a time: a fresh large array can cost more than the arithmetic on it.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections import deque
from functools import cache
from math import prod
from threading import Lock
from typing import Any

import numpy as np

# glibc's names in <malloc.h>
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_BLOCK, _KEPT = 32 << 20, 256 << 20  # the largest block glibc lets us keep, and how much may lie free

SMALL, CAP = 1 << 18, 512 << 20  # bytes: what is not worth keeping, and how much `empty` keeps
_ALIGNED = 64  # a cache line


@cache
def keep_freed_memory() -> bool:
    """Let glibc keep freed blocks of up to 32 MB, 256 MB in all; whether it could be told.

    By default glibc maps every large array afresh: a new 400 KB result costs more than the arithmetic on it.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _BLOCK)) and bool(mallopt(_TRIM_THRESHOLD, _KEPT))


class _Kept:
    """Freed blocks, the newest last.

    A block can be freed at any instruction, also while the lock is held (by the garbage collector, or another thread).
    So it is only put into a queue, which whoever holds the lock empties.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all, the lock too: in a forked child nobody may be left to open it."""
        self.lock, self.freed = Lock(), deque()  # type: tuple[Any, deque[np.ndarray]]
        self.blocks: list[np.ndarray] = []

    def take(self, size: int) -> np.ndarray | None:
        """A kept block of exactly this size, the newest."""
        with self.lock:
            self._sort_in()
            for i in range(len(self.blocks) - 1, -1, -1):
                if self.blocks[i].nbytes == size:
                    return self.blocks.pop(i)
        return None

    def give(self, block: np.ndarray) -> None:
        """Keep a block."""
        self.freed.append(block)
        if self.lock.acquire(blocking=False):
            try:
                self._sort_in()
            finally:
                self.lock.release()

    def _sort_in(self) -> None:
        """Empty the queue; the oldest blocks go when there are more bytes than the cap."""
        while self.freed:
            self.blocks.append(self.freed.popleft())
        while sum(b.nbytes for b in self.blocks) > CAP:
            self.blocks.pop(0)

    def clear(self) -> None:
        with self.lock:
            self.freed.clear()
            self.blocks.clear()


_kept = _Kept()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_kept.reset)


class _Lease:
    """What an array stands on: gives the block back when the last view of it is gone."""

    __slots__ = ("__array_interface__", "block")

    def __init__(self, block: np.ndarray) -> None:
        self.block = block
        self.__array_interface__ = block.__array_interface__

    def __del__(self, give: Any = _kept.give) -> None:
        give(self.block)


def empty(xp: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """`xp.empty(shape, dtype)`. For NumPy, large arrays stand on memory that is used again once they are gone.

    Up to 512 MB of it are kept. The arrays start at a cache line; like views they do not own their data.
    """
    dtype = np.dtype(dtype)
    size = prod(shape) * dtype.itemsize
    if xp is not np or size < SMALL:
        return xp.empty(shape, dtype)
    block = _kept.take(size + _ALIGNED)
    lease = _Lease(np.empty(size + _ALIGNED, np.uint8) if block is None else block)
    return np.ndarray(shape, dtype, np.asarray(lease), -lease.__array_interface__["data"][0] % _ALIGNED)


def release() -> None:
    """Give the memory that `empty` keeps back to the system."""
    _kept.clear()
