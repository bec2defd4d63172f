"""How the Jacobian of a whole function is made of a recorded call: a chain of blocks, or one stacked sweep.

A sweep goes back with the unit vectors of the outputs or ahead with those of the inputs, in pieces of the stack that
keep within the budget. Values of an outer transform cannot be written to: they are swept and joined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from .. import tree
from ..device import array_module
from ..op import shape_of
from ..precision import is_floating
from ..trace import module_of, raw
from ..transforms import Outputs, Primals, owned, pull, push
from .budget import Budget
from .cost import Cost, graph_of, whole_costs
from .execute import PIECE
from .explain import Plan, plan_of_chain, plan_of_sweep, shapes_text
from .function import CACHE, Work, is_concrete
from .one_sample import one_sample_chain
from .plan import links_of
from .segments import Segment
from .stream import Schedule, carry_out, held_bytes, schedule, working_bytes
from .sweeps import Sweep, choose, chunks, parts

SMALL, WORTHWHILE = 3e-4, 0.8  # seconds of a sweep from which a chain is looked for, and its share that pays


def unit_stacks(leaves: list[Any], start: int, stop: int) -> list[Any]:
    """Rows start:stop of the identity over all entries of all leaves: one stack [V, *leaf] a leaf."""
    stacks, at = [], 0
    for x in leaves:
        xp, n = module_of(x), prod(shape_of(x))
        rows = xp.zeros((stop - start, n), getattr(x, "dtype", float))
        first, last = max(start, at), min(stop, at + n)
        if first < last:
            steps = xp.arange(last - first)
            rows[steps + (first - start), steps + (first - at)] = 1
        stacks.append(rows.reshape(stop - start, *shape_of(x)))
        at += n
    return stacks


def in_chunks(total: int, chunk_size: int | None, sweep: Callable[[int, int], list[Any]]) -> list[Any]:
    """The stacks of sweep(0, total), in pieces of at most `chunk_size` joined along the stack axis; all our own."""
    if chunk_size is None or total <= chunk_size:
        return owned(sweep(0, total), [])
    pieces = [sweep(at, min(at + chunk_size, total)) for at in range(0, total, chunk_size)]
    return [module_of(parts[0]).concatenate(parts) for parts in zip(*pieces, strict=True)]


def _split(stacks: list[Any], leaves: list[Any]) -> list[list[Any]]:
    """Stacks over all entries of `leaves` as [leaf][stack]: (*leaf, ...)."""
    result, at = [], 0
    for x in leaves:
        n = prod(shape_of(x))
        result.append([s[at : at + n].reshape((*shape_of(x), *s.shape[1:])) for s in stacks])
        at += n
    return result


class DenseWork(Work):
    """The whole Jacobian of one recorded call."""

    def __init__(self, name: str, inside: Primals, outputs: Outputs, mode: str, budget: Budget, several: bool) -> None:
        self.name, self.inside, self.outputs = name, inside, outputs
        self.mode, self.budget, self.several = mode, budget, several
        self.outs, self.ins = [shape_of(y) for y in outputs.values], [x.shape for x in inside.leaves]
        self.n_outs, self.n_ins = ([prod(s) for s in shapes] for shapes in (self.outs, self.ins))
        self.specs = [((*y, *x.shape), x.dtype, array_module(raw(x))) for y in self.outs for x in inside.leaves]
        self.concrete = is_concrete(inside.trace, [*inside.leaves, *outputs.values])

    def rebuild(self, leaves: list[Any]) -> Any:
        n = len(self.ins)
        trees = [tree.unflatten(self.inside.structure, leaves[i * n : i * n + n]) for i in range(len(self.outs))]
        return tree.unflatten(self.outputs.structure, trees if self.several else [t[0] for t in trees])

    def costs(self) -> dict[str, tuple[int, Cost]]:
        """Direction -> (rows of the stack, what one takes)."""
        return self._costs

    @cached_property
    def _costs(self) -> dict[str, tuple[int, Cost]]:
        trace, outputs = self.inside.trace, self.outputs
        ends = tuple(s for s in outputs.slots if s is not None and is_floating(trace.outs[s][1]))
        found = whole_costs(graph_of(trace), tuple(self.inside.slots), ends)
        rev, fwd = found["rev"], found["fwd"]
        return {  # the unit vectors stay until the end of a sweep
            "rev": (sum(self.n_outs), rev._replace(peak=rev.peak + _bytes(outputs.values))),
            "fwd": (sum(self.n_ins), fwd._replace(peak=fwd.peak + _bytes(self.inside.leaves))),
        }

    @cached_property
    def segments(self) -> list[Segment]:
        """The call as a chain of blocks; empty where it is none, or where it is to be swept."""
        if not self.concrete or not self.result_bytes() or self.inside.trace.watcher is not None:
            return []
        return one_sample_chain(self.inside, self.outputs) or []

    def scheduled(self, limit: int) -> Schedule | None:
        """The plan of a chain, where it is cheaper than a sweep and stays within the limit."""
        if self.mode not in ("auto", "mixed"):
            return None
        least = min(cost.seconds(count) for count, cost in self.costs().values())
        if (self.mode == "auto" and least < SMALL) or not self.segments:
            return None
        _, dtype, xp = self.specs[0]
        held, chunk = held_bytes(self.segments, self.inside.trace, dtype), self.budget.chunk_size
        limits = (limit - held, *((PIECE, CACHE) if xp is np else (limit, limit)))
        plan = schedule(links_of(self.segments), working_bytes(dtype), self.mode, 1, limits, chunk)
        plan = plan._replace(peak=plan.peak + held)
        return plan if plan.peak <= limit and plan.step.cost < WORTHWHILE * least else None

    def swept(self, limit: int, mode: str | None = None) -> Sweep:
        """The plan, for the mode that was asked for or another."""
        return choose(mode or self.mode, self.costs(), self.budget, self.limits(limit), self.result_bytes())

    def whole(self) -> list[Any]:
        if self.concrete:
            out = self.empty()
            self.write(out)
            return out
        sweep = self.swept(self.limit())
        return (self._joined_forward if sweep.mode == "fwd" else self._joined_reverse)(sweep.rows)

    def write(self, out: list[Any]) -> None:
        chain = self.scheduled(self.limit())
        if chain is not None:
            result = out[0].reshape((1, self.n_outs[0], self.n_ins[0]))
            carry_out(chain, self.segments, self.inside.leaves[0][None], result)
            return
        sweep = self.swept(self.limit())
        if sweep.mode == "fwd":
            self._write_forward(out, sweep.rows)
        else:
            self._write_reverse(out, sweep.rows)

    def _write_reverse(self, out: list[Any], rows: int) -> None:
        n = len(self.ins)
        for start, stop in chunks(sum(self.n_outs), rows):
            stacks: Any = self._pulled(start, stop)
            for i, theirs, ours in parts(start, stop, self.n_outs):
                for target, d, x in zip(out[i * n : i * n + n], stacks, self.ins, strict=True):
                    target.reshape((self.n_outs[i], *x))[ours] = d[theirs]
            stacks = d = None  # before the next ones are made

    def _write_forward(self, out: list[Any], rows: int) -> None:
        n = len(self.ins)
        for start, stop in chunks(sum(self.n_ins), rows):
            stacks: Any = self._pushed(start, stop)
            for j, theirs, ours in parts(start, stop, self.n_ins):
                for i, d in enumerate(stacks):
                    target = out[i * n + j].reshape((self.n_outs[i], self.n_ins[j]))
                    target[:, ours] = d[theirs].reshape((ours.stop - ours.start, self.n_outs[i])).T
            stacks = d = None  # before the next ones are made

    def _pulled(self, start: int, stop: int) -> list[Any]:
        """Rows of the Jacobian, [V, *x] for each input leaf."""
        return pull(self.inside, self.outputs, unit_stacks(self.outputs.values, start, stop))

    def _pushed(self, start: int, stop: int) -> list[Any]:
        """Columns of the Jacobian, [V, *y] for each output leaf."""
        return push(self.inside, self.outputs, unit_stacks(self.inside.leaves, start, stop))

    def _joined_reverse(self, rows: int) -> list[Any]:
        by_output = _split(in_chunks(sum(self.n_outs), rows, self._pulled), self.outputs.values)
        return [d for stacks in by_output for d in stacks]

    def _joined_forward(self, rows: int) -> list[Any]:
        by_input = _split(in_chunks(sum(self.n_ins), rows, self._pushed), self.inside.leaves)
        return [
            _inputs_last(stacks[i], x)
            for i in range(len(self.outs))
            for stacks, x in zip(by_input, self.inside.leaves, strict=True)
        ]

    def pieces(self) -> Iterator[tuple[slice, Any]]:
        total, limit = sum(self.n_outs), self.piece_limit()
        one = max(self.result_bytes() // max(total, 1), 1)
        cost = self.costs()["rev"][1]
        least = int(cost.peak + cost.sample)
        self.budget.check(limit, one + least, "a row with the memory to make it")  # errors come now
        rows = max(1, min(limit // 2 // one, (limit - least) // one, self.budget.chunk_size or total, total))
        size = self.swept(limit - rows * one, "rev").rows

        def made() -> Iterator[tuple[slice, Any]]:
            def piece(start: int, stop: int) -> Any:  # a function of its own, which holds nothing of it afterwards
                out = [array_module(x).empty((stop - start, *x.shape), x.dtype) for x in self.inside.leaves]
                for a, b in chunks(stop - start, size):
                    stacks: Any = self._pulled(start + a, start + b)
                    for target, d in zip(out, stacks, strict=True):
                        target[a:b] = d
                    stacks = d = None  # before the next ones are made
                found = tree.unflatten(self.inside.structure, out)
                return found if self.several else found[0]

            for start, stop in chunks(total, rows):
                yield slice(start, stop), piece(start, stop)

        return made()

    def plan(self) -> Plan:
        limit = self.limit()
        title = f"{shapes_text(self.ins)} -> {shapes_text(self.outs)}: {self.result_text()}"
        chain = self.scheduled(limit)
        if chain is None:
            return plan_of_sweep(self.swept(limit), self.inside.trace, limit, None, title)
        return plan_of_chain(links_of(self.segments), chain, self.mode, limit, None, self.specs[0][1], title)


def _bytes(arrays: list[Any]) -> int:
    return sum(prod(shape_of(x)) * getattr(x, "dtype", np.dtype(float)).itemsize for x in arrays)


def _inputs_last(d: Any, x: Any) -> Any:
    """(*x, *y) -> (*y, *x)."""
    k = len(x.shape)
    xp = module_of(d)
    return xp.ascontiguousarray(xp.moveaxis(d, tuple(range(k)), tuple(range(-k, 0)))) if k else d
