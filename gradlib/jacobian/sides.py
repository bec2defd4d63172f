"""The two sides of a Jacobian J, (M, N), and the stacks that are swept from one to the other.

A stack of rows r_1 … r_V on the side of the outputs is pulled to r_vᵀ J, one on the side of the inputs is pushed to
J r_v. The unit vectors have Σ r_v r_vᵀ = 1; V random vectors of independent entries with mean 0 and variance 1/V have
it on average. So whatever is linear in that sum, as the trace Σ r_vᵀ J r_v and the square of the Frobenius norm
Σ |J r_v|² are, is exact with the one and estimated without bias by the other.

Source: Hutchinson 1989, "A stochastic estimator of the trace of the influence matrix for Laplacian smoothing splines".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import numpy as np

from .. import tree
from ..op import shape_of
from ..trace import Traced, module_of, raw
from ..transforms import Outputs, Primals, pull, push
from .batched import Batched
from .batched_work import BatchedWork
from .budget import Budget
from .cost import each_entries, forward_cost, reverse_cost, slot_entries
from .dense_work import unit_stacks
from .samples import pull_samples
from .segments import DiagonalSegment

NOISES: dict[str, Callable[..., Any]] = {
    "rademacher": lambda rng, shape: np.where(rng.random(shape) < 0.5, -1.0, 1.0),
    "normal": lambda rng, shape: rng.standard_normal(shape),
}


class Side:
    """Where stacks start. `ends`: arrays (*batch, *leaf). `forward`: whether they are the inputs, not the outputs.

    `entries`: how many numbers they are, of one sample.
    """

    def __init__(self, ends: list[Any], batch: tuple[int, ...], forward: bool) -> None:
        self.ends, self.batch, self.forward = ends, batch, forward
        self.entries = entries(ends, batch)

    def sweep(self, stacks: list[Any]) -> list[Any]:
        """To the other side: a stack [V, *end] for each end gives one for each array there."""
        raise NotImplementedError

    def row_bytes(self) -> float:
        """What a sweep takes for each row of its stack, and what is calculated from its results."""
        raise NotImplementedError

    def sweeps(
        self, budget: Budget, samples: int | None = None, noise: str = "rademacher", seed: Any = 0, result: int = 0
    ) -> Iterator[tuple[list[Any], list[Any]]]:
        """(stacks, what they are swept to), a chunk at a time: of all unit vectors, or of `samples` random ones.

        `result`: bytes of what the caller makes of them.
        """
        total = self.entries if samples is None else samples
        size, rng = self._rows_at_once(budget, total, result), np.random.default_rng(seed)
        for start in range(0, max(total, 1), size):
            stop = min(start + size, total)
            if samples is None:
                stacks = self._units(start, stop)
            else:
                stacks = self._split(NOISES[noise](rng, (stop - start, *self.batch, self.entries)) / samples**0.5)
            yield stacks, self.sweep(stacks)

    def flat_sweeps(self, budget: Budget, **options: Any) -> Iterator[Any]:
        """The results of `sweeps` as one array each, [V, *batch, entries of the other side]."""
        for _, found in self.sweeps(budget, **options):
            yield join([flat(d, 1 + len(self.batch)) for d in found], axis=-1)

    def _rows_at_once(self, budget: Budget, total: int, result: int) -> int:
        """How many of `total` rows one sweep takes; at least 1."""
        size = max(total if budget.chunk_size is None else min(total, budget.chunk_size), 1)
        if budget.max_bytes is None and (budget.chunk_size is not None or size == 1):
            return size
        needed, limit = max(int(self.row_bytes()), 1), budget.limit(result, module_of(raw(self.ends[0])))
        budget.check(limit, needed, "a sweep of one row")
        return max(1, min(size, limit // needed))

    def _units(self, start: int, stop: int) -> list[Any]:
        """Rows start:stop of the identity, the same for every sample."""
        stacks, between = unit_stacks([self._one(x) for x in self.ends], start, stop), (1,) * len(self.batch)
        return [
            module_of(x).broadcast_to(r.reshape((stop - start, *between, *r.shape[1:])), (stop - start, *shape_of(x)))
            for r, x in zip(stacks, self.ends, strict=True)
        ]

    def _one(self, x: Any) -> Any:
        """An array like one sample of x."""
        return module_of(x).zeros(x.shape[1:], x.dtype) if self.batch else x

    def _split(self, noise: np.ndarray) -> list[Any]:
        """Random numbers [V, *batch, entries] as a stack for each end, on its device and in its dtype."""
        stacks, at = [], 0
        for x in self.ends:
            n = entries([x], self.batch)
            part = noise[..., at : at + n].reshape((len(noise), *shape_of(x)))
            stacks.append(module_of(x).asarray(part.astype(getattr(x, "dtype", float))))
            at += n
        return stacks


class WholeSide(Side):
    """A side of the Jacobian of a whole function; by default the one with fewer entries."""

    def __init__(self, inside: Primals, outputs: Outputs) -> None:
        forward = entries(inside.leaves, ()) < entries(outputs.values, ())
        super().__init__(inside.leaves if forward else outputs.values, (), forward)
        self.inside, self.outputs = inside, outputs

    def sweep(self, stacks: list[Any]) -> list[Any]:
        return (push if self.forward else pull)(self.inside, self.outputs, stacks)

    def row_bytes(self) -> float:
        trace = self.inside.trace
        if self.forward:
            cost = forward_cost(trace, self.inside.slots, self.outputs.slots, slot_entries(trace))
            return cost.peak + 2 * _bytes(self.outputs.values)
        return reverse_cost(trace, _known(self.outputs), slot_entries(trace)).peak + 2 * _bytes(self.inside.leaves)


class SamplesSide(Side):
    """A side of every sample's Jacobian; by default the one with fewer entries, the outputs' where an input is shared.

    `forward`: the inputs', of which none may be shared.
    """

    def __init__(self, call: Batched, forward: bool = False) -> None:
        batch, shared = (call.samples,), any(call.shared)
        fewer = not shared and entries(call.leaves, batch) < entries(call.outputs.values, batch)
        forward = forward or fewer
        super().__init__(call.leaves if forward else call.outputs.values, batch, forward)
        self.call: Any = call

    def sweep(self, stacks: list[Any]) -> list[Any]:
        # a Batched call has the trace and the slots of Primals, which are all that push needs
        return push(self.call, self.call.outputs, stacks) if self.forward else pull_samples(self.call, stacks)

    def row_bytes(self) -> float:
        trace, call = self.call.trace, self.call
        if self.forward:
            cost = forward_cost(trace, call.slots, call.outputs.slots, slot_entries(trace))
            return cost.peak + 2 * _bytes(call.outputs.values)
        # cotangents of what all samples share are kept apart, one a sample
        copies = max(call.samples, 1)
        results = sum(_bytes([x]) * (copies if s else 1) for x, s in zip(call.leaves, call.shared, strict=True))
        entries_each = each_entries(trace, call.tags, copies, [])
        return reverse_cost(trace, _known(call.outputs), entries_each).peak + 2 * results


def _known(outputs: Outputs) -> list[int]:
    return [s for s in outputs.slots if s is not None]


def _bytes(arrays: list[Any]) -> int:
    return sum(prod(shape_of(x)) * np.dtype(getattr(x, "dtype", float)).itemsize for x in arrays)


def entries(arrays: list[Any], batch: tuple[int, ...] = ()) -> int:
    """How many numbers arrays (*batch, *leaf) hold, of one sample."""
    return sum(prod(shape_of(x)[len(batch) :]) for x in arrays)


def flat(d: Any, lead: int) -> Any:
    """d with all axes after the first `lead` as one."""
    return d.reshape((*d.shape[:lead], prod(d.shape[lead:])))


def join(parts: list[Any], axis: int) -> Any:
    """Arrays, some of them traced perhaps, one after the other."""
    if len(parts) == 1:
        return parts[0]
    return module_of(next((p for p in parts if type(p) is Traced), parts[0])).concatenate(parts, axis=axis)


def check_sampling(name: str, samples: Any, noise: Any, seed: Any) -> None:
    """ValueError or TypeError for settings of an estimate that do not fit."""
    if samples is not None and (not isinstance(samples, (int, np.integer)) or samples < 1):
        raise ValueError(f"{name}: expected samples a positive int, or None for the exact value, got {samples!r}")
    if noise not in NOISES:
        raise ValueError(f"{name}: expected noise {' or '.join(map(repr, NOISES))}, got {noise!r}")
    if not isinstance(seed, (int, np.integer, np.random.Generator)):
        raise TypeError(f"{name}: expected an int or a np.random.Generator as seed, got {type(seed).__name__}")


def planned(call: Batched, allowed: Budget) -> BatchedWork | None:
    """How the planner forms every sample's Jacobian from a chain of blocks.

    None where f is no chain, and for values an outer transform or capture follows.
    """
    work = BatchedWork(call, "auto", allowed, several=False)
    return work if work.concrete and work.blocks() is not None else None


def is_diagonal(work: BatchedWork) -> bool:
    """Whether f is elementwise: then one vector of signs ε says all, ε_i J_ii ε_i = J_ii and |J ε| = |diag J|."""
    return all(isinstance(segment, DiagonalSegment) for segment in work.blocks() or ())


def of_matrices(work: BatchedWork, number: Callable[[Any], Any]) -> Any:
    """`number`, of matrices (b, M, N) -> (b,), of every sample's Jacobian, formed a piece of the batch at a time."""
    (m,), (n,), found = map(prod, work.outs), map(prod, work.ins), []
    for at, j in work.pieces():
        found.append(number(tree.flatten(j)[0][0].reshape((at.stop - at.start, m, n))))
        del j  # before the next piece is made
    return join(found, axis=0)
