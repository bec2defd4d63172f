"""Differences, their sums, and the cross product: composed of indexing and arithmetic.

Second-order difference quotients on uneven steps: Fornberg 1988, "Generation of finite difference formulas on
arbitrarily spaced grids".
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..op import describe, normalize_axes, normalize_axis, shape_of
from ..trace import HANDLERS, Traced
from .arithmetic import add, divide, multiply, subtract
from .index import getitem
from .join import as_array, concatenate, stack
from .reduce import sum_
from .shape import broadcast_to, moveaxis, ravel, reshape

_UNSET: Any = np._NoValue  # type: ignore[attr-defined]


def _along(x: Any, axis: int, start: int | None, stop: int | None) -> Any:
    """x[start:stop] along an axis."""
    return getitem(x, (*[slice(None)] * axis, slice(start, stop)))


def diff(a: Any, n: int = 1, axis: int = -1, prepend: Any = _UNSET, append: Any = _UNSET) -> Any:
    if n < 0:
        raise ValueError(f"diff: expected an order of at least 0, got {n}")
    like = next((x for x in (a, prepend, append) if type(x) is Traced), None)
    a = as_array(a, like)
    axis = normalize_axis("diff", axis, len(shape_of(a)))
    if n == 0:
        return a
    edge = (*shape_of(a)[:axis], 1, *shape_of(a)[axis + 1 :])
    parts = [_edge(x, edge, like) for x in (prepend, a, append) if x is not _UNSET]
    a = concatenate(parts, axis) if len(parts) > 1 else a
    for _ in range(n):
        a = subtract(_along(a, axis, 1, None), _along(a, axis, None, -1))
    return a


def _edge(x: Any, edge: tuple[int, ...], like: Any) -> Any:
    x = as_array(x, like)
    return x if shape_of(x) else broadcast_to(x, edge)


def ediff1d(ary: Any, to_end: Any = None, to_begin: Any = None) -> Any:
    y = diff(ravel(as_array(ary)))
    edges = [None if x is None else ravel(as_array(x, ary)) for x in (to_begin, to_end)]
    parts = [edges[0], y, edges[1]]
    return concatenate([x if x.dtype == y.dtype else x.astype(y.dtype) for x in parts if x is not None])


# --- gradient ------------------------------------------------------------------------------------------------------
def gradient(f: Any, *varargs: Any, axis: Any = None, edge_order: int = 1) -> Any:
    """Central differences inside, one-sided ones of `edge_order` at the ends; steps or coordinates for each axis."""
    ndim = len(shape_of(f))
    axes = normalize_axes("gradient", axis, ndim) if axis is None else _listed_axes(axis, ndim)
    if edge_order not in (1, 2):
        raise ValueError(f"gradient: expected edge_order 1 or 2, got {edge_order}")
    if len(varargs) not in (0, 1, len(axes)):
        raise TypeError(f"gradient: expected no, one or {len(axes)} spacings, got {len(varargs)}")
    if len(varargs) == 1 and len(shape_of(varargs[0])) == 1 and len(axes) > 1:
        raise TypeError("gradient: expected coordinates for each axis, or one step for all")
    steps = varargs * len(axes) if len(varargs) == 1 else varargs or (1.0,) * len(axes)
    found = tuple(_gradient_along(f, a, _step(f, h, a), edge_order) for a, h in zip(axes, steps, strict=True))
    return found[0] if len(axes) == 1 else found


def _listed_axes(axis: Any, ndim: int) -> tuple[int, ...]:
    return tuple(normalize_axis("gradient", a, ndim) for a in (axis if isinstance(axis, (tuple, list)) else (axis,)))


def _step(f: Any, h: Any, axis: int) -> Any:
    """The step of an axis: a number, or the differences of its coordinates lined up with it."""
    h = as_array(h, f) if isinstance(h, (list, tuple)) else h
    if not len(shape_of(h)):
        return h
    if shape_of(h) != (shape_of(f)[axis],):
        raise ValueError(f"gradient: expected {shape_of(f)[axis]} coordinates for axis {axis}, got {describe(h)}")
    return reshape(diff(h), tuple(-1 if i == axis else 1 for i in range(len(shape_of(f)))))


def _gradient_along(f: Any, axis: int, h: Any, edge_order: int) -> Any:
    n = shape_of(f)[axis]
    if n < edge_order + 1:
        raise ValueError(f"gradient: expected at least {edge_order + 1} entries along axis {axis}, got {describe(f)}")
    uneven = len(shape_of(h)) > 0
    slopes = divide(diff(f, axis=axis), h)  # [f_{i+1} - f_i] / h_i
    parts = []
    if n > 2:
        left, right = _along(slopes, axis, None, -1), _along(slopes, axis, 1, None)
        if uneven:  # weighted by the other side's step
            a, b = _along(h, axis, None, -1), _along(h, axis, 1, None)
            inner = divide(add(multiply(left, b), multiply(right, a)), add(a, b))
        else:
            inner = multiply(add(left, right), 0.5)
        parts = [inner]
    first, last = (_end(slopes, h, axis, at, edge_order) for at in (0, -1))
    y = concatenate([first, *parts, last], axis)
    return y if y.dtype == f.dtype else y.astype(f.dtype)


def _end(slopes: Any, h: Any, axis: int, at: int, edge_order: int) -> Any:
    """The quotient at an end: of one step, or of two, s₀ + (s₀ - s₁) h₀ / (h₀ + h₁)."""
    near = _along(slopes, axis, 0, 1) if at == 0 else _along(slopes, axis, -1, None)
    if edge_order == 1:
        return near
    next_ = _along(slopes, axis, 1, 2) if at == 0 else _along(slopes, axis, -2, -1)
    if not len(shape_of(h)):
        return add(near, multiply(subtract(near, next_), 0.5))
    a = _along(h, axis, 0, 1) if at == 0 else _along(h, axis, -1, None)
    b = _along(h, axis, 1, 2) if at == 0 else _along(h, axis, -2, -1)
    return add(near, multiply(subtract(near, next_), divide(a, add(a, b))))


def trapezoid(y: Any, x: Any = None, dx: Any = 1.0, axis: int = -1) -> Any:
    """The integral by the trapezoidal rule."""
    y = as_array(y, x)
    at = normalize_axis("trapezoid", axis, len(shape_of(y)))
    if x is not None:
        x = as_array(x, y)
        dx = diff(x, axis=axis if len(shape_of(x)) > 1 else -1)
        if len(shape_of(x)) == 1:
            dx = reshape(dx, tuple(-1 if i == at else 1 for i in range(len(shape_of(y)))))
    middle = add(_along(y, at, 1, None), _along(y, at, None, -1))
    return sum_(multiply(multiply(middle, dx), 0.5), axis)


# --- cross ---------------------------------------------------------------------------------------------------------
def cross(a: Any, b: Any, axisa: int = -1, axisb: int = -1, axisc: int = -1, axis: Any = None) -> Any:
    """The cross product of vectors of 3 entries; 2 entries are taken for the third to be 0."""
    if axis is not None:
        axisa = axisb = axisc = axis
    like = a if type(a) is Traced else b
    a, b = (moveaxis(as_array(x, like), i, -1) for x, i in ((a, axisa), (b, axisb)))
    sizes = shape_of(a)[-1], shape_of(b)[-1]
    if not set(sizes) <= {2, 3}:
        raise ValueError(f"cross: expected vectors of 2 or 3 entries, got {describe(a)} and {describe(b)}")
    (a0, a1, a2), (b0, b1, b2) = _entries(a), _entries(b)
    last = _minus(multiply(a0, b1), multiply(a1, b0))
    if sizes == (2, 2):
        return last
    first = _minus(_times(a1, b2), _times(a2, b1))
    second = _minus(_times(a2, b0), _times(a0, b2))
    return moveaxis(stack([first, second, last], -1), -1, axisc)


def _entries(x: Any) -> list[Any]:
    entries = [getitem(x, (Ellipsis, i)) for i in range(shape_of(x)[-1])]
    return entries if len(entries) == 3 else [*entries, None]


def _times(a: Any, b: Any) -> Any:
    return None if a is None or b is None else multiply(a, b)


def _minus(a: Any, b: Any) -> Any:
    if b is None:
        return a
    return multiply(b, -1.0) if a is None else subtract(a, b)


def linalg_cross(x1: Any, x2: Any, /, *, axis: int = -1) -> Any:
    """np.linalg.cross: three entries only."""
    for x in (x1, x2):
        if shape_of(x)[normalize_axis("cross", axis, len(shape_of(x)))] != 3:
            raise ValueError(f"cross: expected vectors of 3 entries, got {describe(x1)} and {describe(x2)}")
    return cross(x1, x2, axis=axis)


HANDLERS.update(
    {
        np.diff: diff,
        np.ediff1d: ediff1d,
        np.gradient: gradient,
        np.trapezoid: trapezoid,
        np.cross: cross,
        np.linalg.cross: linalg_cross,
    }
)
