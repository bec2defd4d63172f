"""How a batched Jacobian is made of a recorded call: a chain of blocks by the planner, any other graph by sweeps.

Plain arrays are written into the result, in pieces of the batch and of the stack that keep within the budget: where all
samples at once would not, the call is cut over the batch (see ``cut``). Values of an outer transform cannot be written
to: they are swept and joined.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import memory, tree
from ..capture import recorded, spare_blas
from ..device import array_module
from ..trace import module_of, raw
from .apart import Apart
from .budget import Budget
from .chain import plain_chain
from .cost import Cost, apart_cost, graph_of, whole_costs
from .cut import cuttable, part
from .dense_work import in_chunks
from .execute import PIECE, spares_blas
from .explain import Plan, plan_of_chain, plan_of_sweep, shapes_text
from .function import CACHE, Work, is_concrete
from .fused import looped
from .known import remember
from .one_launch import chain_in_one_launch, network_in_one_launch
from .plan import links_of
from .samples import pull_samples, push_samples, sample_units
from .segments import Segment
from .stream import Schedule, carry_out, held_bytes, last_within, schedule, working_bytes
from .sweeps import Sweep, choose, chunks, parts, spans

if TYPE_CHECKING:
    from .batched import Batched

PLANS = 32  # kept for one signature: of so many budgets and sizes of pieces
CAREFUL = 4  # times the values that f recorded: a limit below may be too little for all samples at once


class BatchedWork(Work):
    """The Jacobian of every sample of one recorded call."""

    def __init__(self, call: Batched, mode: str, budget: Budget, several: bool, limit: int | None = None) -> None:
        """limit: bytes of working memory, by default those of the budget."""
        self.call, self.mode, self.budget, self.several = call, mode, budget, several
        known = call.known
        self.outs, self.ins, self.n_outs, self.n_ins, self.specs, self.recorded = (
            _sizes(call) if known is None else known.sizes
        )
        self.concrete = known is not None or is_concrete(call.trace, [*call.leaves, *call.outputs.values])
        self.room = self.limit() if limit is None else limit
        self.segments: list[Segment] | None = None
        self.step = self._samples_at_once()
        if self.step < call.samples:
            return
        if known is not None:
            self.segments, self.links = known.segments(call), known.links
        else:
            self.segments = plain_chain(call)
            if self.concrete:
                sizes = self.outs, self.ins, self.n_outs, self.n_ins, self.specs, self.recorded
                remember(call.signature, call, self.segments, sizes)

    def rebuild(self, leaves: list[Any]) -> Any:
        n = len(self.ins)
        trees = [self.call.rebuild(leaves[i * n : i * n + n]) for i in range(len(self.outs))]
        return tree.unflatten(self.call.outputs.structure, [tuple(t) if self.several else t[0] for t in trees])

    # how it is made

    @cached_property
    def links(self) -> tuple:
        return links_of(self.segments or ())

    @cached_property
    def cuts(self) -> bool:
        """Whether some of the samples can be worked on as a call of their own."""
        return self.concrete and cuttable(self.call)

    def _samples_at_once(self) -> int:
        """As many samples as can be worked on within the limit: all, where they fit or the call cannot be cut.

        A chain is not looked for in all samples before that is known, since its diagonals might not fit either.
        """
        samples = self.call.samples
        if samples < 2 or CAREFUL * self.recorded <= self.room:
            return samples
        steps = {} if self.call.known is None else self.call.known.steps
        asked = self.room, self.mode, self.budget
        if asked not in steps:
            if len(steps) >= PLANS:
                steps.clear()
            steps[asked] = self._largest_part() if self.cuts else samples
        return steps[asked]

    def _largest_part(self) -> int:
        """All samples, or a part of them whose predicted peak is within the limit, or 1."""
        samples, two, room = self.call.samples, self.two, self.room
        whole = self.swept(room, False) if two.segments is None else two.chain(samples, room, two.held * samples // 2)
        if whole.peak <= room:
            return samples
        count = max(1, room * samples // (CAREFUL * self.recorded))
        while count > 1 and self._part(0, count).peak() > room:
            count //= 2
        return count

    @cached_property
    def two(self) -> BatchedWork:
        """The work of two samples: its chain is that of all, in small. (Of one, arrays for all might seem its own.)"""
        return self._part(0, 2, sys.maxsize)

    def blocks(self) -> list[Segment] | None:
        """The chain, be it of two samples alone; None where there is none."""
        return self.segments if self.step == self.call.samples else self.two.segments

    def _part(self, first: int, last: int, limit: int | None = None) -> BatchedWork:
        """The work of some samples."""
        limit = self.room if limit is None else limit
        return BatchedWork(part(self.call, first, last), self.mode, self.budget, self.several, limit)

    def peak(self) -> int:
        """Bytes of working memory that all samples will take."""
        if self.step < self.call.samples:
            return self._part(0, self.step).peak()
        if self.segments is None:
            return self.swept(self.room, False).peak
        return self.chain(self.call.samples, self.room, self.held).peak

    @cached_property
    def held(self) -> int:
        """Bytes that the chain holds beyond what f recorded."""
        return held_bytes(self.segments or (), self.call.trace, self.specs[0][1])

    def scheduled(self, samples: int, limit: int) -> Schedule:
        """The plan of a chain for that many samples."""
        return self._planned(samples, limit)[0]

    def _planned(self, samples: int, limit: int) -> tuple[Schedule, bool]:
        """The plan, and whether f had better leave the other cores to it."""
        plans = {} if self.call.known is None else self.call.known.plans
        asked = samples, limit, self.mode, self.budget
        found = plans.get(asked)
        if found is None:
            if len(plans) >= PLANS:
                plans.clear()
            plan = self._checked(samples, limit)
            found = plans[asked] = plan, self.specs[0][2] is np and spares_blas(plan.step, self.segments or [], samples)
        return found

    def chain(self, samples: int, limit: int, held: int) -> Schedule:
        """The plan of a chain for that many samples, which holds so many bytes; also where it takes too many."""
        _, dtype, xp = self.specs[0]
        limits = (limit - held, *((PIECE, CACHE) if xp is np else (limit, limit)))
        plan = schedule(self.links, working_bytes(dtype), self.mode, samples, limits, self.budget.chunk_size)
        return plan._replace(peak=plan.peak + held)

    def _checked(self, samples: int, limit: int) -> Schedule:
        plan = self.chain(samples, limit, self.held)
        count = "one sample" if plan.samples == 1 else f"{plan.samples} samples"
        beside = f", beside the diagonals of all {self.call.samples}," if self.held else ""
        self.budget.check(limit, plan.peak, f"one row of {count}{beside}")
        return plan

    def swept(self, limit: int, checked: bool = True) -> Sweep:
        """The plan of a sweep."""
        allowed = self.budget if checked else replace(self.budget, max_bytes=None)
        return choose(self.mode, self.costs(), allowed, self.limits(limit), self.result_bytes(), self.call.samples)

    def costs(self) -> dict[str, tuple[int, Cost]]:
        """Direction -> (rows of the stack, what one takes)."""
        call = self.call
        graph = graph_of(call.trace, call.tags if any(call.shared) else ())
        ends, starts = tuple(s for s in call.outputs.slots if s is not None), tuple(call.slots)
        if any(call.shared):
            return {"rev": (sum(self.n_outs), apart_cost(graph, tuple(call.tags), ends, starts, call.samples))}
        found = whole_costs(graph, starts, ends)
        return {"rev": (sum(self.n_outs), found["rev"]), "fwd": (sum(self.n_ins), found["fwd"])}

    # making it

    def whole(self) -> list[Any]:
        if self.segments is not None and not self.concrete:
            return [self._captured_chain()]
        if self.concrete:
            out = self.empty()
            self.write(out)
            return out
        sweep = self.swept(self.room)
        return self._joined_forward(sweep.rows) if sweep.mode == "fwd" else self._joined_reverse(sweep.rows)

    def _captured_chain(self) -> Any:
        """The Jacobian of a chain of values of gl.capture, recorded as one call."""
        found = network_in_one_launch(self.call, self.mode)
        if found is not None:
            return found
        segments, (shape, dtype, _), mode = self.segments or [], self.specs[0], self.mode
        plan, spares = self._planned(self.call.samples, self.room)
        if self.specs[0][2] is np:
            segments = looped(segments, raw(self.call.leaves[0]))

        def compute(x: Any, *arrays: tuple) -> Any:
            over = [s.with_arrays(a) for s, a in zip(segments, arrays, strict=True)]
            result = memory.empty(module_of(x), (x.shape[0], over[-1].n_out, over[0].n_in), dtype)
            if not chain_in_one_launch(over, x, slice(0, x.shape[0]), result, mode):
                carry_out(plan, over, x, result)
            return result.reshape(shape)

        if spares:
            spare_blas()
        return recorded(compute, self.call.leaves[0], *[s.arrays() for s in segments])

    def write(self, out: list[Any]) -> None:
        samples = self.call.samples
        if not out or not samples:
            return
        if self.step == samples:
            self._write(out, slice(0, samples), self.room)
            return
        for a, b in chunks(samples, self.step):
            self._write_part(out, a, b, self.room, a)

    def _write_part(self, out: list[Any], first: int, last: int, limit: int, start: int = 0) -> None:
        """Write the Jacobians of the samples first..last, as a call of their own, into out from its row `start` on."""
        work = self._part(first, last, limit)
        work.write([t[start : start + last - first] for t in out])
        self.spares_blas |= work.spares_blas

    def _by_chain(self, count: int) -> bool:
        """Whether so many samples can be made by the chain: some segments take the whole batch alone."""
        whole = count == self.call.samples
        return self.segments is not None and (whole or not any(s.whole_batch for s in self.segments))

    def _write(self, out: list[Any], at: slice, limit: int) -> None:
        """Write the Jacobians of the samples `at` into out, arrays of that many samples."""
        count = at.stop - at.start
        if self._by_chain(count):
            result = out[0].reshape((count, self.n_outs[0], self.n_ins[0]))
            (plan, self.spares_blas), segments = self._planned(count, limit), self.segments or []
            if not chain_in_one_launch(segments, self.call.leaves[0], at, result, self.mode):
                carry_out(plan, segments, self.call.leaves[0], result, at.start)
        elif count < self.call.samples and self.cuts:
            self._write_part(out, at.start, at.stop, limit)
        else:
            sweep = self.swept(limit)
            (self._write_forward if sweep.mode == "fwd" else self._write_reverse)(out, at, sweep)

    def _write_reverse(self, out: list[Any], at: slice, sweep: Sweep) -> None:
        call, leaves = self.call, range(len(self.ins))
        for start, stop in chunks(sum(self.n_outs), sweep.rows):
            found = Apart(call, sample_units(call.outputs, start, stop, call.samples))
            self.spares_blas |= found.threaded
            places = list(parts(start, stop, self.n_outs))
            for a, b in chunks(at.stop - at.start, sweep.samples):
                piece, views = slice(at.start + a, at.start + b), [self._views(out, i, r, a, b) for i, _, r in places]
                if len(places) == 1:
                    found.dense(leaves, piece, views[0])
                    continue
                stacks = found.dense(leaves, piece)
                for (_, theirs, _), targets in zip(places, views, strict=True):
                    for target, d in zip(targets, stacks, strict=True):
                        target[...] = d[theirs]
            del found  # before the next one is made

    def _views(self, out: list[Any], i: int, rows: slice, a: int, b: int) -> list[Any]:
        """Rows of output i of the samples a..b in the result, for each input: [V, B, *x]."""
        n = len(self.ins)
        shapes = [(t.shape[0], self.n_outs[i], *x) for t, x in zip(out[i * n : i * n + n], self.ins, strict=True)]
        return [t.reshape(s)[a:b, rows].swapaxes(0, 1) for t, s in zip(out[i * n : i * n + n], shapes, strict=True)]

    def _write_forward(self, out: list[Any], at: slice, sweep: Sweep) -> None:
        call, n, count = self.call, len(self.ins), at.stop - at.start
        for start, stop in chunks(sum(self.n_ins), sweep.rows):
            stacks: Any = push_samples(call, start, stop)
            for j, theirs, ours in parts(start, stop, self.n_ins):
                for i, d in enumerate(stacks):
                    columns = d[theirs, at].reshape((theirs.stop - theirs.start, count, self.n_outs[i]))
                    target = out[i * n + j].reshape((count, self.n_outs[i], self.n_ins[j]))
                    target[:, :, ours] = module_of(d).moveaxis(columns, 0, -1)
            stacks = d = columns = None  # before the next ones are made

    def _joined_reverse(self, rows: int) -> list[Any]:
        call = self.call
        stacks = in_chunks(
            sum(self.n_outs), rows, lambda a, b: pull_samples(call, sample_units(call.outputs, a, b, call.samples))
        )
        found = []
        for i, at in spans(self.n_outs):
            for d in stacks:
                xp = module_of(d)
                moved = xp.ascontiguousarray(xp.moveaxis(d[at], 0, 1))
                found.append(moved.reshape((call.samples, *self.outs[i], *moved.shape[2:])))
        return found

    def _joined_forward(self, rows: int) -> list[Any]:
        found = []
        for d in in_chunks(sum(self.n_ins), rows, lambda a, b: push_samples(self.call, a, b)):
            xp = module_of(d)
            for j, at in spans(self.n_ins):
                part = xp.ascontiguousarray(xp.moveaxis(d[at], 0, -1))
                found.append(part.reshape((*part.shape[:-1], *self.ins[j])))
        return found

    def pieces(self) -> Iterator[tuple[slice, Any]]:
        samples, limit = self.call.samples, self.piece_limit()
        one = max(self.result_bytes() // max(samples, 1), 1)
        count = self._piece_samples(limit, one)  # errors come now
        left = limit - count * one

        def made() -> Iterator[tuple[slice, Any]]:
            def piece(start: int, stop: int) -> Any:  # a function of its own, which holds nothing of it afterwards
                out = [xp.empty((stop - start, *shape[1:]), dtype) for shape, dtype, xp in self.specs]
                self._write(out, slice(start, stop), left)
                return self.rebuild(out)

            for start, stop in chunks(samples, count):
                yield slice(start, stop), piece(start, stop)

        return made()

    def _piece_samples(self, limit: int, one: int) -> int:
        """How many samples a piece has, of `one` bytes each: as many as leave the memory to make them, and that
        at least half of the limit."""

        def needed(n: int) -> int:
            left = limit - n * one
            if self._by_chain(n):
                return n * one + self.chain(n, left, self.held).peak
            cut = n < self.call.samples and self.cuts
            return n * one + (self._part(0, n, left).peak() if cut else self.swept(left, False).peak)

        most = max(1, min(self.call.samples, limit // 2 // one))
        count = last_within(most, lambda n: needed(n) <= limit)
        self.budget.check(limit, needed(count), "a piece of one sample with the memory to make it")
        return count

    # saying it

    def plan(self) -> Plan:
        samples, limit = self.call.samples, self.room
        title = f"{samples} samples, {shapes_text(self.ins)} -> {shapes_text(self.outs)}: {self.result_text()}"
        if self.step < samples:
            return self._part(0, self.step).plan().of_more(samples / self.step, title)
        if self.segments is None:
            return plan_of_sweep(self.swept(limit), self.call.trace, limit, samples, title)
        return plan_of_chain(
            self.links, self.scheduled(samples, limit), self.mode, limit, samples, self.specs[0][1], title
        )


def _sizes(call: Batched) -> tuple[list, list, list[int], list[int], list, int]:
    """Shapes of one sample's outputs and inputs, their sizes, (shape, dtype, array module) of each result, and bytes
    of all values on the way."""
    outs = [y.shape[1:] for y in call.outputs.values]
    ins = [x.shape if shared else x.shape[1:] for x, shared in zip(call.leaves, call.shared, strict=True)]
    specs = [
        ((call.samples, *y, *x), leaf.dtype, array_module(raw(leaf)))
        for y in outs
        for x, leaf in zip(ins, call.leaves, strict=True)
    ]
    recorded = sum([prod(shape) * dtype.itemsize for shape, dtype in call.trace.outs])
    return outs, ins, [prod(s) for s in outs], [prod(s) for s in ins], specs, recorded
