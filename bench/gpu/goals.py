"""What each family of kernels is to reach on an H200, where a copy moves about 4.3 TB/s, and whether it was measured.

Where it was not, the figures of the machine code stand for it, which need no GPU (see ``gradlib.kernels.ratchet``).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FIGURES = Path(__file__).resolve().parents[2] / "kernels" / "figures.json"
NOT_MEASURED = "not measured"
ROW_WISE = r"^((masked |causal |log_)?softmax|logsumexp|layer_norm|rms_norm|cross_entropy|(sum|max|norm) of)"


@dataclass(frozen=True)
class Goal:
    """Bounds for all cases whose names match.

    rate: TB/s at least; us: microseconds at most; ratios: our time over a peer's at most; ours: which of our
    contenders. kernel: the one that most of the time goes to, as ``figures.json`` names it.
    """

    about: str
    cases: str
    kernel: str
    rate: float = 0.0
    us: float = 0.0
    ratios: dict[str, float] = field(default_factory=dict)
    ours: str = "gradlib"
    elsewhere: str = ""

    def text(self) -> str:
        parts = [f"≥ {self.rate:g} TB/s"] if self.rate else []
        parts += [f"≤ {self.us:g} µs"] if self.us else []
        return ", ".join(parts + [f"≤ {ratio:g} × {name}" for name, ratio in self.ratios.items()])


GOALS = [
    Goal("softmax, rows of 4 to 32 thousand", r"^softmax \d+ x (4096|16384|32768)$",
         "softmax_rows.held_rows-float32-softmax-32-16", rate=3.8, elsewhere="90% of the peak of an H100"),
    Goal("layer_norm and rms_norm, rows of 4 thousand and more", r"^(layer|rms)_norm \d+ x (4096|16384|32768)$",
         "norm_rows.held_forward-float32-layer_norm-256-16-wide", rate=3.8, elsewhere="90% of the peak of an H100"),
    Goal("softmax and layer_norm, rows of 256", r"^(softmax|layer_norm) \d+ x 256$",
         "softmax_rows.held_rows-float32-softmax-32-4", rate=2.3, elsewhere="H100: 1.9 TB/s"),
    Goal("softmax and layer_norm, rows of 1,024", r"^(softmax|layer_norm) \d+ x 1024$",
         "norm_rows.held_forward-float32-layer_norm-32-8-single", rate=3.1, elsewhere="H100: 2.6 TB/s"),
    Goal("norms backward", r"^(layer|rms)_norm backward",
         "norm_sums.held_sums-float32-layer_norm-256-16-wide", rate=2.8, elsewhere="H100: 2.3 TB/s"),
    Goal("cross-entropy, loss and gradient", "^cross_entropy",
         "cross_entropy_rows.held_loss-float32-32-16", rate=3.2, elsewhere="H100: 1.45 TB/s"),
    Goal("bias + GELU", r"^bias \+ gelu", "bias_dropout_add.add_forward-float32-gelu", rate=3.8,
         elsewhere="88% of peak"),
    Goal("Adam", "^Adam", "optim.adam_chunks-float32", rate=3.8, elsewhere="88% of peak"),
    Goal("embedding gather", "^embedding gather", "embedding.gather_rows-float32-32-wide", rate=3.4,
         elsewhere="81% of peak"),
    Goal("embedding scatter", "^embedding scatter", "embedding.run_sums-float32-32-wide", rate=1.35,
         elsewhere="28% of peak"),
    Goal("a launch", "^launch", "elementwise.pointwise-float32-relu", us=10,
         elsewhere="C++ 1.6 µs, cuda.bindings 3 µs"),
    Goal("captured training step, 100-64-32-10, B = 100", "^training step", "optim.adam_chunks-float32",
         ratios={"torch": 1 / 8, "torch graph": 1}, ours="gradlib captured"),
    Goal("batched Jacobian of it, B = 8192", "^Jacobian of", "network_jacobian.tiles_of_samples-float32-masks",
         ratios={"torch": 0.1, "torch compiled": 1, "jax": 0.5}, ours="gradlib captured"),
    Goal("every row-wise kernel", ROW_WISE, "",
         ratios={"torch compiled": 1}),
]  # fmt: skip


def table(result: dict[str, Any] | None) -> str:
    """The goals beside what a recorded run reached, as Markdown; without one, beside the machine code's figures."""
    figures = json.loads(FIGURES.read_text())["kernels"]
    lines = [
        "| | goal | best known elsewhere | machine code, float32 | reached |",
        "|---|---|---|---|---|",
    ]
    for goal in GOALS:
        cells = goal.about, goal.text(), goal.elsewhere, static(figures.get(goal.kernel)), reached(goal, result)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def static(figures: dict[str, int] | None) -> str:
    """Of one kernel: instructions for each number loaded or stored, and registers of a thread."""
    if figures is None:
        return ""
    numbers = (figures["load_bytes"] + figures["store_bytes"]) / 4
    return f"{figures['instructions'] / numbers:.1f} instructions a number, {figures['registers']} registers"


def reached(goal: Goal, result: dict[str, Any] | None) -> str:
    """The worst of the goal's cases, and whether it meets the goal."""
    cases = [c for c in (result or {"cases": []})["cases"] if re.search(goal.cases, c["case"])]
    times = [{row["name"]: row["us"] for row in c["contenders"]} for c in cases]
    if not cases or any(t.get(goal.ours) is None for t in times):
        return NOT_MEASURED
    found, met = [], True
    if goal.rate:
        worst = min(c["moved"] / t[goal.ours] / 1e6 for c, t in zip(cases, times, strict=True))
        found, met = [f"{worst:.2f} TB/s"], worst >= goal.rate
    if goal.us:
        slowest = max(t[goal.ours] for t in times)
        found, met = [f"{slowest:.3g} µs"], slowest <= goal.us
    for name, limit in goal.ratios.items():
        ratios = [t[goal.ours] / t[name] for t in times if t.get(name)]
        found.append(f"{max(ratios):.2f} × {name}" if ratios else f"{name} {NOT_MEASURED}")
        met = met and bool(ratios) and max(ratios) <= limit
    return f"{', '.join(found)}: {'met' if met else 'missed'}"
