"""Sorting along an axis: sort and partition.

    y = x[order]        dx = dy[order⁻¹]        dy = dx[order]        a permutation along `axis`

Convention: among equal entries the derivative goes with the stable order, first come first.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..op import Op, normalize_axis, shape_of
from ..trace import HANDLERS, Namespace
from .batching import same_axes_batch
from .shape import reshape


def _order_forward(xp: Any, x: Any, *, axis: int, kth: tuple[int, ...] | None) -> tuple:
    return (xp.argsort(x, axis=axis, kind="stable") if kth is None else xp.argpartition(x, kth, axis=axis)), ()


_along_axis = same_axes_batch("sort", lambda static: static["axis"])
_order = Op("order", forward=_order_forward, batch=_along_axis)


def _forward(xp: Any, x: Any, *, axis: int, kth: tuple[int, ...] | None) -> tuple:
    order = _order(x, axis=axis, kth=kth) if type(xp) is Namespace else _order_forward(xp, x, axis=axis, kth=kth)[0]
    return xp.take_along_axis(x, order, axis), (order,)


def _move(xp: Any, d: Any, order: Any, axis: int) -> Any:
    return xp.take_along_axis(d, xp.expand_dims(order, 0), axis + 1)


def _vjp(xp: Any, saved: tuple, dy: Any, need: tuple, *, axis: int, kth: tuple[int, ...] | None) -> tuple:
    return (_move(xp, dy, xp.argsort(saved[0], axis=axis), axis),)


def _jvp(xp: Any, saved: tuple, dx: tuple, *, axis: int, kth: tuple[int, ...] | None) -> Any:
    return _move(xp, dx[0], saved[0], axis)


_sort = Op("sort", forward=_forward, vjp=_vjp, jvp=_jvp, batch=_along_axis)


def _flat(a: Any, axis: Any, name: str) -> tuple[Any, int]:
    if axis is None:
        return reshape(a, (-1,)), 0
    return a, normalize_axis(name, axis, len(shape_of(a)))


def sort(a: Any, axis: Any = -1, kind: Any = None, order: Any = None, *, stable: Any = None) -> Any:
    if order is not None:
        raise NotImplementedError("sort: order= is for structured arrays, which have no derivative")
    a, axis = _flat(a, axis, "sort")
    return _sort(a, axis=axis, kth=None)


_unstable = HANDLERS[np.argsort]


def argsort(a: Any, axis: Any = -1, kind: Any = None, order: Any = None, *, stable: Any = None) -> Any:
    """The places of the sorted entries: plain indices."""
    if order is not None:
        raise NotImplementedError("argsort: order= is for structured arrays")
    if not stable and kind in (None, "quicksort", "heapsort"):
        return _unstable(a, axis)
    a, axis = _flat(a, axis, "argsort")
    return _order(a, axis=axis, kth=None)


def partition(a: Any, kth: Any, axis: Any = -1, kind: str = "introselect", order: Any = None) -> Any:
    if order is not None:
        raise NotImplementedError("partition: order= is for structured arrays, which have no derivative")
    a, axis = _flat(a, axis, "partition")
    places = kth if isinstance(kth, (tuple, list)) else (kth,)
    return _sort(a, axis=axis, kth=tuple(normalize_axis("partition: kth", k, shape_of(a)[axis]) for k in places))


HANDLERS.update(
    {
        np.argsort: argsort,
        np.sort: sort,
        np.partition: partition,
    }
)
