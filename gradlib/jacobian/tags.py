"""Following the batch axis through a recorded graph.

`follow` gives every slot a tag (see ``gradlib.ops.batching``): None, the batch axis, Mixed or UNKNOWN. An op without
a `batch` rule makes what depends on it UNKNOWN; `probe` then tests, at this point only, whether samples mix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..ops.batching import UNKNOWN, Mixed, Tag
from ..sweep import sweep_back, sweep_forward
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


def probe(
    name: str, trace: Trace, tags: list[Any], slots: list[int], leaves: list[Any], outs: list[int], samples: int
) -> None:
    """Raise ValueError if what some samples are given reaches others: masks by the bits of the sample index.

    Every pair of samples differs in some bit, so 2 log2(B) random tangents meet every pair once; cotangents, where an
    op has no rule for tangents. It proves separation at this point only. A member of the stack that is 0 tells which
    entries are NaN whatever is given, as by 0 * inf: nothing is seen there, and the Jacobian has NaN there too.
    """
    if samples < 2:
        return
    index = np.arange(samples)
    bits = range(int(samples - 1).bit_length())
    masks = np.stack([np.zeros(samples, bool), *[((index >> k) & 1) == on for k in bits for on in (0, 1)]])
    ys = [trace.outs[slot] for slot in outs]
    forms = [(x.shape, x.dtype) for x in leaves]
    with np.errstate(all="ignore"):
        try:
            tangents = sweep_forward(trace, _masked(masks, slots, forms, module_of(leaves[0])), outs)
            found = [tangents.get(slot) for slot in outs]
        except NotImplementedError:  # a function with rules of the user's, for cotangents alone
            cotangents: list[Any] = [None] * len(trace.outs)
            for slot, d in _masked(masks, outs, ys, module_of(leaves[0])).items():
                cotangents[slot] = d
            swept = sweep_back(trace, cotangents)
            found = [swept[slot] for slot in slots]
    if any(d is not None and _reaches(raw(d), masks) for d in found):
        raise ValueError(
            f"{name}: the function mixes samples: {_untold(trace, tags, outs)} (found by probing it at these "
            "arguments). Entry b of the result must depend on sample b alone; for derivatives across samples take "
            "gl.jacobian"
        )


def _masked(masks: np.ndarray, slots: list[int], forms: Sequence[tuple], xp: Any) -> dict[int, Any]:
    """By slot, random numbers for the samples of each mask: [V, B, ...]."""
    rng, found = np.random.default_rng(0), {}
    for slot, (shape, dtype) in zip(slots, forms, strict=True):
        noise = rng.standard_normal((len(masks), *shape)) * masks.reshape((*masks.shape, *(1,) * (len(shape) - 1)))
        found[slot] = xp.asarray(noise.astype(dtype))
    return found


def _reaches(d: Any, masks: np.ndarray) -> bool:
    """Whether samples off a mask differ from what they are when nothing is given, the first member."""
    away = module_of(d).asarray(~masks)
    return bool(((d != d[:1]) & (d[:1] == d[:1]))[away].any())


def _untold(trace: Trace, tags: list[Any], outs: list[int]) -> str:
    """The op on the way to the results that does not tell the batch axis; or the first, if several do not."""
    wanted, names = set(outs), []
    for node in reversed(trace.nodes):
        if wanted.intersection(range(node.slot, node.slot + max(node.outputs, 1))):
            wanted.update(node.parents)
            names += [node.op.name] if tags[node.slot] == UNKNOWN else []
    return names[0] if len(names) == 1 else f"{names[-1]} or what follows it"
