"""A reverse sweep that keeps the samples of a batch apart.

Where no samples mix, one stack serves all samples: cotangent e_v of every sample at once. Where a value shared by all
samples meets a batched one, its cotangent keeps the samples: it is held as a factor (see ``factors``), and what lies
below is swept with (V, B) merged into the stack, for all samples or a few at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from math import prod
from typing import Any, Protocol

from ..device import array_module
from ..op import Unit
from ..ops.batching import UNKNOWN, Tag
from ..sweep import accumulate, rules_namespace, sweep_back, take_cotangent, watched_vjp
from ..trace import Node, Trace, module_of, namespace, raw
from ..transforms import Outputs
from .factors import ALL, Factor, Outer, Paired, Rows

#: Ops that move entries and change none, so that inner products are the same behind them.
REARRANGING = frozenset({"reshape", "transpose", "flip", "roll"})


class Call(Protocol):
    """One traced call of a function of a batch: its graph, the wanted inputs, and the batch axis of every value."""

    trace: Trace
    outputs: Outputs
    samples: int
    tags: list[Any]
    leaves: list[Any]
    slots: list[int]
    shared: list[bool]  # of each leaf: whether it is one value for all samples


class OneHot(Factor):
    """Cotangents [V, *y] of a value with the batch axis `tag`: member (v, b) is 0 in all rows but those of sample b."""

    def __init__(self, d: Any, tag: Tag, samples: int) -> None:
        self.d, self.tag, self.samples = d, tag, samples
        self.shape = d.shape[1:]

    def dense(self, at: slice = ALL, out: Any = None) -> Any:
        count = len(range(*at.indices(self.samples)))
        return one_hot(self.d, self.tag, self.samples, at).reshape((self.d.shape[0], count, *self.shape))


class Apart:
    """A reverse sweep that keeps the samples apart and halts where shared values begin.

    What reaches a shared value there is kept: as a factor, or, where the op has no rule for it, as the op and its
    cotangent. `dense` goes on from there for any samples; `paired` gives the structure of a leaf that has one.
    If a batch axis is not known where it would be needed, the whole sweep is put off to `dense` and starts one-hot in
    the sample: B times the work, right for any op.
    """

    def __init__(self, call: Call, stacks: list[Any]) -> None:
        self.call, self.v = call, stacks[0].shape[0]
        self.separable = separable(call)
        self.factors: dict[int, list[Factor]] = {}
        self.general: list[tuple[Node, Any, tuple[bool, ...]]] = []
        self.cotangents: list[Any] = [None] * len(call.trace.outs)
        for slot, d in zip(call.outputs.slots, stacks, strict=True):
            if slot is None:
                continue
            if self.separable and call.tags[slot] is not None:
                accumulate(call.trace, self.cotangents, slot, d)
            else:  # a result that is not tagged is a shared value with as many rows as there are samples
                self.factors.setdefault(slot, []).append(OneHot(d, Tag(1 - d.ndim), call.samples))
        if self.separable:
            self._sweep()

    def _sweep(self) -> None:
        """Through all nodes that carry the batch axis: stacks [V, *x] at batched leaves, factors at shared values."""
        trace, tags, cotangents = self.call.trace, self.call.tags, self.cotangents
        for node in reversed(trace.nodes):
            dy = take_cotangent(trace, node, cotangents)
            if dy is None or node.op.vjp is None:
                continue
            shared = tuple(p >= 0 and tags[p] is None for p in node.parents)
            plain = tuple(p >= 0 and not s for p, s in zip(node.parents, shared, strict=True))
            if any(plain):
                _add(trace, cotangents, node, plain, watched_vjp(trace, node, dy, plain))
            if any(shared):
                self._meet(node, dy, shared)

    def _meet(self, node: Node, dy: Any, need: tuple[bool, ...]) -> None:
        """Keep the cotangents of a node's shared inputs: by the op's rule, or as they come."""
        tag = self.call.tags[node.slot]
        if self.call.trace.watcher is not None or not kept_apart(node, self.call.tags):  # one looks at arrays alone
            self.general.append((node, dy, need))
            return
        parts = dy if type(dy) is tuple else (dy,)
        xp = rules_namespace(node.xp, parts)
        xp = namespace(array_module(raw(parts[0]))) if isinstance(xp, Unit) else xp
        each: Any = node.op.vjp_each
        found = each(xp, node.saved, dy, need, tag.axis, **node.static)
        for slot, each in zip(node.parents, found, strict=True):
            if each is not None:
                if not isinstance(each, Factor):
                    each = Rows(each.reshape((self.v, self.call.samples * tag.rows, *each.shape[1:])))
                self.factors.setdefault(slot, []).append(each if tag.rows == 1 else each.merged(tag.rows))

    def paired(self, leaf: int) -> Paired | None:
        """All that came to a leaf as one `Paired` factor, or None. The leaf may be seen transposed or reshaped, since
        inner products are the same.
        """
        slot, reached = self.call.slots[leaf], self.reached
        while slot in reached and slot not in self.factors:
            users = [n for n in self.call.trace.nodes if slot in n.parents and n.slot in {*reached, *self.factors}]
            if len(users) != 1 or users[0].op.name not in REARRANGING:
                return None
            slot = users[0].slot
        factors = self.factors.get(slot, [])
        pairs = [f for f in factors if isinstance(f, Paired) and type(f) is type(factors[0])]
        if not pairs or len(pairs) != len(factors) or slot in reached:
            return None
        return pairs[0].joined(pairs[1:]) if len(pairs) > 1 else pairs[0]

    @property
    def threaded(self) -> bool:
        """Whether our own threads share the work of writing the factors down, so that BLAS's had better sleep."""
        return any([isinstance(f, Outer) and f.threaded for found in self.factors.values() for f in found])

    @cached_property
    def reached(self) -> set[int]:
        """The slots that get cotangents from shared nodes, or from ops without a rule."""
        found = {p for node, _, need in self.general for p, n in zip(node.parents, need, strict=True) if n}
        for node in reversed(self.call.trace.nodes):
            if any(s in found or s in self.factors for s in _made(node)):
                found.update(p for p in node.parents if p >= 0)
        return found

    def _above(self, leaves: Sequence[int]) -> set[int]:
        """The slots that depend on these leaves."""
        found = {self.call.slots[i] for i in leaves}
        for node in self.call.trace.nodes:
            if found.intersection(node.parents):
                found.update(_made(node))
        return found

    def entries(self, leaves: Sequence[int]) -> int:
        """Entries for each sample of all cotangents that `dense` makes for these leaves."""
        slots = self._above(leaves) & (self.reached | self.factors.keys())
        one_hot = [node.slot for node, _, _ in self.general]
        return self.v * sum(prod(self.call.trace.outs[s][0]) for s in [*slots, *one_hot])

    def dense(self, leaves: Sequence[int], at: slice = ALL, out: Sequence[Any] | None = None) -> list[Any]:
        """Stacks [V, B, *x] of some leaves, by their numbers, for the samples `at`; written into `out` where given."""
        trace, slots, above = self.call.trace, self.call.slots, self._above(leaves)
        cotangents: list[Any] = [None] * len(trace.outs)
        for slot in above.intersection(self.factors).difference(slots):
            for factor in self.factors[slot]:
                d = factor.dense(at)
                accumulate(trace, cotangents, slot, d.reshape((d.shape[0] * d.shape[1], *d.shape[2:])))
        for node, dy, shared in self.general:
            need = tuple(n and p in above for n, p in zip(shared, node.parents, strict=True))
            if any(need):
                _add(trace, cotangents, node, need, watched_vjp(trace, node, self._one_hot(node, dy, at), need))
        sweep_back(trace, cotangents)
        targets = [None] * len(leaves) if out is None else out
        return [self._leaf(i, cotangents[slots[i]], at, t) for i, t in zip(leaves, targets, strict=True)]

    def _one_hot(self, node: Node, dy: Any, at: slice) -> Any:
        tags, samples = self.call.tags[node.slot :], self.call.samples
        if type(dy) is tuple:
            return tuple(one_hot(d, t, samples, at) for d, t in zip(dy, tags, strict=False))
        return one_hot(dy, tags[0], samples, at)

    def _leaf(self, leaf: int, d: Any, at: slice, out: Any) -> Any:
        """The sum of what came to a leaf: its factors, and the stack `d` [V * B, *x] that was swept to it."""
        call, slot, x = self.call, self.call.slots[leaf], self.call.leaves[leaf]
        count, shared = len(range(*at.indices(call.samples))), call.shared[leaf]
        if self.separable and not shared:
            parts = [] if self.cotangents[slot] is None else [self.cotangents[slot][:, at]]
        else:
            parts = [] if d is None else [d.reshape((self.v, count, *x.shape))]
            factors = self.factors.get(slot, [])
            if shared and factors and out is not None:
                return _added(factors, parts, at, out)
            parts += [f.dense(at) for f in factors]
            if not shared:  # row b of the batch under the cotangent of sample b; the others are 0
                parts = [p.sum(axis=1)[:, at] for p in parts]
        return _total(parts, (self.v, count, *(x.shape if shared else x.shape[1:])), x, out)


def _added(factors: list[Factor], parts: list[Any], at: slice, out: Any) -> Any:
    """The sum of factors and of stacks, in `out`: the first is written there, and the others are added."""
    factors[0].dense(at, out)
    spare = module_of(out).empty_like(out) if len(factors) > 1 else None
    for factor in factors[1:]:
        out += factor.dense(at, spare)
    for part in parts:
        out += part
    return out


def _total(parts: list[Any], shape: tuple[int, ...], x: Any, out: Any) -> Any:
    """The sum of stacks as an array of the dtype of x, zeros where there are none; in `out` if given."""
    if not parts:
        d = module_of(x).zeros(shape, x.dtype)
    else:
        d = sum(parts[1:], parts[0])
    if d is out and out is not None:
        return out
    d = (d if d.dtype == x.dtype else d.astype(x.dtype)).reshape(shape)
    if out is None:
        return d
    out[...] = d
    return out


def _made(node: Node) -> range:
    """The slots of a node's results."""
    return range(node.slot, node.slot + max(node.outputs, 1))


def pieces(samples: int, step: int) -> Iterator[slice]:
    """Slices of the batch of `step` samples, at least one of each."""
    for start in range(0, max(samples, 1), max(step, 1)):
        yield slice(start, min(start + max(step, 1), samples))


def _add(trace: Trace, cotangents: list[Any], node: Node, need: tuple[bool, ...], dxs: Any) -> None:
    for slot, wanted, dx in zip(node.parents, need, dxs, strict=True):
        if wanted and dx is not None:
            accumulate(trace, cotangents, slot, dx)


def kept_apart(node: Node, tags: Sequence[Any]) -> bool:
    """Whether the op has a rule for the cotangents, a sample, of the shared inputs of a node with a batch axis."""
    op, tag = node.op, tags[node.slot]
    if op.vjp_each is None or type(tag) is not Tag:
        return False
    need = tuple([p >= 0 and tags[p] is None for p in node.parents])
    return op.each_takes is None or op.each_takes(node.shapes, need, tag.axis, node.static)


def separable(call: Call) -> bool:
    """Whether every place where a shared value meets a batched one knows its batch axis."""
    for node in call.trace.nodes:
        if call.tags[node.slot] == UNKNOWN and any(p >= 0 and call.tags[p] is None for p in node.parents):
            return False
    return True


def one_hot(d: Any, tag: Tag, samples: int, at: slice = ALL) -> Any:
    """A stack [V, *y] as [V * B, *y], B samples `at`: member (v, b) is d[v] with all rows but sample b's set to 0."""
    xp, v, axis = module_of(d), d.shape[0], d.ndim + tag.axis
    owner, chosen = xp.arange(samples * tag.rows) // tag.rows, xp.arange(samples)[at]
    hot = (owner == chosen[:, None]).astype(d.dtype)
    hot = hot.reshape((1, len(chosen), *(1,) * (axis - 1), samples * tag.rows, *(1,) * (d.ndim - axis - 1)))
    return (xp.expand_dims(d, 1) * hot).reshape((v * len(chosen), *d.shape[1:]))
