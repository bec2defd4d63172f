"""The logarithm of the volume a function stretches by: log|det J| of every sample."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from math import prod
from typing import Any

from ..op import describe
from ..precision import wide
from ..trace import module_of
from .batched import Batched, _axes, _wanted
from .batched_work import BatchedWork
from .budget import budget

NAME = "logabsdet"


def logabsdet(f: Callable[..., Any], argnums: int = 0, *, in_axes: Any = 0) -> Callable[..., Any]:
    """Function that gives log|det ∂f/∂x| of every sample, (B,): what a change of variables adds to a log density.

    f works on the whole batch, (B, *in) -> (B, *out), one array each, with as many entries a sample on both sides.
    `argnums` names x, and `in_axes` says for each argument whether its first axis is the batch (0) or all samples
    share it (None), as for `gl.batch_jacobian`, which forms the matrices; they are factorised by LU. -inf where the
    matrix is singular. Can be differentiated, by x and by the parameters f uses. float16 and bfloat16 give float32.

    Raises ValueError where f is not square or mixes samples, TypeError for x that is not floating point.

    Source: Rezende & Mohamed 2015, "Variational inference with normalizing flows" (arXiv:1505.05770).

    >>> import gradlib as gl, numpy as np
    >>> gl.logabsdet(np.exp)(np.array([[1.0, 2.0], [0.0, -1.0]]))
    array([ 3., -1.])
    """
    if not isinstance(argnums, int):
        raise ValueError(f"{NAME}: expected an int as argnums, got {argnums!r}")
    allowed = budget(NAME, None, None)

    @wraps(f)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        call = Batched(NAME, f, args, _axes(NAME, in_axes, len(args)), _wanted(NAME, argnums, args), kwargs)
        n = _size(call)
        j = wide(BatchedWork(call, "auto", allowed, several=False).whole()[0])
        return module_of(j).linalg.slogdet(j.reshape((call.samples, n, n)))[1]

    return wrapped


def _size(call: Batched) -> int:
    """Entries of a sample, on both sides; ValueError where they differ or are not in one array."""
    if any(call.shared):
        raise ValueError(f"{NAME}: expected argnums to name an argument with a batch axis (in_axes=0)")
    given, found = call.leaves, call.outputs.values
    if len(given) != 1 or len(found) != 1 or prod(given[0].shape[1:]) != prod(found[0].shape[1:]):
        raise ValueError(
            f"{NAME}: expected one array with as many entries a sample on both sides, a square Jacobian; got "
            f"{', '.join(map(describe, found)) or 'nothing'} for {', '.join(map(describe, given)) or 'nothing'}"
        )
    return prod(given[0].shape[1:])
