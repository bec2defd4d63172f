"""Memory that a replay frees and asks for again, kept in the process instead of going back to the system."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

# glibc's names in <malloc.h>
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_BLOCK, _KEPT = 32 << 20, 256 << 20  # the largest block glibc lets us keep, and how much may lie free


@cache
def keep_freed_memory() -> bool:
    """Let glibc keep freed blocks of up to 32 MB, 256 MB in all; whether it could be told.

    By default glibc maps every large array afresh, and the system hands out zeroed pages one fault at a time: a new
    400 KB result costs more than the arithmetic on it.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _BLOCK)) and bool(mallopt(_TRIM_THRESHOLD, _KEPT))
