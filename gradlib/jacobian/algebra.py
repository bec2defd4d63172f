"""Products, sums and transposes of blocks. They keep structure where a pair has a rule, and else stay unevaluated.

    diag(a) diag(b) = diag(ab)                     diag(a) + diag(b) = diag(a + b)
    diag(a) (diag(d) - U Vᵀ) = diag(ad) - (aU) Vᵀ   (diag(d) - U Vᵀ) diag(a) = diag(da) - U (aV)ᵀ
    diag(a) (diag(d) Wᵀ) = diag(ad) Wᵀ              W₂ᵀ W₁ᵀ = (W₁ W₂)ᵀ, one matrix for all samples

A rule is found by the classes of its two blocks; nothing is multiplied by an identity.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..trace import module_of
from .blocks import Block, Dense, Diagonal, DiagonalLowRank, Gather, Identity, Kronecker, RepeatedDiagonal, RowGradient
from .blocks import SharedDense as Shared


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
    found = _PRODUCTS.get((type(a), type(b)), Product)(a, b)
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


def _low_rank_scaled(a: Diagonal, b: DiagonalLowRank) -> Block:
    return DiagonalLowRank(a.d * b.d, tuple([a.d * u for u in b.u]), b.v, b.axis)


def _low_rank_of_scaled(a: DiagonalLowRank, b: Diagonal) -> Block:
    return DiagonalLowRank(a.d * b.d, a.u, tuple([v * b.d for v in a.v]), a.axis)


_PRODUCTS: dict[tuple[type, type], Callable[[Any, Any], Block | None]] = {
    (Diagonal, Diagonal): lambda a, b: Diagonal(a.d * b.d),
    (Diagonal, DiagonalLowRank): _low_rank_scaled,
    (DiagonalLowRank, Diagonal): _low_rank_of_scaled,
    (Diagonal, Shared): lambda a, b: Shared(b.w, b.x_shape[:-1], _times(b.d, a.d)),
    (Shared, Shared): _shared_after_shared,
    (Diagonal, Dense): lambda a, b: Dense(a.d[..., None] * b.m),
    (Dense, Diagonal): lambda a, b: Dense(a.m * b.d[..., None, :]),
    (Dense, Dense): lambda a, b: Dense(a.m @ b.m),
    (Diagonal, RowGradient): lambda a, b: RowGradient(a.d.reshape(b.kept) * b.g, b.axes, b.keepdims),
    (RowGradient, Diagonal): lambda a, b: RowGradient(a.g * b.d, a.axes, a.keepdims),
    (Diagonal, Kronecker): lambda a, b: Kronecker(b.x, b.y_shape[-1], _times(b.d, a.d)),
    (Diagonal, RepeatedDiagonal): lambda a, b: RepeatedDiagonal(b.like, b.y_shape, _times(b.d, a.d)),
    (Identity, Identity): lambda a, b: Identity(b.like, b.x_shape, a.y_shape),
    (Identity, Gather): lambda a, b: (
        Gather(b.like, b.index.reshape(a.y_shape[1:]), b.x_shape) if a.y_shape[:1] == b.x_shape[:1] else None
    ),
    (Gather, Identity): lambda a, b: Gather(a.like, a.index, b.x_shape) if a.x_shape[:1] == b.x_shape[:1] else None,
    (Gather, Gather): lambda a, b: Gather(a.like, b.index.reshape(-1)[a.index], b.x_shape),
}
_SUMS: dict[tuple[type, type], Callable[[Any, Any], Block | None]] = {
    (Diagonal, Diagonal): lambda a, b: Diagonal(a.d + b.d),
    (Diagonal, DiagonalLowRank): lambda a, b: DiagonalLowRank(a.d + b.d, b.u, b.v, b.axis),
    (Dense, Dense): lambda a, b: Dense(a.m + b.m),
    (Shared, Shared): _shared_sum,
    (RowGradient, RowGradient): _gradient_sum,
}
_TRANSPOSES: dict[type, Callable[[Any], Block | None]] = {
    Identity: lambda a: Identity(a.like, a.y_shape, a.x_shape),
    Diagonal: lambda a: a,
    DiagonalLowRank: lambda a: DiagonalLowRank(a.d, a.v, a.u, a.axis),
    Dense: lambda a: Dense(a.m.swapaxes(-1, -2)),
    Shared: lambda a: Shared(a.w.T, a.y_shape[:-1]) if a.d is None else None,
    Product: lambda a: product(transposed(a.b), transposed(a.a)),
    Sum: lambda a: plus(transposed(a.a), transposed(a.b)),
    Transposed: lambda a: a.a,
}
