"""What the ops of linear algebra share: triangles, symmetric matrices given by one triangle, checks, batch rules.

Matrices stand on the last two axes, (..., M, N); a stack of them is [V, ..., M, N].
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from ..op import describe, shape_of
from ..trace import HANDLERS
from .batching import Mixed, Tag, agree
from .shape import broadcast_to, linear_map


def mt(xp: Any, x: Any) -> Any:
    """The transposed matrices."""
    return xp.swapaxes(x, -1, -2)


def _triangle_batch(tags: tuple, shapes: tuple, static: dict) -> Any:
    return tags[0]  # each entry is kept or becomes 0


# tril and triu keep some entries and make the others 0: each is its own transpose.
_tril = linear_map(
    "tril", lambda xp, x, lead, *, k: xp.tril(x, k), lambda xp, dy, shape, *, k: xp.tril(dy, k), batch=_triangle_batch
)
_triu = linear_map(
    "triu", lambda xp, x, lead, *, k: xp.triu(x, k), lambda xp, dy, shape, *, k: xp.triu(dy, k), batch=_triangle_batch
)


def _triangle(name: str, op: Any) -> Any:
    def call(m: Any, k: int = 0) -> Any:
        shape = shape_of(m)
        if not shape:
            raise ValueError(f"{name}: expected an array of at least one dimension, got {describe(m)}")
        return op(broadcast_to(m, shape * 2) if len(shape) == 1 else m, k=int(k))

    return call


tril, triu = _triangle("tril", _tril), _triangle("triu", _triu)


def from_lower(xp: Any, x: Any) -> Any:
    """The symmetric matrices whose lower triangle is that of x: what LAPACK makes of them."""
    return xp.tril(x) + mt(xp, xp.tril(x, -1))


def onto_lower(xp: Any, g: Any) -> Any:
    """The transpose of `from_lower`: the cotangent of a symmetric matrix, seen from its lower triangle."""
    return xp.tril(g) + mt(xp, xp.triu(g, 1))


def half_lower(xp: Any, x: Any) -> Any:
    """Φ(x): the lower triangle with half of the diagonal, so that Φ(s) + Φ(s)ᵀ = s for symmetric s."""
    return 0.5 * (xp.tril(x) + xp.tril(x, -1))


def diagonal_of(xp: Any, x: Any) -> Any:
    """The main diagonals (..., N) of square matrices."""
    return xp.diagonal(x, 0, x.ndim - 2, x.ndim - 1)


def on_diagonal(xp: Any, d: Any) -> Any:
    """Diagonal matrices (..., N, N) of d (..., N)."""
    return xp.expand_dims(d, -1) * xp.eye(d.shape[-1], dtype=d.dtype)


def inverse_gaps(xp: Any, w: Any, sign: int = -1) -> Any:
    """E_ij = 1 / (w_j ± w_i), and 0 where that is 0 but for rounding. w (..., N) -> (..., N, N)."""
    n = w.shape[-1]
    gap = xp.expand_dims(w, -2) + sign * xp.expand_dims(w, -1)
    if not n:
        return gap
    noise = n * float(np.finfo(w.dtype).eps) * xp.max(xp.abs(w), axis=-1, keepdims=True)
    equal = xp.less_equal(xp.abs(gap), xp.expand_dims(noise, -1))
    return xp.where(equal, 0, 1 / xp.where(equal, 1, gap))


def check_matrix(name: str, a: Any, square: bool = False) -> None:
    """Raise unless `a` holds (square) matrices of a dtype that LAPACK takes."""
    shape = shape_of(a)
    if len(shape) < 2 or (square and shape[-1] != shape[-2]):
        what = "square matrices (..., N, N)" if square else "matrices (..., M, N)"
        raise np.linalg.LinAlgError(f"{name}: expected {what}, got {describe(a)}")
    check_lapack(name, a)


def check_lapack(name: str, a: Any) -> None:
    """Raise TypeError for float16, which LAPACK does not take."""
    if getattr(a, "dtype", None) == np.float16:
        raise TypeError(f"{name}: expected float32 or float64, got {describe(a)}; cast it with x.astype(np.float32)")


@cache
def result_class(name: str) -> Any:
    """The named tuple that np.linalg's function `name` returns."""
    return type(getattr(np.linalg, name)(np.ones((1, 1))))


def matrices_batch(name: str, *cores: int) -> Any:
    """The batch rule of an op on matrices, with `cores` axes of its own in each result."""

    def batch(tags: tuple, shapes: tuple, static: dict) -> Any:
        tag = agree(tags, name)
        if isinstance(tag, Tag) and tag.axis >= -2:
            tag = Mixed(name, "works along the batch axis")
        found = [Tag(tag.axis + 2 - n, tag.rows) if isinstance(tag, Tag) else tag for n in cores]
        return found if len(found) > 1 else found[0]

    return batch


HANDLERS.update({np.tril: tril, np.triu: triu})
