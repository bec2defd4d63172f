"""np.zeros(…, like=traced) and its kin: arrays on the traced array's device; joined where traced values are inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..trace import CREATORS, module_of
from .building import as_array

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


def _as_array(like: Any, x: Any, dtype: Any = None, **others: Any) -> Any:
    """np.array and np.asarray: nested lists that hold traced values are stacked."""
    y = as_array(x, like)
    return y if dtype is None else y.astype(dtype)


CREATORS.update({getattr(np, name): _plain(name) for name in _PLAIN})
CREATORS.update(dict.fromkeys((np.array, np.asarray, np.asanyarray, np.ascontiguousarray), _as_array))
