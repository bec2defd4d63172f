"""What a Jacobian will cost and why it is made the way it is: the Plan that `J.plan(x)` gives, and its text."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..trace import Trace
from .budget import readable
from .plan import BANDWIDTH, RATE, Link, Step, best_step, order

if TYPE_CHECKING:
    from .stream import Schedule
    from .sweeps import Sweep


@dataclass(frozen=True)
class Option:
    """One way to make a Jacobian: operations and bytes moved in all."""

    mode: str
    how: str  # the order of the products, or what is swept
    flops: float
    bytes: float
    fits: bool = True

    @property
    def seconds(self) -> float:
        """By which ways are compared: operations and bytes at the rates of a small machine."""
        return self.flops / RATE + self.bytes / BANDWIDTH


@dataclass(frozen=True)
class Plan:
    """How one Jacobian is made, predicted without making it.

    mode: "rev", "fwd" or "mixed". flops, bytes: operations, and bytes read and written, in all. peak: bytes of working
    memory beyond the inputs, the result and what f itself records; limit: what they may be. samples, rows: of the
    batch (None without one) and of the stack, worked on at a time. options: the ways that were compared.
    print(plan) explains.

    >>> import gradlib as gl, numpy as np
    >>> w = np.ones((3, 2))
    >>> plan = gl.batch_jacobian(lambda x: np.tanh(x @ w)).plan(np.ones((5, 3)))
    >>> plan.mode, plan.blocks
    ('rev', ('shared matrix 3 -> 2',))
    """

    mode: str
    flops: float
    bytes: float
    peak: int
    limit: int
    samples: int | None
    rows: int
    blocks: tuple[str, ...]
    options: tuple[Option, ...] = field(repr=False)
    title: str = field(repr=False, default="")
    reason: str = field(repr=False, default="")

    def explain(self) -> str:
        """The blocks, the ways to multiply them with their costs, the one chosen and why, and the memory it takes."""
        lines = [self.title, self.reason]
        lines += [f"  J{i}  {block}" for i, block in enumerate(self.blocks, 1)]
        lines += ["", f"  {'mode':<7}{'operations':>12}{'bytes moved':>14}   order"]
        lines += [self._row(option) for option in self.options]
        lines += ["", self._why(), self._memory()]
        return "\n".join(line.rstrip() for line in lines)

    __str__ = explain

    def chosen(self) -> Option:
        """The option that the plan follows."""
        return next(o for o in self.options if o.mode == self.mode)

    def of_more(self, times: float, title: str) -> Plan:
        """The plan of so many times as many samples, worked on one part after another."""
        options = tuple([replace(o, flops=times * o.flops, bytes=times * o.bytes) for o in self.options])
        return replace(self, flops=times * self.flops, bytes=times * self.bytes, options=options, title=title)

    def _row(self, o: Option) -> str:
        mark = "*" if o is self.chosen() else " "
        how = o.how if len(o.how) <= 70 else o.how[:67] + "..."
        much = "" if o.fits else "   (too much memory)"
        return f"{mark} {o.mode:<7}{o.flops:>12.3g}{readable(o.bytes):>14}   {how}{much}"

    def _why(self) -> str:
        one = self.chosen()
        others = [o for o in self.options if o is not one]
        if not others:
            return f"{one.mode} is the only way here."
        ratios = [f"{o.mode} {o.seconds / one.seconds:.2g}" for o in others if one.seconds]
        cheaper = all(o.seconds >= one.seconds for o in others)
        word = "the cheapest" if cheaper else "asked for" if all(o.fits for o in others) else "the cheapest that fits"
        return f"Chosen: {one.mode}, {word}" + (f" (times its cost: {', '.join(ratios)})." if ratios else ".")

    def _memory(self) -> str:
        count = "" if self.samples is None else f"{self.samples} sample{'s' if self.samples != 1 else ''} and "
        used = f"Working memory: {readable(self.peak)} of {readable(self.limit)} allowed"
        return f"{used}, {count}a stack of {self.rows} at a time."


def plan_of_sweep(sweep: Sweep, trace: Trace, limit: int, samples: int | None, title: str) -> Plan:
    """The plan of a graph that is no chain."""
    names = Counter(node.op.name for node in trace.nodes)
    ops = ", ".join(name if n == 1 else f"{n} {name}" for name, n in names.most_common(4)) or "none"
    if len(names) > 4:
        ops += ", ..."
    at_once = None if samples is None else sweep.samples
    one = next(o for o in sweep.options if o.mode == sweep.mode)
    reason = f"No chain of blocks: swept by the rules of its operations ({ops})."
    return Plan(
        sweep.mode, one.flops, one.bytes, sweep.peak, limit, at_once, sweep.rows, (), sweep.options, title, reason
    )


def plan_of_chain(
    links: tuple[Link, ...], found: Schedule, mode: str, limit: int, samples: int | None, dtype: Any, title: str
) -> Plan:
    """The plan of a chain of blocks, beside the other orders."""
    count = samples or 1
    one, options = _of_step(found.step, count), []
    for way in ("rev", "fwd", "mixed"):
        step = best_step(links, dtype.itemsize, way)
        if step.mode == way:
            other = _of_step(step, count)  # a cheaper one was not taken for want of memory, if it was free to be
            fits = other.seconds >= one.seconds or mode not in ("auto", "mixed")
            options.append(replace(other, fits=fits))
    if one not in options:
        options.append(one)
    blocks = tuple(f"{s.kind} {shapes_text([s.x])} -> {shapes_text([s.y])}" for s in links)
    rows = links[-1].n_out if found.rows is None else found.rows
    return Plan(
        one.mode,
        one.flops,
        one.bytes,
        found.peak,
        limit,
        None if samples is None else found.samples,
        rows,
        blocks,
        tuple(options),
        title,
        "A chain of blocks:",
    )


def _of_step(step: Step, samples: int) -> Option:
    return Option(step.mode, order(step), step.flops * samples, step.bytes * samples)


def shapes_text(shapes: list[tuple[int, ...]]) -> str:
    """(3,) as 3, (4, 5) as (4, 5), two of them in a row, many counted."""
    if len(shapes) > 2:
        return f"{len(shapes)} arrays"
    return ", ".join(str(s[0]) if len(s) == 1 else str(s) for s in shapes)
