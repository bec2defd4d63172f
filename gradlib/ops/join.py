"""Joining and splitting: concatenate is an op of many arguments; the others are composed of it and of indexing."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np

from ..kept import form_of
from ..op import Op, describe, normalize_axis, shape_of
from ..trace import HANDLERS, Traced, module_of, raw
from .batching import Mixed, Tag, agree
from .index import getitem
from .reduce import refuse
from .shape import atleast_1d, atleast_2d, expand_dims, ravel, reshape


def _pieces(saved: tuple, axis: int) -> list[tuple]:
    """For each argument its slice of the joined axis, behind the stack axis."""
    cuts, at = [], 0
    for x in saved:
        n = x.shape[axis]
        cuts.append((*[slice(None)] * (axis + 1), slice(at, at + n)))
        at += n
    return cuts


def _forward(xp: Any, *x: Any, axis: int) -> tuple:
    return xp.concatenate(x, axis=axis), tuple(map(form_of, x))


def _vjp(xp: Any, saved: tuple, dy: Any, need: tuple, *, axis: int) -> tuple:
    return tuple(dy[cut] if n else None for cut, n in zip(_pieces(saved, axis), need, strict=True))


def _jvp(xp: Any, saved: tuple, dx: tuple, *, axis: int) -> Any:
    v = next(d.shape[0] for d in dx if d is not None)
    parts = [xp.zeros((v, *x.shape), x.dtype) if d is None else d for x, d in zip(saved, dx, strict=True)]
    return xp.concatenate(parts, axis=axis + 1)


def _check(*x: Any, axis: int) -> None:
    for other in x[1:]:
        a, b = list(shape_of(x[0])), list(shape_of(other))
        if len(a) != len(b) or a[:axis] + a[axis + 1 :] != b[:axis] + b[axis + 1 :]:
            raise ValueError(f"concatenate: shapes differ beside axis {axis}: {describe(x[0])} and {describe(other)}")


def _batch(tags: tuple, shapes: tuple, static: dict) -> Any:
    tag = agree(tags, "concatenate")
    if isinstance(tag, Tag) and len(shapes[0]) + tag.axis == static["axis"]:
        return Mixed("concatenate", "joins along the batch axis")
    return tag


_concatenate = Op("concatenate", check=_check, forward=_forward, vjp=_vjp, jvp=_jvp, batch=_batch)


def as_array(x: Any, like: Any = None) -> Any:
    """An array, traced or not, of x: an array, a number, or a (nested) list of these; on the device of `like`."""
    if hasattr(x, "dtype"):
        return x
    if isinstance(x, (list, tuple)) and holds_traced(x):
        return stack([as_array(entry, like) for entry in x])
    return (np if like is None else module_of(raw(like))).asarray(x)


def holds_traced(x: Any) -> bool:
    return type(x) is Traced or (isinstance(x, (list, tuple)) and any(map(holds_traced, x)))


def arrays_of(x: Any) -> list[Any]:
    """The arrays to join: lists and numbers as arrays on the device of the traced one among them."""
    x = list(x)
    if all([hasattr(a, "dtype") for a in x]):
        return x
    like = next((a for a in x if type(a) is Traced), None)
    return [as_array(a, like) for a in x]


def taking_lists(call: Callable[..., Any], count: int | None = None) -> Callable[..., Any]:
    """The handler `call`, whose first `count` positional arguments are taken for arrays where they are lists."""

    @wraps(call)
    def handler(*args: Any, **kwargs: Any) -> Any:
        if list in map(type, args) or tuple in map(type, args):
            like = next((a for a in args if type(a) is Traced), None)
            arrays = [as_array(a, like) if type(a) in (list, tuple) else a for a in args[:count]]
            args = (*arrays, *args[len(arrays) :])
        return call(*args, **kwargs)

    return handler


def concatenate(
    arrays: Any, axis: Any = 0, out: Any = None, *, dtype: Any = None, casting: str = "same_kind", **others: Any
) -> Any:
    refuse("concatenate", out, {**others, "casting": None if casting in ("same_kind", "unsafe") else casting})
    arrays = arrays_of(arrays)
    if dtype is not None:
        arrays = [x if x.dtype == dtype else x.astype(dtype) for x in arrays]
    if axis is None:
        arrays, axis = [ravel(x) for x in arrays], 0
    return _concatenate(*arrays, axis=normalize_axis("concatenate", axis, len(shape_of(arrays[0]))))


def stack(arrays: Any, axis: int = 0, out: Any = None, **others: Any) -> Any:
    arrays = arrays_of(arrays)
    for x in arrays:
        if shape_of(x) != shape_of(arrays[0]):
            raise ValueError(f"stack: expected equal shapes, got {describe(arrays[0])} and {describe(x)}")
    return concatenate([expand_dims(x, axis) for x in arrays], axis, out, **others)


def hstack(tup: Any, **others: Any) -> Any:
    arrays = [atleast_1d(x) for x in arrays_of(tup)]
    return concatenate(arrays, 0 if len(shape_of(arrays[0])) == 1 else 1, **others)


def vstack(tup: Any, **others: Any) -> Any:
    return concatenate([atleast_2d(x) for x in arrays_of(tup)], 0, **others)


def column_stack(tup: Any) -> Any:
    return concatenate([reshape(x, (-1, 1)) if len(shape_of(x)) < 2 else x for x in arrays_of(tup)], 1)


def array_split(ary: Any, indices_or_sections: Any, axis: int = 0) -> list[Any]:
    axis = normalize_axis("split", axis, len(shape_of(ary)))
    parts = np.array_split(np.arange(ary.shape[axis]), indices_or_sections)
    cuts = [slice(int(part[0]), int(part[-1]) + 1) if len(part) else slice(0, 0) for part in parts]
    return [getitem(ary, (*[slice(None)] * axis, cut)) for cut in cuts]


def split(ary: Any, indices_or_sections: Any, axis: int = 0) -> list[Any]:
    if isinstance(indices_or_sections, int) and ary.shape[axis] % indices_or_sections:
        raise ValueError(
            f"split: axis of size {ary.shape[axis]} does not divide into {indices_or_sections} equal parts"
        )
    return array_split(ary, indices_or_sections, axis)


HANDLERS.update(
    {
        np.concatenate: concatenate,
        np.stack: stack,
        np.hstack: hstack,
        np.vstack: vstack,
        np.column_stack: column_stack,
        np.split: split,
        np.array_split: array_split,
    }
)
