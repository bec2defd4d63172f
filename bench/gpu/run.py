"""Evidence on a GPU in one command: `gradlib bench --gpu --out DIR`.

All kernels are compiled, by every core; then their tests run on the device with poisoned results; the two ceilings (a
copy, cuBLAS); then each case: values compared with a float64 reference, times of ours and the peers in alternating
rounds. Those that goals are set for come first, and what the minutes do not suffice for is reported as skipped. Writes
gpu.json, gpu.md, roofline.png and rates.png. `--rehearse` runs all of it without a GPU on tiny sizes; `--sanitize` runs
the kernels' tests of small arrays under compute-sanitizer instead.

It is a harness of its own and not pytest-benchmark's, which times one function after another in one process, by the
clock. Here every library has a process of its own, since their allocators and thread pools spoil each other and their
wheels do not always fit into one environment; rounds alternate among them, so that a GPU that heats up or is shared is
the same to all; and times are taken by CUDA events.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from threading import Timer
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import checks  # noqa: E402
import goals  # noqa: E402
import machine  # noqa: E402
import peers  # noqa: E402
import pictures  # noqa: E402
import report  # noqa: E402
from worker import all_cases  # noqa: E402

RESULTS = HERE.parent / "results" / "gpu"
LIMIT = 120  # seconds an answer may take
SHARE_OF_COMPILING, SHARE_OF_TESTS = 0.25, 0.35  # at most, of the minutes


def library_of(contender: str) -> str:
    """The library whose process a contender runs in: CuPy's own kernels run in ours."""
    return {"cupy": "gradlib"}.get(peers.peer_of(contender), peers.peer_of(contender))


class Library:
    """A process that knows one library."""

    def __init__(self, name: str, where: str) -> None:
        self.name = name
        command = [peers.interpreter(name), str(HERE / "worker.py"), name, where]
        env = os.environ | {"NUMBA_ENABLE_CUDASIM": "0" if where == "cuda" else "1"}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        self.state = self._hear()

    def __enter__(self) -> Library:
        return self

    def __exit__(self, *_: Any) -> None:
        self.process.kill()
        self.process.communicate()

    def ask(self, **what: Any) -> dict[str, Any]:
        if "versions" not in self.state:
            return self.state
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            print(json.dumps(what), file=self.process.stdin, flush=True)
        return self._hear()

    def _hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        timer = Timer(LIMIT, self.process.kill)
        timer.start()
        line = self.process.stdout.readline()
        timer.cancel()
        if line:
            return json.loads(line)
        self.state = {"failed": f"its process ended with code {self.process.wait()} (limit {LIMIT} s)"}
        return self.state


def measure(case: Any, libraries: dict[str, Library], options: argparse.Namespace) -> dict[str, Any]:
    """One case: every contender built and checked, then timed in alternating rounds where several can be held at once.

    A library holds one contender at a time, so contenders of one library (torch, torch compiled) take turns.
    """
    turns: list[list[str]] = []
    for name in case.contenders:
        turn = next((t for t in turns if all(library_of(name) != library_of(o) for o in t)), None)
        turns.append([name]) if turn is None else turn.append(name)
    states: dict[str, dict[str, Any]] = {}
    times: dict[str, list[float]] = {name: [] for name in case.contenders}
    for turn in turns:
        for name in turn:
            states[name] = libraries[library_of(name)].ask(build=case.name, contender=name)
        ready = [n for n in turn if states[n].get("error", float("inf")) <= states[n].get("tolerance", 0)]
        for _ in range(options.rounds):
            for name in ready:
                answer = libraries[library_of(name)].ask(time=options.seconds)
                times[name] += [answer["us"]] if "us" in answer else []
        for name in turn:
            libraries[library_of(name)].ask(drop=True)
    return _result(case, states, times, options)


def skipped(case: Any, options: argparse.Namespace) -> dict[str, Any]:
    """A case that there was no time for."""
    states = {name: {"skipped": f"after the {options.minutes:g} minutes of --minutes"} for name in case.contenders}
    return _result(case, states, {name: [] for name in case.contenders}, options)


def _result(case: Any, states: dict[str, Any], times: dict[str, list[float]], options: Any) -> dict[str, Any]:
    counts = {k: next((s[k] for s in states.values() if k in s), None) for k in ("moved", "operations")}
    return {
        "case": case.name,
        "family": case.family,
        "sizes": case.tiny if options.rehearse else case.sizes,
        **counts,
        "contenders": [_row(name, states[name], times[name]) for name in case.contenders],
    }


def _row(name: str, state: dict[str, Any], times: list[float]) -> dict[str, Any]:
    status = "timed" if times else next((s for s in ("skipped", "missing", "failed") if s in state), "wrong")
    return {
        "name": name,
        "status": status,
        "message": state.get(status, ""),
        "error": state.get("error"),
        "us": statistics.median(times) if times else None,
        "rounds": times,
    }


def ceilings() -> dict[str, float]:
    done = subprocess.run([sys.executable, str(HERE / "ceilings.py")], capture_output=True, text=True)
    if done.returncode:
        print(done.stderr[-2000:], file=sys.stderr)
        return {}
    return json.loads(done.stdout)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gradlib bench --gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="case", help="parts of cases' names; all by default")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="(bench/results/gpu)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.1, help="length of a round (0.1)")
    parser.add_argument("--minutes", type=float, default=8, help="no case is begun after so many (8)")
    parser.add_argument("--no-tests", action="store_true", help="leave out the kernels' tests")
    parser.add_argument("--sanitize", action="store_true", help="run the kernels' tests under compute-sanitizer")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU, tiny sizes: no measurement")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    where = "rehearsal" if options.rehearse else "cuda"
    if options.sanitize:
        return checks.sanitize(where)
    start = time.perf_counter()
    limit = 60 * options.minutes
    result: dict[str, Any] = {
        **machine.describe("cpu" if options.rehearse else "cuda"),
        "rehearsal": options.rehearse,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "compiled": None if options.rehearse else checks.compile_all(checks.capability(), limit * SHARE_OF_COMPILING),
        "tests": None if options.no_tests else checks.tests(where, limit * SHARE_OF_TESTS),
        "ceilings": {} if options.rehearse else ceilings(),
    }
    result |= measured(options, where, start + limit)
    result["seconds"] = round(time.perf_counter() - start, 1)
    _write(result, options.out)
    statuses = [r["status"] for case in result["cases"] for r in case["contenders"]]
    if late := sum(all(r["status"] == "skipped" for r in case["contenders"]) for case in result["cases"]):
        print(f"{late} cases skipped after {options.minutes:g} minutes; --minutes gives more")
    return 1 if {"wrong", "failed"} & set(statuses) or (result["tests"] or {}).get("status") else 0


def measured(options: argparse.Namespace, where: str, deadline: float) -> dict[str, Any]:
    """versions, gpu and cases; the cases that have goals are measured first and all are listed in their own order."""
    cases = [c for c in all_cases().values() if not options.cases or any(part in c.name for part in options.cases)]
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        libraries = {n: stack.enter_context(Library(n, where)) for n in ("gradlib", "torch", "jax")}
        for case in sorted(cases, key=lambda c: not any(re.search(g.cases, c.name) for g in goals.GOALS)):
            late = time.perf_counter() > deadline
            found[case.name] = skipped(case, options) if late else measure(case, libraries, options)
            print(report.lines(found[case.name]), flush=True)
    states = [library.state for library in libraries.values()]
    return {
        "versions": {k: v for state in states for k, v in state.get("versions", {}).items()},
        "gpu": libraries["gradlib"].state.get("gpu", {}),
        "cases": [found[case.name] for case in cases],
    }


def _write(result: dict[str, Any], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu.json").write_text(json.dumps(result, indent=1) + "\n")
    (out / "gpu.md").write_text(report.markdown(result))
    try:
        pictures.roofline(result, out / "roofline.png")
        pictures.rates(result, out / "rates.png")
    except ModuleNotFoundError as error:
        print(f'no plot: {error}; pip install "gradlib[bench]"', file=sys.stderr)
    print(f"written to {out} after {result['seconds']} s")


if __name__ == "__main__":
    sys.exit(main())
