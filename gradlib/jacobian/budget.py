"""How much working memory a Jacobian may take: `chunk_size`, `max_bytes`, and what holds without them.

Working memory is what is allocated beyond the inputs, the result, and what f itself records when it runs: f is called
once on all of its arguments, and pieces cut the products and sweeps behind it, never that call.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SHARE, FLOOR = 0.3, 8_000_000  # without a budget: at most 0.3 of the result, and 8 MB
FREE_SHARE = 0.25  # "auto": of the memory that is free

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_TEXT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Budget:
    """What the caller allows: at most `chunk_size` rows of the stack at once, and `max_bytes` of working memory."""

    name: str  # of the function, for errors
    chunk_size: int | None = None
    max_bytes: int | str | None = None  # "auto": a quarter of the memory that is free at the call

    def limit(self, result_bytes: int, xp: Any = np) -> int:
        """Bytes of working memory for a result of this size, made by the array module xp."""
        if self.max_bytes is None:
            return FLOOR + int(SHARE * result_bytes)
        if self.max_bytes != "auto":
            return int(self.max_bytes)
        # a power of two, so that a plan can be found again though what is free has changed a little
        return 1 << max(int(FREE_SHARE * free_bytes(xp)).bit_length() - 1, 0)

    def check(self, limit: int, needed: int, what: str) -> None:
        """ValueError unless `needed` bytes, for `what`, are within a limit that the caller set."""
        if self.max_bytes is not None and needed > limit:
            given = f"{self.max_bytes!r}, now {limit}" if self.max_bytes == "auto" else f"{self.max_bytes}"
            raise ValueError(
                f"{self.name}: max_bytes={given} is too small: {what} needs {needed} bytes ({readable(needed)}) of "
                "working memory"
            )


def budget(name: str, chunk_size: Any, max_bytes: Any) -> Budget:
    """A checked Budget from the arguments of a public function."""
    if chunk_size is not None and (not _is_int(chunk_size) or chunk_size < 1):
        raise ValueError(f"{name}: expected a positive int or None as chunk_size, got {chunk_size!r}")
    return Budget(name, None if chunk_size is None else int(chunk_size), _parsed(name, max_bytes))


def _is_int(x: Any) -> bool:
    """Whether x is an int of Python's or NumPy's."""
    return isinstance(x, (int, np.integer)) and not isinstance(x, bool)


def _parsed(name: str, max_bytes: Any) -> int | str | None:
    """Bytes from an int or a text such as "1GB" (10⁹), "200 MB" or "512KiB" (2¹⁰ each); None and "auto" as they are."""
    if max_bytes is None or (isinstance(max_bytes, str) and max_bytes == "auto"):
        return max_bytes
    found, size = _TEXT.fullmatch(max_bytes) if isinstance(max_bytes, str) else None, 0
    if found and found[2].lower() in _UNITS:
        size = int(float(found[1]) * _UNITS[found[2].lower()])
    elif _is_int(max_bytes):
        size = int(max_bytes)
    if size < 1:
        raise ValueError(
            f'{name}: expected max_bytes as a positive number of bytes, a text like "500 MB" or "2GiB", "auto" or '
            f"None, got {max_bytes!r}"
        )
    return size


def free_bytes(xp: Any) -> int:
    """Bytes that are free where the arrays of xp live: on the GPU for CuPy, else in this process's machine or group."""
    if hasattr(xp, "cuda"):
        return int(xp.cuda.runtime.memGetInfo()[0]) + int(xp.get_default_memory_pool().free_bytes())
    return min([*_machine_bytes(), *_group_bytes()], default=1 << 30)


def _machine_bytes() -> list[int]:
    """What Linux calls available, or the free pages that other systems count; empty where neither is told."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
    except OSError:
        pass
    try:
        return [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    except (AttributeError, OSError, ValueError):
        return []


def _group_bytes() -> list[int]:
    """What a container's limit leaves (cgroup v2); empty without one."""
    group = Path("/sys/fs/cgroup")
    try:
        return [max(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()), 0)]
    except (OSError, ValueError):  # not there, or "max"
        return []


def readable(size: float) -> str:
    """Bytes for people: 812 B, 1.2 MB.

    >>> readable(1_234_567)
    '1.2 MB'
    """
    for unit, n in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= 0.9995 * n:
            return f"{size / n:.3g} {unit}" if size >= 99.95 * n else f"{size / n:.1f} {unit}"
    return f"{int(size)} B"
