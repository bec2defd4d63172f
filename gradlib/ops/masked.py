"""The keywords `where=` and `initial=` of NumPy's reductions, composed of np.where and the plain reductions.

Entries that `where` leaves out are replaced by what does not change the result, and get no derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..op import shape_of
from ..trace import HANDLERS, module_of, raw
from . import reduce
from .arithmetic import add, divide, maximum, minimum, multiply, where
from .shape import broadcast_to

_UNSET: Any = np._NoValue  # type: ignore[attr-defined]
Reduction = Callable[..., Any]


def _masked(name: str, plain: Reduction, combine: Callable[..., Any], neutral: float | None) -> Reduction:
    """`plain` with the two keywords; without a neutral value (max, min), `where` needs `initial` to take its place."""

    def reduction(a: Any, axis: Any = None, *args: Any, initial: Any = _UNSET, **others: Any) -> Any:
        mask = others.pop("where", _UNSET)
        given = initial is not _UNSET and initial is not None
        if mask is not _UNSET and mask is not True:
            if neutral is None and not given:
                raise ValueError(f"{name}: where= needs initial=, the result of no entries")
            a = where(mask, a, initial if neutral is None else neutral)
        y = plain(a, axis, *args, **others)
        return combine(y, initial) if given else y

    return reduction


sum_ = _masked("sum", reduce.sum_, add, 0.0)
prod = _masked("prod", reduce.prod, multiply, 1.0)
max_ = _masked("max", reduce.max_, maximum, None)
min_ = _masked("min", reduce.min_, minimum, None)


def mean(a: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: Any = _UNSET, **others: Any) -> Any:
    mask = others.pop("where", _UNSET)
    if mask is _UNSET or mask is True:
        return reduce.mean(a, axis, dtype, out, keepdims, **others)
    a = a if dtype is None else a.astype(dtype)
    ones = broadcast_to(where(mask, module_of(raw(a)).ones((), a.dtype), 0.0), shape_of(a))
    return divide(sum_(a, axis, None, out, keepdims, where=mask), sum_(ones, axis, keepdims=keepdims))


HANDLERS.update({np.sum: sum_, np.prod: prod, np.max: max_, np.amax: max_, np.min: min_, np.amin: min_, np.mean: mean})
