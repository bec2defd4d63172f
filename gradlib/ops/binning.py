"""Sums of weights by place: np.bincount, by way of the transpose of indexing.

y_k = Σ w_i over the places i with ids_i = k        dw_i = dy[ids_i]
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..capture import effect
from ..op import describe, shape_of
from ..trace import HANDLERS, Traced, module_of, raw
from .index import ARRAY, scatter
from .join import as_array
from .nondiff import concrete
from .questions import counts
from .shape import astype, reshape


def bincount(x: Any, /, weights: Any = None, minlength: int = 0) -> Any:
    """(K,) float64: the sums of `weights` (N,) by id, or plain counts without. x (N,): ids of at least 0."""
    weights = as_array(weights, x) if isinstance(weights, (list, tuple)) else weights
    if type(weights) is not Traced:
        return counts(x, weights, minlength)
    x, module = as_array(x, weights), module_of(raw(weights))
    if x.dtype.kind not in "biu" and shape_of(x) != (0,):
        raise TypeError(f"bincount: expected ids of integers, got {describe(x)}")
    if len(shape_of(x)) != 1 or shape_of(weights) != shape_of(x):
        raise ValueError(f"bincount: expected ids and weights (N,), got {describe(x)} and {describe(weights)}")
    ids = concrete(x, "the length of np.bincount")
    n = _length(ids, minlength)
    effect(_expect_length, ids, minlength, n)
    x = x if x.dtype.kind in "iu" else module.asarray(ids).astype(int)
    stack = reshape(astype(weights, np.float64), (1, -1))
    return reshape(scatter(stack, x, template=(ARRAY,), shape=(n,)), (n,))


def _length(ids: Any, minlength: int) -> int:
    if ids.size and int(ids.min()) < 0:
        raise ValueError("bincount: expected ids of at least 0")
    return max(int(ids.max()) + 1 if ids.size else 0, minlength)


def _expect_length(ids: Any, minlength: int, n: int) -> None:
    """Of a replay, whose ids may have changed in place."""
    if _length(ids, minlength) != n:
        raise ValueError(f"bincount: expected a largest id of {n - 1}, as when gl.capture recorded it; capture it anew")


HANDLERS[np.bincount] = bincount
