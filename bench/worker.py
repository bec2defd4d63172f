"""One contender in a process of its own: `python worker.py FILE CASE CONTENDER DEVICE SIZES`, started by ``peers.py``.

It answers in JSON, a line each. First its state, once its values were computed and compared with the reference:

    {"missing": …}                              the peer can't be imported
    {"failed": …}                               it raised
    {"error": …, "tolerance": …, "versions": …}  ready and warm

then to every line `SECONDS` on its input a round of about that long: {"min_us", "median_us", "calls"}. The first call
of a round is not counted: caches and thread pools have gone to sleep in the rest before it.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import deviation, load_file

WARM_UP_SECONDS = 0.3
LIBRARIES = ("gradlib", "numpy", "scipy", "numba", "cupy", "torch", "jax", "autograd")


def main() -> None:
    file, name, contender, device, sizes = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")  # what a library prints goes to stderr, not among the answers
    os.dup2(2, 1)
    warnings.simplefilter("ignore")

    def say(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    try:
        case = next(c for c in load_file(Path(file)) if c.name == name)
        inputs = case.make(tiny=sizes == "tiny")
        run, values = case.contenders[contender](inputs, device)
        error = deviation(values(), case.reference(inputs))
        seconds = warm_up(run)
    except ModuleNotFoundError as missing:
        return say({"missing": str(missing)})
    except Exception:
        return say({"failed": traceback.format_exc(limit=-3)})
    say({"error": error, "tolerance": case.tolerance, "versions": versions()})
    for line in sys.stdin:
        say(time_round(run, max(3, round(float(line) / seconds))))


def warm_up(run: Callable[[], Any]) -> float:
    """Call for a while; seconds a call took at the end."""
    stop = time.perf_counter() + WARM_UP_SECONDS
    calls = 0
    while calls < 3 or time.perf_counter() < stop:
        start = time.perf_counter()
        run()
        last = time.perf_counter() - start
        calls += 1
    return max(last, 1e-7)


def time_round(run: Callable[[], Any], calls: int) -> dict[str, Any]:
    """Smallest and median time of `calls` calls, in microseconds."""
    run()
    clock, times = time.perf_counter_ns, []
    for _ in range(calls):
        start = clock()
        run()
        times.append(clock() - start)
    return {"min_us": min(times) / 1e3, "median_us": statistics.median(times) / 1e3, "calls": calls}


def versions() -> dict[str, str]:
    """Of Python and the libraries this process has loaded."""
    found = {name: getattr(sys.modules.get(name), "__version__", None) for name in LIBRARIES}
    return {"python": platform.python_version(), **{k: str(v) for k, v in found.items() if v}}


if __name__ == "__main__":
    main()
