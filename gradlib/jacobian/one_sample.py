"""A function without a batch as a chain: the one sample of a batch of one.

Blocks and stacks get a batch axis of 1 in front, and the planner of ``plan`` and ``stream`` works as for any batch.
"""

from __future__ import annotations

from typing import Any

from ..ops.batching import Tag
from ..trace import Node, Trace
from ..transforms import Outputs, Primals
from .blocks import Block, Diagonal, DiagonalLowRank, Identity, SharedDense
from .chain import between, cuts
from .segments import CopySegment, DiagonalSegment, LinearSegment, RowSegment, RuleSegment, Segment


class OneSample:
    """A recorded call without a batch, as the chain asks for calls: every value is the whole of one sample."""

    samples = 1

    def __init__(self, inside: Primals, outputs: Outputs) -> None:
        self.trace: Trace = inside.trace
        self.tags = [Tag(-len(shape), 1) for shape, _ in self.trace.outs]
        self.start, self.end = inside.slots[0], outputs.slots[0]


class OneRuleSegment(RuleSegment):
    """Any ops between two cuts: their stacks [V, *y] have no batch axis."""

    def __init__(self, call: Any, nodes: list[Node], start: int, end: int) -> None:
        super().__init__(call, nodes, start, end)
        shapes = call.trace.outs
        Segment.__init__(self, shapes[start][0], shapes[end][0])

    def _stack_first(self, m: Any, shape: tuple[int, ...]) -> Any:
        return m.reshape((m.shape[1], *shape))


def one_sample_chain(inside: Primals, outputs: Outputs) -> list[Segment] | None:
    """The segments from the one input to the one result; None where there are more, or nothing to be gained."""
    if len(inside.slots) != 1 or len(outputs.slots) != 1 or outputs.slots[0] is None:
        return None
    call: Any = OneSample(inside, outputs)
    nodes = between(call, call.start, call.end)
    segments: list[Segment] = []
    last, pending = call.start, []
    for node, cut in zip(nodes, cuts(call, nodes, call.start, call.end), strict=True):
        pending.append(node)
        if cut:
            if len(pending) > 1 or node.op.name != "reshape":  # which moves nothing in a flat sample
                found = _segment(call, pending, last, call.end if node is nodes[-1] else node.slot)
                segments += [] if isinstance(found, CopySegment) else [found]
            last, pending = node.slot, []
    return segments if any(not isinstance(s, RuleSegment) for s in segments) else None


def _segment(call: Any, nodes: list[Node], start: int, end: int) -> Segment:
    node = nodes[0]
    if len(nodes) == 1 and node.op.block is not None and list(node.parents).count(start) == 1:
        block = node.op.block(node.xp, node.saved, list(node.parents).index(start), **node.static)
        found = _lifted(block)
        if found is not None:
            return found
    return OneRuleSegment(call, nodes, start, end)


def _lifted(block: Block) -> Segment | None:
    """The segment of a block with a batch axis of 1 in front; None for kinds that have none."""
    if isinstance(block, Identity):
        return CopySegment(Identity(block.like, (1, *block.x_shape), (1, *block.y_shape)))
    if isinstance(block, Diagonal):
        return DiagonalSegment(Diagonal(block.d[None]))
    if isinstance(block, SharedDense):
        d = None if block.d is None else block.d[None]
        return LinearSegment(SharedDense(block.w, (1, *block.x_shape[:-1]), d))
    if isinstance(block, DiagonalLowRank):
        u, v = (tuple([a[None] for a in arrays]) for arrays in (block.u, block.v))
        return RowSegment(DiagonalLowRank(block.d[None], u, v, block.axis + 1))
    return None
