"""The stacks of sweeps that keep the samples of a batch apart: backwards (see ``apart``) and forwards."""

from __future__ import annotations

from typing import Any

from ..sweep import sweep_forward
from ..trace import module_of
from ..transforms import Outputs
from .apart import Apart, Call
from .dense_work import unit_stacks


def pull_samples(call: Call, stacks: list[Any]) -> list[Any]:
    """Cotangent stacks of the outputs [V, B, *y] -> [V, B, *x] for each wanted leaf, batched or shared."""
    return Apart(call, stacks).dense(range(len(call.slots)))


def sample_units(outputs: Outputs, start: int, stop: int, samples: int) -> list[Any]:
    """Cotangent stacks [V, B, *out] with the same unit vector for every sample."""
    rows = unit_stacks([y[0] if samples else module_of(y).zeros(y.shape[1:]) for y in outputs.values], start, stop)
    stacks = []
    for r, y in zip(rows, outputs.values, strict=True):
        xp = module_of(y)
        wide = xp.broadcast_to(xp.expand_dims(r, 1), (r.shape[0], samples, *r.shape[1:]))
        stacks.append(wide if wide.dtype == y.dtype else wide.astype(y.dtype))
    return stacks


def push_samples(call: Call, start: int, stop: int) -> list[list[Any]]:
    """[output leaf][input leaf]: [V, B, *y], the same unit tangent for every sample; batched inputs only."""
    units = unit_stacks([x[0] for x in call.leaves], start, stop)
    tangents = {}
    for at, x, u in zip(call.slots, call.leaves, units, strict=True):
        xp = module_of(x)
        tangents[at] = xp.broadcast_to(xp.expand_dims(u, 1), (u.shape[0], *x.shape))
    found = sweep_forward(call.trace, tangents, call.outputs.slots)
    result = []
    for slot, y in zip(call.outputs.slots, call.outputs.values, strict=True):
        d = None if slot is None else found.get(slot)
        result.append(module_of(y).zeros((stop - start, *y.shape), y.dtype) if d is None else d)
    return result
