"""Evidence on a GPU in one command: `gradlib bench --gpu --out DIR`.

Every kernel's tests on the device with poisoned results, the two ceilings (a copy, cuBLAS), then each case: values
compared with a float64 reference, times of ours and the peers in alternating rounds, a process a library. Writes
gpu.json, gpu.md and roofline.png. `--rehearse` runs all of it without a GPU on tiny sizes; `--sanitize` runs the
kernels' tests under compute-sanitizer instead.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
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

import machine  # noqa: E402
import peers  # noqa: E402
import report  # noqa: E402
from worker import all_cases  # noqa: E402

RESULTS = HERE.parent / "results" / "gpu"
LIMIT = 180  # seconds an answer may take
TESTS = [str(p.relative_to(ROOT)) for p in sorted((ROOT / "tests").glob("test_kernel_*.py"))]


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
        turn = next((t for t in turns if all(peers.peer_of(name) != peers.peer_of(o) for o in t)), None)
        turns.append([name]) if turn is None else turn.append(name)
    states: dict[str, dict[str, Any]] = {}
    times: dict[str, list[float]] = {name: [] for name in case.contenders}
    for turn in turns:
        for name in turn:
            states[name] = libraries[peers.peer_of(name)].ask(build=case.name, contender=name)
        ready = [n for n in turn if states[n].get("error", float("inf")) <= states[n].get("tolerance", 0)]
        for _ in range(options.rounds):
            for name in ready:
                answer = libraries[peers.peer_of(name)].ask(time=options.seconds)
                times[name] += [answer["us"]] if "us" in answer else []
        for name in turn:
            libraries[peers.peer_of(name)].ask(drop=True)
    rows = [_row(name, states[name], times[name]) for name in case.contenders]
    sizes = case.tiny if options.rehearse else case.sizes
    moved = next((s["moved"] for s in states.values() if "moved" in s), None)
    return {"case": case.name, "family": case.family, "sizes": sizes, "moved": moved, "contenders": rows}


def _row(name: str, state: dict[str, Any], times: list[float]) -> dict[str, Any]:
    status = "timed" if times else "missing" if "missing" in state else "failed" if "failed" in state else "wrong"
    return {
        "name": name,
        "status": status,
        "message": state.get("missing") or state.get("failed") or "",
        "error": state.get("error"),
        "us": statistics.median(times) if times else None,
        "rounds": times,
    }


def tests(where: str) -> dict[str, Any]:
    """The kernels' tests on the device, what they allocate full of NaN: exit status, last line, seconds."""
    env = os.environ | {"GRADLIB_POISON": "1", "NUMBA_ENABLE_CUDASIM": "0" if where == "cuda" else "1"}
    chosen = TESTS if where == "cuda" else [*TESTS[:1], "-k", "float32", "--maxfail=1"]
    start = time.perf_counter()
    command = [sys.executable, "-m", "pytest", "--import-mode=importlib", "-q", *chosen]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines() or [""]
    if done.returncode:
        print("\n".join(lines[-30:]))
    return {"status": done.returncode, "summary": lines[-1], "seconds": round(time.perf_counter() - start, 1)}


def ceilings() -> dict[str, float]:
    done = subprocess.run([sys.executable, str(HERE / "ceilings.py")], capture_output=True, text=True)
    if done.returncode:
        print(done.stderr[-2000:], file=sys.stderr)
        return {}
    return json.loads(done.stdout)


def sanitize() -> int:
    """memcheck and racecheck over the kernels' tests of small sizes; 0 when both are clean."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        raise SystemExit("gradlib bench --gpu --sanitize: compute-sanitizer, of the CUDA toolkit, is not on the PATH")
    worst = 0
    for check in ("memcheck", "racecheck"):
        command = [tool, "--tool", check, "--error-exitcode", "9", "--target-processes", "all", sys.executable, "-m",
                   "pytest", "--import-mode=importlib", "-q", "-x", *TESTS]  # fmt: skip
        env = os.environ | {"NUMBA_ENABLE_CUDASIM": "0", "CUPY_CUDA_MEMORY_POOL": "none"}
        status = subprocess.call(command, cwd=ROOT, env=env)
        print(f"{check}: {'clean' if status == 0 else f'status {status}'}", flush=True)
        worst = max(worst, status)
    return worst


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gradlib bench --gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="case", help="parts of cases' names; all by default")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="(bench/results/gpu)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.1, help="length of a round (0.1)")
    parser.add_argument("--no-tests", action="store_true", help="leave out the kernels' tests")
    parser.add_argument("--sanitize", action="store_true", help="run the kernels' tests under compute-sanitizer")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU, tiny sizes: no measurement")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    if options.sanitize:
        return sanitize()
    where = "rehearsal" if options.rehearse else "cuda"
    start = time.perf_counter()
    result: dict[str, Any] = {
        **machine.describe("cpu" if options.rehearse else "cuda"),
        "rehearsal": options.rehearse,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "tests": None if options.no_tests else tests(where),
        "ceilings": {} if options.rehearse else ceilings(),
        "cases": [],
    }
    chosen = [c for c in all_cases().values() if not options.cases or any(part in c.name for part in options.cases)]
    with ExitStack() as stack:
        libraries = {n: stack.enter_context(Library(n, where)) for n in ("gradlib", "torch", "jax")}
        result["versions"] = {k: v for lib in libraries.values() for k, v in lib.state.get("versions", {}).items()}
        for case in chosen:
            result["cases"].append(measure(case, libraries, options))
            print(report.lines(result["cases"][-1]), flush=True)
    result["seconds"] = round(time.perf_counter() - start, 1)
    _write(result, options.out)
    bad = [r for case in result["cases"] for r in case["contenders"] if r["status"] in ("wrong", "failed")]
    return 1 if bad or (result["tests"] or {}).get("status") else 0


def _write(result: dict[str, Any], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu.json").write_text(json.dumps(result, indent=1) + "\n")
    (out / "gpu.md").write_text(report.markdown(result))
    try:
        report.roofline(result, out / "roofline.png")
    except ModuleNotFoundError as error:
        print(f'no plot: {error}; pip install "gradlib[bench]"', file=sys.stderr)
    print(f"written to {out} after {result['seconds']} s")


if __name__ == "__main__":
    sys.exit(main())
