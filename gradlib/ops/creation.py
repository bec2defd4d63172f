"""np.zeros(…, like=traced) and its kin: arrays on the traced array's device; joined where traced values are inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..op import shape_of
from ..trace import CREATORS, Traced, module_of
from .building import full_like
from .join import as_array
from .shape import reshape

_PLAIN = [
    "arange",
    "empty",
    "eye",
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


def _array(
    like: Any, object: Any, dtype: Any = None, *, copy: Any = True, order: Any = "K", subok: bool = False,
    ndmin: int = 0,
) -> Any:  # fmt: skip
    """np.array: nested lists that hold traced values are stacked. `copy` and `order` say nothing about values."""
    y = as_array(object, like)
    y = y if dtype is None else y.astype(dtype)
    return reshape(y, (1,) * (ndmin - y.ndim) + shape_of(y)) if y.ndim < ndmin else y


def _as_array(like: Any, a: Any, dtype: Any = None, order: Any = None, *, device: Any = None, copy: Any = None) -> Any:
    return _array(like, a, dtype)


def _contiguous(like: Any, a: Any, dtype: Any = None) -> Any:
    return _array(like, a, dtype, ndmin=1)


def _full(like: Any, shape: Any, fill_value: Any, dtype: Any = None, order: str = "C", *, device: Any = None) -> Any:
    if type(fill_value) is not Traced:
        return module_of(like).module.full(shape, fill_value, dtype)
    return full_like(like, fill_value, fill_value.dtype if dtype is None else dtype, shape=shape)


CREATORS.update({getattr(np, name): _plain(name) for name in _PLAIN})
CREATORS.update(
    {
        np.array: _array,
        np.asarray: _as_array,
        np.asanyarray: _as_array,
        np.ascontiguousarray: _contiguous,
        np.full: _full,
    }
)
