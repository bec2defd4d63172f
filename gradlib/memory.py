"""Memory that is freed and asked for again, kept in the process instead of going back to the system.

The system hands out zeroed pages one fault at a time: a fresh large array can cost more than the arithmetic on it.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from math import prod
from sys import getrefcount
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


class _Blocks:
    """Blocks of memory that arrays stand on, the one used last at the end; free is what nobody else holds."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all, the lock too: in a forked child nobody may be left to open it."""
        self.lock = Lock()
        self.kept: list[tuple[np.ndarray, int]] = []  # with the place of the first cache line

    def take(self, size: int) -> tuple[np.ndarray, int]:
        """A block of so many bytes from its first cache line on: a free one of exactly this size, or a new one."""
        with self.lock:
            for i in range(len(self.kept) - 1, -1, -1):
                if self.kept[i][0].nbytes == size + _ALIGNED and self._free(i):
                    self.kept.append(self.kept.pop(i))
                    return self.kept[-1]
            block = np.empty(size + _ALIGNED, np.uint8)
            found = block, -block.ctypes.data % _ALIGNED
            if self._has_room(block.nbytes):
                self.kept.append(found)
            return found

    def _free(self, i: int) -> bool:
        return getrefcount(self.kept[i][0]) == 2  # the list's, and the one of this call

    def _has_room(self, size: int) -> bool:
        """Whether a block can be kept within the cap, once free ones have gone, those first that were used first."""
        total, i = sum(block.nbytes for block, _ in self.kept) + size, 0
        while total > CAP and i < len(self.kept):
            if self._free(i):
                total -= self.kept.pop(i)[0].nbytes
            else:
                i += 1
        return total <= CAP


_blocks = _Blocks()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_blocks.reset)


def empty(xp: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """`xp.empty(shape, dtype)`. For NumPy, large arrays stand on memory that is used again once they are gone.

    Up to 512 MB are kept for it. The arrays start at a cache line; like views they do not own their data.
    """
    dtype = np.dtype(dtype)
    size = prod(shape) * dtype.itemsize
    if xp is not np or size < SMALL:
        return xp.empty(shape, dtype)
    block, start = _blocks.take(size)
    return np.ndarray(shape, dtype, block, start)


def release() -> None:
    """Give the memory that `empty` keeps back to the system."""
    with _blocks.lock:
        _blocks.kept.clear()
