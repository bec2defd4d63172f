"""Small layers multiplied by the compiled loop of ``gradlib.kernels.small_products`` instead of by NumPy and BLAS, and
Jacobians of rows by those of ``row_loops``.

The NumPy rule of ``chain.LinearSegment`` stays the specification; results agree to rounding. A column that is zero in
all rows of a sample is left out, as half of them are behind a ReLU. That is exact, because matrices with an inf or nan
are left to the rule (0 · inf is nan), and a column that holds a nan is not zero.

Numba compiles the loops when they are first used, in about a second, and keeps them on disk; a process that uses them
then spends half a second on loading numba.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, cached_property, lru_cache
from typing import Any

import numpy as np

from .segments import LinearSegment, RowSegment, Segment

LARGEST = 1 << 16  # entries of a matrix that still pays: 256 x 256; beyond, BLAS's blocks of the cache win
NARROWEST = 64  # bytes of a row of the result: the loop's tile
WORTH = 1 << 16  # entries of the largest block in all samples together, below which numba is not even loaded
TYPES = (np.float32, np.float64)


class LoopSegment(LinearSegment):
    """A LinearSegment that goes through the loop, where its matrix is finite."""

    def __init__(self, plain: LinearSegment) -> None:
        self.__dict__.update(plain.__dict__)

    @cached_property
    def turned(self) -> np.ndarray | None:
        """wᵀ, contiguous; None where an entry of it is not finite."""
        return _loops().turned(np.ascontiguousarray(self.w))

    def with_arrays(self, arrays: tuple) -> Segment:
        other = super().with_arrays(arrays)
        other.__dict__.pop("turned", None)
        return other

    def _scaled(self, w: Any, at: slice, like: Any, d: Any, out: Any) -> Any:
        if d is not None:
            return np.multiply(w, d, out=out)
        if not self.w.flags.c_contiguous:
            return super()._scaled(w, at, like, d, out)
        samples = len(range(*at.indices(self.samples)))  # one matrix seen by all, quicker than by np.broadcast_to
        return np.ndarray((samples, *w.shape), w.dtype, self.w, 0, (0, *w.strides))

    def back(self, m: Any, at: slice, out: Any = None) -> Any:
        return back_through([self], m, at, out)

    def ahead(self, m: Any, at: slice, out: Any = None) -> Any:
        if not _takes(m, self.n_out) or self.turned is None:
            return super().ahead(m, at, out)
        y = _loop(m, [(_ones(self.n_in, self.w.dtype), np.ascontiguousarray(self.w))], out)
        return y if self.d is None else np.multiply(y, self.d[at, None, :], out=y)


def back_through(segments: Sequence[LoopSegment], m: Any, at: slice, out: Any = None) -> Any:
    """Rows (B, V, n_out) back through neighbours, the first of them first: sample by sample in one loop."""
    if _takes(m, segments[-1].n_in) and all([s.turned is not None for s in segments]):
        return _loop(m, [(_scale(s.d, at, s.n_out, s.w.dtype), s.turned) for s in segments], out)
    for s in segments:
        m = LinearSegment.back(s, m, at, out if s is segments[-1] else None)
    return m


def in_one_loop(segments: Sequence[Segment], at: slice, result: Any) -> bool:
    """Write the Jacobian of a chain into result where one loop from the outputs back can do it; whether it could.

    So it is where all is small matrices, the last of them without a diagonal. All cores share the samples.
    """
    chain: list[Any] = [s for s in reversed(segments) if type(s) is LoopSegment]
    if not 1 < len(chain) == len(segments) or chain[0].d is not None or not result.flags.c_contiguous:
        return False
    if not _takes(result, chain[-1].n_in):
        return False
    factors = [(_scale(s.d, at, s.n_out, s.w.dtype), np.ascontiguousarray(s.w)) for s in chain[1:]]
    return _loops().chain(np.ascontiguousarray(chain[0].w), factors, result)


def _loop(m: Any, factors: list[tuple[Any, Any]], out: Any) -> Any:
    """m diag(d) w … for every factor (d, w)."""
    w = factors[-1][1]
    if out is None or not out.flags.c_contiguous:
        out = np.empty((*m.shape[:2], w.shape[1]), w.dtype)
    rows = m if m.strides[0] else m[:1]  # one for all samples
    _loops().products(np.ascontiguousarray(rows, w.dtype), factors, out)
    return out


class LoopRowSegment(RowSegment):
    """A RowSegment by the loops of ``gradlib.kernels.row_loops``, a row at a time, which stays in the cache."""

    def __init__(self, plain: RowSegment) -> None:
        self.__dict__.update(plain.__dict__)

    def _written(self, at: slice, like: Any, u: tuple, v: tuple, out: Any) -> Any:
        d, p, q = self._parts(at, like.dtype, u, v)
        if out is None or not out.flags.c_contiguous:
            out = np.empty((len(d), self.n_in, self.n_in), like.dtype)
        _row_loops().write(d, p, q, out.reshape(d.shape + d.shape[1:]))
        return out

    def _apply(self, m: Any, at: slice, left: tuple, right: tuple, out: Any) -> Any:
        d, p, q = self._parts(at, m.dtype, left, right)
        rows = np.ascontiguousarray(m).reshape((*m.shape[:2], *d.shape[1:]))
        if out is None or not out.flags.c_contiguous:
            out = np.empty(m.shape, m.dtype)
        _row_loops().apply(rows, d, p, q, out.reshape(rows.shape))
        return out

    def _parts(self, at: slice, dtype: Any, u: tuple, v: tuple) -> list[Any]:
        """d (B, R, C), u and v (B, K, R, C), of the samples `at`."""
        d = np.ascontiguousarray(self.block.d[at], dtype)
        shape = (len(d), d[0].size // d.shape[-1], d.shape[-1])
        p, q = (
            np.stack([a[at] for a in arrays], 1, dtype=dtype)
            if len(arrays) > 1
            else np.ascontiguousarray(arrays[0][at], dtype)  # quicker
            for arrays in (u, v)
        )
        return [d.reshape(shape), *[a.reshape((shape[0], -1, *shape[1:])) for a in (p, q)]]


def _scale(d: Any, at: slice, n: int, dtype: Any) -> np.ndarray:
    """A diagonal of the samples `at`, as the loop takes it; n ones where there is none."""
    if d is None:
        return _ones(n, dtype)
    return np.ascontiguousarray(d[at], None if d.dtype == bool else dtype)


@cache
def _loops() -> Any:
    """The compiled loops; numba is loaded here."""
    from ..kernels import small_products

    return small_products


@cache
def _row_loops() -> Any:
    from ..kernels import row_loops

    return row_loops


@lru_cache
def _ones(n: int, dtype: Any) -> np.ndarray:
    return np.ones((1, n), dtype)


def _takes(m: Any, width: int) -> bool:
    return m.shape[0] > 0 and m.shape[1] > 1 and width * m.itemsize >= NARROWEST


def looped(segments: Sequence[Segment], like: Any) -> list[Segment]:
    """The segments of a chain on NumPy arrays like x (B, *in), those that the loops are faster for replaced."""
    if all([type(s) is LoopSegment for s in segments]):
        return list(segments)
    if like.dtype not in TYPES or len(like) * max(s.n_in * s.n_out for s in segments) < WORTH:
        return list(segments)
    return [_looped(s, like.dtype) for s in segments]


def unlooped(segments: Sequence[Segment]) -> list[Segment]:
    """The same by NumPy and BLAS alone, which need no matrix turned."""
    plain = []
    for s in segments:
        kind = {LoopSegment: LinearSegment, LoopRowSegment: RowSegment}.get(type(s))
        if kind is not None:
            other: Any = object.__new__(kind)
            other.__dict__.update(s.__dict__)
            other.__dict__.pop("turned", None)
            s = other
        plain.append(s)
    return plain


def _looped(s: Segment, dtype: Any) -> Segment:
    if isinstance(s, (LoopSegment, LoopRowSegment)):
        return s
    if isinstance(s, LinearSegment) and s.rows == 1 and s.w.dtype == dtype and s.w.size <= LARGEST:
        return LoopSegment(s)
    if isinstance(s, RowSegment) and s.last and s.n_in and s.block.d.dtype in TYPES:
        return LoopRowSegment(s)
    return s
