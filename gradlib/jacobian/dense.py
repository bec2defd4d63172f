"""Whole Jacobians and Hessians: one sweep with a stack of unit vectors, in the cheaper direction."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from math import prod
from typing import Any

from .. import tree
from ..op import shape_of
from ..trace import module_of
from ..transforms import Outputs, Primals, grad, owned, pick, pull, push, run

MODES = ("auto", "fwd", "rev", "mixed")


def check_mode(name: str, mode: str, chunk_size: int | None) -> None:
    if mode not in MODES:
        raise ValueError(f"{name}: expected mode {', '.join(map(repr, MODES))}, got {mode!r}")
    if chunk_size is not None and (not isinstance(chunk_size, int) or chunk_size < 1):
        raise ValueError(f"{name}: expected a positive int or None as chunk_size, got {chunk_size!r}")


def unit_stacks(leaves: list[Any], start: int, stop: int) -> list[Any]:
    """Rows start:stop of the identity over all entries of all leaves: one stack [V, *leaf] a leaf."""
    stacks, at = [], 0
    for x in leaves:
        xp, n = module_of(x), prod(shape_of(x))
        rows = xp.zeros((stop - start, n), getattr(x, "dtype", float))
        first, last = max(start, at), min(stop, at + n)
        if first < last:
            rows[first - start : last - start, first - at : last - at] = xp.eye(last - first, dtype=rows.dtype)
        stacks.append(rows.reshape(stop - start, *shape_of(x)))
        at += n
    return stacks


def in_chunks(total: int, chunk_size: int | None, sweep: Callable[[int, int], list[Any]]) -> list[Any]:
    """The stacks of sweep(0, total), in pieces of at most `chunk_size` joined along the stack axis; all our own."""
    if chunk_size is None or total <= chunk_size:
        return owned(sweep(0, total), [])
    pieces = [sweep(at, min(at + chunk_size, total)) for at in range(0, total, chunk_size)]
    return [module_of(parts[0]).concatenate(parts) for parts in zip(*pieces, strict=True)]


def _split(stacks: list[Any], leaves: list[Any]) -> list[list[Any]]:
    """Stacks over all entries of `leaves` as [leaf][stack]: (*leaf, ...)."""
    result, at = [], 0
    for x in leaves:
        n = prod(shape_of(x))
        result.append([s[at : at + n].reshape((*shape_of(x), *s.shape[1:])) for s in stacks])
        at += n
    return result


def _reverse(inside: Primals, outputs: Outputs, chunk_size: int | None) -> list[list[Any]]:
    """[output leaf][input leaf]: (*y, *x), by cotangents."""
    total = sum(prod(shape_of(y)) for y in outputs.values)
    stacks = in_chunks(total, chunk_size, lambda a, b: pull(inside, outputs, unit_stacks(outputs.values, a, b)))
    return _split(stacks, outputs.values)


def _forward(inside: Primals, outputs: Outputs, chunk_size: int | None) -> list[list[Any]]:
    """[output leaf][input leaf]: (*y, *x), by tangents."""
    total = sum(prod(x.shape) for x in inside.leaves)
    stacks = in_chunks(total, chunk_size, lambda a, b: push(inside, outputs, unit_stacks(inside.leaves, a, b)))
    by_input = _split(stacks, inside.leaves)
    return [[_inputs_last(parts[j], x) for parts, x in zip(by_input, inside.leaves, strict=True)]
            for j in range(len(outputs.values))]  # fmt: skip


def _inputs_last(d: Any, x: Any) -> Any:
    """(*x, *y) -> (*y, *x)."""
    k = len(x.shape)
    xp = module_of(d)
    return xp.ascontiguousarray(xp.moveaxis(d, tuple(range(k)), tuple(range(-k, 0)))) if k else d


def jacobian(
    f: Callable[..., Any],
    argnums: int | tuple[int, ...] = 0,
    *,
    mode: str = "auto",
    chunk_size: int | None = None,
) -> Callable[..., Any]:
    """Function that gives the Jacobian of f: arrays (*out, *in).

    For pytrees the result has the structure of f's result, and at each of its leaves the structure of the argument
    (a tuple of them for a tuple of argnums). `mode`: "rev" by cotangents (cheap for few outputs), "fwd" by tangents
    (cheap for few inputs), "auto" the cheaper of the two. `chunk_size` bounds how many rows (or columns) are swept
    at once, and with them the memory.

    Raises TypeError for arguments that are not floating point, ValueError for an unknown mode.

    >>> import gradlib as gl, numpy as np
    >>> gl.jacobian(lambda x: x[:2] ** 2)(np.array([1.0, 2.0, 3.0]))
    array([[2., 0., 0.],
           [0., 4., 0.]])
    """
    return _jacobian("jacobian", f, argnums, mode, chunk_size)


def _jacobian(name: str, f: Callable[..., Any], argnums: Any, mode: str, chunk_size: int | None) -> Callable[..., Any]:
    check_mode(name, mode, chunk_size)

    @wraps(f)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        of_chosen, primals = pick(f, argnums, args, kwargs, name)
        inside, outputs, _ = run(name, of_chosen, primals)
        entries_in = sum(prod(x.shape) for x in inside.leaves)
        entries_out = sum(prod(shape_of(y)) for y in outputs.values)
        forward = mode == "fwd" or (mode == "auto" and entries_in < entries_out)
        rows = (_forward if forward else _reverse)(inside, outputs, chunk_size)
        columns = [tree.unflatten(inside.structure, row) for row in rows]
        return tree.unflatten(outputs.structure, columns if isinstance(argnums, tuple) else [c[0] for c in columns])

    return wrapped


def jacrev(f: Callable[..., Any], argnums: int | tuple[int, ...] = 0, *, chunk_size: int | None = None) -> Any:
    """`jacobian` in reverse mode: one row of the Jacobian a cotangent.

    >>> import gradlib as gl, numpy as np
    >>> gl.jacrev(np.sin)(np.zeros(1))
    array([[1.]])
    """
    return _jacobian("jacrev", f, argnums, "rev", chunk_size)


def jacfwd(f: Callable[..., Any], argnums: int | tuple[int, ...] = 0, *, chunk_size: int | None = None) -> Any:
    """`jacobian` in forward mode: one column of the Jacobian a tangent.

    >>> import gradlib as gl, numpy as np
    >>> gl.jacfwd(np.sin)(np.zeros(1))
    array([[1.]])
    """
    return _jacobian("jacfwd", f, argnums, "fwd", chunk_size)


def hessian(f: Callable[..., Any], argnums: int | tuple[int, ...] = 0, *, chunk_size: int | None = None) -> Any:
    """Function that gives the Hessian of a scalar function, (*in, *in): forward over reverse, one stacked sweep.

    For pytrees: the structure of the argument, and at each leaf that structure again.

    >>> import gradlib as gl, numpy as np
    >>> gl.hessian(lambda x: x[0] ** 2 * x[1])(np.array([1.0, 2.0]))
    array([[4., 2.],
           [2., 0.]])
    """
    return _jacobian("hessian", grad(f, argnums), argnums, "fwd", chunk_size)
