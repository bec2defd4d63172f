"""The benchmark: gradlib and its peers side by side, every contender in a process of its own.

    gradlib bench [case ...] [--rounds N] [--rest S] [--json FILE] [--quick]      or  python bench/run.py …
    gradlib bench --all         every case, how cost grows (bench/grow.py), and the README's table and plot of both

Every contender's values are first compared with a float64 NumPy reference; who is off is not timed. Then rounds
alternate (ours, peer, peer, ours, …), each of many calls, with a rest between them, in which the spinning threads of
the last contender's pools go to sleep. A contender's time is the median over its rounds of each round's median; the
best call is printed beside it, and a median far above the best call is marked as noisy. A ratio below 1 means that
gradlib is faster.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
NOISY = 1.5  # a median this far above the best call: something else used the processor
sys.path.insert(0, str(HERE))

import machine  # noqa: E402
from harness import OURS, Case, load  # noqa: E402
from peers import PEERS, Worker, peer_of  # noqa: E402


def measure(case: Case, file: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One case: validate all contenders, then time those that are ready in alternating rounds."""
    with ExitStack() as stack:
        workers = [
            stack.enter_context(Worker(file, case.name, name, options.device, options.tiny))
            for name in case.contenders
            if wanted(name, options)
        ]
        rounds: dict[str, list] = {w.contender: [] for w in workers}
        for _ in range(options.rounds):
            for worker in workers:
                if worker.status == "ready":
                    time.sleep(options.rest)
                    answer = worker.time(options.seconds)
                    rounds[worker.contender] += [] if answer is None else [answer]
        rows = [contender_row(worker, rounds[worker.contender]) for worker in workers]
    ours = next((r["median_us"] for r in rows if r["name"] == OURS), None)
    for row in rows:
        row["ratio"] = ours / row["median_us"] if ours and row["median_us"] else None
    sizes = case.tiny if options.tiny else case.sizes
    return {"case": case.name, "about": case.about, "sizes": sizes, "contenders": rows}


def wanted(contender: str, options: argparse.Namespace) -> bool:
    """Ours, and the peers asked for; NumPy has no place beside a GPU."""
    if peer_of(contender) == OURS:
        return True
    named = not options.peer or peer_of(contender) in options.peer
    return named and (options.device == "cpu" or contender != "numpy")


def contender_row(worker: Worker, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """What the JSON says of one contender; times in microseconds, None where it was not timed."""
    timed = worker.status == "ready" and bool(rounds)
    return {
        "name": worker.contender,
        "status": "timed" if timed else worker.status,
        "message": worker.message,
        "error": worker.state.get("error"),
        "tolerance": worker.state.get("tolerance"),
        "versions": worker.state.get("versions", {}),
        "median_us": statistics.median(r["median_us"] for r in rounds) if timed else None,
        "min_us": min(r["min_us"] for r in rounds) if timed else None,
        "rounds": rounds,
    }


def table(result: dict[str, Any]) -> str:
    """One case's lines: contender, time, best call, ours / theirs."""
    lines = [f"{result['case']}: {result['about']}"]
    for row in result["contenders"]:
        if row["status"] != "timed":
            lines.append(f"  {row['name']:<24}{row['status']}: {row['message'].strip().splitlines()[-1]}")
            continue
        ratio = "" if row["name"] == OURS or row["ratio"] is None else f"   ratio {row['ratio']:6.2f}"
        times = f"{duration(row['median_us']):>10}   best {duration(row['min_us']):>10}"
        noisy = "   (noisy)" if row["median_us"] > NOISY * row["min_us"] else ""
        lines.append(f"  {row['name']:<24}{times}{ratio}{noisy}")
    return "\n".join(lines)


def duration(us: float) -> str:
    """Microseconds with three digits and a unit."""
    for unit, scale in (("µs", 1), ("ms", 1e3), ("s", 1e6)):
        if us < 999.5 * scale or unit == "s":
            return f"{us / scale:#.3g}".rstrip(".") + f" {unit}"
    raise AssertionError


def parse(argv: list[str] | None, known: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gradlib bench", description=__doc__.partition("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="case", help=f"one of {', '.join(known)}; all by default")
    parser.add_argument("--rounds", type=int, help="rounds a contender is timed in (9, quick 3)")
    parser.add_argument("--rest", type=float, default=0.25, help="seconds of rest before each round (0.25)")
    parser.add_argument("--seconds", type=float, help="length of a round (0.3, quick 0.1)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the arrays live (cpu)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the result goes; by default "
                        "bench/results/<device>-<date>.json, nowhere for --quick and --tiny")  # fmt: skip
    parser.add_argument("--peer", action="append", choices=(*PEERS, "numpy"), help="compare with this peer alone; "
                        "may be repeated")  # fmt: skip
    parser.add_argument("--all", action="store_true", help="every case and peer on the CPU, then how cost grows, and "
                        "the README's table and plot anew")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: a rehearsal, no measurement")
    options = parser.parse_args(argv)
    unknown = sorted(set(options.cases) - set(known))
    if unknown:
        parser.error(f"no case is named {', '.join(unknown)}; there are {', '.join(known)}")
    if (options.rounds is not None and options.rounds < 1) or options.rest < 0:
        parser.error("--rounds must be at least 1, --rest at least 0")
    narrower = options.cases or options.peer or options.json or options.quick or options.tiny
    if options.all and (narrower or options.device != "cpu"):
        parser.error("--all takes every case and peer on the CPU in full, and writes where the README looks")
    options.rounds = options.rounds or (3 if options.quick else 9)
    options.seconds = options.seconds or (0.1 if options.quick else 0.3)
    return options


def main(argv: list[str] | None = None, folder: Path = HERE) -> int:
    """Run the benchmark; 0, or 1 when a contender failed or gave wrong values."""
    cases = load(folder)
    options = parse(argv, list(cases))
    result: dict[str, Any] = {
        **machine.describe(options.device),
        "settings": {k: getattr(options, k) for k in ("rounds", "rest", "seconds", "tiny")},
        "cases": [],
    }
    for name in options.cases or cases:
        result["cases"].append(measure(*cases[name], options))
        print(table(result["cases"][-1]), flush=True)
    result["load_after"] = machine.load()
    target = options.json
    if target is None and not (options.quick or options.tiny):
        target = HERE / "results" / f"{machine.slug(result['device'])}-{datetime.now():%Y-%m-%d}.json"
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(result, indent=1) + "\n")
        print(f"written to {target}")
    bad = [row for case in result["cases"] for row in case["contenders"] if row["status"] in ("wrong", "failed")]
    return draw_all(bool(bad)) if options.all else 1 if bad else 0


def draw_all(bad: bool) -> int:
    """The rest of --all: how cost grows, with its plot, and the README's tables; 1 where a contender was bad."""
    import grow
    import readme

    code = grow.main([])
    readme.main()
    return 1 if bad or code else 0


if __name__ == "__main__":
    sys.exit(main())
