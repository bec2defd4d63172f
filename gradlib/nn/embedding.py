"""Embedding: a table of vectors, one for every id."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..ops.embedding import embedding
from .layers import check_keys, check_sizes
from .module import Module


class Embedding(Module):
    """`gl.embedding`: ids (...) in [0, count) -> vectors (..., features). Parameters: table (count, features), normal.

    >>> import gradlib as gl, numpy as np
    >>> layer = gl.nn.Embedding(10, 4)
    >>> layer(layer.init(0), np.array([[1, 2, 1]])).shape
    (1, 3, 4)
    """

    def __init__(self, count: int, features: int) -> None:
        check_sizes("Embedding", count=count, features=features)
        self.count, self.features = int(count), int(features)

    def __repr__(self) -> str:
        return f"Embedding({self.count}, {self.features})"

    def create(self, rng: np.random.Generator, dtype: Any) -> dict[str, np.ndarray]:
        return {"table": rng.standard_normal((self.count, self.features)).astype(dtype)}

    def __call__(self, params: Any, x: Any, rng: Any = None) -> Any:
        check_keys(self, params, {"table"})
        return embedding(x, params["table"])
