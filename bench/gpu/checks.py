"""The kernels' tests on the device, as they are and under compute-sanitizer, and all kernels compiled beforehand.

`python checks.py PART PARTS MAJOR MINOR [ONLY]` compiles every PARTS-th kernel from PART on into the cache; a process
compiles one after another, and the tests and the benchmark find them there.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TESTS = [
    *(str(p.relative_to(ROOT)) for p in sorted((ROOT / "tests").glob("test_kernel_*.py"))),
    "tests/test_cuda_graph.py::test_on_a_real_gpu",
    "tests/test_cublas.py::test_on_a_real_gpu",
]
REHEARSED = ["tests/test_kernel_softmax.py", "-k", "test_forward and (1-float32 or 32772)", "--maxfail=1"]
PROCESSES = 16  # at most; each test process has a context on the device
LIMIT = 600  # seconds for all kernels' compilation, where nothing else bounds it
SMALL = "16384"  # numbers in the arrays of a test that runs under compute-sanitizer


def cores() -> int:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(count, PROCESSES)


def command(where: str, processes: int = 1) -> list[str]:
    """pytest over the kernels' tests; several at a time where pytest-xdist is there."""
    several = ["-n", str(processes)] if processes > 1 and importlib.util.find_spec("xdist") else []
    chosen = TESTS if where == "cuda" else REHEARSED
    return [sys.executable, "-m", "pytest", "--import-mode=importlib", "-q", *several, *chosen]


def environment(where: str, **more: str) -> dict[str, str]:
    return os.environ | {"GRADLIB_POISON": "1", "NUMBA_ENABLE_CUDASIM": "0" if where == "cuda" else "1"} | more


def tests(where: str, limit: float) -> dict[str, Any]:
    """The kernels' tests on the device, what they allocate full of NaN: exit status, last line, seconds.

    After `limit` seconds they are ended: status 124.
    """
    start = time.perf_counter()
    many = cores() // 2 if where == "cuda" else 1
    try:
        done = subprocess.run(
            command(where, many), cwd=ROOT, env=environment(where), capture_output=True, text=True, timeout=limit
        )
    except subprocess.TimeoutExpired:
        return {"status": 124, "summary": f"ended after {limit:.0f} s", "seconds": round(limit, 1)}
    lines = done.stdout.strip().splitlines() or [""]
    if done.returncode:
        print("\n".join(lines[-30:]))
    return {"status": done.returncode, "summary": lines[-1], "seconds": round(time.perf_counter() - start, 1)}


def sanitize(where: str) -> int:
    """memcheck and racecheck over the kernels' tests of small arrays, all of them; 0 when both are clean."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        raise SystemExit("gradlib bench --gpu --sanitize: compute-sanitizer, of the CUDA toolkit, is not on the PATH")
    if where == "cuda":
        compile_all(capability(), LIMIT)
    worst = 0
    for check in ("memcheck", "racecheck"):
        under = [tool, "--tool", check, "--error-exitcode", "9", "--target-processes", "all"]
        env = environment(where, CUPY_CUDA_MEMORY_POOL="none", GRADLIB_SMALL_TESTS=SMALL)
        status = subprocess.call([*under, *command(where)], cwd=ROOT, env=env)
        print(f"{check}: {'clean' if status == 0 else f'status {status}'}", flush=True)
        worst = max(worst, status)
    return worst


def compile_all(cc: tuple[int, int], limit: float, only: str = "") -> dict[str, Any]:
    """Every kernel, or those whose name has `only` in it, into the cache by as many processes as there are cores.

    After `limit` seconds they are ended: what is left is compiled when it is called for. -> seconds, and what failed.
    """
    start, parts = time.perf_counter(), cores()
    env = os.environ | {"NUMBA_ENABLE_CUDASIM": "0"}
    running = [
        subprocess.Popen([sys.executable, __file__, str(part), str(parts), *map(str, cc), only], env=env,
                         stderr=subprocess.PIPE, text=True)
        for part in range(parts)
    ]  # fmt: skip
    failed = [text for process in running if (text := _failure(process, start + limit - time.perf_counter()))]
    return {"seconds": round(time.perf_counter() - start, 1), "failed": failed}


def _failure(process: subprocess.Popen[str], seconds: float) -> str:
    """How a process failed, at the latest after so many seconds; "" if it did not."""
    try:
        text = process.communicate(timeout=max(seconds, 0))[1]
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return "ended before it was done"
    return text.strip()[-2000:] if process.returncode else ""


def compile_part(part: int, parts: int, major: int, minor: int, only: str = "") -> None:
    from gradlib.kernels.cache import cubin_of
    from gradlib.kernels.inspection import load_catalogue
    from gradlib.kernels.launch import CATALOGUE

    load_catalogue()
    keys = [(kernel, key) for kernel in CATALOGUE.values() for key in kernel.instances()]
    for kernel, key in [k for k in keys if re.search(only, k[0].name_of(k[1]))][part::parts]:
        cubin_of(kernel[key], (major, minor))


def capability() -> tuple[int, int]:
    """Of the current device."""
    import cupy

    digits = cupy.cuda.Device().compute_capability
    return int(digits[:-1]), int(digits[-1])


if __name__ == "__main__":
    compile_part(*map(int, sys.argv[1:5]), *sys.argv[5:])
