"""The recorded function as a chain of segments, sample by sample: x -> v_1 -> … -> y.

A value that every path from x to y passes cuts the graph; what lies between two cuts is a segment. A segment of ops
that know their Jacobian's structure is applied by it, of whatever class the block is, any other by the rules of its
ops.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..device import array_module
from ..ops.batching import Tag
from ..trace import Namespace, Node, Traced
from .block_segment import BlockSegment, has_segment
from .blocks import Block, Diagonal, DiagonalLowRank, Gather, Identity, RowGradient, Select, SharedDense
from .fold import folded, structured
from .segments import (
    CopySegment,
    DiagonalSegment,
    GatherSegment,
    LinearSegment,
    RowSegment,
    RuleSegment,
    Segment,
    SumSegment,
)

if TYPE_CHECKING:
    from .batched import Batched


def chain_of(call: Batched) -> list[Segment] | None:
    """The segments from the one wanted input to the one result, first to last; None where the graph is no chain."""
    if len(call.slots) != 1 or call.shared[0] or len(call.outputs.slots) != 1 or call.outputs.slots[0] is None:
        return None
    start, end = call.slots[0], call.outputs.slots[0]
    nodes = between(call, start, end)
    if not nodes:
        return None
    groups, last, pending = [], start, []
    for node, cut in zip(nodes, cuts(call, nodes, start, end), strict=True):
        pending.append(node)
        if cut:
            groups.append((pending, last, end if node is nodes[-1] else node.slot))  # end may be one of several results
            last, pending = node.slot, []
    return _segments(call, groups)


def _segments(call: Batched, groups: list[tuple[list[Node], int, int]]) -> list[Segment]:
    """The groups between cuts as segments; neighbours whose product keeps structure become one."""
    segments: list[Segment] = []
    now: Block | None = None
    for nodes, start, end in groups:
        block = folded(call, nodes, start, end)
        joined = None if now is None or block is None else structured(block @ now)
        if joined is not None and _as_segment(joined) is not None:
            now = joined
            continue
        if now is not None:
            segments.append(_as_segment(now))  # type: ignore[arg-type]
        now = None if block is None or _as_segment(block) is None else block
        if now is None:
            segments.append(RuleSegment(call, nodes, start, end))
    if now is not None:
        segments.append(_as_segment(now))  # type: ignore[arg-type]
    return [s for s in segments if not isinstance(s, CopySegment)] or segments[:1]


def _as_segment(block: Block) -> Segment | None:
    """A block whose first axis is the batch as a segment: of its own kind, or of the general one."""
    if isinstance(block, DiagonalLowRank):
        return RowSegment(block) if block.axis else None
    if isinstance(block, Select):
        return DiagonalSegment(block.diagonal())
    if isinstance(block, RowGradient) and _of_last_axes(block):
        return SumSegment(block)
    kind = {Identity: CopySegment, Gather: GatherSegment, Diagonal: DiagonalSegment, SharedDense: LinearSegment}
    found = kind.get(type(block))
    if found is None:
        return BlockSegment(block) if has_segment(block) else None
    return found(block)


def _of_last_axes(block: RowGradient) -> bool:
    """Whether the rows are a sample's last axes, or all."""
    return 0 not in block.axes and block.axes == tuple(range(len(block.x_shape) - len(block.axes), len(block.x_shape)))


def plain_chain(call: Batched) -> list[Segment] | None:
    """`chain_of`, for arrays that belong to no outer transform, since its products are written in place.

    Values of a capture are taken: it records the whole product as one call. None under `detect_anomaly`, which looks at
    the derivatives that a sweep makes one by one.
    """
    if call.trace.watcher is not None:
        return None
    for x in (*call.leaves, *call.outputs.values):
        if not call.samples or (array_module(x) is None and (type(x) is not Traced or x.owner.unit is None)):
            return None
    if any(isinstance(node.xp, Namespace) for node in call.trace.nodes):
        return None
    return chain_of(call)


def between(call: Batched, start: int, end: int) -> list[Node]:
    """The nodes on paths from slot `start` to slot `end`."""
    forward, nodes = {start}, []
    for node in call.trace.nodes:
        if node.op.vjp is not None and forward.intersection(node.parents):
            forward.update(range(node.slot, node.slot + max(node.outputs, 1)))
            nodes.append(node)
    wanted, kept = {end}, []
    for node in reversed(nodes):
        if wanted.intersection(range(node.slot, node.slot + max(node.outputs, 1))):
            kept.append(node)
            wanted.update(p for p in node.parents if p in forward)
    return kept[::-1]


def cuts(call: Batched, nodes: list[Node], start: int, end: int) -> list[bool]:
    """For each node whether every later node sees only its result, with the batch axis first."""
    last = {}
    for i, node in enumerate(nodes):
        last.update(dict.fromkeys(node.parents, i))
    cuts, made = [], {start}
    for i, node in enumerate(nodes):
        made.add(node.slot)
        alone = all(s == node.slot or last.get(s, -1) <= i for s in made)
        first = call.tags[node.slot] == Tag(-len(call.trace.outs[node.slot][0]), 1)
        cuts.append(node is nodes[-1] or (alone and first and not node.outputs))
        if node.outputs:
            made.update(range(node.slot, node.slot + node.outputs))
    return cuts
