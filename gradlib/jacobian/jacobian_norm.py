"""Norms of Jacobians that are never formed: Frobenius and spectral, of the whole or of every sample's."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from ..precision import wide
from ..trace import module_of
from ..transforms import pick, run
from .batched import Batched, _axes, _wanted
from .budget import Budget, budget
from .jacobian_svd import DENSE, largest
from .operator import JacobianOperator, is_traced
from .sides import SamplesSide, Side, WholeSide, check_sampling, flat, is_diagonal, join, of_matrices, planned

NAME = "jacobian_norm"


def jacobian_norm(
    f: Callable[..., Any],
    argnums: int | tuple[int, ...] = 0,
    *,
    ord: str = "fro",
    in_axes: Any = None,
    samples: int | None = None,
    seed: Any = 0,
    chunk_size: int | None = None,
    max_bytes: int | str | None = None,
) -> Callable[..., Any]:
    """Function that gives the norm of the Jacobian of f: a 0-d array, or (B,) of every sample's.

    `in_axes` None: the norm of the whole (M, N), f any function of pytrees. 0, or 0 and None for each argument: f
    works on a batch, as for `gl.batch_jacobian`, and the norms are those of each sample's Jacobian.

    `ord` "fro", the root of the sum of squares: swept by rows (or columns, where they are fewer), in chunks; of samples
    from the matrices of `gl.batch_jacobian`, a piece of the batch at a time, where f is a chain of blocks. `chunk_size`
    and `max_bytes` bound both. `samples` estimates it from as many random vectors of signs instead; it is the square of
    the estimate that is right on average. `seed`, an int or a np.random.Generator, gives the same vectors on every
    device, and an int at every call.

    `ord` "spectral", the largest singular value: of the matrix where it has up to 64 rows or columns, where it is a
    sample's, or where an outer transform follows the values; of products alone, by Lanczos (`gl.jacobian_svd`), where
    it is large.

    Both can be differentiated, to any order, as regularisers of training are: by x, and by the parameters f uses. The
    derivative of a norm at 0 is 0. Under an outer transform all chunks are kept for its sweep back. float16 gives
    float32.

    Raises ValueError for another ord, `samples` with "spectral", and where f mixes samples; TypeError for arguments
    that are not floating point.

    Sources: Hoffman, Roberts & Yaida 2019, "Robust learning with Jacobian regularization" (arXiv:1908.02729);
    Hutchinson 1989.

    >>> import gradlib as gl, numpy as np
    >>> x = np.array([[1.0, 2.0], [3.0, 4.0]])
    >>> gl.jacobian_norm(np.square, in_axes=0)(x)
    array([ 4.47213595, 10.        ])
    >>> float(gl.jacobian_norm(np.square, ord="spectral")(x))
    8.0
    """
    if ord not in ("fro", "spectral"):
        raise ValueError(f'{NAME}: expected ord "fro" or "spectral", got {ord!r}')
    if samples is not None and ord != "fro":
        raise ValueError(f'{NAME}: samples estimates ord "fro" alone, got ord {ord!r}')
    allowed = budget(NAME, chunk_size, max_bytes)
    check_sampling(NAME, samples, "rademacher", seed)

    @wraps(f)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if in_axes is not None:
            call = Batched(NAME, f, args, _axes(NAME, in_axes, len(args)), _wanted(NAME, argnums, args), kwargs)
            return _of_samples(call, ord, allowed, samples, seed)
        inside, outputs, _ = run(NAME, *pick(f, argnums, args, kwargs, NAME))
        side = WholeSide(inside, outputs)
        if ord == "fro":
            return _frobenius(side, allowed, samples, seed)
        if side.entries > DENSE and not is_traced(inside, outputs):
            return largest(JacobianOperator.over(inside, outputs), 1)[1][0]
        return _spectral(side, allowed)

    return wrapped


def _of_samples(call: Batched, ord: str, allowed: Budget, samples: int | None, seed: Any) -> Any:
    """The norms (B,) of the samples' Jacobians."""
    work, side = planned(call, allowed) if samples is None else None, SamplesSide(call)
    if work is not None:
        if ord == "fro" and is_diagonal(work):
            return _frobenius(side, allowed, 1, 0)
        return of_matrices(work, _MATRIX_NORMS[ord])
    return _frobenius(side, allowed, samples, seed) if ord == "fro" else _spectral(side, allowed)


def _frobenius(side: Side, allowed: Budget, samples: int | None, seed: Any) -> Any:
    """The norm of the norms of all rows."""
    rows = [_norm(stack, axis=-1) for stack in side.flat_sweeps(allowed, samples=samples, seed=seed)]
    return _norm(join(rows, axis=0), axis=0)


def _spectral(side: Side, allowed: Budget) -> Any:
    """The spectral norm of the matrix of all rows."""
    matrix = join(list(side.flat_sweeps(allowed)), axis=0)
    return _largest_singular_value(module_of(matrix).moveaxis(matrix, 0, -2))


def _largest_singular_value(matrix: Any) -> Any:
    """Of each matrix on the last two axes; 0 of an empty one."""
    if 0 in matrix.shape:
        return module_of(matrix).zeros(matrix.shape[:-2], matrix.dtype)
    return _norm(matrix, ord=2, axis=(-2, -1))


def _norm(x: Any, **options: Any) -> Any:
    return module_of(x).linalg.norm(wide(x), **options)


def _root_of_squares(matrices: Any) -> Any:
    """The Frobenius norm of each of the matrices (b, M, N), without a copy of them."""
    rows, xp = wide(flat(matrices, 1)), module_of(matrices)
    return xp.sqrt(xp.matmul(rows[:, None, :], rows[:, :, None]))[:, 0, 0]


_MATRIX_NORMS = {"fro": _root_of_squares, "spectral": _largest_singular_value}
