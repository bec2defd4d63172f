"""A few recorded ops as one block: products along paths, sums where paths meet, as long as they keep structure.

So ``np.maximum(x @ w + b, 0)`` is one shared matrix with a diagonal, like ``gl.linear``, and ``x * gl.sigmoid(x)`` one
diagonal, though x is used twice.
"""

from __future__ import annotations

from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from ..capture import recorded
from ..op import Unit
from ..ops.batching import Tag
from ..trace import Node, module_of, namespace, raw
from .algebra import Product, Sum
from .blocks import Block, Gather, Identity

if TYPE_CHECKING:
    from .batched import Batched

#: Ops that pick entries of one argument.
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
    slots, indices = (node.parents[0], node.slot), node.saved[1:] if len(node.parents) > 1 else ()
    x, y = (call.trace.outs[s][0] for s in slots)
    if any(call.tags[s] != Tag(-len(call.trace.outs[s][0]), 1) for s in slots):
        return None
    like = call.leaves[0]
    if node.op.name == "reshape":
        return Identity(like, x, y)
    if indices and (node.static["template"][0] != slice(None) or any(call.tags[s] for s in node.inputs[1:] if s >= 0)):
        return None  # another index for every sample
    module = module_of(raw(like))

    def moved(xp: Any, *indices: Any) -> Any:
        numbers = xp.arange(prod(x[1:])).reshape((1, *x[1:]))
        return node.op.forward(xp, numbers, *indices, **node.static)[0][0]

    if indices:
        return Gather(like, recorded(partial(moved, module), *indices), x, distinct=False)
    index = moved(np)
    in_order = index.size == prod(x[1:]) and bool(np.all(index.reshape(-1) == np.arange(index.size)))
    return Identity(like, x, y) if in_order else Gather(like, module.asarray(index), x)
