"""Carrying a plan out: the blocks of a chain multiplied step by step, in pieces of the batch that fit the cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..threads import cores, one_blas_thread, share
from ..trace import module_of
from .fused import LARGEST, LoopSegment, back_through, in_one_loop, looped
from .plan import Step
from .segments import LinearSegment, Segment

CACHE = 1 << 19  # bytes of intermediate results that a core works on at a time, so that they stay in its cache
PIECE = cores() * CACHE  # and all cores together
HAND_OVER = 2e-3  # seconds of a small machine (see `plan.RATE`) from which other threads are asked to help


def execute(step: Step, segments: Sequence[Segment], at: slice, like: Any, out: Any = None) -> Any:
    """The Jacobian of the step's interval for the samples `at`: (B, n_out, n_in), or (B, n_in, n_out)."""
    xp, n = module_of(like), step.rows_are_outputs
    if step.do == "write":
        return segments[step.segment].dense(at, like, out)
    if step.do == "product":
        left, right = (execute(p, segments, at, like) for p in step.parts)
        left = left if step.parts[0].rows_are_outputs else left.swapaxes(1, 2)
        right = right if step.parts[1].rows_are_outputs else right.swapaxes(1, 2)
        if n:
            return xp.matmul(left, right, out=out)
        return xp.matmul(right.swapaxes(1, 2), left.swapaxes(1, 2), out=out)
    if not step.parts:
        return segments[step.segment].dense_ahead(at, like, out)
    if step.do == "back":
        return _back(step, segments, at, like, out)
    m = execute(step.parts[0], segments, at, like)
    if step.do == "turn":
        return m.swapaxes(1, 2)
    if step.do == "scale":
        return xp.multiply(m, segments[step.segment].arrays()[0][at, :, None], out=out)
    return segments[step.segment].ahead(m, at, out)


def _back(step: Step, segments: Sequence[Segment], at: slice, like: Any, out: Any) -> Any:
    """A step back; the neighbouring ones before it too, where one loop goes through all of them."""
    run: list[Any] = [segments[step.segment]]
    before = step.parts[0]
    while before.do == "back" and isinstance(run[-1], LoopSegment):
        if not isinstance(segments[before.segment], LoopSegment):
            break
        run.append(segments[before.segment])
        before = before.parts[0]
    m = execute(before, segments, at, like)
    return run[0].back(m, at, out) if len(run) == 1 else back_through(run[::-1], m, at, out)


def largest_step(step: Step, segments: Sequence[Segment]) -> int:
    """Entries a sample of the largest intermediate result."""
    own = segments[step.first].n_in * segments[step.last].n_out
    return max([own, *(largest_step(p, segments) for p in step.parts)])


def fill(
    step: Step, segments: Sequence[Segment], like: Any, result: Any, first: int = 0, piece: int | None = None
) -> None:
    """Write the Jacobian of every sample into result (B, n_out, n_in), in pieces of the batch.

    result[0] is sample `first` of the batch. `piece`: how many samples at most to work on at a time, in all threads
    together. On the CPU large batches are shared among our own threads, with BLAS on one.
    """
    samples, xp = result.shape[0], module_of(result)
    piece, threads = samples if piece is None else max(1, piece), 1
    if isinstance(result, np.ndarray) and not any(s.whole_batch for s in segments):
        segments = looped(segments, like)
        if step.mode == "rev" and in_one_loop(segments, slice(first, first + samples), result):
            return
        threads = cores() if shares(step, samples) else 1
        cached = CACHE // max(1, largest_step(step, segments) * result.dtype.itemsize)
        piece = max(1, min(piece // threads, cached))

    def write(start: int) -> None:
        target = result[start : start + piece]
        at = slice(first + start, first + start + target.shape[0])
        value = execute(step, segments, at, like, target if step.do != "turn" else None)
        if value is not target and not xp.may_share_memory(value, target):
            target[...] = value

    starts = range(0, samples, piece or 1)
    if threads > 1:
        with one_blas_thread():
            share(write, starts)
    else:
        for start in starts:
            write(start)


def spares_blas(step: Step, segments: Sequence[Segment], samples: int) -> bool:
    """Whether f had better run with BLAS on one thread, so that BLAS's threads do not spin beside what follows.

    So it is for small layers and where our own threads share the work, as long as the Jacobian's rows are at least as
    many as the cores: then f is the smaller part on one thread too.
    """
    small = all(not isinstance(s, LinearSegment) or s.w.size <= LARGEST for s in segments)
    return (small or shares(step, samples)) and segments[-1].n_out >= cores()


def shares(step: Step, samples: int) -> bool:
    """Whether a chain is worth the hand-over to other threads."""
    return cores() > 1 and samples > 1 and step.cost * samples > HAND_OVER
