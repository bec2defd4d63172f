"""Which dtypes are floating point, and which arithmetic is done in: float16 and bfloat16 are stored, not computed in.

    float64 -> float64     float32 -> float32     float16, bfloat16 -> float32, and the result rounded once

bfloat16 is the dtype of the package ml_dtypes, which is never imported here: an array of it can only exist once it has
been. To NumPy it is no kind of float (its `kind` is "V"), so the question is asked here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import numpy as np

FLOAT32 = np.dtype(np.float32)


def is_bfloat16(dtype: Any) -> bool:
    return dtype.kind == "V" and dtype.type.__name__ == "bfloat16"


def is_floating(dtype: Any) -> bool:
    """Whether arrays of it can be differentiated: float64, float32, float16, bfloat16 and NumPy's longer floats."""
    return dtype.kind == "f" or is_bfloat16(dtype)


def is_real(dtype: Any) -> bool:
    """Whether an op takes it: floating point, integers and bools."""
    return dtype.kind in "fbiu" or is_bfloat16(dtype)


def is_narrow(dtype: Any) -> bool:
    """Whether it is float16 or bfloat16."""
    return dtype.itemsize == 2 and is_floating(dtype)


def working(dtype: Any) -> Any:
    """The dtype that numbers of `dtype` are computed in."""
    return FLOAT32 if is_narrow(dtype) else dtype


def wide(x: Any) -> Any:
    """x in the dtype it is computed in; None and Python numbers as they are."""
    dtype = getattr(x, "dtype", None)
    return x.astype(FLOAT32) if dtype is not None and is_narrow(dtype) else x


def narrow(x: Any, dtype: Any) -> Any:
    """x in `dtype`, copied only where it is of another."""
    return x if x.dtype == dtype else x.astype(dtype)


@cache
def smallest(dtype: Any) -> float:
    """The smallest finite number of a floating dtype."""
    return -(2.0 - 2.0**-7) * 2.0**127 if is_bfloat16(dtype) else float(np.finfo(dtype).min)


def in_working(f: Callable[..., Any]) -> Callable[..., Any]:
    """f(xp, x, **static) of several roundings, as a function of one: computed in float32 where x is narrow."""

    @wraps(f)
    def widened(xp: Any, x: Any, **static: Any) -> Any:
        dtype = getattr(x, "dtype", None)
        if dtype is None or dtype.itemsize != 2 or not is_floating(dtype):
            return f(xp, x, **static)
        return f(xp, x.astype(FLOAT32), **static).astype(dtype)

    return widened
