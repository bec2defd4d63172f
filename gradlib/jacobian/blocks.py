"""Structured Jacobian blocks of single ops: what an op's `block` rule returns.

A block is the Jacobian ∂y/∂x of one op at one point, for x of shape `x_shape` and y of shape `y_shape`, stored by
its structure. Every class has

    vjp(dy)      stack [V, *y] -> [V, *x]
    jvp(dx)      stack [V, *x] -> [V, *y]
    to_dense()   the array (*y, *x)
    flops()      operations that `vjp` or `jvp` takes for one member of the stack
    a @ b        the block of a after b, a + b their sum, a.T the transpose: see ``gradlib.jacobian.algebra``

A new structure (a banded one for convolutions, say) must bring `vjp` and `jvp`, `to_dense` and `flops` where it knows
better than what holds by default, and its arrays as attributes. Products and sums with others then work, and keep its
structure once `algebra` has a rule for the pair. A batched Jacobian applies it as a part of its chain (see ``chain``),
to stacks of the whole batch; the structures with a class of their own in ``segments`` also to a few samples at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from ..device import array_module
from ..precision import narrow, wide
from ..segment_sum import segment_sum
from ..trace import module_of


class Block:
    """Base: dense form by pushing the unit vectors of x forward."""

    x_shape: tuple[int, ...]
    y_shape: tuple[int, ...]
    like: Any

    def vjp(self, dy: Any) -> Any:
        raise NotImplementedError

    def jvp(self, dx: Any) -> Any:
        raise NotImplementedError

    def flops(self) -> float:
        """Operations of `vjp` or `jvp` for one member of the stack; two an entry, where a class does not say more."""
        return 2.0 * (prod(self.x_shape) + prod(self.y_shape))

    def __matmul__(self, other: Block) -> Block:
        from .algebra import product

        return product(self, other)

    def __add__(self, other: Block) -> Block:
        from .algebra import plus

        return plus(self, other)

    @property
    def T(self) -> Block:
        from .algebra import transposed

        return transposed(self)

    def to_dense(self) -> Any:
        """The Jacobian as an array (*y, *x)."""
        xp, n = array_module(self.like), prod(self.x_shape)
        columns = self.jvp(xp.eye(n, dtype=self.like.dtype).reshape(n, *self.x_shape))
        return xp.moveaxis(columns, 0, -1).reshape((*self.y_shape, *self.x_shape))


class Identity(Block):
    """Entries that keep their order: a copy, or a reshape from `x_shape` to `y_shape`."""

    def __init__(self, like: Any, x_shape: tuple[int, ...], y_shape: tuple[int, ...] | None = None) -> None:
        self.like, self.x_shape = like, x_shape
        self.y_shape = x_shape if y_shape is None else y_shape

    def vjp(self, dy: Any) -> Any:
        return dy.reshape((dy.shape[0], *self.x_shape))

    def jvp(self, dx: Any) -> Any:
        return dx.reshape((dx.shape[0], *self.y_shape))


class Gather(Block):
    """Entries picked from every sample: y_bi = x_b[index_i], x_b seen as one row.

    `index`: integers, the shape of one sample of y, the same for all samples of x, whose first axis they are.
    `distinct`: whether it is known that none is picked twice; going back, those of one place add up.
    """

    def __init__(self, like: Any, index: Any, x_shape: tuple[int, ...], distinct: bool = True) -> None:
        self.like, self.index, self.x_shape, self.distinct = like, index, x_shape, distinct
        self.y_shape = (x_shape[0], *index.shape)

    def vjp(self, dy: Any) -> Any:
        rows = dy.shape[:2]
        dx = array_module(self.like).zeros((*rows, prod(self.x_shape[1:])), dy.dtype)
        put(dy.reshape((*rows, self.index.size)), self.index.reshape(-1), dx, self.distinct)
        return dx.reshape((dy.shape[0], *self.x_shape))

    def jvp(self, dx: Any) -> Any:
        return dx.reshape((*dx.shape[:2], prod(self.x_shape[1:])))[..., self.index]


def put(d: Any, index: Any, out: Any, distinct: bool) -> None:
    """out[..., index] += d in zeros."""
    if distinct:
        out[..., index] = d
    else:
        segment_sum(array_module(out), d, index, out)


class Dense(Block):
    """A matrix for every row: y_r = m_r x_r, m (..., N, K), x (..., K), y (..., N)."""

    def __init__(self, m: Any) -> None:
        self.m = self.like = m
        self.x_shape, self.y_shape = (*m.shape[:-2], m.shape[-1]), m.shape[:-1]

    def vjp(self, dy: Any) -> Any:
        return (dy[..., None, :] @ self.m)[..., 0, :]

    def jvp(self, dx: Any) -> Any:
        return (self.m @ dx[..., None])[..., 0]

    def flops(self) -> float:
        return 2.0 * self.m.size


class Diagonal(Block):
    """∂y_i/∂x_j = d_i δ_ij: elementwise ops. `d` has the shape of x and y."""

    def __init__(self, d: Any) -> None:
        self.d = self.like = d
        self.x_shape = self.y_shape = d.shape

    def vjp(self, dy: Any) -> Any:
        return dy * self.d

    def jvp(self, dx: Any) -> Any:
        return dx * self.d


class Select(Block):
    """Entries that pass where `keep`, as bools of the shape of x and y, says so; the others give exactly 0, as in
    np.where, even where the derivative behind them is infinite."""

    def __init__(self, like: Any, keep: Any) -> None:
        self.like, self.keep = like, keep
        self.x_shape = self.y_shape = keep.shape

    def masked(self, d: Any) -> Any:
        return module_of(self.keep).where(self.keep, d, module_of(self.like).zeros((), self.like.dtype))

    def diagonal(self) -> Diagonal:
        return Diagonal(self.masked(module_of(self.like).ones((), self.like.dtype)))

    def vjp(self, dy: Any) -> Any:
        return self.masked(dy)

    def jvp(self, dx: Any) -> Any:
        return self.masked(dx)


class DiagonalLowRank(Block):
    """diag(d) - Σₖ uₖ vₖᵀ along `axis`, each row its own: softmax (d = u = v = y), norms. d, uₖ, vₖ have x's shape.

    u, v: as many arrays each as the rank of the second part.
    """

    def __init__(self, d: Any, u: tuple[Any, ...], v: tuple[Any, ...], axis: int) -> None:
        self.d, self.u, self.v, self.axis = d, u, v, axis
        self.like = d
        self.x_shape = self.y_shape = d.shape

    def _apply(self, s: Any, left: tuple[Any, ...], right: tuple[Any, ...]) -> Any:
        stack = wide(s)
        y = stack * wide(self.d)
        for a, b in zip(left, right, strict=True):
            y = y - wide(a) * (stack * wide(b)).sum(axis=self.axis + 1, keepdims=True)
        return narrow(y, s.dtype)

    def vjp(self, dy: Any) -> Any:
        return self._apply(dy, self.v, self.u)

    def jvp(self, dx: Any) -> Any:
        return self._apply(dx, self.u, self.v)


class RowGradient(Block):
    """One number for each row of x, along `axes`: ∂y_n/∂x_nc = g_nc (sums, logsumexp, losses). g has x's shape."""

    def __init__(self, g: Any, axes: tuple[int, ...], keepdims: bool = False) -> None:
        self.g = self.like = g
        self.axes, self.keepdims = axes, keepdims
        self.x_shape = g.shape
        kept = [1 if i in axes else n for i, n in enumerate(g.shape)]
        self.kept = tuple(kept)
        self.y_shape = self.kept if keepdims else tuple(n for i, n in enumerate(g.shape) if i not in axes)

    def vjp(self, dy: Any) -> Any:
        return dy.reshape((dy.shape[0], *self.kept)) * self.g

    def jvp(self, dx: Any) -> Any:
        products = wide(dx) * wide(self.g)
        return narrow(products.sum(axis=tuple(a + 1 for a in self.axes), keepdims=self.keepdims), dx.dtype)


class Spread(Block):
    """Entries of x broadcast along its axes of size 1: ∂y_nc/∂x_n = g_nc, the transpose of a `RowGradient`.

    g has y's shape; x has as many axes.
    """

    def __init__(self, g: Any, x_shape: tuple[int, ...]) -> None:
        self.g = self.like = g
        self.x_shape, self.y_shape = x_shape, g.shape

    @property
    def axes(self) -> tuple[int, ...]:
        return tuple([i for i, (n, m) in enumerate(zip(self.x_shape, self.y_shape, strict=True)) if n != m])

    def vjp(self, dy: Any) -> Any:
        products = wide(dy) * wide(self.g)
        return narrow(products.sum(axis=tuple([a + 1 for a in self.axes]), keepdims=True), dy.dtype)

    def jvp(self, dx: Any) -> Any:
        return dx * self.g


class SharedDense(Block):
    """y = (x @ w) * d: one matrix w (K, N) shared by all rows of x (..., K), d (..., N) or None for 1."""

    def __init__(self, w: Any, lead: tuple[int, ...], d: Any = None) -> None:
        self.w, self.d = w, d
        self.like = w
        self.x_shape, self.y_shape = (*lead, w.shape[0]), (*lead, w.shape[1])

    def vjp(self, dy: Any) -> Any:
        return (dy if self.d is None else dy * self.d) @ self.w.T

    def jvp(self, dx: Any) -> Any:
        y = dx @ self.w
        return y if self.d is None else y * self.d


class Kronecker(Block):
    """y = (x @ w) * d seen from w (K, N): ∂y_bn/∂w_kj = x_bk δ_nj d_bn, the Kronecker product x ⊗ I. x (..., K)."""

    def __init__(self, x: Any, n: int, d: Any = None) -> None:
        self.x, self.d = x, d
        self.like = x
        self.x_shape, self.y_shape = (x.shape[-1], n), (*x.shape[:-1], n)

    def vjp(self, dy: Any) -> Any:
        dz = dy if self.d is None else dy * self.d
        rows = prod(self.y_shape[:-1])
        return self.x.reshape((rows, self.x.shape[-1])).T @ dz.reshape((dz.shape[0], rows, self.y_shape[-1]))

    def jvp(self, dx: Any) -> Any:
        rows = prod(self.y_shape[:-1])
        y = (self.x.reshape((rows, self.x.shape[-1])) @ dx).reshape((dx.shape[0], *self.y_shape))
        return y if self.d is None else y * self.d


class RepeatedDiagonal(Block):
    """x (N,) added to every row of y (..., N): ∂y_bn/∂x_j = δ_nj d_bn, d (..., N) or None for 1 (a bias)."""

    def __init__(self, like: Any, y_shape: tuple[int, ...], d: Any = None) -> None:
        self.like, self.d = like, d
        self.x_shape, self.y_shape = y_shape[-1:], y_shape

    def vjp(self, dy: Any) -> Any:
        return (dy if self.d is None else dy * self.d).sum(axis=tuple(range(1, dy.ndim - 1)))

    def jvp(self, dx: Any) -> Any:
        dx = dx.reshape((dx.shape[0], *(1,) * (len(self.y_shape) - 1), *self.x_shape))
        wide = array_module(self.like).broadcast_to(dx, (dx.shape[0], *self.y_shape))
        return wide if self.d is None else wide * self.d


class ByRules(Block):
    """Any op's input, by the op's own rules: for structures that have no class here."""

    def __init__(self, like: Any, shapes: tuple, vjp: Callable[..., Any], jvp: Callable[..., Any]) -> None:
        self.like = like
        self.x_shape, self.y_shape = shapes
        self._vjp, self._jvp = vjp, jvp

    def vjp(self, dy: Any) -> Any:
        return self._vjp(dy)

    def jvp(self, dx: Any) -> Any:
        return self._jvp(dx)
