"""The README's table of figures, drawn from the newest recorded run of each device: `python bench/readme.py` writes it.

A cell holds the time and, in brackets, gradlib's time over it: below 1 gradlib is faster.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from run import OURS, duration

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"
MARKS = ("<!-- table: python bench/readme.py -->", "<!-- end of table -->")


def newest(folder: Path = HERE / "results") -> list[dict[str, Any]]:
    """The newest result of each device."""
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    latest: dict[str, dict[str, Any]] = {}
    for run in sorted(runs, key=lambda r: r["date"]):
        latest[run["device"]] = run
    return list(latest.values())


def section(run: dict[str, Any]) -> str:
    """One device's caption and table."""
    names = list(dict.fromkeys(row["name"] for case in run["cases"] for row in case["contenders"]))
    names.sort(key=lambda name: not name.startswith(OURS))
    lines = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for case in run["cases"]:
        rows = {row["name"]: row for row in case["contenders"]}
        cells = [cell(rows.get(name)) for name in names]
        lines.append(f"| {case['about']} | {' | '.join(cells)} |")
    versions = {k: v for case in run["cases"] for row in case["contenders"] for k, v in row["versions"].items()}
    wanted = ("numpy", "torch", "jax", "autograd")
    made = ", ".join(f"{k} {versions[k]}" for k in wanted if k in versions)
    where = f"{run['cpu']}, {run['cores']} cores, {run['threads']} threads"
    return f"{where}; {made}; {run['date'][:10]}, commit {run['commit'][:9]}.\n\n" + "\n".join(lines)


def cell(row: dict[str, Any] | None) -> str:
    if row is None or row["median_us"] is None:
        return ""
    time = duration(row["median_us"])
    return time if row["name"] == OURS else f"{time} ({row['ratio']:.2f})"


def table() -> str:
    """What stands between the marks."""
    return "\n\n".join(map(section, newest())) or "No run is recorded."


def inserted(readme: str) -> str:
    """The README with the table of the recorded runs."""
    start, end = map(re.escape, MARKS)
    return re.sub(f"{start}.*{end}", lambda _: f"{MARKS[0]}\n{table()}\n{MARKS[1]}", readme, flags=re.DOTALL)


if __name__ == "__main__":
    README.write_text(inserted(README.read_text()))
