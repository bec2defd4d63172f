"""The parts of a chain x -> v_1 -> … -> y, each applied to stacks by what is known of its Jacobian.

Stacks are held sample by sample, (B, V, n), so that the last product of a reverse sweep is the result (B, *out, *in)
itself.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from ..device import array_module
from ..op import Unit
from ..precision import narrow, wide
from ..sweep import accumulate, call_vjp, sweep_forward, take_cotangent
from ..trace import Node, module_of
from .blocks import Diagonal, DiagonalLowRank, Gather, Identity, RowGradient, SharedDense, put
from .low_rank import Factors, apply_rows, factors_of, write_rows

if TYPE_CHECKING:
    from .batched import Batched


class Segment:
    """A part of the chain. `x`, `y`: shapes of one sample; `n_in`, `n_out`: their sizes.

    Every method works on the samples `at` (a slice), and writes into `out` where one is given.
    """

    kind = "rules"
    whole_batch = False  # whether it must be given all samples at once

    def __init__(self, x: tuple[int, ...], y: tuple[int, ...]) -> None:
        self.x, self.y = x, y
        self.n_in, self.n_out = prod(x), prod(y)

    def back(self, m: Any, at: slice, out: Any = None) -> Any:
        """(B, V, n_out) -> (B, V, n_in): each row times the Jacobian."""
        raise NotImplementedError

    def ahead(self, m: Any, at: slice, out: Any = None) -> Any:
        """(B, V, n_in) -> (B, V, n_out): the Jacobian times each row."""
        raise NotImplementedError

    def dense(self, at: slice, like: Any, out: Any = None) -> Any:
        """The Jacobian (B, n_out, n_in); by default by applying it to unit vectors."""
        return self.back(_units(like, at, self.n_out), at, out)

    def dense_ahead(self, at: slice, like: Any, out: Any = None) -> Any:
        """The same with a row for each input, (B, n_in, n_out)."""
        return self.ahead(_units(like, at, self.n_in), at, out)

    def arrays(self) -> tuple:
        """All arrays it holds, in nested tuples; `with_arrays` is the same segment on others."""
        raise NotImplementedError

    def with_arrays(self, arrays: tuple) -> Segment:
        raise NotImplementedError

    def dense_flops(self) -> float:
        """Operations to write the Jacobian of one sample down."""
        return self.flops() * self.n_out

    def flops(self) -> float:
        """Operations to apply it to one row of one sample."""
        raise NotImplementedError


def _units(like: Any, at: slice, n: int) -> Any:
    """The unit vectors of size n for every sample: (B, n, n), one matrix seen B times."""
    xp = module_of(like)
    return xp.broadcast_to(xp.eye(n, dtype=like.dtype), (len(range(*at.indices(like.shape[0]))), n, n))


def _rows(d: Any, n: int) -> Any:
    """An array of samples, each as a row of n entries."""
    return d if d.ndim == 2 else d.reshape((d.shape[0], n))


class DiagonalSegment(Segment):
    """An elementwise op."""

    kind = "diagonal"
    last = True  # its rows, of one sample each, have neighbouring entries

    def __init__(self, block: Diagonal) -> None:
        super().__init__(block.d.shape[1:], block.d.shape[1:])
        self.d = _rows(block.d, self.n_in)

    def back(self, m: Any, at: slice, out: Any = None) -> Any:
        return module_of(m).multiply(m, self.d[at, None, :], out=out)

    ahead = back

    def dense(self, at: slice, like: Any, out: Any = None) -> Any:
        d = self.d[at]
        if out is None:
            out = module_of(like).empty((d.shape[0], self.n_in, self.n_in), like.dtype)
        write_rows(d, (), (), out)
        return out

    dense_ahead = dense

    def factors(self, at: slice, turned: bool = False) -> Factors:
        return factors_of(self.d[at], (), ())

    def dense_flops(self) -> float:
        return float(self.n_in * self.n_in)

    def arrays(self) -> tuple:
        return (self.d,)

    def with_arrays(self, arrays: tuple) -> Segment:
        return replaced(self, d=arrays[0])

    def flops(self) -> float:
        return self.n_in


class CopySegment(Segment):
    """Entries that keep their order, a reshape: nothing to do. A chain of nothing else has one."""

    kind = "identity"

    def __init__(self, block: Identity) -> None:
        super().__init__(block.x_shape[1:], block.y_shape[1:])

    def back(self, m: Any, at: slice, out: Any = None) -> Any:
        if out is None:
            return m
        out[...] = m
        return out

    ahead = back

    def arrays(self) -> tuple:
        return ()

    def with_arrays(self, arrays: tuple) -> Segment:
        return self

    def flops(self) -> float:
        return 0.0


class GatherSegment(Segment):
    """Entries picked from each sample, the same of all: an index, a transpose, a flip, a repeat."""

    kind = "gather"

    def __init__(self, block: Gather) -> None:
        super().__init__(block.x_shape[1:], block.y_shape[1:])
        self.index, self.distinct = block.index.reshape(-1), block.distinct

    def back(self, m: Any, at: slice, out: Any = None) -> Any:
        if out is None:
            out = module_of(m).empty((*m.shape[:2], self.n_in), m.dtype)
        out[...] = 0
        put(m, self.index, out, self.distinct)
        return out

    def ahead(self, m: Any, at: slice, out: Any = None) -> Any:
        return module_of(m).take(m, self.index, axis=2, out=out)

    def arrays(self) -> tuple:
        return (self.index,)

    def with_arrays(self, arrays: tuple) -> Segment:
        return replaced(self, index=arrays[0])

    def flops(self) -> float:
        return float(self.n_out)


class LinearSegment(Segment):
    """y = act(x @ w): one matrix for all samples, then a diagonal."""

    kind = "shared matrix"

    def __init__(self, block: SharedDense) -> None:
        super().__init__(block.x_shape[1:], block.y_shape[1:])
        self.w, self.samples = block.w, block.x_shape[0]
        self.rows = prod(self.x[:-1])
        self.d = None if block.d is None else _rows(block.d, self.n_out)

    def back(self, m: Any, at: slice, out: Any = None) -> Any:
        return self._product(m if self.d is None else m * self.d[at, None, :], self.w.T, out)

    def ahead(self, m: Any, at: slice, out: Any = None) -> Any:
        if self.d is None:
            return self._product(m, self.w, out)
        y = self._product(m, self.w, None)
        return module_of(m).multiply(y, self.d[at, None, :], out=y if out is None else out)

    def _product(self, m: Any, w: Any, out: Any) -> Any:
        b, v = m.shape[:2]
        shape = (b, v, self.rows * w.shape[1])
        if out is not None:
            out = out.reshape((b * v * self.rows, w.shape[1]))
        return module_of(m).matmul(m.reshape((b * v * self.rows, w.shape[0])), w, out=out).reshape(shape)

    def dense(self, at: slice, like: Any, out: Any = None) -> Any:
        if self.rows != 1:
            return super().dense(at, like, out)
        return self._scaled(self.w.T, at, like, None if self.d is None else self.d[at, :, None], out)

    def dense_ahead(self, at: slice, like: Any, out: Any = None) -> Any:
        if self.rows != 1:
            return super().dense_ahead(at, like, out)
        return self._scaled(self.w, at, like, None if self.d is None else self.d[at, None, :], out)

    def _scaled(self, w: Any, at: slice, like: Any, d: Any, out: Any) -> Any:
        xp = module_of(like)
        if d is None:
            return xp.broadcast_to(w, (len(range(*at.indices(self.samples))), *w.shape))
        return xp.multiply(w, d, out=out)

    def dense_flops(self) -> float:
        return super().dense_flops() if self.rows != 1 else 0.0 if self.d is None else self.n_in * self.n_out

    def arrays(self) -> tuple:
        return self.w, self.d

    def with_arrays(self, arrays: tuple) -> Segment:
        return replaced(self, w=arrays[0], d=arrays[1])

    def flops(self) -> float:
        return 2.0 * self.rows * self.w.size


class RowSegment(Segment):
    """softmax, the norms and their kin: diag(d) - Σₖ uₖ vₖᵀ along one axis."""

    def __init__(self, block: DiagonalLowRank) -> None:
        super().__init__(block.x_shape[1:], block.y_shape[1:])
        self.block = block
        self.kind = f"diagonal - rank {len(block.u)}"
        self.last = block.axis == len(self.x)  # the entries of a row are neighbours

    def _apply(self, m: Any, at: slice, left: tuple, right: tuple, out: Any) -> Any:
        p, q = ([a[at] for a in arrays] for arrays in (left, right))
        return apply_rows(m, self.block.d[at], p, q, self.block.axis, out)

    def back(self, m: Any, at: slice, out: Any = None) -> Any:
        return self._apply(m, at, self.block.v, self.block.u, out)

    def ahead(self, m: Any, at: slice, out: Any = None) -> Any:
        return self._apply(m, at, self.block.u, self.block.v, out)

    def dense(self, at: slice, like: Any, out: Any = None) -> Any:
        return self._written(at, like, self.block.u, self.block.v, out) if self.last else super().dense(at, like)

    def dense_ahead(self, at: slice, like: Any, out: Any = None) -> Any:
        return self._written(at, like, self.block.v, self.block.u, out) if self.last else super().dense_ahead(at, like)

    def _written(self, at: slice, like: Any, u: tuple, v: tuple, out: Any) -> Any:
        d = self.block.d[at]
        if out is None:
            out = module_of(like).empty((d.shape[0], self.n_in, self.n_in), like.dtype)
        write_rows(d, [a[at] for a in u], [a[at] for a in v], out)
        return out

    def factors(self, at: slice, turned: bool = False) -> Factors:
        """What its rows are written from; turned: a row for each input."""
        u, v = ([a[at] for a in arrays] for arrays in (self.block.u, self.block.v))
        return factors_of(self.block.d[at], *((v, u) if turned else (u, v)))

    def dense_flops(self) -> float:
        return float(len(self.block.u) * self.n_in * self.n_in) if self.last else super().dense_flops()

    def arrays(self) -> tuple:
        return self.block.d, self.block.u, self.block.v

    def with_arrays(self, arrays: tuple) -> Segment:
        d, u, v = arrays
        return replaced(self, block=DiagonalLowRank(d, u, v, self.block.axis))

    def flops(self) -> float:
        return (1.0 + 4.0 * len(self.block.u)) * self.n_in


class SumSegment(Segment):
    """A number for each row, the last axes: sums, extrema, norms, losses. The rows of one sample are (R, C)."""

    kind = "row gradient"

    def __init__(self, block: RowGradient) -> None:
        super().__init__(block.x_shape[1:], block.y_shape[1:])
        self.g = block.g.reshape((block.x_shape[0], self.n_out, -1 if self.n_in else 0))

    def back(self, m: Any, at: slice, out: Any = None) -> Any:
        shape = (*m.shape, self.g.shape[2])
        target = None if out is None else out.reshape(shape)
        y = module_of(m).multiply(m[..., None], self.g[at, None], out=target)
        return y.reshape((*m.shape[:2], self.n_in)) if out is None else out

    def ahead(self, m: Any, at: slice, out: Any = None) -> Any:
        stack = m.reshape((*m.shape[:2], *self.g.shape[1:]))
        y = narrow((wide(stack) * wide(self.g[at, None])).sum(axis=3), m.dtype)
        if out is None:
            return y
        out[...] = y
        return out

    def dense(self, at: slice, like: Any, out: Any = None) -> Any:
        g = self.g[at]
        if self.n_out == 1:
            return g
        if out is None:
            out = module_of(like).empty((g.shape[0], self.n_out, self.n_in), like.dtype)
        out[...] = 0
        rows = module_of(like).arange(self.n_out)
        out.reshape((g.shape[0], self.n_out, *g.shape[1:]))[:, rows, rows] = g
        return out

    def dense_flops(self) -> float:
        return float(self.n_in * self.n_out)

    def arrays(self) -> tuple:
        return (self.g,)

    def with_arrays(self, arrays: tuple) -> Segment:
        return replaced(self, g=arrays[0])

    def flops(self) -> float:
        return 2.0 * self.n_in


class RuleSegment(Segment):
    """Any ops between two cuts, applied by their rules to the whole batch."""

    whole_batch = True

    def __init__(self, call: Batched, nodes: list[Node], start: int, end: int) -> None:
        shapes = call.trace.outs
        super().__init__(shapes[start][0][1:], shapes[end][0][1:])
        self.call, self.nodes, self.start, self.end = call, nodes, start, end
        self.inside = {start}
        for node in nodes:
            self.inside.update(range(node.slot, node.slot + max(node.outputs, 1)))
        self.work = float(sum(prod(shapes[s][0]) for s in self.inside)) / max(call.samples, 1)

    def back(self, m: Any, at: slice, out: Any = None) -> Any:
        trace, xp = self.call.trace, module_of(m)
        cotangents: list[Any] = [None] * len(trace.outs)
        cotangents[self.end] = self._stack_first(m, self.y)
        for node in reversed(self.nodes):
            dy = take_cotangent(trace, node, cotangents)
            if dy is None or node.op.vjp is None:
                continue
            need = tuple(p in self.inside for p in node.parents)
            for slot, wanted, dx in zip(node.parents, need, call_vjp(node, dy, need), strict=True):
                if wanted and dx is not None:
                    accumulate(trace, cotangents, slot, dx)
        return self._sample_first(cotangents[self.start], m, self.n_in, xp)

    def ahead(self, m: Any, at: slice, out: Any = None) -> Any:
        tangents = {self.start: self._stack_first(m, self.x)}
        found = sweep_forward(self.call.trace, tangents, (self.end,), self.nodes)
        return self._sample_first(found.get(self.end), m, self.n_out, module_of(m))

    def _stack_first(self, m: Any, shape: tuple[int, ...]) -> Any:
        return m.swapaxes(0, 1).reshape((m.shape[1], m.shape[0], *shape))

    def _sample_first(self, d: Any, m: Any, n: int, xp: Any) -> Any:
        b, v = m.shape[:2]
        return xp.zeros((b, v, n), m.dtype) if d is None else d.reshape((v, b, n)).swapaxes(0, 1)

    def arrays(self) -> tuple:
        return tuple(node.saved for node in self.nodes)

    def with_arrays(self, arrays: tuple) -> Segment:
        return replaced(self, nodes=[_with_saved(n, saved) for n, saved in zip(self.nodes, arrays, strict=True)])

    def flops(self) -> float:
        return 4.0 * self.work  # a few operations an entry; products inside are not seen


def _with_saved(node: Node, saved: tuple) -> Node:
    """The node over concrete arrays."""
    xp = node.xp if not isinstance(node.xp, Unit) else np
    found = next((array_module(x) for x in saved if array_module(x) not in (None, np)), xp)
    return Node(node.op, found, node.static, saved, node.parents, node.slot, node.outputs)


def replaced(segment: Segment, **attributes: Any) -> Segment:
    """A copy with some attributes changed."""
    other = object.__new__(type(segment))
    other.__dict__.update(segment.__dict__, **attributes)
    return other
