"""Following the batch axis through a recorded graph.

`follow` gives every slot a tag (see ``gradlib.ops.batching``): None, the batch axis, Mixed or UNKNOWN. An op without
a `batch` rule makes what depends on it UNKNOWN; `probe` then tests, at this point only, whether samples mix.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..ops.batching import UNKNOWN, Mixed, Tag
from ..sweep import sweep_forward
from ..trace import Node, Trace, module_of, raw


def follow(trace: Trace, tags: dict[int, Any], constant: Callable[[tuple[int, ...]], Any] | None = None) -> list[Any]:
    """Tags of all slots, from those of the input slots; `constant` gives that of an untraced array by its shape."""
    found: list[Any] = [None] * len(trace.outs)
    for slot, tag in tags.items():
        found[slot] = tag
    for node in trace.nodes:
        given = [None if s < 0 else found[s] for s in node.inputs]
        if constant is not None:
            given = [constant(x) if s < 0 else t for s, t, x in zip(node.inputs, given, node.shapes, strict=True)]
        tag = _rule(node, tuple(given))
        for i in range(max(node.outputs, 1)):
            found[node.slot + i] = tag[i] if type(tag) is list else tag
    return found


def _rule(node: Node, tags: tuple) -> Any:
    for tag in tags:
        if type(tag) is Mixed:
            return tag
    if all(t is None for t in tags):
        return None
    if UNKNOWN in tags or node.op.batch is None:
        return UNKNOWN
    return node.op.batch(tags, node.shapes, node.static)


def check_output(name: str, tag: Any, shape: tuple[int, ...], samples: int) -> None:
    """Raise ValueError unless an output has the batch as its first axis and no samples mix on the way."""
    if type(tag) is Mixed:
        raise ValueError(
            f"{name}: the function mixes samples: {tag.op} {tag.why}. Entry b of the result must depend on sample b "
            "alone; for derivatives across samples take gl.jacobian"
        )
    if not shape or shape[0] != samples:
        raise ValueError(
            f"{name}: expected the function to return arrays with the batch axis of {samples} first, got shape {shape}"
        )
    if tag is not None and tag != UNKNOWN and tag != Tag(-len(shape), 1):
        raise ValueError(
            f"{name}: expected the batch axis first in the result of shape {shape}, but it is axis "
            f"{len(shape) + tag.axis}" + (f" with {tag.rows} rows a sample" if tag.rows != 1 else "")
        )


def probe(name: str, trace: Trace, slots: list[int], leaves: list[Any], outs: list[int], samples: int) -> None:
    """Raise ValueError if a tangent on some samples reaches others: masks by the bits of the sample index.

    Every pair of samples differs in some bit, so 2 log2(B) random tangents meet every pair once. It proves
    separation at this point only.
    """
    bits = max(int(samples - 1).bit_length(), 0)
    index = np.arange(samples)
    masks = (
        np.stack([((index >> k) & 1) == on for k in range(bits) for on in (0, 1)]) if bits else np.ones((0, samples))
    )
    if not len(masks):
        return
    rng = np.random.default_rng(0)
    tangents = {}
    for slot, x in zip(slots, leaves, strict=True):
        noise = rng.standard_normal((len(masks), *x.shape)) * masks.reshape(*masks.shape, *(1,) * (len(x.shape) - 1))
        tangents[slot] = module_of(x).asarray(noise.astype(x.dtype))
    found = sweep_forward(trace, tangents, outs)
    for slot in outs:
        dy = found.get(slot)
        if dy is None:
            continue
        away = module_of(dy).asarray(~masks.astype(bool))
        if bool((raw(dy)[away] != 0).any()):
            raise ValueError(f"{name}: the function mixes samples (found by probing it with random tangents)")
