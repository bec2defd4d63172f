"""How the cost of batched Jacobians grows with batch, width and depth, beside the peers: `python bench/grow.py`.

    python bench/grow.py [--peer PEER] [--json FILE] [--picture FILE] [--tiny]     measure and draw; some minutes
    python bench/grow.py --draw FILE.json [--picture FILE]                         draw a recorded run again

The Jacobian of every sample's logits by its input, ReLU networks in float32, every contender in a process of its own.
Time is the median of the calls within half a second. Memory is what a call adds to the process at its widest, its
result included, in a process of its own that is told to keep no freed memory (Linux with glibc alone); the system
counts by some 100 KB, so it is asked for results of at least 1 MB.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import article  # noqa: E402
import bench_jacobian  # noqa: E402
import machine  # noqa: E402
import numpy as np  # noqa: E402
from peers import interpreter, peer_of  # noqa: E402

CONTENDERS: dict[str, Callable[..., Any]] = {
    "gradlib": bench_jacobian.gradlib_input,
    "torch.func": bench_jacobian.torch_input,
    "jax": bench_jacobian.jax_input,
    "numpy": bench_jacobian.numpy_input,
}
SECONDS = 0.5  # of calls a point
MEASURED = 1_000_000  # bytes of a result from which its memory is measured
EXACT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}


def points(tiny: bool) -> list[dict[str, Any]]:
    """What is measured: the quantity that grows, its value, the batch and the sizes of the layers."""
    if tiny:
        return [{"axis": axis, "value": v, "batch": 3, "sizes": (5, 4, 3)} for axis in AXES for v in (1, 2)]
    batches = [{"value": b, "batch": b, "sizes": article.SIZES} for b in (1, 4, 16, 64, 256, 1024, 4096, 16384)]
    widths = [{"value": w, "batch": 1024, "sizes": (100, w, w, 10)} for w in (16, 32, 64, 128, 256, 512, 1024)]
    depths = [{"value": n, "batch": 1024, "sizes": (100, *[64] * n, 10)} for n in (1, 2, 4, 8, 16, 32)]
    return [{"axis": axis, **p} for axis, part in zip(AXES, (batches, widths, depths), strict=True) for p in part]


AXES = {
    "batch": "samples (100-64-32-10)",
    "width": "width of two hidden layers (1024 samples)",
    "depth": "hidden layers of width 64 (1024 samples)",
}


def result_bytes(point: dict[str, Any]) -> int:
    return 4 * point["batch"] * point["sizes"][0] * point["sizes"][-1]


# in a contender's process
def measure(contender: str, what: str, tiny: bool) -> None:
    """A line of JSON for every point: {"seconds"} or {"bytes"}, null where it is not told."""
    for point in points(tiny):
        if what == "bytes" and result_bytes(point) < MEASURED:
            print(json.dumps({"bytes": None}), flush=True)
            continue
        inputs = article.inputs(np.random.default_rng(0), point["batch"], tuple(point["sizes"]))
        run, _ = CONTENDERS[contender](inputs, "cpu")
        run()  # compiles
        print(
            json.dumps({what: time_of(run, 0.01 if tiny else SECONDS) if what == "seconds" else memory_of(run)}),
            flush=True,
        )


def time_of(run: Callable[[], Any], seconds: float) -> float:
    run()
    times, stop = [], time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < stop:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def memory_of(run: Callable[[], Any]) -> int | None:
    """Bytes a call adds to the resident memory at its widest; None where the system does not tell."""
    gc.collect()
    if "gradlib" in sys.modules:
        sys.modules["gradlib.memory"].release()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        before = status("VmRSS")
        result = run()
        return max(0, status("VmHWM") - before) if result is not None else None
    except (OSError, StopIteration):
        return None


def status(name: str) -> int:
    """A figure of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


# in ours
def collect(contender: str, tiny: bool) -> list[dict[str, Any]]:
    """The points of one contender; those it reached if it fails."""
    seconds, sizes = (ask(contender, what, tiny) for what in ("seconds", "bytes"))
    return [{**p, "contender": contender, **s, **b} for p, s, b in zip(points(tiny), seconds, sizes, strict=False)]


def ask(contender: str, what: str, tiny: bool) -> list[dict[str, Any]]:
    """What a contender's process measures."""
    command = [interpreter(contender), str(HERE / "grow.py"), "--worker", contender, what]
    environment = {**os.environ, **(EXACT if what == "bytes" else {})}
    try:
        done = subprocess.run(
            [*command, *(["--tiny"] if tiny else [])], capture_output=True, text=True, check=False, env=environment
        )
    except OSError as error:
        print(f"{contender}: skipped, {command[0]} does not start ({error.strerror})")
        return []
    if done.returncode:
        print(f"{contender}: {(done.stderr.strip().splitlines() or ['ended'])[-1]}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def draw(run: dict[str, Any], picture: Path) -> None:
    """Time and memory over batch, width and depth, a line for each contender."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, len(AXES), figsize=(12, 6.5), sharex="col", layout="constrained")
    for column, axis in zip(axes.T, AXES, strict=True):
        for contender in CONTENDERS:
            rows = [p for p in run["points"] if p["axis"] == axis and p["contender"] == contender]
            style = {"marker": "o", "markersize": 3, "linewidth": 2.5 if contender == "gradlib" else 1.2}
            if not rows:  # not installed where this was measured
                continue
            values = [p["value"] for p in rows]
            column[0].plot(values, [1e3 * p["seconds"] for p in rows], label=contender, **style)
            known = [p for p in rows if p["bytes"]]
            column[1].plot([p["value"] for p in known], [p["bytes"] / 1e6 for p in known], **style)
        sizes = sorted({(p["value"], result_bytes(p)) for p in run["points"] if p["axis"] == axis})
        column[1].plot([v for v, _ in sizes], [b / 1e6 for _, b in sizes], "k:", label="the result itself")
        for part in column:
            part.set(xscale="log", yscale="log")
            part.grid(True, which="major", alpha=0.3)
        column[1].set_xlabel(AXES[axis])
        column[1].set_xticks([v for v, _ in sizes], [str(v) for v, _ in sizes])
        column[1].minorticks_off()
    axes[0, 0].set_ylabel("time of a call, ms")
    axes[1, 0].set_ylabel("memory a call adds, MB")
    axes[0, 0].legend()
    axes[1, 0].legend()
    figure.suptitle(f"Jacobian of each sample's logits by its input, float32; {run['cpu']}, {run['cores']} cores")
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110)
    print(f"drawn to {picture}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench/grow.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--peer", action="append", choices=("torch", "jax", "numpy"), help="this peer alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures go; by default "
                        "bench/results/growth/<device>-<date>.json")  # fmt: skip
    parser.add_argument("--picture", type=Path, metavar="FILE", default=HERE / "results" / "growth.png")
    parser.add_argument("--draw", type=Path, metavar="FILE", help="draw these figures again")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: a rehearsal, no measurement")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.worker:
        measure(*options.worker, options.tiny)
        return 0
    if options.draw:
        draw(json.loads(options.draw.read_text()), options.picture)
        return 0
    run: dict[str, Any] = {**machine.describe("cpu"), "tiny": options.tiny, "points": []}
    for contender in CONTENDERS:
        if contender == "gradlib" or not options.peer or peer_of(contender) in options.peer:
            run["points"] += collect(contender, options.tiny)
    target = options.json or HERE / "results/growth" / f"{machine.slug(run['cpu'])}-{datetime.now():%Y-%m-%d}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(run, indent=1) + "\n")
    print(f"written to {target}")
    draw(run, options.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
