"""Questions about values, answered with plain arrays: places, tests, indices. No derivative passes.

Inside gl.capture they raise, since a replay would keep the first answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..device import array_module
from ..op import shape_of
from ..trace import HANDLERS
from .nondiff import concrete


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """NumPy's (or CuPy's) function of the arrays inside."""
    name = function.__name__

    def call(*args: Any, **kwargs: Any) -> Any:
        held = [_held(x, name) for x in args]
        module = next((m for m in map(array_module, held) if m not in (None, np)), np)
        given = {k: _held(v, name) for k, v in kwargs.items()}
        return (function if module is np else getattr(module, name))(*held, **given)

    return call


def _held(x: Any, name: str) -> Any:
    return type(x)(_held(part, name) for part in x) if type(x) in (list, tuple) else concrete(x, f"np.{name}")


_PLACES = (
    np.nonzero, np.flatnonzero, np.argwhere, np.searchsorted, np.argpartition, np.nanargmax, np.nanargmin, np.lexsort,
    np.isclose, np.isin, np.isneginf, np.isposinf, np.isreal, np.iscomplex, np.array_equiv, np.digitize, np.bincount,
    np.ravel_multi_index, np.unravel_index, np.packbits, np.unpackbits,
)  # fmt: skip
HANDLERS.update({f: _plain(f) for f in _PLACES})
nonzero, searchsorted, counts = (HANDLERS[f] for f in (np.nonzero, np.searchsorted, np.bincount))
HANDLERS[np.linalg.matrix_rank] = lambda A, *args, **kwargs: np.linalg.matrix_rank(
    concrete(A, "matrix_rank"), *args, **kwargs
)


def _indices_from(make: Callable[..., tuple]) -> Callable[..., tuple]:
    return lambda arr, k=0: make(shape_of(arr)[-2], k=k, m=shape_of(arr)[-1])


HANDLERS.update(
    {
        np.isrealobj: lambda x: True,
        np.iscomplexobj: lambda x: False,
        np.tril_indices_from: _indices_from(np.tril_indices),
        np.triu_indices_from: _indices_from(np.triu_indices),
        np.diag_indices_from: lambda arr: np.diag_indices(shape_of(arr)[0], len(shape_of(arr))),
    }
)
