"""The cheapest order to multiply the blocks of a chain: dynamic programming over segments.

The Jacobian of segments i..j is either held with a row for each output (N, made by going back) or with a row for each
input (T, made by going ahead). Each interval is made from a smaller one by applying a segment at its end, or from two
by a product; the cost is operations plus bytes moved. Source: Griewank & Walther, *Evaluating Derivatives*, ch. 10.

Plans are found again by the links of the chain, which hold all that a plan depends on and no array.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

from .block_segment import BlockSegment
from .cost import BANDWIDTH, PLANS, RATE, forward_cost, reverse_cost, slot_entries
from .segments import DiagonalSegment, LinearSegment, RowSegment, RuleSegment, Segment


class Link(NamedTuple):
    """What the planner knows of a segment. The last three: entries of scratch for one row of one sample."""

    kind: str
    x: tuple[int, ...]
    y: tuple[int, ...]
    n_in: int
    n_out: int
    flops: float  # of applying it to a row
    dense_flops: float  # of writing it down
    whole_batch: bool
    diagonal: bool
    back: float
    ahead: float
    dense: float


def link(segment: Segment) -> Link:
    """The planner's view of a segment."""
    s, x, y = segment, segment.n_in, segment.n_out
    flops, dense_flops, back, ahead, dense = s.flops(), s.dense_flops(), float(x + y), float(x + y), None
    if isinstance(s, DiagonalSegment):
        back, ahead, dense = 0.0, 0.0, float(x)
    elif isinstance(s, LinearSegment):
        back = ahead = 0.0 if s.d is None else float(y)
        dense = float(x) if s.rows == 1 else None
    elif isinstance(s, RowSegment):
        back = ahead = 2.0 * x
        dense = float(x) if s.last else None
    elif isinstance(s, BlockSegment):
        back = ahead = 2.0 * (x + y)  # stacks laid out anew, and the block's own scratch
    elif isinstance(s, RuleSegment):
        flops, back, ahead = _rules(s)
        dense_flops = flops * y
    dense = y + back + x if dense is None else dense
    whole, diagonal = s.whole_batch, isinstance(s, DiagonalSegment)
    return Link(s.kind, s.x, s.y, x, y, flops, dense_flops, whole, diagonal, back, ahead, dense)


def _rules(s: RuleSegment) -> tuple[float, float, float]:
    """Operations a row, and scratch of applying several ops by their rules: their cotangents or tangents."""
    trace, n = s.call.trace, max(s.call.samples, 1)
    back = reverse_cost(trace, (s.end,), slot_entries(trace), (s.nodes, s.inside))
    ahead = forward_cost(trace, (s.start,), (s.end,), slot_entries(trace), s.nodes)
    item, copies = trace.outs[s.end][1].itemsize, s.n_in + s.n_out
    return back.flops / n, back.peak / n / item + copies, ahead.peak / n / item + copies


def links_of(segments: Sequence[Segment | Link]) -> tuple[Link, ...]:
    return tuple([s if type(s) is Link else link(s) for s in segments])  # type: ignore[arg-type]


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

    @cached_property
    def mode(self) -> str:
        """ "rev" where every block is applied going back, "fwd" where going ahead, else "mixed"."""
        kinds = _kinds(self)
        if kinds <= {"back", "write"}:
            return "rev"
        return "fwd" if kinds <= {"ahead", "turn"} else "mixed"


def _step(do: str, i: int, j: int, n: bool, flops: float, size: float, segment: int, *parts: Step) -> Step:
    return Step(do, i, j, n, flops + sum(p.flops for p in parts), size + sum(p.bytes for p in parts), segment, parts)


def best_step(segments: Sequence[Segment | Link], itemsize: int, mode: str) -> Step:
    """The cheapest step for the whole chain with a row for each output. mode: "auto", "mixed", "rev" or "fwd"."""
    return _cheapest(links_of(segments), itemsize, mode)


@lru_cache(maxsize=PLANS)
def _cheapest(links: tuple[Link, ...], itemsize: int, mode: str) -> Step:
    n = len(links)
    table: dict[tuple[int, int, bool], Step] = {}
    for length in range(1, n + 1):
        for i in range(n - length + 1):
            j = i + length - 1
            _fill(table, links, i, j, itemsize, mode)
    return table[0, n - 1, True]


def _fill(table: dict, links: Sequence[Link], i: int, j: int, itemsize: int, mode: str) -> None:
    """The best steps for the interval i..j in both forms."""
    x, y = links[i].n_in, links[j].n_out
    size = x * y * itemsize
    found: dict[bool, list[Step]] = {True: [], False: []}
    if i == j:
        s = links[i]
        if mode != "fwd":
            found[True].append(_step("write", i, j, True, s.dense_flops, size, i))
        if mode != "rev":
            found[False].append(_step("ahead", i, j, False, s.flops * x, size, i))
    elif mode != "fwd":
        before = table[i + 1, j, True]
        moved = (y * links[i].n_out + x * y) * itemsize
        found[True].append(_step("back", i, j, True, links[i].flops * y, moved, i, before))
    if i < j and mode != "rev":
        before = table[i, j - 1, False]
        moved = (x * links[j].n_in + x * y) * itemsize
        found[False].append(_step("ahead", i, j, False, links[j].flops * x, moved, j, before))
    if i < j and mode in ("auto", "mixed"):
        _add_mixed(found, table, links, i, j, itemsize)
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


def _add_mixed(found: dict, table: dict, links: Sequence[Link], i: int, j: int, itemsize: int) -> None:
    """Products of two intervals, and a diagonal at the far end folded into the rows."""
    x, y = links[i].n_in, links[j].n_out
    if links[j].diagonal:
        found[True].append(_step("scale", i, j, True, x * y, 2 * x * y * itemsize, j, table[i, j - 1, True]))
    if links[i].diagonal:
        found[False].append(_step("scale", i, j, False, x * y, 2 * x * y * itemsize, i, table[i + 1, j, False]))
    for k in range(i, j):
        middle = links[k].n_out
        moved = (x * middle + middle * y + x * y) * itemsize
        for a in (True, False):
            for b in (True, False):
                left, right = table.get((k + 1, j, a)), table.get((i, k, b))
                if left is not None and right is not None:
                    for n in (True, False):
                        found[n].append(_step("product", i, j, n, 2.0 * x * middle * y, moved, -1, left, right))


def order(step: Step) -> str:
    """A step as the product it is, J1 the first block: (J3 (J2 J1)) multiplies J2 J1 first."""
    if step.do == "product":
        return f"({order(step.parts[0])} {order(step.parts[1])})"
    if step.do == "turn":
        return order(step.parts[0])
    name = f"J{step.segment + 1}"
    if not step.parts:
        return name
    inner = order(step.parts[0])
    return f"({name} {inner})" if step.segment == step.last else f"({inner} {name})"


def _kinds(step: Step) -> set[str]:
    return {step.do}.union(*map(_kinds, step.parts))
