"""Whole Jacobians and Hessians: jacobian, jacrev, jacfwd, hessian. How they are made is in ``dense_work``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..transforms import grad, pick
from .budget import budget
from .dense_work import DenseWork
from .function import JacobianFunction, Work
from .rows import by_rows, run_shaped

MODES = ("auto", "fwd", "rev", "mixed")


def check_mode(name: str, mode: str) -> None:
    if mode not in MODES:
        raise ValueError(f"{name}: expected mode {', '.join(map(repr, MODES))}, got {mode!r}")


def jacobian(
    f: Callable[..., Any],
    argnums: int | tuple[int, ...] = 0,
    *,
    mode: str = "auto",
    chunk_size: int | None = None,
    max_bytes: int | str | None = None,
) -> JacobianFunction:
    """Function J that gives the Jacobian of f: arrays (*out, *in).

    J(x) gives it, J.into(out, x) writes it into your array, J.chunks(x) iterates over (slice of the flattened outputs,
    rows (V, *in)), made by cotangents, and J.plan(x) says what it will cost; print(J.plan(x)) shows the alternatives.

    For pytrees the result has the structure of f's result, and at each of its leaves the structure of the argument
    (a tuple of them for a tuple of argnums). `mode`: "rev" by cotangents (cheap for few outputs), "fwd" by tangents
    (cheap for few inputs), "auto" and "mixed" the cheapest; for a chain of layers, of one array, that may be another
    order of the products, as of `batch_jacobian`.

    Memory beyond the inputs, the result and what f itself records: `max_bytes` bounds it, an int or a text such as
    "1GB", "200 MB", "512KiB", or "auto" for a quarter of what is free; without it, it stays within 0.3 of the result
    and 8 MB, or what one row needs. `chunk_size` bounds how many rows (or columns) are swept at once.

    Raises TypeError for arguments that are not floating point, ValueError for an unknown mode and for `max_bytes` that
    is too small for one row, saying how much that needs.

    >>> import gradlib as gl, numpy as np
    >>> gl.jacobian(lambda x: x[:2] ** 2)(np.array([1.0, 2.0, 3.0]))
    array([[2., 0., 0.],
           [0., 4., 0.]])
    """
    return _jacobian("jacobian", f, argnums, mode, chunk_size, max_bytes)


def _jacobian(
    name: str, f: Callable[..., Any], argnums: Any, mode: str, chunk_size: Any, max_bytes: Any
) -> JacobianFunction:
    check_mode(name, mode)
    allowed = budget(name, chunk_size, max_bytes)

    def record(args: tuple, kwargs: dict) -> Work:
        of_chosen, primals = pick(f, argnums, args, kwargs, name)
        inside, outputs = run_shaped(name, of_chosen, primals)
        work = DenseWork(name, inside, outputs, mode, allowed, isinstance(argnums, tuple))
        return work if mode == "fwd" else by_rows(work)

    return JacobianFunction(name, f, record)


def jacrev(
    f: Callable[..., Any],
    argnums: int | tuple[int, ...] = 0,
    *,
    chunk_size: int | None = None,
    max_bytes: int | str | None = None,
) -> JacobianFunction:
    """`jacobian` in reverse mode: one row of the Jacobian a cotangent.

    >>> import gradlib as gl, numpy as np
    >>> gl.jacrev(np.sin)(np.zeros(1))
    array([[1.]])
    """
    return _jacobian("jacrev", f, argnums, "rev", chunk_size, max_bytes)


def jacfwd(
    f: Callable[..., Any],
    argnums: int | tuple[int, ...] = 0,
    *,
    chunk_size: int | None = None,
    max_bytes: int | str | None = None,
) -> JacobianFunction:
    """`jacobian` in forward mode: one column of the Jacobian a tangent.

    >>> import gradlib as gl, numpy as np
    >>> gl.jacfwd(np.sin)(np.zeros(1))
    array([[1.]])
    """
    return _jacobian("jacfwd", f, argnums, "fwd", chunk_size, max_bytes)


def hessian(
    f: Callable[..., Any],
    argnums: int | tuple[int, ...] = 0,
    *,
    chunk_size: int | None = None,
    max_bytes: int | str | None = None,
) -> JacobianFunction:
    """Function that gives the Hessian of a scalar function, (*in, *in): forward over reverse, one stacked sweep.

    For pytrees: the structure of the argument, and at each leaf that structure again. It is the `jacobian` of the
    gradient, with the same methods.

    >>> import gradlib as gl, numpy as np
    >>> gl.hessian(lambda x: x[0] ** 2 * x[1])(np.array([1.0, 2.0]))
    array([[4., 2.],
           [2., 0.]])
    """
    return _jacobian("hessian", grad(f, argnums), argnums, "fwd", chunk_size, max_bytes)
