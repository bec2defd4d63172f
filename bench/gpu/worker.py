"""One library in a process of its own: `python worker.py LIBRARY PLACE`, PLACE "cuda" or "rehearsal".

It says which versions it has, then answers in JSON, a line each, to lines of JSON on its input:

    {"build": case, "contender": name}   {"error": …} of the result, {"missing": …} or {"failed": …}
    {"time": seconds}                    {"us": …, "calls": …} of one round of about that long
    {"drop": true}                       {} once the arrays are given back

Time is taken by two CUDA events around a round of calls, none of which waits for the one before; JAX, which shows no
events, is timed by the clock until the last result is there. A rehearsal runs tiny sizes: ours in the simulator of
CUDA threads, the peers on the CPU.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import versions
from case import CALLS, Arrays, Case, deviation, listed, on_host, some, some_rows

WARM_UP_SECONDS = 0.05
LARGE = 1 << 22  # entries


class Place:
    """Where a library's arrays live and how time is taken there; here on the CPU, by the clock."""

    def to(self, x: Any) -> Any:
        return x

    def inside(self) -> Any:
        """The context in which everything is run."""
        return nullcontext()

    def wait(self, result: Any) -> None:
        """Until all that was asked for is done."""

    def time(self, run: Callable[[], Any], calls: int) -> float:
        """Microseconds a call."""
        start = time.perf_counter()
        for _ in range(calls):
            result = run()
        self.wait(result)
        return (time.perf_counter() - start) / calls * 1e6

    def free(self) -> None:
        gc.collect()


class Cupy(Place):
    def __init__(self) -> None:
        import cupy

        self.cupy = cupy

    def to(self, x: Any) -> Any:
        return self.cupy.asarray(x)

    def wait(self, result: Any) -> None:
        self.cupy.cuda.get_current_stream().synchronize()

    def time(self, run: Callable[[], Any], calls: int) -> float:
        start, end = self.cupy.cuda.Event(), self.cupy.cuda.Event()
        start.record()
        for _ in range(calls):
            run()
        end.record()
        end.synchronize()
        return self.cupy.cuda.get_elapsed_time(start, end) / calls * 1e3

    def free(self) -> None:
        super().free()
        self.cupy.get_default_memory_pool().free_all_blocks()


class Simulated(Place):
    def inside(self) -> Any:
        from gradlib.kernels.launch import simulate

        return simulate()


class Torch(Place):
    def __init__(self, device: str) -> None:
        import torch

        if device == "cuda" and not torch.cuda.is_available():
            raise ModuleNotFoundError(f"torch {torch.__version__} sees no GPU")
        self.torch, self.device = torch, device
        torch.backends.cuda.matmul.allow_tf32 = False

    def to(self, x: Any) -> Any:
        if x.dtype.name == "bfloat16":
            return self.torch.from_numpy(x.view("int16")).view(self.torch.bfloat16).to(self.device)
        return self.torch.from_numpy(x).to(self.device)

    def wait(self, result: Any) -> None:
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def time(self, run: Callable[[], Any], calls: int) -> float:
        if self.device != "cuda":
            return super().time(run, calls)
        start, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / calls * 1e3

    def free(self) -> None:
        super().free()
        self.torch.compiler.reset()  # one function compiled for many cases would fall back to eager after 8
        if self.device == "cuda":
            self.torch.cuda.empty_cache()


class Jax(Place):
    def __init__(self, where: str) -> None:
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        import jax

        platform = jax.devices()[0].platform
        if where == "cuda" and platform != "gpu":
            raise ModuleNotFoundError(f'jax {jax.__version__} sees no GPU but a {platform}: pip install "jax[cuda13]"')
        jax.config.update("jax_default_matmul_precision", "highest")
        self.jax = jax

    def to(self, x: Any) -> Any:
        return self.jax.device_put(x)

    def wait(self, result: Any) -> None:
        self.jax.block_until_ready(result)


def place_of(library: str, where: str) -> Place:
    if library == "gradlib":
        return Cupy() if where == "cuda" else Simulated()
    if library == "torch":
        return Torch("cuda" if where == "cuda" else "cpu")
    return Jax(where)


def all_cases() -> dict[str, Case]:
    import columns
    import jacobians
    import lookups
    import rows
    import steps
    import updates

    return {case.name: case for module in (rows, columns, updates, lookups, jacobians, steps) for case in module.CASES}


def widened(host: Arrays) -> Arrays:
    """The arrays in float64, but large ones, of which references take rows in float64: a copy would take seconds."""
    return {k: v.astype(float) if v.dtype.kind in "fV" and v.size < LARGE else v for k, v in host.items()}


class Worker:
    """The case that is built, and what is timed."""

    def __init__(self, library: str, where: str) -> None:
        self.place, self.tiny = place_of(library, where), where != "cuda"
        self.cases, self.run, self.seconds = all_cases(), lambda: None, 0.0
        self.drawn: tuple[Any, Arrays] = None, {}

    def build(self, name: str, contender: str) -> dict[str, Any]:
        case = self.cases[name]
        host = self._arrays(case)
        own = {k: v.copy() if self.tiny else v for k, v in host.items()}  # a rehearsal's places take arrays as they are
        self.run = case.contenders[contender]({k: self.place.to(v) for k, v in own.items()})
        for _ in range(CALLS):
            got = self.run()
            self.place.wait(got)
        error = self._error(case, host, listed(got))
        self._warm_up()
        moved, operations = (None if count is None else count(host) for count in (case.moved, case.operations))
        return {"error": error, "tolerance": case.tolerance, "moved": moved, "operations": operations}

    def _arrays(self, case: Case) -> Arrays:
        """The case's inputs, drawn once for contenders and cases that have the same."""
        key = case.make, sorted((case.tiny if self.tiny else case.sizes).items())
        if self.drawn[0] != key:
            self.drawn = key, case.arrays(self.tiny)
        return self.drawn[1]

    def _error(self, case: Case, host: Arrays, got: list[Any]) -> float:
        """How far the result of the last of CALLS calls is from the reference."""
        count = max(len(got[0]) if got[0].shape else 1, 1)
        chosen = some_rows(count)
        before = None if case.before is None else some(host[case.before], chosen)
        shown = [on_host(got[0][chosen]).astype(float)] if case.drawn else []
        return deviation(got, case.reference(widened(host), chosen, *shown), chosen, before)

    def _warm_up(self) -> None:
        calls, stop = 0, time.perf_counter() + WARM_UP_SECONDS
        while calls < 3 or time.perf_counter() < stop:
            self.place.wait(self.run())
            calls += 1
        self.seconds = max(self.place.time(self.run, 3) / 1e6, 1e-7)

    def time(self, seconds: float) -> dict[str, Any]:
        calls = max(3, round(seconds / self.seconds))
        return {"us": self.place.time(self.run, calls), "calls": calls}

    def drop(self) -> dict[str, Any]:
        self.run = lambda: None
        self.place.free()
        return {}


def answer(worker: Worker, line: dict[str, Any]) -> dict[str, Any]:
    try:
        with worker.place.inside():
            if "build" in line:
                return worker.build(line["build"], line["contender"])
            return worker.time(line["time"]) if "time" in line else worker.drop()
    except ModuleNotFoundError as error:
        return {"missing": str(error)}
    except Exception:
        return {"failed": traceback.format_exc(limit=-3)}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")  # what a library prints goes to stderr, not among the answers
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    warnings.filterwarnings("error", message="gl.capture")  # what is called captured is a CUDA graph, or no result

    def say(what: dict[str, Any]) -> None:
        print(json.dumps(what), file=answers, flush=True)

    try:
        worker = Worker(*sys.argv[1:])
    except ModuleNotFoundError as error:
        return say({"missing": str(error)})
    gpu = versions.gpu() if sys.argv[1:] == ["gradlib", "cuda"] else {}
    say({"versions": versions.packages(sys.argv[1]), "gpu": gpu})
    for line in sys.stdin:
        say(answer(worker, json.loads(line)))


if __name__ == "__main__":
    main()
