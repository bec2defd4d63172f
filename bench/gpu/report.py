"""A recorded GPU benchmark as a Markdown table, and as lines for the terminal."""

from __future__ import annotations

import re
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
    """The packages that the times depend on most, and the driver."""
    names = ("numba", "numba-cuda", "cupy", "torch", "jax")
    found = {n: v for n in names for k, v in result["versions"].items() if re.fullmatch(rf"{n}(-cuda\d+x)?", k)}
    driver = result.get("gpu", {}).get("driver")
    return ", ".join([f"{n} {v}" for n, v in found.items()] + ([f"driver {driver}"] if driver else []))


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
