"""Layers: Linear, the activations, Dropout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..op import describe
from ..ops import elementwise, softmax
from ..ops.dropout import check_rate, dropout
from ..ops.linear import linear
from .initializers import Initializer, initializer, zeros
from .module import Module


class Linear(Module):
    """x @ w + b. Parameters: w (in_features, out_features) and, with `bias`, b (out_features,).

    x: (..., in_features), or sparse rows as `gl.linear` takes them.

    >>> import gradlib as gl, numpy as np
    >>> layer = gl.nn.Linear(3, 2)
    >>> layer(layer.init(0), np.ones((5, 3), np.float32)).shape
    (5, 2)
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, init: str | Initializer = "glorot_uniform"
    ) -> None:
        check_sizes("Linear", in_features=in_features, out_features=out_features)
        self.in_features, self.out_features, self.bias = int(in_features), int(out_features), bias
        self.initializer = initializer(init)

    def __repr__(self) -> str:
        return f"Linear({self.in_features}, {self.out_features}{'' if self.bias else ', bias=False'})"

    def create(self, rng: np.random.Generator, dtype: Any) -> dict[str, np.ndarray]:
        params = {"w": self.initializer(rng, (self.in_features, self.out_features), dtype)}
        return {**params, "b": zeros(rng, (self.out_features,), dtype)} if self.bias else params

    def __call__(self, params: Any, x: Any, rng: Any = None, activation: str | None = None) -> Any:
        check_keys(self, params, {"w", "b"} if self.bias else {"w"})
        return linear(x, params["w"], params.get("b"), activation=activation)


def check_sizes(name: str, **sizes: Any) -> None:
    """ValueError unless all are positive ints."""
    for label, n in sizes.items():
        if not isinstance(n, (int, np.integer)) or n < 1:
            raise ValueError(f"{name}: expected a positive int as {label}, got {n!r}")


def check_keys(layer: Module, params: Any, keys: set[str]) -> None:
    """TypeError unless a layer's parameters are a dict with these keys."""
    if not isinstance(params, dict) or set(params) != keys:
        got = f"a dict with keys {sorted(params)}" if isinstance(params, dict) else describe(params)
        raise TypeError(f"{layer!r}: expected its parameters as made by init, got {got}")


class Activation(Module):
    """An elementwise function as a layer; `fused` is its name among the activations `gl.linear` fuses."""

    fused: str | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def apply(self, x: Any) -> Any:
        raise NotImplementedError

    def __call__(self, params: Any, x: Any, rng: Any = None) -> Any:
        return self.apply(x)


def _activation(name: str, function: Callable[[Any], Any], fused: str | None) -> type[Activation]:
    doc = f"`gl.{function.__name__.rstrip('_')}` as a layer; no parameters."
    return type(name, (Activation,), {"apply": lambda self, x: function(x), "fused": fused, "__doc__": doc})


ReLU = _activation("ReLU", elementwise.relu, "relu")
Sigmoid = _activation("Sigmoid", elementwise.sigmoid, "sigmoid")
Tanh = _activation("Tanh", elementwise.tanh_, "tanh")
SiLU = _activation("SiLU", elementwise.silu, "silu")
Softplus = _activation("Softplus", elementwise.softplus, "softplus")
Softmax = _activation("Softmax", softmax.softmax, None)
LogSoftmax = _activation("LogSoftmax", softmax.log_softmax, None)


class GELU(Activation):
    """`gl.gelu` as a layer; `approximate` takes the tanh formula."""

    def __init__(self, approximate: bool = False) -> None:
        self.approximate = approximate
        self.fused = "gelu_tanh" if approximate else "gelu"

    def apply(self, x: Any) -> Any:
        return elementwise.gelu(x, self.approximate)


class ELU(Activation):
    """`gl.elu` as a layer."""

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = alpha
        self.fused = "elu" if alpha == 1.0 else None

    def apply(self, x: Any) -> Any:
        return elementwise.elu(x, self.alpha)


class LeakyReLU(Activation):
    """`gl.leaky_relu` as a layer."""

    def __init__(self, negative_slope: float = 0.01) -> None:
        self.negative_slope = negative_slope
        self.fused = "leaky_relu" if negative_slope == 0.01 else None

    def apply(self, x: Any) -> Any:
        return elementwise.leaky_relu(x, self.negative_slope)


class Dropout(Module):
    """`gl.dropout` in training (when the network is called with `rng`), nothing in evaluation."""

    def __init__(self, rate: float) -> None:
        check_rate("Dropout", rate)
        self.rate = rate

    def __repr__(self) -> str:
        return f"Dropout({self.rate})"

    def __call__(self, params: Any, x: Any, rng: Any = None) -> Any:
        return x if rng is None or not self.rate else dropout(x, self.rate, rng)
