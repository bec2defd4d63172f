"""Cotangents of shared parameters, one for every sample, held by their structure.

A factor stands for a stack g [V, B, *x]: the cotangents of a parameter x that come from one use of it. An op's
`vjp_each` may return one for each parameter:

    Rows       g itself
    Outer      g_vb = Σ_r x_br ⊗ d_vbr, of a product x @ w with R rows a sample
    Gathered   g_vb = Σ_r e_i ⊗ d_vbr, i = ids_br, of R rows a sample picked from a table
    Products   g_vb = Σ_e l_vbe @ r_vbe, of stacks of matrices, over the axes that the parameter lacks

Every factor writes itself down for the samples `at` with `dense(at, out)`. Outer and Gathered are `Paired`: `squares`
gives the norms and `gram` the inner products of every sample with every other, without that.
Sources: Goodfellow 2015 (arXiv:1510.01799) for norms; Novak et al. 2022 (arXiv:2206.08720) for Gramians.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from functools import cache
from math import prod
from typing import Any

import numpy as np

from .. import memory
from ..capture import recorded, spare_blas
from ..precision import narrow, wide
from ..trace import Traced, module_of, raw

ALL = slice(None)
LOOPED, TYPES = 1 << 18, (np.float32, np.float64)  # outer products of so many entries are written by a compiled loop


class Factor:
    """Base. `shape`: of the parameter, one sample's cotangent."""

    shape: tuple[int, ...]

    def dense(self, at: slice = ALL, out: Any = None) -> Any:
        """The stack [V, B, *x] for the samples `at`; written into `out` where it is given."""
        raise NotImplementedError

    def merged(self, rows: int) -> Factor:
        """Of samples that each own `rows` of these, one behind the other."""
        raise NotImplementedError


class Rows(Factor):
    """A stack [V, B, *x] as it is."""

    def __init__(self, g: Any) -> None:
        self.g, self.shape = g, g.shape[2:]

    def dense(self, at: slice = ALL, out: Any = None) -> Any:
        if out is None:
            return self.g[:, at]
        out[...] = self.g[:, at]
        return out

    def merged(self, rows: int) -> Rows:
        v, b = self.g.shape[:2]
        return Rows(self.g.reshape((v, b // rows, rows, *self.shape)).sum(axis=2))


class Products(Factor):
    """g_vb = Σ_e l_vbe @ r_vbe, multiplied when it is asked for: `left` and `right` [V or 1, B, ..., n, k] and
    [V or 1, B, ..., k, m]. Their other leading axes are the parameter's last ones; e are those that it lacks, or that
    have size 1 there, and are summed over together with k."""

    def __init__(self, left: Any, right: Any, shape: tuple[int, ...]) -> None:
        self.left, self.right, self.shape = left, right, shape

    def dense(self, at: slice = ALL, out: Any = None) -> Any:
        left, right = self.left[:, at], self.right[:, at]
        xp, lead = module_of(left), np.broadcast_shapes(left.shape[2:-2], right.shape[2:-2])
        own = (1,) * (len(lead) - len(self.shape) + 2) + self.shape[:-2]
        summed = [i + 2 for i, n in enumerate(own) if n == 1 and lead[i] != 1]
        if summed:
            kept, last = [i for i in range(len(lead) + 2) if i not in summed], len(lead) + 2
            left, right = (xp.broadcast_to(a, (*a.shape[:2], *lead, *a.shape[-2:])) for a in (left, right))
            left = _merged(xp.transpose(left, (*kept, last, *summed, last + 1)), len(kept) + 1)
            right = _merged(xp.transpose(right, (*kept, *summed, last, last + 1)), len(kept), -1)
        if left.dtype.itemsize == 2:
            g = narrow(xp.matmul(wide(left), wide(right)), left.dtype)
        elif out is None or summed or len(own) + 2 != len(self.shape):
            g = xp.matmul(left, right)
        else:
            return xp.matmul(left, right, out=out)
        if out is None:
            return g.reshape((*g.shape[:2], *self.shape))
        out[...] = g.reshape(out.shape)
        return out

    def merged(self, rows: int) -> Products:
        left, right = (a.reshape((a.shape[0], a.shape[1] // rows, rows, *a.shape[2:])) for a in (self.left, self.right))
        return Products(left, right, self.shape)


def _merged(a: Any, first: int, last: int | None = None) -> Any:
    """Its axes first..last as one."""
    end = a.shape[last:] if last else ()
    return a.reshape((*a.shape[:first], prod(a.shape[first:last]), *end))


class Paired(Factor):
    """g_vb = Σ_r k_br ⊗ d_vbr, for keys k in x [B, R, ...] and d [V, B, R, N]: multiplied pair by pair of rows.

    A class says what the inner products of keys are, ⟨k ⊗ d, k' ⊗ d'⟩ = ⟨k, k'⟩ (d · d'), and how g is written down.
    """

    x: Any
    d: Any
    inner: int  # operations for the product of two keys

    def _near(self, x: Any, y: Any) -> Any:
        """The inner products of all keys x [B, R] with all keys y [C, S]: [B, R, C, S]."""
        raise NotImplementedError

    def _near_own(self, x: Any) -> Any:
        """The inner products of the keys of each sample with each other: [B, R, R]."""
        raise NotImplementedError

    def _of(self, x: Any, d: Any) -> Any:
        other = copy(self)
        other.x, other.d = x, d
        return other

    def merged(self, rows: int) -> Paired:
        (v, b, r, n), x = self.d.shape, self.x
        return self._of(x.reshape((b // rows, rows * r, *x.shape[2:])), self.d.reshape((v, b // rows, rows * r, n)))

    def joined(self, others: Sequence[Paired]) -> Paired:
        """The sum of this and others of its kind: their rows behind each other."""
        xp, every = module_of(self.d), (self, *others)
        return self._of(xp.concatenate([f.x for f in every], axis=1), xp.concatenate([f.d for f in every], axis=2))

    def squares(self, at: slice = ALL) -> Any:
        """|g_vb|²: [V, B] for the samples `at`. Never below 0, as rounding may make the sum over pairs of rows."""
        d = wide(self.d[:, at])
        xp = module_of(d)
        return xp.maximum(xp.sum(self._near_own(wide(self.x[at])) * own_products(d), axis=(2, 3)), 0)

    def gram(self, other: Paired, at: slice = ALL, beside: slice = ALL, trace: bool = False) -> Any:
        """⟨g_vb, h_wc⟩ for the samples b of `at` and c of `beside`, [V, B, W, C]; `trace`: Σ_v=w, [1, B, 1, C]."""
        d, e = (stack_along(wide(a), trace) for a in (self.d[:, at], other.d[:, beside]))
        (v, b, r, _), (w, c, s, _) = d.shape, e.shape
        near, far = self._near(wide(self.x[at]), wide(other.x[beside])), gram_of_rows(d, e)
        if r == s == 1:
            near, far = near.reshape((b, 1, c)), far.reshape((v, b, w, c))
            traced = type(near) is Traced or type(far) is Traced
            return near * far if traced else module_of(far).multiply(near, far, out=far)
        return module_of(d).sum(near.reshape((b, r, 1, c, s)) * far, axis=(2, 5))


class Outer(Paired):
    """g_vb = Σ_r x_br ⊗ d_vbr (K, N), of a product: x [B, R, K]."""

    def __init__(self, x: Any, d: Any) -> None:
        self.x, self.d, self.inner = x, d, x.shape[-1]
        self.shape = (x.shape[-1], d.shape[-1])

    def dense(self, at: slice = ALL, out: Any = None) -> Any:
        if out is not None:
            return _outer(self.x[at], self.d[:, at], out)
        if self.threaded:
            spare_blas()
        return of_plain_arrays(_outer, self.x[at], self.d[:, at])

    @property
    def threaded(self) -> bool:
        """Whether our own threads share the work of writing it down."""
        x, d = raw(self.x), raw(self.d)
        entries = d.shape[0] * d.shape[1] * prod(self.shape)
        return type(d) is np.ndarray and d.shape[2] == 1 and x.dtype == d.dtype in TYPES and entries >= LOOPED

    def _near(self, x: Any, y: Any) -> Any:
        return gram_of_rows(x, y)

    def _near_own(self, x: Any) -> Any:
        return own_products(x)


class Gathered(Paired):
    """g_vb = Σ_r e_i ⊗ d_vbr (K, ...), of rows picked from a table by the numbers i = ids_br, which are not negative.

    `scatter(ids [n], rows [V, n, N], count)` adds the rows up by id: [V, count, N].
    """

    inner = 1

    def __init__(self, ids: Any, d: Any, shape: tuple[int, ...], scatter: Callable[..., Any]) -> None:
        self.x, self.d, self.shape, self.scatter = ids.reshape((*ids.shape, 1)).astype("int64"), d, shape, scatter

    def dense(self, at: slice = ALL, out: Any = None) -> Any:
        ids, d = self.x[at][:, :, 0], self.d[:, at]
        (v, b, r, n), count = d.shape, self.shape[0]
        tall = ids + count * module_of(ids).arange(b).reshape((b, 1))  # a table below the other
        g = self.scatter(tall.reshape((b * r,)), d.reshape((v, b * r, n)), b * count).reshape((v, b, *self.shape))
        if out is None:
            return g
        out[...] = g
        return out

    def _near(self, x: Any, y: Any) -> Any:
        return (x.reshape((*x.shape[:2], 1, 1)) == y.reshape((1, 1, *y.shape[:2]))).astype(self.d.dtype)

    def _near_own(self, x: Any) -> Any:
        return (x == x.reshape((x.shape[0], 1, x.shape[1]))).astype(self.d.dtype)


def stack_along(g: Any, trace: bool) -> Any:
    """[V, B, ..., N] as it is; with `trace`, where the stack is summed over, as [1, B, ..., V * N]."""
    if not trace:
        return g
    moved = module_of(g).moveaxis(g, 0, -2)
    return moved.reshape((1, *moved.shape[:-2], moved.shape[-2] * moved.shape[-1]))


def own_products(a: Any) -> Any:
    """The inner products of the rows [..., R, N] with each other: [..., R, R]."""
    xp = module_of(a)
    return xp.sum(a * a, axis=-1, keepdims=True) if a.shape[-2] == 1 else xp.matmul(a, xp.swapaxes(a, -1, -2))


def gram_of_rows(a: Any, b: Any) -> Any:
    """The inner products of all rows (along the last axis) of a and of b: (*a.shape[:-1], *b.shape[:-1])."""
    n = a.shape[-1]
    products = module_of(a).matmul(a.reshape((prod(a.shape[:-1]), n)), b.reshape((prod(b.shape[:-1]), n)).T)
    return products.reshape((*a.shape[:-1], *b.shape[:-1]))


def of_plain_arrays(function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)`, one recorded call inside gl.capture; the values of an outer transform are traced through."""
    if any(type(x) is Traced and x.owner.unit is None for x in args):
        return function(*args)
    return recorded(function, *args)


def _outer(x: Any, d: Any, out: Any = None) -> Any:
    """Σ_r x_br ⊗ d_vbr as [V, B, K, N], sample by sample in memory: (B, V, K, N)."""
    xp = module_of(d)
    (v, b, r, n), k = d.shape, x.shape[-1]
    if type(x) is Traced or type(d) is Traced:
        if r == 1:
            return x.reshape((1, b, k, 1)) * d
        return xp.matmul(xp.swapaxes(x, 1, 2), d)
    if out is None:
        out = memory.empty(xp, (b, v, k, n), d.dtype).swapaxes(0, 1)
    if d.dtype.itemsize == 2:
        out[...] = _outer(wide(x), wide(d))
        return out
    if r != 1:
        xp.matmul(x.swapaxes(1, 2), d, out=out)
    elif xp is np:
        _outer_rows(x[:, 0], d[:, :, 0], out)
    else:
        xp.multiply(x.reshape((1, b, k, 1)), d, out=out)
    return out


def _outer_rows(x: np.ndarray, d: np.ndarray, out: np.ndarray) -> None:
    """x_b ⊗ d_vb into out [V, B, K, N]: large ones by a compiled loop, to the same bits."""
    typed = x.dtype == d.dtype == out.dtype in TYPES
    if typed and out.size >= LOOPED and out[0, 0].flags.c_contiguous:
        _loops().write(np.ascontiguousarray(x), np.ascontiguousarray(d), out)
        return
    for one, target in zip(d, out, strict=True):  # einsum over three axes costs half of what multiply does
        np.einsum("bk,bn->bkn", x, one, out=target, casting="same_kind")


@cache
def _loops() -> Any:
    """The compiled loop; numba is loaded here."""
    from ..kernels import outer_loops

    return outer_loops


def by_sample(a: Any, axis: int, to: int) -> Any:
    """`a` with its batch axis, counted from the right, moved to `to`."""
    return a if a.ndim + axis == to else module_of(a).moveaxis(a, axis, to)


def rows_by_sample(a: Any, axis: int, to: int) -> Any:
    """`a` [..., K] as [B, R, K] (to = 0) or, a stack, as [V, B, R, K] (to = 1): all rows of each sample."""
    a = by_sample(a, axis, to)
    return a.reshape((*a.shape[: to + 1], prod(a.shape[to + 1 : -1]), a.shape[-1]))
