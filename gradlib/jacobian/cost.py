"""What a sweep over a recorded graph takes a row of its stack: operations, bytes moved, and memory at its widest.

The walks mirror ``gradlib.sweep`` without computing. Products of matrices are counted in full, every other rule as two
operations an entry; a rule's own scratch is taken as large as its cotangents in and out together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

from ..op import shape_of
from ..ops.batching import UNKNOWN
from ..sweep import last_uses
from ..trace import Node, Trace
from .apart import kept_apart

RATE, BANDWIDTH = 40e9, 8e9  # operations and bytes a second of a small machine: only their ratio matters

PLANS = 128  # how many are remembered

Entries = Callable[[int], float]  # of a slot: entries of its derivative for one row of the stack


class Cost(NamedTuple):
    """For one row of the stack: operations, bytes read and written, bytes alive at the widest point.

    `sample`: further bytes for each sample, of which any number can be worked on at a time.
    """

    flops: float
    bytes: float
    peak: float
    sample: float = 0.0

    def seconds(self, rows: int) -> float:
        """By which ways are compared: operations and bytes at the rates of a small machine."""
        return rows * (self.flops / RATE + self.bytes / BANDWIDTH)


class Vertex(NamedTuple):
    """What costs depend on of a node. inner: see `contracted`; apart: see `apart.kept_apart`."""

    op: Any
    parents: tuple[int, ...]
    slot: int
    outputs: int
    inner: float | None
    apart: bool


class Graph(NamedTuple):
    """What costs depend on of a trace, without its arrays: equal for calls that do the same to other numbers."""

    nodes: tuple[Vertex, ...]
    outs: tuple[tuple[tuple[int, ...], Any], ...]


def graph_of(trace: Trace, tags: Sequence[Any] = ()) -> Graph:
    """The signature of a recorded call, by which its costs are found again. tags: where samples are kept apart."""
    nodes = [
        Vertex(n.op, tuple(n.parents), n.slot, n.outputs, contracted(n), bool(tags) and kept_apart(n, tags))
        for n in trace.nodes
    ]
    return Graph(tuple(nodes), tuple(trace.outs))


@lru_cache(maxsize=PLANS)
def whole_costs(graph: Graph, starts: tuple[int, ...], ends: tuple[int, ...]) -> dict[str, Cost]:
    """Of sweeps in both directions between the inputs and the outputs."""
    own = slot_entries(graph)
    return {"rev": reverse_cost(graph, ends, own), "fwd": forward_cost(graph, starts, ends, own)}


def reverse_cost(trace: Trace | Graph, ends: Iterable[int], entries: Entries, part: Any = None) -> Cost:
    """Of a sweep back from the slots `ends`. `part`: (nodes, slots) to keep to, by default all."""
    nodes, inside = (trace.nodes, None) if part is None else part
    alive = {slot: _bytes(trace, slot, entries) for slot in ends}
    flops, moved, peak = 0.0, 0.0, sum(alive.values())
    for node in reversed(nodes):
        outs = _outs(node)
        if node.op.vjp is None or not any(s in alive for s in outs):
            continue
        held = sum(alive.values())
        parents = [p for p in node.parents if p >= 0 and (inside is None or p in inside)]
        dy = sum(_bytes(trace, s, entries) for s in outs)
        dx = sum(_bytes(trace, p, entries) for p in parents)
        peak = max(peak, held + dx + max(dy, dx))
        flops += node_flops(trace, node, parents, entries)
        moved += 2 * dy + dx
        for s in outs:
            alive.pop(s, None)
        alive.update((p, _bytes(trace, p, entries)) for p in parents)
    return Cost(flops, moved, peak)


def forward_cost(
    trace: Trace | Graph, starts: Iterable[int], ends: Iterable[int | None], entries: Entries, part: Any = None
) -> Cost:
    """Of a sweep ahead from the slots `starts` to `ends`, whose tangents stay. `part`: nodes to keep to."""
    alive = {slot: _bytes(trace, slot, entries) for slot in starts}
    flops, moved, peak = 0.0, 0.0, sum(alive.values())
    nodes = trace.nodes if part is None else part
    for node, freed in zip(nodes, reversed(last_uses(nodes[::-1], ends)), strict=True):
        parents = [p for p in node.parents if p in alive]
        if node.op.jvp is None or not parents:
            continue
        dx = sum(alive[p] for p in parents)
        alive.update((s, _bytes(trace, s, entries)) for s in _outs(node))
        dy = sum(alive[s] for s in _outs(node))
        peak = max(peak, sum(alive.values()) + max(dx, dy))
        flops += node_flops(trace, node, parents, entries)
        moved += dx + 2 * dy
        for p in freed:
            alive.pop(p, None)
    return Cost(flops, moved, peak)


def _outs(node: Node | Vertex) -> range:
    return range(node.slot, node.slot + max(node.outputs, 1))


def _bytes(trace: Trace | Graph, slot: int, entries: Entries) -> float:
    return entries(slot) * trace.outs[slot][1].itemsize


def node_flops(trace: Trace | Graph, node: Node | Vertex, parents: list[int], entries: Entries) -> float:
    """Operations of a node's rule for one row of the stack, by those of its inputs that have a derivative."""
    out = sum(entries(s) for s in _outs(node))
    inner = node.inner if type(node) is Vertex else contracted(node)  # type: ignore[arg-type]
    if inner is not None:
        return 2.0 * out * inner * len(parents)
    return 2.0 * (out + sum(entries(p) for p in parents))


def contracted(node: Node) -> float | None:
    """How many products each entry of a matrix product sums; None for what is none."""
    if node.op.name in ("matmul", "linear"):
        return float(shape_of(node.saved[0])[-1])
    if node.op.name == "csr_linear":
        return node.saved[0].size / max(node.saved[2].shape[0] - 1, 1)
    if node.op.name == "einsum":
        sizes: dict[str, int] = {}
        for term, x in zip(node.static["terms"], node.saved, strict=True):
            sizes.update(zip(term, shape_of(x), strict=True))
        return float(prod(n for c, n in sizes.items() if c not in node.static["out"]))
    return None


def slot_entries(trace: Trace | Graph) -> Entries:
    """Entries of a value itself, as derivatives of a whole function have them."""
    return lambda slot: float(prod(trace.outs[slot][0]))


def each_entries(trace: Trace | Graph, tags: list[Any], samples: int, wanted: Iterable[int] = ()) -> Entries:
    """The same where the cotangents of values that all samples share (tag None) keep the samples apart."""
    return lambda slot: float(prod(trace.outs[slot][0]) * (samples if tags[slot] is None else 1))


@lru_cache(maxsize=PLANS)
def apart_cost(trace: Graph, tags: tuple, ends: tuple[int, ...], wanted: tuple[int, ...], samples: int) -> Cost:
    """Of a sweep back that keeps the samples apart (see ``apart``): batched values first, then shared ones a sample.

    A wanted shared value that one op uses, with a rule for that, is written into the result as it is; the op's
    cotangent is held until then, as are those of all ops where shared values meet batched ones.
    """
    own, wanted = slot_entries(trace), tuple([p for p in wanted if tags[p] is None])
    batched = [n for n in trace.nodes if tags[n.slot] is not None]
    meets = [n for n in batched if any(p >= 0 and tags[p] is None for p in n.parents)]
    if any(tags[n.slot] == UNKNOWN for n in meets):  # one-hot from the start
        every = reverse_cost(trace, ends, own)
        return Cost(samples * every.flops, samples * every.bytes, 0.0, every.peak)
    uses = Counter(p for n in trace.nodes for p in n.parents)
    straight = {p for n in meets if n.apart for p in n.parents if uses[p] == 1}.intersection(wanted)
    sweep = reverse_cost(trace, [s for s in ends if tags[s] is not None], own, (batched, _tagged(trace, tags)))
    held = 2 * sum(_bytes(trace, s, own) for n in meets for s in _outs(n))  # and in the order in which it is written
    general = [n for n in meets if not n.apart]
    shared = [n for n in trace.nodes if tags[n.slot] is None] + general
    starts = {p for n in meets for p in n.parents if p >= 0 and tags[p] is None}.difference(wanted)
    starts |= {s for n in general for s in _outs(n)} | {s for s in ends if tags[s] is None}
    inside = {s for s, t in enumerate(tags) if t is None} - straight
    each = reverse_cost(trace, starts, own, (shared, inside))
    written = sum(2.0 * own(p) * trace.outs[p][1].itemsize for p in wanted)
    flops = sweep.flops + samples * each.flops + samples * sum(2.0 * own(p) for p in wanted)
    peak = each.peak + _added(trace, meets, shared, wanted)
    return Cost(flops, sweep.bytes + samples * (each.bytes + written), sweep.peak + held, peak)


def _added(trace: Graph, meets: list[Any], shared: list[Any], wanted: Iterable[int]) -> float:
    """Bytes, a sample, of the largest part that is added to what is in the result: of a value that several ops use."""
    uses = Counter(p for n in meets if n.apart for p in n.parents)
    uses.update({p for n in shared for p in n.parents})
    return max([_bytes(trace, p, slot_entries(trace)) for p in wanted if uses[p] > 1], default=0.0)


def _tagged(trace: Graph, tags: tuple) -> set[int]:
    return {s for s, tag in enumerate(tags) if tag is not None}
