"""Carrying a plan out within a budget: pieces of the batch, and where one sample is too much, rows of its Jacobian.

Steps that follow each other (back, ahead, scale) are applied to a few rows at a time, from a base: the rows of a
written block, unit vectors, or products and turned blocks of which the parts are made first, in the same way. So of
the intermediate results only those parts are ever held whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from ..precision import is_narrow
from ..threads import cores
from ..trace import Trace, module_of
from .block_segment import BlockSegment
from .cost import PLANS
from .execute import fill, largest_step
from .fused import unlooped
from .low_rank import SLAB
from .plan import Link, Step, best_step
from .segments import DiagonalSegment, LinearSegment, RowSegment, Segment, SumSegment


class Schedule(NamedTuple):
    """A step, how many samples and rows to work on at a time (None: all rows), and the bytes of scratch that takes."""

    step: Step
    samples: int
    rows: int | None
    peak: int


def spine(step: Step) -> tuple[Step, list[Step]]:
    """(base, the steps that are applied to its rows one after another)."""
    applied: list[Step] = []
    while step.do in ("back", "scale") or (step.do == "ahead" and step.parts):
        applied.insert(0, step)
        step = step.parts[0]
    return step, applied


def scratch(step: Step, links: Sequence[Link], samples: int, rows: int | None) -> float:
    """Entries alive at once while a step is carried out for some samples, its result not counted in."""
    base, applied = spine(step)
    if base.do == "turn" and not applied:
        return scratch(base.parts[0], links, samples, rows)
    if rows is None and step.do == "write" and links[step.segment].dense == links[step.segment].n_in:
        return 0.0  # straight into the result
    held, most = 0.0, 0.0
    for part in base.parts:
        most = max(most, held + entries(part, links) * samples + scratch(part, links, samples, rows))
        held += entries(part, links) * samples
    count = height(step, links)
    at_once = samples * (count if rows is None else min(rows, count))
    wide = max([_base_width(base, links), *(_width(s, links) for s in applied)])
    return max(most, held + at_once * wide)


def entries(step: Step, links: Sequence[Link]) -> int:
    """Entries of one sample's Jacobian of a step."""
    return links[step.first].n_in * links[step.last].n_out


def height(step: Step, links: Sequence[Link]) -> int:
    """How many rows a step has: its outputs, or its inputs."""
    return links[step.last].n_out if step.rows_are_outputs else links[step.first].n_in


def _base_width(base: Step, links: Sequence[Link]) -> float:
    s = links[base.segment]
    if base.do == "write":
        return s.dense
    if base.do == "ahead":
        written = s.kind.startswith("diagonal") and s.dense == s.n_in  # diagonals and rows, either way round
        return s.n_out if written else s.n_in + s.ahead + s.n_out
    return entries(base, links) / max(height(base, links), 1)


def _width(step: Step, links: Sequence[Link]) -> float:
    """Entries a row that one application holds: what it takes, its scratch, what it gives."""
    s = links[step.segment]
    if step.do == "scale":
        return 2 * entries(step, links) / max(height(step, links), 1)
    return s.n_in + s.n_out + (s.back if step.do == "back" else s.ahead)


@lru_cache(maxsize=PLANS)
def schedule(
    links: tuple[Link, ...],
    itemsize: int,
    mode: str,
    samples: int,
    limits: tuple[int, int, int],
    chunk_size: int | None,
) -> Schedule:
    """The cheapest order whose scratch stays within its limit; where none does, the one that needs least.

    `limits`: bytes of scratch in all, for one piece of the batch, and for some rows of the whole batch (what a cache
    holds; segments of several ops are worked on in that way).
    """
    found = []
    for way in (mode, "rev", "fwd") if mode in ("auto", "mixed") else (mode,):
        step = best_step(links, itemsize, way)
        fits = _fitted(step, links, itemsize, samples, limits, chunk_size)
        if fits.peak <= limits[0]:
            return fits
        found.append(fits)
    return min(found, key=lambda s: s.peak)


def _fitted(step: Step, links: tuple, itemsize: int, samples: int, limits: tuple, chunk_size: int | None) -> Schedule:
    """Samples and rows at a time, so that the scratch stays within its limit if it can."""
    limit, cache, rows_cache = limits
    laid_out = sum(s.n_in * s.n_out for s in links if s.kind == "shared matrix")  # matrices turned for the loops

    def peak(b: int, rows: int | None) -> int:
        b, fixed = (max(b, threads), laid_out) if rows is None else (b, 0)
        return int((scratch(step, links, b, rows) + fixed) * itemsize)

    whole = any(s.whole_batch for s in links)
    threads = 1 if whole else min(cores(), max(samples, 1))  # each of them works on a sample at least
    if whole:
        limit = min(limit, max(rows_cache, 2 * peak(samples, 1)))
    if chunk_size is None:
        piece = samples if whole else min(samples, cache // max(1, largest_step(step, links) * itemsize))
        piece = max(1, piece) if whole else last_within(piece, lambda b: peak(b, None) <= limit)
        if peak(piece, None) <= limit:
            return Schedule(step, piece, None, peak(piece, None))
    most = max(max(s.n_in, s.n_out) for s in links)
    most = max(1, most if chunk_size is None else min(most, chunk_size))
    piece = max(samples, 1) if whole else max(1, min(samples, min(cache, max(limit, 0)) // max(1, peak(1, most))))
    limit = min(limit, max(rows_cache, 2 * peak(piece, 1)))
    rows = last_within(most, lambda v: peak(piece, v) <= limit)
    return Schedule(step, piece, rows, peak(piece, rows))


def last_within(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number in 1..most that fits, by bisection; 1 where none does."""
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def working_bytes(dtype: Any) -> int:
    """Bytes of an entry while it is worked on; float16 and bfloat16 have float32 beside them, before and after."""
    return 8 if is_narrow(dtype) else dtype.itemsize


def held_bytes(segments: Sequence[Segment], trace: Trace, dtype: Any) -> int:
    """What a chain holds for the whole batch beyond the values that f recorded: diagonals and factors of its blocks.

    dtype: of the result.
    """
    diagonals = [s.d for s in segments if isinstance(s, (DiagonalSegment, LinearSegment)) and s.d is not None]
    blocks = [s.block for s in segments if isinstance(s, RowSegment)]
    held = [a for block in blocks for a in (block.d, *block.u, *block.v)]
    held += [a for s in segments if isinstance(s, BlockSegment) for a in s.all_arrays()]
    held += [s.g for s in segments if isinstance(s, SumSegment)]
    arrays = [a for a in held if 0 not in getattr(a, "strides", ())]
    # float16 and bfloat16 are written by way of float32: a slab, products of its size, and the factors
    narrow = [a.size for a in (*arrays, *diagonals) if is_narrow(a.dtype)]
    beside = 16 * SLAB + 4 * sum(narrow) if is_narrow(dtype) else 0
    factors = {id(a): a for a in arrays}
    for node in trace.nodes:
        for a in node.saved:
            factors.pop(id(a), None)
    return beside + sum(a.size * a.dtype.itemsize for a in (*diagonals, *factors.values()))


def carry_out(plan: Schedule, segments: Sequence[Segment], like: Any, result: Any, first: int = 0) -> None:
    """Write the Jacobians of the samples from `first` on into result (B, n_out, n_in)."""
    if plan.rows is None:
        fill(plan.step, segments, like, result, first, plan.samples)
        return
    segments = unlooped(segments)  # whose matrices as the loops take them would be as large as many rows
    for start in range(0, result.shape[0], plan.samples):
        target = result[start : start + plan.samples]
        at = slice(first + start, first + start + target.shape[0])
        in_rows(plan.step, segments, like, at, target, plan.rows)


def in_rows(step: Step, segments: Sequence[Segment], like: Any, at: slice, target: Any, rows: int) -> None:
    """Write a step's Jacobian of the samples `at` into target, a few of its rows at a time."""
    base, applied = spine(step)
    if base.do == "turn" and not applied:
        in_rows(base.parts[0], segments, like, at, target.swapaxes(1, 2), rows)
        return
    rows_of = _base_rows(base, segments, like, at, rows)
    for start in range(0, target.shape[1], rows):
        r = slice(start, min(start + rows, target.shape[1]))
        m = rows_of(r)
        for s in applied:
            m = _apply(s, segments, m, at, r)
        target[:, r] = m
        del m  # before the next one is made


def _apply(step: Step, segments: Sequence[Segment], m: Any, at: slice, r: slice) -> Any:
    segment = segments[step.segment]
    if step.do == "scale":
        return m * segment.arrays()[0][at, r, None]
    return segment.back(m, at) if step.do == "back" else segment.ahead(m, at)


def _base_rows(base: Step, segments: Sequence[Segment], like: Any, at: slice, rows: int) -> Callable[[slice], Any]:
    """The function that gives some rows of a base, as an array (B, V, n)."""
    xp, count = module_of(like), len(range(*at.indices(like.shape[0])))
    if base.do == "product":
        left, right = (_made(p, segments, like, at, rows) for p in base.parts)
        if base.rows_are_outputs:
            return lambda r: xp.matmul(left[:, r], right)
        return lambda r: xp.matmul(right.swapaxes(1, 2)[:, r], left.swapaxes(1, 2))
    if base.do == "turn":
        m = _made(base.parts[0], segments, like, at, rows)
        turned = m if base.rows_are_outputs else m.swapaxes(1, 2)
        return lambda r: turned[:, r]
    segment = segments[base.segment]
    if base.do == "write" and isinstance(segment, LinearSegment) and segment.rows == 1:
        return lambda r: _linear_rows(segment, like, at, r)
    if isinstance(segment, (DiagonalSegment, RowSegment)) and segment.last:
        factors = segment.factors(at, turned=base.do == "ahead")

        def written(r: slice) -> Any:
            m = xp.empty((count, r.stop - r.start, segment.n_in), like.dtype)
            factors.write(m, r.start)
            return m

        return written

    def units(r: slice) -> Any:
        n = segment.n_out if base.do == "write" else segment.n_in
        one = xp.zeros((r.stop - r.start, n), like.dtype)
        steps = xp.arange(r.stop - r.start)
        one[steps, steps + r.start] = 1
        wide = xp.broadcast_to(one, (count, *one.shape))
        return segment.back(wide, at) if base.do == "write" else segment.ahead(wide, at)

    return units


def _linear_rows(segment: LinearSegment, like: Any, at: slice, r: slice) -> Any:
    w = segment.w.T[r]
    if segment.d is None:
        return module_of(like).broadcast_to(w, (len(range(*at.indices(segment.samples))), *w.shape))
    return w * segment.d[at, r, None]


def _made(step: Step, segments: Sequence[Segment], like: Any, at: slice, rows: int) -> Any:
    """A whole step, with a row for each output whatever its own form."""
    b = len(range(*at.indices(like.shape[0])))
    shape = (b, segments[step.last].n_out, segments[step.first].n_in)
    whole = module_of(like).empty(shape, like.dtype)
    in_rows(step, segments, like, at, whole if step.rows_are_outputs else whole.swapaxes(1, 2), rows)
    return whole
