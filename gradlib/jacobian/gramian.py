"""gramian: the inner products of every sample's Jacobian by the parameters, layer by layer.

    y = x @ w, one row a sample:   ⟨∂y_bv/∂w, ∂y_cu/∂w⟩ = (x_b · x_c) (d_bv · d_cu), d the cotangents of x @ w

so that no Jacobian is formed; with rows r of b and s of c it is the sum over all pairs. Where a sample has so many
rows that forming is cheaper, and for parameters used in another way, the Jacobians of a few samples at a time are.
Sources: Jacot et al. 2018 (arXiv:1806.07572); Novak et al. 2022, "Fast finite width neural tangent kernel"
(arXiv:2206.08720).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from itertools import chain
from math import isqrt, prod
from typing import Any

from ..op import describe
from ..precision import wide
from ..trace import Traced, module_of
from .apart import Apart, pieces
from .batched import Batched
from .factors import ALL, Paired, gram_of_rows, stack_along
from .samples import sample_units

PIECE = 1 << 25  # bytes of Jacobians or cotangents to hold at a time
CACHED = 1 << 22  # bytes of products to work on at a time


def gramian(f: Callable[..., Any], *, trace_outputs: bool = False) -> Callable[..., Any]:
    """Function `kernel(params, x, x2=None)`: the empirical neural tangent kernel ⟨∂f(x)_i, ∂f(x2)_j⟩ of f.

    f(params, x) works on the whole batch, (B, *in) -> (B, *out), as one array; params and x may be pytrees, x with
    the batch axis first in every leaf. The inner product is over all entries of all parameters. x2: another batch,
    None for x itself, when the result is symmetric and positive semi-definite up to rounding.

    Returns (B, B2, *out, *out): entry [b, c, i, j] pairs output i of sample b with output j of sample c. With
    `trace_outputs` (B, B2), the sum over i = j; to have the mean over the outputs that some write (neural-tangents),
    divide by their number. In the dtype of f's result.

    Memory: the cotangents of all values that depend on the parameters, [V, B, *value] for V outputs a sample (with
    `trace_outputs` of as many outputs at a time as fit 32 MB), and about as much for products as for the result.

    Raises ValueError when f mixes samples, returns several arrays or none with the batch axis first; TypeError for
    parameters that are not floating point.

    >>> import gradlib as gl, numpy as np
    >>> x = np.array([[1.0, 0.0], [1.0, 2.0]])
    >>> gl.gramian(lambda w, x: x @ w)(np.ones(2), x)
    array([[1., 1.],
           [1., 5.]])
    """

    @wraps(f)
    def kernel(params: Any, x: Any, x2: Any = None) -> Any:
        left = _call(f, params, x)
        right = left if x2 is None else _call(f, params, x2)
        y, z = left.outputs.values[0], right.outputs.values[0]
        if y.shape[1:] != z.shape[1:]:
            raise ValueError(f"gramian: expected results of one shape a sample, got {describe(y)} and {describe(z)}")
        total, count = None, prod(y.shape[1:])
        step = _at_once(left, right) if trace_outputs else max(count, 1)
        for start in range(0, max(count, 1), step):
            stop = min(start + step, count)
            a, b = (Apart(c, sample_units(c.outputs, start, stop, c.samples)) for c in (left, right))
            part = _gram(a, a if right is left else b, trace_outputs)
            total = part if total is None else total + part
        out = () if trace_outputs else (*y.shape[1:], *y.shape[1:])
        result = module_of(total).ascontiguousarray(total).reshape((left.samples, right.samples, *out))
        return result if result.dtype == y.dtype else result.astype(y.dtype)

    return kernel


def _call(f: Callable[..., Any], params: Any, x: Any) -> Batched:
    call = Batched("gramian", f, (params, x), (None, 0), (0,), {})
    if len(call.outputs.values) != 1:
        got = ", ".join(map(describe, call.outputs.values)) or "nothing"
        raise ValueError(f"gramian: expected the function to return one array, got {got}")
    return call


def _at_once(*calls: Batched) -> int:
    """Outputs to sweep back at a time, so that the cotangents of all values fit."""
    entries = sum(prod(shape) * dtype.itemsize for call in calls for shape, dtype in call.trace.outs)
    return max(1, PIECE // max(entries, 1))


def _gram(a: Apart, b: Apart, trace: bool) -> Any:
    """The sum over all parameters, (B, C, V, W); with `trace` (B, C, 1, 1)."""
    pairs, rest = _divided(a, b, trace)
    y, n, m = a.call.outputs.values[0], a.call.samples, b.call.samples
    v, w = (1, 1) if trace else (a.v, b.v)
    xp, itemsize = module_of(y), wide(y).dtype.itemsize
    held = max(1, 2 * v * w * max([f.d.shape[2] * g.d.shape[2] for f, g in pairs], default=1) * itemsize)
    formed = max(1, (a.entries(rest) + b.entries(rest)) * itemsize)
    once = type(y) is Traced or max(n, m) * formed <= PIECE
    left = _rows_of(a, rest, trace, once)
    right = left if a is b else _rows_of(b, rest, trace, once)

    def block(at: slice, beside: slice) -> Any:
        """[V, B, W, C]: the samples run innermost in memory."""
        parts = chain((f.gram(g, at, beside, trace) for f, g in pairs), map(gram_of_rows, left(at), right(beside)))
        total = next(parts, None)
        for part in parts:
            total += part  # our own, or traced
        return xp.zeros((v, n, w, m), y.dtype)[:, at, :, beside] if total is None else total

    if type(y) is Traced:
        return xp.transpose(block(ALL, ALL), (1, 3, 0, 2))
    step = isqrt(CACHED // held) if once else min(isqrt(PIECE // held), PIECE // formed)
    result = xp.empty((n, m, v, w), wide(y).dtype)
    for at in pieces(n, step):
        for beside in pieces(m, step):
            if a is not b or at.start <= beside.start:
                k = block(at, beside)
                result[at, beside] = k.transpose(1, 3, 0, 2)
                if a is b and at != beside:
                    result[beside, at] = k.transpose(3, 1, 2, 0)
    return result


def _divided(a: Apart, b: Apart, trace: bool) -> tuple[list[tuple[Paired, Paired]], list[int]]:
    """(parameters as pairs of outer products, the numbers of those whose Jacobians are formed)."""
    pairs, rest = [], []
    for i in range(len(a.call.leaves)):
        f, g = a.paired(i), b.paired(i)
        if f is not None and type(f) is type(g) and g is not None and _cheaper_in_pairs(f, g, trace):
            pairs.append((f, g))
        else:
            rest.append(i)
    return pairs, rest


def _cheaper_in_pairs(f: Paired, g: Paired, trace: bool) -> bool:
    """Whether products of all pairs of rows take fewer operations than those of formed Jacobians."""
    (v, _, r, n), (w, _, s, _) = f.d.shape, g.d.shape
    pairs = v if trace else v * w
    return r * s == 1 or r * s * (f.inner + pairs * (n + 1)) <= pairs * prod(f.shape)


def _rows_of(a: Apart, leaves: list[int], trace: bool, once: bool) -> Callable[[slice], list[Any]]:
    """Samples -> their Jacobians by some parameters, one row an output: [V, B, size]; with `trace` [1, B, V * size].

    `once`: made for all samples now, and not anew each time they are asked for.
    """

    def made(at: slice) -> list[Any]:
        stacks = [wide(d) for d in a.dense(leaves, at)] if leaves else []
        return [stack_along(d.reshape((*d.shape[:2], prod(d.shape[2:]))), trace) for d in stacks]

    if not once:
        return made
    every = made(ALL)
    return lambda at: [d[:, at] for d in every]
