"""What the device itself can do: bytes a second of a copy, operations a second of cuBLAS. Prints JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

REPEATS = 20


def main() -> None:
    import cupy

    def seconds(run: Callable[[], Any]) -> float:
        """The best of some rounds, by events."""
        best = float("inf")
        for _ in range(5):
            start, end = cupy.cuda.Event(), cupy.cuda.Event()
            start.record()
            for _ in range(REPEATS):
                run()
            end.record()
            end.synchronize()
            best = min(best, cupy.cuda.get_elapsed_time(start, end) / 1e3 / REPEATS)
        return best

    print(
        json.dumps({"copy_bytes_per_second": _copy(cupy, seconds), "sgemm_flops_per_second": _product(cupy, seconds)})
    )


def _copy(cupy: Any, seconds: Callable[[Callable[[], Any]], float]) -> float:
    source = cupy.ones(1 << 28, cupy.float32)
    target = cupy.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: cupy.copyto(target, source))


def _product(cupy: Any, seconds: Callable[[Callable[[], Any]], float]) -> float:
    n = 8192
    a = cupy.random.default_rng(0).standard_normal((n, n), dtype=cupy.float32)
    c = cupy.empty_like(a)
    return 2 * n**3 / seconds(lambda: cupy.matmul(a, a, out=c))


if __name__ == "__main__":
    main()
