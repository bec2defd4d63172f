"""The cheapest order to multiply the blocks of a chain: dynamic programming over segments.

The Jacobian of segments i..j is either held with a row for each output (N, made by going back) or with a row for each
input (T, made by going ahead). Each interval is made from a smaller one by applying a segment at its end, or from two
by a product; the cost is operations plus bytes moved. Source: Griewank & Walther, *Evaluating Derivatives*, ch. 10.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .chain import DiagonalSegment, Segment

RATE, BANDWIDTH = 40e9, 8e9  # operations and bytes a second of a small machine: only their ratio matters


@dataclass(frozen=True)
class Step:
    """How one interval is made. do: "write", "back", "ahead", "scale", "product" or "turn"."""

    do: str
    first: int
    last: int
    rows_are_outputs: bool
    flops: float  # of this step and those before it, a sample
    bytes: float
    segment: int = -1
    parts: tuple[Step, ...] = ()

    @property
    def cost(self) -> float:
        return self.flops / RATE + self.bytes / BANDWIDTH


def _step(do: str, i: int, j: int, n: bool, flops: float, size: float, segment: int, *parts: Step) -> Step:
    return Step(do, i, j, n, flops + sum(p.flops for p in parts), size + sum(p.bytes for p in parts), segment, parts)


def best_step(segments: Sequence[Segment], itemsize: int, mode: str) -> Step:
    """The cheapest step for the whole chain with a row for each output. mode: "auto", "mixed", "rev" or "fwd"."""
    n = len(segments)
    table: dict[tuple[int, int, bool], Step] = {}
    for length in range(1, n + 1):
        for i in range(n - length + 1):
            j = i + length - 1
            _fill(table, segments, i, j, itemsize, mode)
    return table[0, n - 1, True]


def _fill(table: dict, segments: Sequence[Segment], i: int, j: int, itemsize: int, mode: str) -> None:
    """The best steps for the interval i..j in both forms."""
    x, y = segments[i].n_in, segments[j].n_out
    size = x * y * itemsize
    found: dict[bool, list[Step]] = {True: [], False: []}
    if i == j:
        s = segments[i]
        if mode != "fwd":
            found[True].append(_step("write", i, j, True, s.dense_flops(), size, i))
        if mode != "rev":
            found[False].append(_step("ahead", i, j, False, s.flops() * x, size, i))
    elif mode != "fwd":
        before = table[i + 1, j, True]
        moved = (y * segments[i].n_out + x * y) * itemsize
        found[True].append(_step("back", i, j, True, segments[i].flops() * y, moved, i, before))
    if i < j and mode != "rev":
        before = table[i, j - 1, False]
        moved = (x * segments[j].n_in + x * y) * itemsize
        found[False].append(_step("ahead", i, j, False, segments[j].flops() * x, moved, j, before))
    if i < j and mode in ("auto", "mixed"):
        _add_mixed(found, table, segments, i, j, itemsize)
    for n in (True, False):
        best = min(found[n], key=lambda s: s.cost, default=None)
        if best is not None:
            table[i, j, n] = best
    for n in (True, False):
        other = table.get((i, j, not n))
        if other is not None:
            turned = _step("turn", i, j, n, 0.0, 2 * size, -1, other)
            if (i, j, n) not in table or turned.cost < table[i, j, n].cost:
                table[i, j, n] = turned


def _add_mixed(found: dict, table: dict, segments: Sequence[Segment], i: int, j: int, itemsize: int) -> None:
    """Products of two intervals, and a diagonal at the far end folded into the rows."""
    x, y = segments[i].n_in, segments[j].n_out
    if isinstance(segments[j], DiagonalSegment):
        found[True].append(_step("scale", i, j, True, x * y, 2 * x * y * itemsize, j, table[i, j - 1, True]))
    if isinstance(segments[i], DiagonalSegment):
        found[False].append(_step("scale", i, j, False, x * y, 2 * x * y * itemsize, i, table[i + 1, j, False]))
    for k in range(i, j):
        middle = segments[k].n_out
        moved = (x * middle + middle * y + x * y) * itemsize
        for a in (True, False):
            for b in (True, False):
                left, right = table.get((k + 1, j, a)), table.get((i, k, b))
                if left is not None and right is not None:
                    for n in (True, False):
                        found[n].append(_step("product", i, j, n, 2.0 * x * middle * y, moved, -1, left, right))
