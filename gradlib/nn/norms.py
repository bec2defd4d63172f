"""Layers that normalise rows: LayerNorm and RMSNorm."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..ops.layer_norm import layer_norm
from ..ops.rms_norm import rms_norm
from .layers import check_keys, check_sizes
from .module import Module


class LayerNorm(Module):
    """`gl.layer_norm` over the last axis. Parameters: w (features,), at first 1, and with `bias` b, at first 0.

    >>> import gradlib as gl, numpy as np
    >>> layer = gl.nn.LayerNorm(4)
    >>> layer(layer.init(0), np.ones((2, 3, 4), np.float32)).shape
    (2, 3, 4)
    """

    def __init__(self, features: int, eps: float = 1e-5, bias: bool = True) -> None:
        check_sizes("LayerNorm", features=features)
        self.features, self.eps, self.bias = int(features), eps, bias

    def __repr__(self) -> str:
        return f"LayerNorm({self.features}{'' if self.bias else ', bias=False'})"

    def create(self, rng: np.random.Generator, dtype: Any) -> dict[str, np.ndarray]:
        params = {"w": np.ones(self.features, dtype)}
        return {**params, "b": np.zeros(self.features, dtype)} if self.bias else params

    def __call__(self, params: Any, x: Any, rng: Any = None) -> Any:
        check_keys(self, params, {"w", "b"} if self.bias else {"w"})
        return layer_norm(x, params["w"], params.get("b"), eps=self.eps)


class RMSNorm(Module):
    """`gl.rms_norm` over the last axis. Parameters: w (features,), at first 1.

    >>> import gradlib as gl, numpy as np
    >>> layer = gl.nn.RMSNorm(4)
    >>> layer(layer.init(0), np.ones((2, 4), np.float32)).round(3)[0]
    array([1., 1., 1., 1.], dtype=float32)
    """

    def __init__(self, features: int, eps: float = 1e-6) -> None:
        check_sizes("RMSNorm", features=features)
        self.features, self.eps = int(features), eps

    def __repr__(self) -> str:
        return f"RMSNorm({self.features})"

    def create(self, rng: np.random.Generator, dtype: Any) -> dict[str, np.ndarray]:
        return {"w": np.ones(self.features, dtype)}

    def __call__(self, params: Any, x: Any, rng: Any = None) -> Any:
        check_keys(self, params, {"w"})
        return rms_norm(x, params["w"], eps=self.eps)
