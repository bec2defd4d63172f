"""Sequential: layers one after the other, a linear layer and the activation behind it in one op."""

from __future__ import annotations

from typing import Any

import numpy as np

from .layers import Activation, Linear
from .module import Module


class Sequential(Module):
    """Layers applied in turn. Its parameters are a list with one entry a layer ({} for those that have none).

    >>> import gradlib as gl, numpy as np
    >>> net = gl.nn.Sequential(gl.nn.Linear(4, 3), gl.nn.ReLU(), gl.nn.Linear(3, 2))
    >>> params = net.init(0)
    >>> net(params, np.ones((5, 4), np.float32)).shape
    (5, 2)
    """

    def __init__(self, *layers: Module) -> None:
        for layer in layers:
            if not isinstance(layer, Module):
                raise TypeError(f"Sequential: expected layers (gl.nn.Module), got {type(layer).__name__}")
        self.layers = layers
        self._steps = _steps(layers)

    def __repr__(self) -> str:
        return f"Sequential({', '.join(map(repr, self.layers))})"

    def create(self, rng: np.random.Generator, dtype: Any) -> list[Any]:
        return [layer.create(rng, dtype) for layer in self.layers]

    def __call__(self, params: Any, x: Any, rng: Any = None) -> Any:
        if not isinstance(params, (list, tuple)) or len(params) != len(self.layers):
            raise TypeError(f"Sequential: expected the parameters of {len(self.layers)} layers as made by init")
        for i, layer, activation in self._steps:
            if activation is None:
                x = layer(params[i], x, rng)
            else:
                x = layer(params[i], x, rng, activation)  # type: ignore[call-arg]
        return x


def _steps(layers: tuple[Module, ...]) -> list[tuple[int, Module, str | None]]:
    """(index, layer, name of the activation fused into it or None), activations that were fused left out."""
    steps, skip = [], False
    for i, layer in enumerate(layers):
        if skip:
            skip = False
            continue
        after = layers[i + 1] if i + 1 < len(layers) else None
        fused = after.fused if isinstance(layer, Linear) and isinstance(after, Activation) else None
        steps.append((i, layer, fused))
        skip = fused is not None
    return steps
