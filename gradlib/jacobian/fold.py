"""A few recorded ops as one block: products along paths, sums where paths meet, as long as they keep structure.

So ``np.maximum(x @ w + b, 0)`` is one shared matrix with a diagonal, like ``gl.linear``, and ``x * gl.sigmoid(x)`` one
diagonal, though x is used twice.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np

from ..op import Unit
from ..ops.batching import Tag
from ..trace import Node, module_of, namespace, raw
from .algebra import Product, Sum
from .blocks import Block, Gather, Identity

if TYPE_CHECKING:
    from .batched import Batched

#: Ops of one argument that pick entries, each at most once.
MOVES = frozenset({"reshape", "transpose", "flip", "roll", "getitem"})


def folded(call: Batched, nodes: list[Node], start: int, end: int) -> Block | None:
    """The Jacobian of slot `end` by slot `start` through `nodes`, where it has structure."""
    like = call.leaves[0]
    blocks: dict[int, Block] = {start: Identity(like, call.trace.outs[start][0])}
    for node in nodes:
        total: Block | None = None
        for i, parent in enumerate(node.parents):
            if parent not in blocks:
                continue
            own = _block(call, node, i)
            part = None if own is None else structured(own @ blocks[parent])
            total = part if total is None or part is None else structured(total + part)
            if total is None:
                return None
        if total is not None:
            blocks[node.slot] = total
    return blocks.get(end)


def structured(block: Block) -> Block | None:
    """The block, unless it is a product or sum that has no structure of its own."""
    return None if isinstance(block, (Product, Sum)) else block


def _block(call: Batched, node: Node, i: int) -> Block | None:
    """The structured Jacobian of one op by its input i, if it is known."""
    if node.outputs:
        return None
    if node.op.name in MOVES:
        return _moved(call, node)
    if node.op.block is None:
        return None
    xp = namespace(module_of(raw(call.leaves[0]))) if isinstance(node.xp, Unit) else node.xp
    return node.op.block(xp, node.saved, i, **node.static)


def _moved(call: Batched, node: Node) -> Block | None:
    """Where each entry of a sample comes from: the op itself moves their numbers."""
    slots = (*node.parents, node.slot)
    x, y = (call.trace.outs[s][0] for s in (slots[0], slots[-1]))
    if len(slots) != 2 or any(call.tags[s] != Tag(-len(call.trace.outs[s][0]), 1) for s in slots):
        return None
    like = call.leaves[0]
    if node.op.name == "reshape":
        return Identity(like, x, y)
    numbers = np.broadcast_to(np.arange(prod(x[1:])).reshape(x[1:]), x)
    index = node.op.forward(np, numbers, **node.static)[0][0]
    return Gather(like, module_of(raw(like)).asarray(index), x)
