"""Carrying a plan out: the blocks of a chain multiplied step by step, in pieces of the batch that fit the cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..capture import recorded
from ..trace import module_of
from .chain import RowSegment, Segment
from .plan import Step, best_step

PIECE = 1 << 18  # bytes of intermediate results to work on at a time, so that they stay in the cache


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
