"""Products, sums and transposes of blocks. They keep structure where a pair has a rule, and else stay unevaluated.

    diag(a) diag(b) = diag(ab)                     diag(a) + diag(b) = diag(a + b)
    diag(a) (diag(d) - U Vᵀ) = diag(ad) - (aU) Vᵀ   (diag(d) - U Vᵀ) diag(a) = diag(da) - U (aV)ᵀ
    diag(a) (diag(d) Wᵀ) = diag(ad) Wᵀ              W₂ᵀ W₁ᵀ = (W₁ W₂)ᵀ, one matrix for all samples
    (diag(d) - U Vᵀ) (diag(e) - P Qᵀ) = diag(de) - U (eV)ᵀ - (dP - U VᵀP) Qᵀ

A row's sum or maximum gᵀ (`RowGradient`) that is broadcast over the row by s (`Spread`) is the outer product s gᵀ: so
``x - x.mean(axis=1, keepdims=True)`` and softmax written by hand are diagonals minus few outer products too.

A rule is found by the classes of its two blocks; nothing is multiplied by an identity.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..precision import narrow, wide
from ..trace import module_of
from .blocks import (
    Block,
    Dense,
    Diagonal,
    DiagonalLowRank,
    Gather,
    Identity,
    Kronecker,
    RepeatedDiagonal,
    RowGradient,
    Select,
    Spread,
)
from .blocks import SharedDense as Shared

RANK = 4  # outer products up to which rows stay diagonals with so many


class Product(Block):
    """a after b, kept as the two."""

    def __init__(self, a: Block, b: Block) -> None:
        self.a, self.b, self.like = a, b, a.like
        self.x_shape, self.y_shape = b.x_shape, a.y_shape

    def vjp(self, dy: Any) -> Any:
        return self.b.vjp(self.a.vjp(dy))

    def jvp(self, dx: Any) -> Any:
        return self.a.jvp(self.b.jvp(dx))


class Sum(Block):
    """a + b, kept as the two."""

    def __init__(self, a: Block, b: Block) -> None:
        self.a, self.b, self.like = a, b, a.like
        self.x_shape, self.y_shape = a.x_shape, a.y_shape

    def vjp(self, dy: Any) -> Any:
        return self.a.vjp(dy) + self.b.vjp(dy)

    def jvp(self, dx: Any) -> Any:
        return self.a.jvp(dx) + self.b.jvp(dx)


class Transposed(Block):
    """aᵀ."""

    def __init__(self, a: Block) -> None:
        self.a, self.like = a, a.like
        self.x_shape, self.y_shape = a.y_shape, a.x_shape

    def vjp(self, dy: Any) -> Any:
        return self.a.jvp(dy)

    def jvp(self, dx: Any) -> Any:
        return self.a.vjp(dx)


def product(a: Block, b: Block) -> Block:
    """The block of a after b: a @ b. ValueError where b's result is not of the shape that a takes."""
    if a.x_shape != b.y_shape:
        raise ValueError(f"blocks do not fit: a result of shape {b.y_shape} before an input of shape {a.x_shape}")
    if _is_copy(a):
        return b
    if _is_copy(b):
        return a
    rule = _PRODUCTS.get((type(a), type(b)))
    if rule is None and Select in (type(a), type(b)):
        return product(_as_diagonal(a), _as_diagonal(b))
    found = rule(a, b) if rule is not None else None
    return Product(a, b) if found is None else found


def plus(a: Block, b: Block) -> Block:
    """a + b. ValueError for blocks between other shapes."""
    if (a.x_shape, a.y_shape) != (b.x_shape, b.y_shape):
        raise ValueError(f"blocks do not fit: {a.x_shape} -> {a.y_shape} and {b.x_shape} -> {b.y_shape}")
    a, b = _as_diagonal(a), _as_diagonal(b)
    for first, second in ((a, b), (b, a)):
        rule = _SUMS.get((type(first), type(second)))
        found = rule(first, second) if rule is not None else None
        if found is not None:
            return found
    return Sum(a, b)


def transposed(a: Block) -> Block:
    """aᵀ, from the results of a to its inputs."""
    rule = _TRANSPOSES.get(type(a))
    found = rule(a) if rule is not None else None
    return Transposed(a) if found is None else found


def _is_copy(a: Block) -> bool:
    return type(a) is Identity and a.x_shape == a.y_shape


def _as_diagonal(a: Block) -> Block:
    if type(a) is Select:
        return a.diagonal()
    return Diagonal(module_of(a.like).ones(a.x_shape, a.like.dtype)) if _is_copy(a) else a


def _times(d: Any, scale: Any) -> Any:
    """d scale, where None stands for ones."""
    return scale if d is None else d * scale


def _shared_after_shared(a: Shared, b: Shared) -> Block | None:
    k, m, n = b.w.shape[0], b.w.shape[1], a.w.shape[1]
    # worth it where applying the product costs no more than applying both
    return Shared(b.w @ a.w, b.x_shape[:-1], a.d) if b.d is None and k * n <= m * (k + n) else None


def _shared_sum(a: Shared, b: Shared) -> Block | None:
    return Shared(a.w + b.w, a.x_shape[:-1]) if a.d is None and b.d is None else None


def _gradient_sum(a: RowGradient, b: RowGradient) -> Block | None:
    return RowGradient(a.g + b.g, a.axes, a.keepdims) if (a.axes, a.keepdims) == (b.axes, b.keepdims) else None


def _gradient_reshaped(a: Identity, b: RowGradient) -> Block | None:
    """The rows' numbers with their axes of size 1, or without."""
    kept = RowGradient(b.g, b.axes, not b.keepdims)
    return kept if kept.y_shape == a.y_shape else None


def _gradient_of_gradient(a: RowGradient, b: RowGradient) -> Block | None:
    if a.keepdims != b.keepdims:
        return None
    left = [i for i in range(len(b.x_shape)) if b.keepdims or i not in b.axes]
    axes = tuple(sorted({*b.axes, *[left[i] for i in a.axes]}))
    return RowGradient(a.g.reshape(b.kept) * b.g, axes, a.keepdims)


def _dot(a: Any, b: Any, axis: int) -> Any:
    """Σ ab along an axis, kept with size 1."""
    return narrow((wide(a) * wide(b)).sum(axis=axis, keepdims=True), a.dtype)


def _gradient_of_rows(a: RowGradient, b: DiagonalLowRank) -> Block | None:
    if a.axes != (b.axis,):
        return None
    g = a.g * b.d
    for u, v in zip(b.u, b.v, strict=True):
        g = g - _dot(a.g, u, b.axis) * v
    return RowGradient(g, a.axes, a.keepdims)


def _rows_of_spread(a: DiagonalLowRank, b: Spread) -> Block | None:
    if b.axes != (a.axis,):
        return None
    g = a.d * b.g
    for u, v in zip(a.u, a.v, strict=True):
        g = g - _dot(v, b.g, a.axis) * u
    return Spread(g, b.x_shape)


def _spread_of_gradient(a: Spread, b: RowGradient) -> Block | None:
    if not b.keepdims or a.axes != b.axes or len(b.axes) != 1 or a.y_shape != b.x_shape:
        return None
    return DiagonalLowRank(module_of(a.g).zeros(a.y_shape, a.g.dtype), (-a.g,), (b.g,), *b.axes)


def _gradient_of_spread(a: RowGradient, b: Spread) -> Block | None:
    return Diagonal(_dot(a.g, b.g, *a.axes)) if a.keepdims and a.axes == b.axes and len(a.axes) == 1 else None


def _rows_of_rows(a: DiagonalLowRank, b: DiagonalLowRank) -> Block | None:
    if a.axis != b.axis or len(a.u) + len(b.u) > RANK:
        return None
    left = []
    for p in b.u:
        q = a.d * p
        for u, v in zip(a.u, a.v, strict=True):
            q = q - _dot(v, p, a.axis) * u
        left.append(q)
    return DiagonalLowRank(a.d * b.d, (*a.u, *left), (*[v * b.d for v in a.v], *b.v), a.axis)


def _rows_sum(a: DiagonalLowRank, b: DiagonalLowRank) -> Block | None:
    if a.axis != b.axis or len(a.u) + len(b.u) > RANK:
        return None
    return DiagonalLowRank(a.d + b.d, a.u + b.u, a.v + b.v, a.axis)


def _low_rank_scaled(a: Diagonal, b: DiagonalLowRank) -> Block:
    return DiagonalLowRank(a.d * b.d, tuple([a.d * u for u in b.u]), b.v, b.axis)


def _low_rank_of_scaled(a: DiagonalLowRank, b: Diagonal) -> Block:
    return DiagonalLowRank(a.d * b.d, a.u, tuple([v * b.d for v in a.v]), a.axis)


_PRODUCTS: dict[tuple[type, type], Callable[[Any, Any], Block | None]] = {
    (Diagonal, Diagonal): lambda a, b: Diagonal(a.d * b.d),
    (Diagonal, Select): lambda a, b: Diagonal(b.masked(a.d)),
    (Select, Diagonal): lambda a, b: Diagonal(a.masked(b.d)),
    (Select, Select): lambda a, b: Select(b.like, module_of(a.keep).logical_and(a.keep, b.keep)),
    (Diagonal, DiagonalLowRank): _low_rank_scaled,
    (DiagonalLowRank, Diagonal): _low_rank_of_scaled,
    (Diagonal, Shared): lambda a, b: Shared(b.w, b.x_shape[:-1], _times(b.d, a.d)),
    (Shared, Shared): _shared_after_shared,
    (Diagonal, Dense): lambda a, b: Dense(a.d[..., None] * b.m),
    (Dense, Diagonal): lambda a, b: Dense(a.m * b.d[..., None, :]),
    (Dense, Dense): lambda a, b: Dense(a.m @ b.m),
    (Diagonal, RowGradient): lambda a, b: RowGradient(a.d.reshape(b.kept) * b.g, b.axes, b.keepdims),
    (RowGradient, Diagonal): lambda a, b: RowGradient(a.g * b.d, a.axes, a.keepdims),
    (RowGradient, RowGradient): _gradient_of_gradient,
    (RowGradient, DiagonalLowRank): _gradient_of_rows,
    (RowGradient, Spread): _gradient_of_spread,
    (Identity, RowGradient): _gradient_reshaped,
    (Spread, RowGradient): _spread_of_gradient,
    (Spread, Diagonal): lambda a, b: Spread(a.g * b.d, a.x_shape),
    (Spread, Spread): lambda a, b: Spread(a.g * b.g, b.x_shape),
    (Diagonal, Spread): lambda a, b: Spread(a.d * b.g, b.x_shape),
    (DiagonalLowRank, Spread): _rows_of_spread,
    (DiagonalLowRank, DiagonalLowRank): _rows_of_rows,
    (Diagonal, Kronecker): lambda a, b: Kronecker(b.x, b.y_shape[-1], _times(b.d, a.d)),
    (Diagonal, RepeatedDiagonal): lambda a, b: RepeatedDiagonal(b.like, b.y_shape, _times(b.d, a.d)),
    (Identity, Identity): lambda a, b: Identity(b.like, b.x_shape, a.y_shape),
    (Identity, Gather): lambda a, b: (
        Gather(b.like, b.index.reshape(a.y_shape[1:]), b.x_shape, b.distinct)
        if a.y_shape[:1] == b.x_shape[:1]
        else None
    ),
    (Gather, Identity): lambda a, b: (
        Gather(a.like, a.index, b.x_shape, a.distinct) if a.x_shape[:1] == b.x_shape[:1] else None
    ),
    (Gather, Gather): lambda a, b: Gather(a.like, b.index.reshape(-1)[a.index], b.x_shape, a.distinct and b.distinct),
}
_SUMS: dict[tuple[type, type], Callable[[Any, Any], Block | None]] = {
    (Diagonal, Diagonal): lambda a, b: Diagonal(a.d + b.d),
    (Diagonal, DiagonalLowRank): lambda a, b: DiagonalLowRank(a.d + b.d, b.u, b.v, b.axis),
    (Dense, Dense): lambda a, b: Dense(a.m + b.m),
    (Shared, Shared): _shared_sum,
    (RowGradient, RowGradient): _gradient_sum,
    (DiagonalLowRank, DiagonalLowRank): _rows_sum,
    (Spread, Spread): lambda a, b: Spread(a.g + b.g, a.x_shape),
}
_TRANSPOSES: dict[type, Callable[[Any], Block | None]] = {
    Identity: lambda a: Identity(a.like, a.y_shape, a.x_shape),
    Diagonal: lambda a: a,
    Select: lambda a: a,
    DiagonalLowRank: lambda a: DiagonalLowRank(a.d, a.v, a.u, a.axis),
    Dense: lambda a: Dense(a.m.swapaxes(-1, -2)),
    Spread: lambda a: RowGradient(a.g, a.axes, keepdims=True),
    RowGradient: lambda a: Spread(a.g, a.y_shape) if a.keepdims else None,
    Shared: lambda a: Shared(a.w.T, a.y_shape[:-1]) if a.d is None else None,
    Product: lambda a: product(transposed(a.b), transposed(a.a)),
    Sum: lambda a: plus(transposed(a.a), transposed(a.b)),
    Transposed: lambda a: a.a,
}
