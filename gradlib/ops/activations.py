"""The activations that `linear` fuses, by name: value in place where the memory is ours, slope from z or y."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..op import Op
from . import elementwise as e


class Activation(NamedTuple):
    """An elementwise op with fixed statics; `from_output` tells that its slope needs only y."""

    op: Op
    static: dict[str, Any]
    from_output: bool = False


ACTIVATIONS = {
    "relu": Activation(e._relu, {}, True),
    "sigmoid": Activation(e._sigmoid_op, {}, True),
    "tanh": Activation(e.tanh, {}, True),
    "silu": Activation(e._silu, {}),
    "softplus": Activation(e._softplus_op, {}),
    "gelu": Activation(e._gelu, {"approximate": False}),
    "gelu_tanh": Activation(e._gelu, {"approximate": True}),
    "elu": Activation(e._elu, {"alpha": 1.0}),
    "leaky_relu": Activation(e._leaky_relu, {"negative_slope": 0.01}),
}


def activate(xp: Any, name: str, z: Any, reuse: bool) -> Any:
    """act(z); with `reuse` z may be overwritten."""
    if reuse and name == "relu":
        return e.rectified(xp, z, out=z)
    if reuse and name == "tanh":
        return xp.tanh(z, out=z)
    a = ACTIVATIONS[name]
    return a.op.forward(xp, z, **a.static)[0]


def slope(xp: Any, name: str, z: Any, y: Any) -> Any:
    """act'(z), of y alone where `from_output`. A relu's slope is a mask of bools."""
    if name == "relu":
        return xp.greater(y, 0)
    a = ACTIVATIONS[name]
    return a.op.partials[0](xp, z, y, **a.static)
