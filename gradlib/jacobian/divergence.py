"""The divergence of a vector field: the trace of every sample's Jacobian, exact or estimated."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from ..op import describe, shape_of
from ..trace import module_of
from .batched import Batched, _axes, _wanted
from .budget import Budget, budget
from .sides import SamplesSide, check_sampling, flat, is_diagonal, of_matrices, planned

NAME = "divergence"


def divergence(
    f: Callable[..., Any],
    argnums: int = 0,
    *,
    in_axes: Any = 0,
    with_value: bool = False,
    samples: int | None = None,
    noise: str = "rademacher",
    seed: Any = 0,
    chunk_size: int | None = None,
    max_bytes: int | str | None = None,
) -> Callable[..., Any]:
    """Function that gives the divergence Σ_i ∂f_i/∂x_i of every sample: (B, *n) -> (B, *n) gives (B,), in x's dtype.

    f works on the whole batch; `argnums` names x, and `in_axes` says for each argument whether its first axis is the
    batch (0) or all samples share it (None), as for `gl.batch_jacobian`. x and f(x) may be pytrees of equal structure.
    With `with_value` the function gives (f(x), divergence), f being run once: what a step of a continuous flow needs.

    Exact: from one tangent where f is elementwise; from the matrices of `gl.batch_jacobian`, a piece of the batch at a
    time, where it is a chain of blocks; else from as many tangents as x has entries a sample, swept in chunks.
    `chunk_size` and `max_bytes` bound pieces and chunks.

    With `samples`, S: the mean of εᵀ J ε over S random vectors ε a sample, of signs ("rademacher", which varies less)
    or normal ("normal"), right on average. `seed`, an int or a np.random.Generator, gives the same vectors on every
    device, and an int at every call, as the solver of one differential equation wants them.

    Both can be differentiated, by x and by the parameters f uses.

    Raises ValueError where f's result has not the shape of x, or mixes samples; TypeError for x that is not floating
    point.

    Sources: Hutchinson 1989; Grathwohl et al. 2019, "FFJORD" (arXiv:1810.01367); for score matching Song et al. 2019,
    "Sliced score matching" (arXiv:1905.07088).

    >>> import gradlib as gl, numpy as np
    >>> x = np.array([[1.0, 2.0], [3.0, 4.0]])
    >>> gl.divergence(lambda x: x**2 + x[:, ::-1])(x)
    array([ 6., 14.])
    """
    allowed = budget(NAME, chunk_size, max_bytes)
    check_sampling(NAME, samples, noise, seed)

    @wraps(f)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        call = Batched(NAME, f, args, _axes(NAME, in_axes, len(args)), _wanted(NAME, argnums, args), kwargs)
        _check_square(call)
        work = planned(call, allowed) if samples is None else None
        if work is None:
            total = _products(call, allowed, samples, noise, seed)
        else:
            total = _products(call, allowed, 1) if is_diagonal(work) else of_matrices(work, _trace)
        return (call.outputs.rebuilt(), total) if with_value else total

    return wrapped


def _products(call: Batched, allowed: Budget, *sampling: Any) -> Any:
    """Σ_v r_vᵀ J r_v over random vectors, or all unit vectors."""
    total: Any = None
    for stacks, found in SamplesSide(call, forward=True).sweeps(allowed, *sampling):
        for r, d in zip(stacks, found, strict=True):
            part = flat(r * d, 2).sum(axis=(0, 2))
            total = part if total is None else total + part
    return total


def _trace(j: Any) -> Any:
    return module_of(j).trace(j, axis1=1, axis2=2)


def _check_square(call: Batched) -> None:
    """ValueError unless f(x) has the structure and shapes of x."""
    if any(call.shared) or len(call.structures) != 1:
        raise ValueError(f"{NAME}: expected argnums to name one argument with a batch axis (in_axes=0)")
    x, y = call.leaves, call.outputs.values
    if call.structures[0] != call.outputs.structure or list(map(shape_of, x)) != list(map(shape_of, y)):
        raise ValueError(
            f"{NAME}: expected the function to give what its argument is, {', '.join(map(describe, x))}, "
            f"got {', '.join(map(describe, y)) or 'nothing'}"
        )
