"""Module: a layer as a function of its parameters. It holds sizes and settings, never arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import tree
from ..device import array_module, is_array
from ..precision import is_floating


class Module:
    """Base of all layers: `params = layer.init(seed)`, then `layer(params, x)`, a pure function of both.

    With `rng`, a `gl.Generator`, the layer is in training and draws from it (dropout); without, in evaluation.
    """

    def init(self, seed: int | np.random.Generator, dtype: Any = np.float32, like: Any = None) -> Any:
        """Fresh parameters, a pytree of arrays of `dtype`, on the device of the array `like` (NumPy by default)."""
        if not is_floating(np.dtype(dtype)):
            raise TypeError(f"{type(self).__name__}.init: expected a floating-point dtype, got {np.dtype(dtype)}")
        if like is not None and not is_array(like):
            raise TypeError(f"{type(self).__name__}.init: expected an array as like, got {type(like).__name__}")
        params = self.create(np.random.default_rng(seed), dtype)
        xp = np if like is None else array_module(like)
        return params if xp is np else tree.map(xp.asarray, params)

    def create(self, rng: np.random.Generator, dtype: Any) -> Any:
        """Parameters as NumPy arrays; none by default."""
        return {}

    def __call__(self, params: Any, x: Any, rng: Any = None) -> Any:
        raise NotImplementedError
