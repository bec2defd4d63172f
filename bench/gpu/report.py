"""A recorded GPU benchmark as a Markdown table and a roofline plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import goals


def markdown(result: dict[str, Any]) -> str:
    """One row a case: our time and rate, the share of a copy's rate, each peer's time and ours over it; the goals."""
    copy = result["ceilings"].get("copy_bytes_per_second")
    rate = f"; a copy moves {copy / 1e12:.2f} TB/s" if copy else ""
    what = "A rehearsal of tiny sizes, no measurement: " if result["rehearsal"] else ""
    commit = (result["commit"] or "?")[:9]
    title = f"{what}{result['device']}{rate}; {versions(result)}; {result['date'][:10]}, commit {commit}."
    lines = [title, "", "| | gradlib | rate | of a copy | others |", "|---|---|---|---|---|"]
    rows = [_row(case, copy) for case in result["cases"]]
    return "\n".join([*lines, *rows, "", goals.table(None if result["rehearsal"] else result)]) + "\n"


def versions(result: dict[str, Any]) -> str:
    names = ("numba", "cupy", "torch", "jax")
    return ", ".join(f"{n} {result['versions'][n]}" for n in names if n in result["versions"])


def _row(case: dict[str, Any], copy: float | None) -> str:
    rows = {row["name"]: row for row in case["contenders"]}
    ours = rows["gradlib"]
    if ours["us"] is None:
        return f"| {case['case']} | {ours['status']} | | | |"
    rate = case["moved"] / ours["us"] * 1e6 if case["moved"] else None
    speed = f"{rate / 1e12:.2f} TB/s" if rate else ""
    share = f"{rate / copy:.0%}" if rate and copy else ""
    others = [
        f"{name} {duration(row['us'])} ({ours['us'] / row['us']:.2f})" if row["us"] else f"{name} {row['status']}"
        for name, row in rows.items()
        if name != "gradlib"
    ]
    return f"| {case['case']} | {duration(ours['us'])} | {speed} | {share} | {', '.join(others)} |"


def lines(case: dict[str, Any]) -> str:
    """One case for the terminal."""
    rows = [case["case"]]
    for row in case["contenders"]:
        rate = f"{case['moved'] / row['us'] / 1e6:8.3f} TB/s" if row["us"] and case["moved"] else ""
        last = (row["message"].strip().splitlines() or [f"off by {row['error']}"])[-1]
        rows.append(
            f"  {row['name']:<18}" + (f"{duration(row['us']):>10} {rate}" if row["us"] else f"{row['status']}: {last}")
        )
    return "\n".join(rows)


def duration(us: float) -> str:
    """Microseconds with three digits and a unit."""
    return f"{us:.3g} µs" if us < 999.5 else f"{us / 1e3:.3g} ms" if us < 999.5e3 else f"{us / 1e6:.3g} s"


def roofline(result: dict[str, Any], path: Path) -> None:
    """Each case's rate against the bytes it moves, ours and the peers', under the rate of a copy."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    cases = [case for case in result["cases"] if case["moved"]]
    names = list(dict.fromkeys(row["name"] for case in cases for row in case["contenders"]))
    figure, axes = plt.subplots(figsize=(9, 0.38 * len(cases) + 1.6), layout="constrained")
    for name, marker in zip(names, "osD^v*", strict=False):
        points = [
            (case["moved"] / row["us"] / 1e6, i)
            for i, case in enumerate(cases)
            for row in case["contenders"]
            if row["name"] == name and row["us"]
        ]
        if points:
            axes.scatter(
                *zip(*points, strict=True), marker=marker, s=60 if name == "gradlib" else 28, label=name, zorder=3
            )
    copy = result["ceilings"].get("copy_bytes_per_second")
    if copy:
        axes.axvline(copy / 1e12, color="0.4", linestyle="--", label="device copy")
    axes.set_yticks(range(len(cases)), [case["case"] for case in cases])
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("TB/s of the bytes that have to move")
    axes.set_title("rehearsal, no measurement" if result["rehearsal"] else result["device"])
    axes.grid(axis="x", color="0.9")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=6, frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
