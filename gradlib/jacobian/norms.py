"""per_sample_norms: norms of every sample's gradient, from activations and cotangents where the structure is known.

    y = x @ w, one row a sample:       |dw_b|² = |x_b|² |dy_b|²
    R rows a sample:                   |dw_b|² = Σ_rs (x_br · x_bs) (dy_br · dy_bs)
    y = table[ids], R rows a sample:   |dtable_b|² = Σ_rs [ids_br = ids_bs] (dy_br · dy_bs)

or the gradient is formed, whichever is cheaper. A parameter used in several products has the rows of all of them.
Sources: Goodfellow 2015, "Efficient per-example gradient computations" (arXiv:1510.01799); Rochette et al. 2019
(arXiv:1912.06015).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from math import prod
from typing import Any

from ..precision import wide
from ..trace import Traced, module_of
from .apart import Apart, pieces
from .batched import Batched, losses
from .factors import Paired

PIECE = 1 << 23  # bytes to hold at a time; all samples at once for values that an outer transform traces


def per_sample_norms(
    loss: Callable[..., Any], argnums: int | tuple[int, ...] = 0, in_axes: Any = None, *, per_leaf: bool = False
) -> Callable[..., Any]:
    """Function that gives the Euclidean norm of every sample's gradient over all chosen arguments together: (B,).

    `loss` works on the whole batch and returns (B,). By default the arguments `argnums` names are shared by all
    samples and the others batched; `in_axes` (0 or None for each argument) says otherwise. With `per_leaf` the norms
    are given for each array: the structure of the arguments, (B,) at each leaf.

    The gradients themselves, `per_sample_grad`, are not formed for weights of products (`x @ w`, `gl.linear`) and for
    tables of which rows are picked; for other uses they are, for a few samples at a time. Squares are summed in the
    arrays' dtype, float16 and bfloat16 in float32.

    Raises ValueError when `loss` mixes samples or does not return (B,), or `in_axes` does not match the arguments;
    TypeError for arguments that are not floating point.

    >>> import gradlib as gl, numpy as np
    >>> loss = lambda w, x: x @ w
    >>> gl.per_sample_norms(loss)(np.ones(2), np.array([[3.0, 4.0], [0.0, 1.0]]))
    array([5., 1.])
    """

    @wraps(loss)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        call = losses("per_sample_norms", loss, argnums, in_axes, args, kwargs)
        y = call.outputs.values[0]
        xp = module_of(y)
        squares = squared_norms(call)
        if not per_leaf:
            return _root(xp, sum(squares, xp.zeros(y.shape, y.dtype))).astype(y.dtype)
        trees = call.rebuild([_root(xp, s).astype(x.dtype) for s, x in zip(squares, call.leaves, strict=True)])
        return tuple(trees) if isinstance(argnums, tuple) else trees[0]

    return wrapped


def _root(xp: Any, squares: Any) -> Any:
    """√ of squares, with derivative 0 at 0, as of any norm."""
    if type(squares) is not Traced:
        return xp.sqrt(squares)
    positive = xp.greater(squares, 0)
    return xp.where(positive, xp.sqrt(xp.where(positive, squares, 1)), squares)


def squared_norms(call: Batched) -> list[Any]:
    """|dx_b|² of every sample's gradient, (B,) for each wanted leaf."""
    y = call.outputs.values[0]
    apart = Apart(call, [module_of(y).ones((1, *y.shape), y.dtype)])
    pairs = {i: f for i in range(len(call.leaves)) if (f := apart.paired(i)) is not None and _cheaper_in_pairs(f)}
    rest = [i for i in range(len(call.leaves)) if i not in pairs]
    held = apart.entries(rest) + max([2 * f.d.shape[2] ** 2 for f in pairs.values()], default=0)
    step = call.samples if type(y) is Traced else PIECE // max(held * y.dtype.itemsize, 1)
    parts = [_squares(apart, pairs, rest, at) for at in pieces(call.samples, step)]
    return [p[0] if len(p) == 1 else module_of(p[0]).concatenate(p) for p in zip(*parts, strict=True)]


def _cheaper_in_pairs(f: Paired) -> bool:
    """Whether products of all pairs of a sample's rows take fewer operations than the gradient."""
    rows, n = f.d.shape[2:]
    return rows == 1 or rows * rows * (f.inner + n + 1) <= (rows * f.inner * n + prod(f.shape))


def _squares(apart: Apart, pairs: dict[int, Paired], rest: list[int], at: slice) -> list[Any]:
    found = {i: f.squares(at)[0] for i, f in pairs.items()}
    for i, d in zip(rest, apart.dense(rest, at) if rest else [], strict=True):
        d = wide(d[0])
        found[i] = module_of(d).sum(d * d, axis=tuple(range(1, d.ndim)))
    return [found[i] for i in range(len(apart.call.leaves))]
