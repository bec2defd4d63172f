"""np.zeros(…, like=traced) and its kin: arrays on the traced array's device; joined where traced values are inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..trace import CREATORS, Traced, module_of
from .join import stack

_PLAIN = [
    "arange",
    "empty",
    "eye",
    "full",
    "identity",
    "ones",
    "tri",
    "zeros",
    "fromiter",
    "frombuffer",
    "fromfunction",
]


def _plain(name: str) -> Callable[..., Any]:
    def create(like: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(module_of(like).module, name)(*args, **kwargs)

    return create


def _has_traced(x: Any) -> bool:
    return type(x) is Traced or (isinstance(x, (list, tuple)) and any(map(_has_traced, x)))


def _as_array(like: Any, x: Any, dtype: Any = None, **others: Any) -> Any:
    """np.array and np.asarray: nested lists that hold traced values are stacked."""
    if not _has_traced(x):
        return module_of(like).module.asarray(x, dtype=dtype)
    y = x if type(x) is Traced else stack([_as_array(like, part) for part in x])
    return y if dtype is None else y.astype(dtype)


CREATORS.update({getattr(np, name): _plain(name) for name in _PLAIN})
CREATORS.update(dict.fromkeys((np.array, np.asarray, np.asanyarray, np.ascontiguousarray), _as_array))
