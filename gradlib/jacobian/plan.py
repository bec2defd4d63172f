"""The cheapest order to multiply the blocks of a chain: dynamic programming over segments.

The Jacobian of segments i..j is either held with a row for each output (N, made by going back) or with a row for each
input (T, made by going ahead). Each interval is made from a smaller one by applying a segment at its end, or from two
by a product; the cost is operations plus bytes moved. Source: Griewank & Walther, *Evaluating Derivatives*, ch. 10.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..capture import recorded
from ..trace import module_of
from .chain import DiagonalSegment, RowSegment, Segment

RATE, BANDWIDTH = 40e9, 8e9  # operations and bytes a second of a small machine: only their ratio matters
PIECE = 1 << 18  # bytes of intermediate results to work on at a time, so that they stay in the cache


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


def execute(step: Step, segments: Sequence[Segment], at: slice, like: Any, out: Any = None) -> Any:
    """The Jacobian of the step's interval for the samples `at`: (B, n_out, n_in), or (B, n_in, n_out)."""
    xp, n = module_of(like), step.rows_are_outputs
    if step.do == "write":
        segment = segments[step.segment]
        if isinstance(segment, RowSegment) and len(segment.x) == 1:
            return segment.dense(at, like, out)
        return segment.dense(at, like)
    if step.do == "product":
        left, right = (execute(p, segments, at, like) for p in step.parts)
        left = left if step.parts[0].rows_are_outputs else left.swapaxes(1, 2)
        right = right if step.parts[1].rows_are_outputs else right.swapaxes(1, 2)
        if n:
            return xp.matmul(left, right, out=out)
        return xp.matmul(right.swapaxes(1, 2), left.swapaxes(1, 2), out=out)
    if not step.parts:  # ahead from the unit vectors
        return segments[step.segment].ahead(_identity(xp, segments[step.segment].n_in, at, like), at, out)
    m = execute(step.parts[0], segments, at, like)
    if step.do == "turn":
        return m.swapaxes(1, 2)
    if step.do == "scale":
        return xp.multiply(m, segments[step.segment].arrays()[0][at, :, None], out=out)
    segment = segments[step.segment]
    return segment.back(m, at, out) if step.do == "back" else segment.ahead(m, at, out)


def _identity(xp: Any, n: int, at: slice, like: Any) -> Any:
    b = len(range(*at.indices(like.shape[0])))
    return xp.broadcast_to(xp.eye(n, dtype=like.dtype), (b, n, n))


def largest_step(step: Step, segments: Sequence[Segment]) -> int:
    """Entries a sample of the largest intermediate result."""
    own = segments[step.first].n_in * segments[step.last].n_out
    return max([own, *(largest_step(p, segments) for p in step.parts)])


def fill(step: Step, segments: Sequence[Segment], like: Any, result: Any) -> None:
    """Write the Jacobian of every sample into result (B, n_out, n_in), in pieces of the batch."""
    samples = result.shape[0]
    piece = samples
    if isinstance(result, np.ndarray) and not any(s.whole_batch for s in segments):
        piece = max(1, PIECE // max(1, largest_step(step, segments) * result.dtype.itemsize))
    for start in range(0, samples, piece):
        at = slice(start, min(start + piece, samples))
        target = result[at]
        value = execute(step, segments, at, like, target if step.do != "turn" else None)
        if not _same_memory(value, target):
            target[...] = value


def structured(segments: Sequence[Segment], x: Any, y: Any, mode: str) -> Any:
    """The Jacobian (B, *out, *in) of a chain from x (B, *in) to y (B, *out), in the dtype of x."""
    step, shape = best_step(segments, x.dtype.itemsize, mode), (*y.shape, *x.shape[1:])

    def compute(x: Any, *arrays: tuple) -> Any:
        over = [s.with_arrays(a) for s, a in zip(segments, arrays, strict=True)]
        result = module_of(x).empty((x.shape[0], over[-1].n_out, over[0].n_in), x.dtype)
        fill(step, over, x, result)
        return result.reshape(shape)

    return recorded(compute, x, *[s.arrays() for s in segments])


def _same_memory(a: Any, b: Any) -> bool:
    """Whether two arrays start at the same place, as a result that was written in place does."""
    address = (lambda x: x.ctypes.data) if hasattr(a, "ctypes") else (lambda x: x.data.ptr)
    return address(a) == address(b)
