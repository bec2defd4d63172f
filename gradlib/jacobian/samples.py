"""Sweeps that keep the samples of a batch apart.

Where no samples mix, one stack serves all samples: cotangent e_v of every sample at once. Where a value shared by all
samples meets a batched one, its cotangent keeps the samples: (V, B) merge into the stack.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..ops.batching import UNKNOWN, Tag
from ..sweep import accumulate, call_vjp, sweep_back, sweep_forward, take_cotangent
from ..trace import Node, module_of
from ..transforms import Outputs
from .dense import unit_stacks

if TYPE_CHECKING:
    from .batched import Batched


def pull_samples(call: Batched, stacks: list[Any]) -> list[Any]:
    """Cotangent stacks of the outputs [V, B, *y] -> [V, B, *x] for each wanted leaf, batched or shared."""
    v, cotangents = stacks[0].shape[0], [None] * len(call.trace.outs)
    apart = _separable(call)
    for slot, d in zip(call.outputs.slots, stacks, strict=True):
        if slot is not None:
            # a result that is not tagged is a shared value with as many rows as there are samples
            d = d if apart and call.tags[slot] is not None else one_hot(d, Tag(1 - d.ndim), call.samples)
            accumulate(call.trace, cotangents, slot, d)
    found = _sweep_samples(call, cotangents) if apart else sweep_back(call.trace, cotangents)
    result = []
    for slot, x, shared in zip(call.slots, call.leaves, call.shared, strict=True):
        shape, d = (v, call.samples, *(x.shape if shared else x.shape[1:])), found[slot]
        if d is None:
            d = module_of(x).zeros(shape, x.dtype)
        elif not apart and not shared:  # row b of the batch under the cotangent of sample b; the others are 0
            d = d.reshape((v, call.samples, *x.shape)).sum(axis=1)
        result.append(d.reshape(shape))
    return result


def _separable(call: Batched) -> bool:
    """Whether every place where a shared value meets a batched one knows its batch axis.

    If not, the sweep starts with a stack that is one-hot in the sample: B times the work, right for any op.
    """
    for node in call.trace.nodes:
        if call.tags[node.slot] == UNKNOWN and any(p >= 0 and call.tags[p] is None for p in node.parents):
            return False
    return True


def _sweep_samples(call: Batched, cotangents: list[Any]) -> list[Any]:
    """Reverse sweep: shared slots end with stacks [V * B, *x], batched ones with [V, *x]."""
    trace, tags = call.trace, call.tags
    for node in reversed(trace.nodes):
        dy = take_cotangent(trace, node, cotangents)
        if dy is None or node.op.vjp is None:
            continue
        meets = tags[node.slot] is not None
        shared = tuple(p >= 0 and meets and tags[p] is None for p in node.parents)
        plain = tuple(p >= 0 and not s for p, s in zip(node.parents, shared, strict=True))
        if any(plain):
            _add(call, cotangents, node, plain, call_vjp(node, dy, plain))
        if any(shared):
            _add(call, cotangents, node, shared, _vjp_each(call, node, dy, shared))
    return cotangents


def _add(call: Batched, cotangents: list[Any], node: Node, need: tuple[bool, ...], dxs: Any) -> None:
    for slot, wanted, dx in zip(node.parents, need, dxs, strict=True):
        if wanted and dx is not None:
            accumulate(call.trace, cotangents, slot, dx)


def _vjp_each(call: Batched, node: Node, dy: Any, need: tuple[bool, ...]) -> Any:
    """Cotangents of shared inputs, one a sample: the op's fast rule, or its vjp on a stack one-hot in the sample."""
    tag = call.tags[node.slot]
    if node.op.vjp_each is not None and tag.rows == 1:
        result = node.op.vjp_each(node.xp, node.saved, dy, need, tag.axis, **node.static)
        if result is not None:
            return result
    if type(dy) is tuple:
        tags = call.tags[node.slot : node.slot + node.outputs]
        return call_vjp(node, tuple(one_hot(d, t, call.samples) for d, t in zip(dy, tags, strict=True)), need)
    return call_vjp(node, one_hot(dy, tag, call.samples), need)


def one_hot(d: Any, tag: Tag, samples: int) -> Any:
    """A stack [V, *y] as [V * B, *y]: member (v, b) is d[v] with all rows but those of sample b set to 0."""
    xp, v, axis = module_of(d), d.shape[0], d.ndim + tag.axis
    owner = xp.arange(samples * tag.rows) // tag.rows
    hot = (owner == xp.arange(samples)[:, None]).astype(d.dtype)
    hot = hot.reshape((1, samples, *(1,) * (axis - 1), samples * tag.rows, *(1,) * (d.ndim - axis - 1)))
    return (xp.expand_dims(d, 1) * hot).reshape((v * samples, *d.shape[1:]))


def sample_units(outputs: Outputs, start: int, stop: int, samples: int) -> list[Any]:
    """Cotangent stacks [V, B, *out] with the same unit vector for every sample."""
    rows = unit_stacks([y[0] if samples else module_of(y).zeros(y.shape[1:]) for y in outputs.values], start, stop)
    stacks = []
    for r, y in zip(rows, outputs.values, strict=True):
        xp = module_of(y)
        wide = xp.broadcast_to(xp.expand_dims(r, 1), (r.shape[0], samples, *r.shape[1:]))
        stacks.append(wide if wide.dtype == y.dtype else wide.astype(y.dtype))
    return stacks


def push_samples(call: Batched, start: int, stop: int) -> list[list[Any]]:
    """[output leaf][input leaf]: [V, B, *y], the same unit tangent for every sample; batched inputs only."""
    units = unit_stacks([x[0] for x in call.leaves], start, stop)
    tangents = {}
    for at, x, u in zip(call.slots, call.leaves, units, strict=True):
        xp = module_of(x)
        tangents[at] = xp.broadcast_to(xp.expand_dims(u, 1), (u.shape[0], *x.shape))
    found = sweep_forward(call.trace, tangents)
    result = []
    for slot, y in zip(call.outputs.slots, call.outputs.values, strict=True):
        d = None if slot is None else found.get(slot)
        result.append(module_of(y).zeros((stop - start, *y.shape), y.dtype) if d is None else d)
    return result
