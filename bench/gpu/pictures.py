"""A recorded GPU benchmark as two pictures: the roofline of our kernels, and everyone's rates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

MARKERS = "osD^v*Xp"


def roofline(result: dict[str, Any], path: Path) -> None:
    """Operations a second against operations a byte, ours alone, under both ceilings: what memory moves, as a copy
    shows it, and what the cores multiply, as cuBLAS shows it in float32."""
    cases = [c for c in result["cases"] if c["moved"] and c["operations"] and _times(c).get("gradlib")]
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    points = [(c["operations"] / c["moved"], c["operations"] / _times(c)["gradlib"] / 1e6, c["family"]) for c in cases]
    families = list(dict.fromkeys(family for *_, family in points))
    for i, family in enumerate(families):
        of = [(x, y) for x, y, f in points if f == family]
        colour, marker = f"C{i % 10}", MARKERS[i % len(MARKERS)]
        axes.scatter(*zip(*of, strict=True), marker=marker, s=40, color=colour, label=family, zorder=3, alpha=0.8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    _ceilings(axes, result["ceilings"], [x for x, *_ in points])
    axes.set_xlabel("operations a byte that has to move")
    axes.set_ylabel("10¹² operations a second")
    axes.set_title(_title(result, "roofline"))
    axes.grid(color="0.92", which="both")
    figure.legend(loc="outside right center", frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _ceilings(axes: Any, ceilings: dict[str, float], at: list[float]) -> None:
    copy, product = ceilings.get("copy_bytes_per_second"), ceilings.get("sgemm_flops_per_second")
    if not copy or not product or not at:
        return
    ridge, low = product / copy, min(at) / 2
    high = max(2 * ridge, 2 * max(at))
    axes.plot([low, ridge], [low * copy / 1e12, product / 1e12], color="0.3", label=f"a copy, {copy / 1e12:.2f} TB/s")
    axes.plot([ridge, high], [product / 1e12] * 2, "--", color="0.3", label=f"cuBLAS, {product / 1e12:.3g}·10¹²/s")


def rates(result: dict[str, Any], path: Path) -> None:
    """Each case's rate, ours and the peers', beside the rate of a copy."""
    plt = _pyplot()
    cases = [case for case in result["cases"] if case["moved"] and any(_times(case).values())]
    names = list(dict.fromkeys(name for case in cases for name in _times(case)))
    figure, axes = plt.subplots(figsize=(10, 0.3 * len(cases) + 1.8), layout="constrained")
    for i, name in enumerate(names):
        of = [(c["moved"] / _times(c)[name] / 1e6, row) for row, c in enumerate(cases) if _times(c).get(name)]
        if of:
            size = 55 if name == "gradlib" else 25
            axes.scatter(*zip(*of, strict=True), marker=MARKERS[i], s=size, label=name, zorder=3)
    copy = result["ceilings"].get("copy_bytes_per_second")
    if copy:
        axes.axvline(copy / 1e12, color="0.4", linestyle="--", label="a copy")
    axes.set_yticks(range(len(cases)), [case["case"] for case in cases])
    axes.set_ylim(len(cases) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel("TB/s of the bytes that have to move")
    axes.set_title(_title(result, "rates"))
    axes.grid(axis="x", color="0.9")
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _times(case: dict[str, Any]) -> dict[str, float | None]:
    return {row["name"]: row["us"] for row in case["contenders"]}


def _title(result: dict[str, Any], what: str) -> str:
    return f"{what}: a rehearsal, no measurement" if result["rehearsal"] else f"{what}: {result['device']}"


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
