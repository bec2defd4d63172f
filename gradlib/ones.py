"""Ones that are known to be ones without asking the device: the cotangent that a gradient's sweep begins with."""

from __future__ import annotations

from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from .device import SIMULATING

_known: WeakValueDictionary[int, Any] = WeakValueDictionary()  # by id, as long as they live


def known_ones(xp: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """`xp.ones(shape, dtype)`, of which `are_ones` knows where kernels run."""
    x = xp.ones(shape, dtype)
    if type(x) is not np.ndarray or SIMULATING.get():
        _known[id(x)] = x
    return x


def are_ones(x: Any) -> bool:
    """Whether this very array came from `known_ones`; one that was computed may be ones all the same."""
    return _known.get(id(x)) is x
