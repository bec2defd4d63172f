"""Small networks on a GPU: the Jacobians of a whole chain of layers by one kernel, with the weights in shared memory.

``gradlib.kernels.network_jacobian`` has it in two forms. On plain arrays f has run already: the kernel takes the
diagonals that its record gives, so any chain of shared matrices and diagonals is served. In a capture, where a function
is a record to be replayed, a network of `linear` layers needs no run of its own: the kernel computes its activations
too, from x, the weights and the biases, and what f recorded falls out of the replay unless something else needs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from .. import tree
from ..capture import recorded
from ..ops.activations import ACTIVATIONS
from ..trace import Node, Traced, module_of, raw
from .chain import between
from .low_rank import on_gpu
from .segments import DiagonalSegment, LinearSegment, Segment

if TYPE_CHECKING:
    from .batched import Batched

WORSE = 2.0  # so many times the multiplications may be that another order would need


def chain_in_one_launch(segments: Sequence[Segment], like: Any, at: slice, out: Any, mode: str) -> bool:
    """Write the Jacobians of the samples `at` into out (B, n_out, n_in), if the chain is one that the kernel takes.

    like: the input x (B, *in), which tells where arrays live; mode: as of `batch_jacobian`.
    """
    if not on_gpu(like):
        return False
    first = segments[0] if isinstance(segments[0], DiagonalSegment) else None
    layers: Any = segments if first is None else segments[1:]
    if not all(isinstance(s, LinearSegment) and s.rows == 1 for s in layers):
        return False
    weights = [s.w for s in layers]
    if not _backwards(weights, mode):
        return False
    from ..kernels.network_jacobian import chain_jacobian

    xp, diagonals = module_of(like), [None if s.d is None else s.d[at] for s in layers]
    if any(d is not None and d.shape[0] != out.shape[0] for d in diagonals):
        return False
    if chain_jacobian(xp, weights, diagonals, out.shape[0], out) is NotImplemented:
        return False
    if first is not None:
        xp.multiply(out, first.d[at, None, :], out=out)
    return True


def network_in_one_launch(call: Batched, mode: str) -> Any:
    """The Jacobians (B, n_out, n_in) of a captured network, recorded as one call; None where the kernel does not take
    it."""
    x = call.leaves[0]
    if not on_gpu(raw(x)):
        return None
    layers = layers_of(call)
    if layers is None or not _backwards(layers[0], mode):
        return None
    from ..kernels.network_jacobian import network_jacobian, serves

    weights, biases, activations = layers
    xp, given = module_of(raw(x)), (tuple(map(_given, weights)), tuple(map(_given, biases)))
    if not serves(xp, raw(x), tuple(map(raw, weights)), tuple(map(raw, biases)), activations):
        return None
    return recorded(lambda x, w, b: network_jacobian(xp, x, w, b, activations)[1], x, *given)


def layers_of(call: Batched) -> tuple[tuple, tuple, tuple] | None:
    """(weights, biases, activations) of a call that is a chain of `linear` layers, their activations part of them or
    behind them, and nothing else; x (B, n)."""
    slot, layers = call.slots[0], []
    for node in between(call, slot, call.outputs.slots[0]):  # type: ignore[arg-type]
        if node.parents[0] != slot or len(call.trace.outs[node.slot][0]) != 2:
            return None
        slot, name = node.slot, _activation(node)
        if node.op.name == "linear":
            layers.append((*node.saved[1:3], node.static["activation"]))
        elif name is not None and layers and layers[-1][2] is None:
            layers[-1] = (*layers[-1][:2], name)
        else:
            return None
    return tuple(zip(*layers, strict=True)) if layers else None  # type: ignore[return-value]


def _activation(node: Node) -> str | None:
    """The name of an activation."""
    return next((name for name, a in ACTIVATIONS.items() if a.op is node.op and a.static == node.static), None)


def _given(x: Any) -> Any:
    """A value of a capture; where it is an array from outside, that array, so that no call is needed to make it."""
    if type(x) is not Traced:
        return x
    outside = any(arg is x.value for call in x.owner.calls for arg in tree.flatten(call.args)[0])  # type: ignore
    return x.value if outside else x


def _backwards(weights: Sequence[Any], mode: str) -> bool:
    """Whether the matrices, two or more, may be multiplied from the outputs to the inputs, as the kernel does."""
    if mode == "fwd" or len(weights) < 2:
        return False
    sizes = [float(prod(w.shape)) for w in weights]
    back, ahead = weights[-1].shape[1] * sum(sizes[:-1]), weights[0].shape[0] * sum(sizes[1:])
    return mode == "rev" or back <= WORSE * ahead
