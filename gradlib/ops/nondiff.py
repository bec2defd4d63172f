"""Functions through which no derivative passes: comparisons, rounding, indices of extrema.

On a traced array they give plain values, so `if x > 0` works; only a transform over samples records them, to follow
the batch axis through integers and masks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..op import Op, normalize_axis, shape_of
from ..trace import HANDLERS, Traced, module_of, raw
from .batching import Mixed, Tag, elementwise_batch


def _op(name: str, f: Callable[..., Any], batch: Any) -> Op:
    return Op(name, forward=lambda xp, *x, **static: (f(xp, *x, **static), ()), batch=batch, module="nondiff")


def _elementwise(name: str) -> Op:
    return _op(name, lambda xp, *x: getattr(xp, name)(*x), elementwise_batch)


_UFUNCS = [
    "equal",
    "not_equal",
    "less",
    "less_equal",
    "greater",
    "greater_equal",
    "logical_and",
    "logical_or",
    "logical_not",
    "logical_xor",
    "bitwise_and",
    "bitwise_or",
    "bitwise_xor",
    "invert",
    "isnan",
    "isinf",
    "isfinite",
    "sign",
    "signbit",
    "floor",
    "ceil",
    "trunc",
    "rint",
    "floor_divide",
    "heaviside",
    "spacing",
    "left_shift",
    "right_shift",
    "gcd",
    "lcm",
    "bitwise_count",
]
for _name in _UFUNCS:
    HANDLERS[getattr(np, _name)] = _elementwise(_name)

equal, not_equal, less, less_equal, greater, greater_equal = (HANDLERS[getattr(np, n)] for n in _UFUNCS[:6])
bitwise_and, bitwise_or, bitwise_xor, invert = (
    HANDLERS[f] for f in (np.bitwise_and, np.bitwise_or, np.bitwise_xor, np.invert)
)
floor_divide, floor, isfinite = (HANDLERS[f] for f in (np.floor_divide, np.floor, np.isfinite))

cast = _op("cast", lambda xp, x, *, dtype: x.astype(dtype), elementwise_batch)
_round = _op("round", lambda xp, x, *, decimals: xp.round(x, decimals), elementwise_batch)
_angle = _op("angle", lambda xp, x, *, deg: xp.angle(x, deg), elementwise_batch)  # of real numbers: 0 or π
_fix = _op("fix", lambda xp, x: xp.trunc(x), elementwise_batch)
stopped = _op("stop_gradient", lambda xp, x: x, elementwise_batch)


def round_(a: Any, decimals: int = 0, out: Any = None) -> Any:
    if out is not None:
        raise TypeError("round: out= is not supported on a traced array; use the result instead")
    return _round(a, decimals=int(decimals))


def _index_batch(tags: tuple, shapes: tuple, static: dict) -> Any:
    tag, axis, ndim = tags[0], static["axis"], len(shapes[0])
    if tag is None:
        return None
    if axis == ndim + tag.axis:
        return Mixed(static["name"], "works along the batch axis")
    return tag if static["keeps"] else Tag(tag.axis + (axis > ndim + tag.axis), tag.rows)


_along = _op("along_axis", lambda xp, x, *, name, axis, keeps: getattr(xp, name)(x, axis=axis), _index_batch)


def _axis_function(name: str, keeps: bool, default: Any) -> Callable[..., Any]:
    """argmax and argmin (the axis goes), argsort (it stays)."""

    def call(a: Any, axis: Any = default, **others: Any) -> Any:
        given = [k for k, v in others.items() if v is not None and v is not np._NoValue]  # type: ignore[attr-defined]
        if given:
            raise NotImplementedError(f"{name}: keyword {', '.join(given)} is not supported on a traced array")
        if axis is None:
            a, axis = a.reshape(-1), 0
        return _along(a, name=name, axis=normalize_axis(name, axis, len(shape_of(a))), keeps=keeps)

    return call


def concrete(x: Any, what: str) -> Any:
    """The plain array inside, for what depends on its values; a capture, which would freeze it, raises."""
    while type(x) is Traced:
        x = x._concrete(what)
    return x


def known(mask: Any) -> bool:
    """Whether all of a mask holds, for a cheaper formula; never inside a capture, whose replay may bring other data."""
    while type(mask) is Traced:
        if mask.owner.unit is not None:
            return False
        mask = mask.value
    return bool(mask.all())


def _reduced(name: str) -> Callable[..., Any]:
    """any, all, count_nonzero: a plain value, since they are asked for control flow."""

    def call(a: Any, axis: Any = None, **others: Any) -> Any:
        return getattr(module_of(a), name)(concrete(a, f"np.{name}"), axis=axis, **others)

    return call


def _compared(name: str) -> Callable[..., Any]:
    """allclose and array_equal: a plain value, since they are asked for control flow."""

    def call(a: Any, b: Any, *args: Any, **kwargs: Any) -> Any:
        module = (a if type(a) is Traced else b).module
        return getattr(module, name)(*[concrete(x, f"np.{name}") for x in (a, b)], *args, **kwargs)

    return call


def _like(name: str) -> Callable[..., Any]:
    """zeros_like and friends: plain arrays with the shape and dtype of the concrete value."""

    def call(a: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(module_of(a), name)(raw(a), *args, **kwargs)

    return call


def _einsum_path(*operands: Any, **others: Any) -> Any:
    """It depends on the shapes alone."""
    plain: list[Any] = [np.empty(x.shape) if type(x) is Traced else x for x in operands]
    return np.einsum_path(*plain, **others)


def _angle_of(z: Any, deg: bool = False) -> Any:
    return _angle(z, deg=bool(deg))


HANDLERS.update(
    {
        np.argmax: _axis_function("argmax", False, None),
        np.argmin: _axis_function("argmin", False, None),
        np.argsort: _axis_function("argsort", True, -1),
        np.round: round_,
        np.around: round_,
        np.fix: lambda x: _fix(x),
        np.angle: _angle_of,
        np.einsum_path: _einsum_path,
        np.any: _reduced("any"),
        np.all: _reduced("all"),
        np.count_nonzero: _reduced("count_nonzero"),
        np.zeros_like: _like("zeros_like"),
        np.ones_like: _like("ones_like"),
        np.empty_like: _like("empty_like"),
        np.allclose: _compared("allclose"),
        np.array_equal: _compared("array_equal"),
        np.isscalar: lambda a: False,
        np.result_type: lambda *a: np.result_type(*(x.dtype if type(x) is Traced else x for x in a)),
    }
)
