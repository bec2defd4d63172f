"""Sorting along an axis: sort and partition; median, quantile and percentile composed of them.

    y = x[order]        dx = dy[order⁻¹]        dy = dx[order]        a permutation along `axis`

Convention: among equal entries the derivative goes with the stable order, first come first.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..op import Op, describe, normalize_axes, normalize_axis, shape_of
from ..trace import HANDLERS, Namespace, lose_trace
from .arithmetic import add, multiply, subtract
from .batching import same_axes_batch
from .index import getitem
from .picking import take
from .reduce import mean
from .shape import expand_dims, reshape, transpose


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


def _rows(name: str, a: Any, axis: Any) -> tuple[Any, tuple[int, ...]]:
    """a with the reduced axes merged into its last one, sorted along it; and these axes."""
    shape = shape_of(a)
    axes = normalize_axes(name, axis, len(shape))
    keep = [i for i in range(len(shape)) if i not in axes]
    count = int(np.prod([shape[i] for i in axes]))
    if not count:
        raise ValueError(f"{name}: expected at least one entry along axis {axis}, got {describe(a)}")
    rows = reshape(transpose(a, (*keep, *axes)), (*[shape[i] for i in keep], count))
    return _sort(rows, axis=len(keep), kth=None), axes


def _finish(name: str, y: Any, axes: tuple[int, ...], keepdims: bool, out: Any, first: int = 0) -> Any:
    if out is not None:
        raise lose_trace(f"{name}: out=", "use the result instead")
    return expand_dims(y, tuple(i + first for i in axes)) if keepdims else y


def median(a: Any, axis: Any = None, out: Any = None, overwrite_input: bool = False, keepdims: bool = False) -> Any:
    rows, axes = _rows("median", a, axis)
    n = shape_of(rows)[-1]
    middle = mean(getitem(rows, (Ellipsis, slice((n - 1) // 2, n // 2 + 1))), -1)
    return _finish("median", middle, axes, keepdims, out)


def quantile(
    a: Any, q: Any, axis: Any = None, out: Any = None, overwrite_input: bool = False, method: str = "linear",
    keepdims: bool = False, **others: Any,
) -> Any:  # fmt: skip
    """The quantiles q in [0, 1], interpolated linearly between the two nearest entries."""
    if method != "linear" or others:
        raise NotImplementedError('quantile: only method="linear", without weights, is supported on a traced array')
    if not isinstance(q, (int, float)):  # as in NumPy, an array of quantiles has a say in the dtype, a number has not
        q = np.asarray(q)
        a = a if a.dtype == np.result_type(a.dtype, q.dtype, 0.0) else a.astype(np.result_type(a.dtype, q.dtype, 0.0))
    q = np.asarray(q, dtype=np.float64)
    if not bool(((q >= 0) & (q <= 1)).all()):
        raise ValueError("quantile: expected quantiles in [0, 1]")
    rows, axes = _rows("quantile", a, axis)
    at = q * (shape_of(rows)[-1] - 1)
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, shape_of(rows)[-1] - 1)
    flat = [
        _between(rows, int(i), int(j), float(t)) for i, j, t in zip(low.flat, high.flat, (at - low).flat, strict=True)
    ]
    if not q.ndim:
        return _finish("quantile", flat[0], axes, keepdims, out)
    from .join import stack

    y = _finish("quantile", stack(flat), axes, keepdims, out, first=1)
    return reshape(y, (*q.shape, *shape_of(y)[1:]))


def _between(rows: Any, i: int, j: int, t: float) -> Any:
    low = take(rows, i, -1)
    return low if i == j or not t else add(low, multiply(subtract(take(rows, j, -1), low), t))


def percentile(a: Any, q: Any, *args: Any, **kwargs: Any) -> Any:
    """`quantile` of q / 100."""
    return quantile(a, (q if isinstance(q, (int, float)) else np.asarray(q)) / 100, *args, **kwargs)


HANDLERS.update(
    {
        np.argsort: argsort,
        np.sort: sort,
        np.partition: partition,
        np.median: median,
        np.quantile: quantile,
        np.percentile: percentile,
    }
)
