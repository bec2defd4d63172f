"""Walking a recorded graph with stacks of derivatives: backwards with vjp rules, forwards with jvp rules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .device import SIMULATING, array_module
from .trace import Namespace, Node, Trace, Traced, lower_namespace, raw


def rules_namespace(xp: Any, stacks: Sequence[Any]) -> Any:
    """The `xp` a rule runs in: the forward pass's, or that of the stacks where they are traced."""
    if type(xp) is Namespace or not any([type(s) is Traced for s in stacks]):
        return xp
    return lower_namespace(getattr(xp, "module", xp), stacks)


def call_vjp(node: Node, dy: Any, need: tuple[bool, ...]) -> Sequence[Any]:
    """A node's vjp rule (or kernel) on the stack `dy`, a tuple for an op with several outputs."""
    xp = node.xp
    if type(dy) is not np.ndarray:
        xp = rules_namespace(xp, dy if type(dy) is tuple else (dy,))
    return node.op.run("vjp", xp, node.saved, dy, need, **node.static)


def watched_vjp(trace: Trace, node: Node, dy: Any, need: tuple[bool, ...]) -> Sequence[Any]:
    """`call_vjp`, under the eyes of `detect_anomaly` where it watches the trace."""
    if trace.watcher is None:
        return call_vjp(node, dy, need)
    return trace.watcher.ruled(node, dy, call_vjp, node, dy, need)


def take_cotangent(trace: Trace, node: Node, cotangents: list[Any]) -> Any:
    """Remove and return the cotangent stack of a node's result; None when nothing depends on it."""
    slot = node.slot
    if not node.outputs:
        dy = cotangents[slot]
        cotangents[slot] = None
        return dy
    parts = cotangents[slot : slot + node.outputs]
    cotangents[slot : slot + node.outputs] = [None] * node.outputs
    some = next((p for p in parts if p is not None), None)
    if some is None:
        return None
    xp, shapes = array_module(raw(some)), trace.outs[slot : slot + node.outputs]
    return tuple(xp.zeros((some.shape[0], *s), t) if p is None else p for p, (s, t) in zip(parts, shapes, strict=True))


def accumulate(trace: Trace, cotangents: list[Any], slot: int, dx: Any) -> None:
    """Add a cotangent stack to a slot, in the dtype of the slot's primal."""
    dtype = trace.outs[slot][1]
    if dx.dtype is not dtype and dx.dtype != dtype:
        dx = dx.astype(dtype)
    old = cotangents[slot]
    if old is None:
        cotangents[slot] = dx
        return
    cotangents[slot] = old + dx
    if trace.watcher is not None:
        trace.watcher.summed(trace, slot, (old, dx), cotangents[slot])


def sweep_back(trace: Trace, cotangents: list[Any], release: bool = False) -> list[Any]:
    """Reverse sweep over stacks by slot: from [V, *y] at the outputs to [V, *x] at the inputs, None where zero.

    `release` drops each node once it has been used, so that its arrays can be freed: for a pullback used once.
    """
    nodes, outs, watcher, plain = trace.nodes, trace.outs, trace.watcher, not SIMULATING.get()
    for at in range(len(nodes) - 1, -1, -1):
        node = nodes.pop() if release else nodes[at]
        op, xp, static, saved, parents, slot, outputs, _, _, _ = node
        if outputs:
            dy = take_cotangent(trace, node, cotangents)
        else:
            dy, cotangents[slot] = cotangents[slot], None
        if dy is None or op.vjp is None:
            continue
        need = (True,) * len(parents) if -1 not in parents else tuple([p >= 0 for p in parents])
        if watcher is not None:
            dxs = watcher.ruled(node, dy, call_vjp, node, dy, need)
        elif plain and xp is np and type(dy) is np.ndarray:
            dxs = op.vjp(np, saved, dy, need, **static) if static else op.vjp(np, saved, dy, need)
        else:
            dxs = call_vjp(node, dy, need)
        for i, slot in enumerate(parents):  # zip(…, strict=True) costs 0.3 µs
            if slot >= 0 and (dx := dxs[i]) is not None:
                if cotangents[slot] is None and dx.dtype is outs[slot][1]:
                    cotangents[slot] = dx  # as `accumulate` does
                else:
                    accumulate(trace, cotangents, slot, dx)
    return cotangents


_NO_TANGENTS = {type(None)}


def sweep_forward(
    trace: Trace,
    tangents: dict[int, Any],
    wanted: Sequence[int | None],
    nodes: Sequence[Node] | None = None,
    release: bool = False,
) -> dict[int, Any]:
    """Forward sweep: {input slot: [V, *x]} -> tangents of those slots `wanted` that depend on them.

    Other tangents leave `tangents` after their last use, to be freed. `nodes`: those to walk through, by default all;
    `release` drops each from the trace once it has been used: for a pushforward used once.
    """
    left = list(reversed(trace.nodes if nodes is None else nodes))
    if release:
        trace.nodes = []
    freed, outs, watcher, plain = last_uses(left, wanted), trace.outs, trace.watcher, not SIMULATING.get()
    while left:
        node = left.pop()
        op, xp, static, saved, parents, slot, outputs, _, _, _ = node
        dx = tuple([tangents.get(p) for p in parents])  # no tangent has slot -1
        for p in freed.pop():
            tangents.pop(p, None)
        kinds = set(map(type, dx))
        if op.jvp is None or kinds == _NO_TANGENTS:
            continue
        if watcher is not None:
            dy = watcher.ruled(node, dx, op.run, "jvp", rules_namespace(xp, dx), saved, dx, **static)
        elif plain and xp is np and Traced not in kinds:
            dy = op.jvp(np, saved, dx, **static) if static else op.jvp(np, saved, dx)
        else:
            dy = op.run("jvp", rules_namespace(xp, dx), saved, dx, **static)
        for at, part in enumerate(dy if outputs else (dy,), slot):
            dtype = outs[at][1]
            tangents[at] = part if part.dtype is dtype or part.dtype == dtype else part.astype(dtype)
    return {slot: tangents[slot] for slot in wanted if slot in tangents}


def last_uses(nodes: Sequence[Any], wanted: Iterable[int | None]) -> list[list[int]]:
    """For each of the nodes, the last of them first, the slots that it is the last to use and nobody wants."""
    seen, found = set(wanted), []
    for node in nodes:
        new = [p for p in node.parents if p not in seen]
        seen.update(new)
        found.append(new)
    return found
