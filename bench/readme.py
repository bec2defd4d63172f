"""The README's tables of figures, drawn from the newest recorded runs: `python bench/readme.py` writes them.

Behind each of the others' times, in brackets, gradlib's time over it: below 1 gradlib is faster. What the kernels are
to reach on a GPU stands beside what `gradlib bench --gpu` recorded there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from run import OURS, duration

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"
sys.path.append(str(HERE / "gpu"))

import goals  # noqa: E402


def newest(folder: Path = HERE / "results") -> list[dict[str, Any]]:
    """The newest result of each device."""
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    latest: dict[str, dict[str, Any]] = {}
    for run in sorted(runs, key=lambda r: r["date"]):
        latest[run["device"]] = run
    return list(latest.values())


def section(run: dict[str, Any]) -> str:
    """One device's caption and table."""
    lines = ["| | gradlib | others |", "|---|---|---|"]
    for case in run["cases"]:
        timed = [row for row in case["contenders"] if row["median_us"] is not None]
        ours = [duration(row["median_us"]) for row in timed if row["name"] == OURS]
        others = [
            f"{row['name']} {duration(row['median_us'])} ({row['ratio']:.2f})" for row in timed if row["name"] != OURS
        ]
        lines.append(f"| {case['about']} | {''.join(ours)} | {', '.join(others)} |")
    versions = {k: v for case in run["cases"] for row in case["contenders"] for k, v in row["versions"].items()}
    made = ", ".join(f"{k} {versions[k]}" for k in ("numpy", "torch", "jax", "autograd") if k in versions)
    return (
        f"{run['cpu']}, {run['cores']} cores; {made}; {run['date'][:10]}, commit {run['commit'][:9]}.\n\n"
        + "\n".join(lines)
    )


def cpu() -> str:
    """The tables of the processors."""
    return "\n\n".join(map(section, newest())) or "No run is recorded."


def gpu(file: Path = HERE / "results" / "gpu" / "gpu.json") -> str:
    """The table of the kernels' goals."""
    result = json.loads(file.read_text()) if file.exists() else None
    made = f"{result['device']}; {result['date'][:10]}, commit {result['commit'][:9]}.\n\n" if result else ""
    return made + goals.table(result)


def inserted(readme: str) -> str:
    """The README with each table between its marks."""
    for name, table in (("cpu", cpu()), ("gpu", gpu())):
        start, end = f"<!-- {name} table: python bench/readme.py -->", "<!-- end of table -->"
        before, _, rest = readme.partition(start)
        readme = f"{before}{start}\n{table}\n{end}{rest.partition(end)[2]}"
    return readme


def main() -> None:
    README.write_text(inserted(README.read_text()))


if __name__ == "__main__":
    main()
