"""What a recorded result says of the machine and the code it was measured with."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

#: Settings of thread pools, which the workers inherit; recorded where set.
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "XLA_FLAGS")


def describe(device: str) -> dict[str, Any]:
    """Device, processor, cores, thread settings, system, load, date and commit; the workers tell the versions."""
    cpu = cpu_name()
    return {
        "device": gpu_name() if device == "cuda" else cpu,
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": {name: os.environ[name] for name in THREADS if name in os.environ},
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git("rev-parse", "HEAD"),
        "dirty": None if (status := git("status", "--porcelain")) is None else bool(status),
        "load_before": load(),
    }


def cpu_name(info: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name as the system gives it, and its widest vectors, which one name may have or not."""
    try:
        lines = info.read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = told.get("flags", "").split()
    vectors = "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else ""
    return " ".join(filter(None, [told.get("model name", platform.machine()), vectors and f"({vectors})"]))


def gpu_name() -> str:
    from gradlib.device import device_info

    rows = device_info()
    if not rows:
        raise SystemExit("gradlib bench: --device cuda needs CuPy and a GPU; `gradlib info` tells what is missing")
    return rows[0]["name"]


def load() -> float | None:
    """Processes that wanted to run in the last minute: above 0 before a run, others use the CPU."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def git(*command: str) -> str | None:
    """What git says of the checkout; None without git or a checkout."""
    try:
        done = subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def slug(name: str) -> str:
    """A device's name for a file name: ``amd-epyc``."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
