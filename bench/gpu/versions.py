"""What a run was measured with: packages of one library's process, and the GPU, its driver and CUDA."""

from __future__ import annotations

import contextlib
import subprocess
from importlib.metadata import distributions
from typing import Any

# Of each library, the beginnings of the names of the packages that its results depend on.
PACKAGES = {
    "gradlib": ("gradlib", "numpy", "numba", "llvmlite", "cupy", "cuda-", "nvidia-", "ml-dtypes"),
    "torch": ("torch", "triton", "pytorch-triton"),
    "jax": ("jax",),
}


def packages(library: str) -> dict[str, str]:
    """Version of every installed package that counts."""
    found = {(d.metadata["Name"] or "").lower().replace("_", "-"): d.version for d in distributions()}
    return {name: version for name, version in sorted(found.items()) if name.startswith(PACKAGES[library])}


def gpu() -> dict[str, Any]:
    """The current device's properties, and the versions of driver, CUDA runtime and compiler in this process."""
    import cupy

    from gradlib.kernels import compiler

    runtime = cupy.cuda.runtime
    p = runtime.getDeviceProperties(runtime.getDevice())
    return {
        "name": p["name"].decode(),
        "compute_capability": f"{p['major']}.{p['minor']}",
        "memory_bytes": p["totalGlobalMem"],
        "multiprocessors": p["multiProcessorCount"],
        "l2_bytes": p["l2CacheSize"],
        "driver": driver(),
        "driver_cuda": dotted(runtime.driverGetVersion()),
        "runtime_cuda": dotted(runtime.runtimeGetVersion()),
        "compiler": compiler.versions(),
    }


def dotted(version: int) -> str:
    """CUDA's way to count: 13020 is 13.2."""
    return f"{version // 1000}.{version % 1000 // 10}"


def driver() -> str | None:
    """The driver's own number, as nvidia-smi gives it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
        return done.stdout.split()[0] if done.stdout.split() else None
    return None
