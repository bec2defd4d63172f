"""Products of the stacks of small layers on the CPU, compiled by numba. Loaded when first used.

    out_b = (m_b diag(d_b)) w        m_b (V, N), d_b (N,), w (N, K) shared by all samples, V, N, K some tens

A library's matrix product is made for large matrices and cannot see that half of a ReLU's columns are zero. Here the
columns of a sample that are zero in all V rows are left out, and the others are summed in registers: a tile of up to
5 rows and 64 bytes of columns, one scalar times one row of w after the other. A tile that would reach over the end is
moved back so that it ends with the rows or columns; what two tiles share they calculate alike. Each sample's result
depends on that sample alone, so the batch may be cut anywhere, also between threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

ROWS, VECTORS, VECTOR_BYTES = 5, 2, 32  # 10 sums, 2 pieces of w and a scalar: within the 16 registers of AVX2
TILE_BYTES = VECTORS * VECTOR_BYTES

_INT, _LANE = ir.IntType(64), ir.IntType(32)


@intrinsic
def _address(typing, array, offset):
    """Pointer to an entry of a contiguous array, counted through all its axes."""

    def generate(context, builder, signature, args):
        data = cgutils.create_struct_proxy(signature.args[0])(context, builder, args[0]).data
        return builder.gep(data, [args[1]])

    return types.CPointer(array.dtype)(array, types.intp), generate


def _tile_of(rows: int) -> Any:
    """tile(s, lds, columns, count, w, ldw, out, ldo): out[r, :] = Σ_i s[r, columns[i]] w[columns[i], :], r < rows.

    The pointers s, w and out stand at the tile's corner; lds, ldw, ldo are entries from row to row.
    """

    @intrinsic
    def tile(typing, s, lds, columns, count, w, ldw, out, ldo):
        def generate(context, builder, signature, args):
            _Tile(rows, builder, context.get_value_type(s.dtype)).write(*args)
            return context.get_dummy_value()

        return types.void(s, lds, columns, count, w, ldw, out, ldo), generate

    return tile


class _Tile:
    """Writes a tile's loop in LLVM's language, where sums can be told to stay in registers."""

    def __init__(self, rows: int, builder: Any, number: Any) -> None:
        self.rows, self.builder = rows, builder
        self.bytes = 8 if isinstance(number, ir.DoubleType) else 4
        self.lanes = VECTOR_BYTES // self.bytes
        self.vector = ir.VectorType(number, self.lanes)

    def write(self, s: Any, lds: Any, columns: Any, count: Any, w: Any, ldw: Any, out: Any, ldo: Any) -> None:
        b = self.builder
        before, head, body, after = b.block, *(b.append_basic_block() for _ in range(3))
        b.branch(head)
        b.position_at_end(head)
        step = b.phi(_INT)
        sums = [b.phi(self.vector) for _ in range(self.rows * VECTORS)]
        b.cbranch(b.icmp_signed("<", step, count), body, after)
        b.position_at_end(body)
        added = self._added(sums, b.load(b.gep(columns, [step])), s, lds, w, ldw)
        following = b.add(step, _INT(1))
        b.branch(head)
        zero = ir.Constant(self.vector, [0.0] * self.lanes)
        for phi, first, later in zip([step, *sums], [_INT(0), *[zero] * len(sums)], [following, *added], strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(later, body)
        b.position_at_end(after)
        for i, total in enumerate(sums):
            row, part = divmod(i, VECTORS)
            place = b.add(b.mul(_INT(row), ldo), _INT(part * self.lanes))
            b.store(total, self._pointer(out, place), align=self.bytes)

    def _added(self, sums: list, column: Any, s: Any, lds: Any, w: Any, ldw: Any) -> list:
        """The sums after one more column: s[r, column] w[column, :] added, in one rounding where there is an FMA."""
        b, row = self.builder, self.builder.mul(column, ldw)
        pieces = [b.load(self._pointer(w, b.add(row, _INT(p * self.lanes))), align=self.bytes) for p in range(VECTORS)]
        added = []
        for r in range(self.rows):
            scalar = self._spread(b.load(b.gep(s, [b.add(b.mul(_INT(r), lds), column)])))
            for p, piece in enumerate(pieces):
                product = b.fmul(scalar, piece, flags=("contract",))
                added.append(b.fadd(sums[r * VECTORS + p], product, flags=("contract",)))
        return added

    def _pointer(self, base: Any, offset: Any) -> Any:
        b = self.builder
        return b.bitcast(b.gep(base, [offset]), self.vector.as_pointer())

    def _spread(self, scalar: Any) -> Any:
        b, empty = self.builder, ir.Constant(self.vector, ir.Undefined)
        one = b.insert_element(empty, scalar, _LANE(0))
        return b.shuffle_vector(one, empty, ir.Constant(ir.VectorType(_LANE, self.lanes), [0] * self.lanes))


_tile1, _tile2, _tile3, _tile4, _tile5 = (_tile_of(rows) for rows in range(1, ROWS + 1))


@njit(nogil=True, cache=True, error_model="numpy")
def _scale(m, d, s, sizes, columns):
    """s = m diag(d) of one sample, m and s (V, N); the columns that are not zero (nan is not), and their number."""
    for n in range(s.shape[1]):
        sizes[n] = 0
    for v in range(s.shape[0]):
        for n in range(s.shape[1]):
            x = m[v, n] * d[n]
            s[v, n] = x
            sizes[n] += abs(x)
    count = 0
    for n in range(s.shape[1]):
        columns[count] = n
        count += sizes[n] != 0
    return count


@njit(nogil=True, cache=True, error_model="numpy")
def _product(m, d, w, out):
    samples, stack, width = out.shape
    inner, wide = w.shape[0], TILE_BYTES // out.itemsize
    groups = (stack + ROWS - 1) // ROWS
    rows = (stack + groups - 1) // groups  # of all groups, the last moved back where it would reach over the end
    s, sizes = np.empty((stack, inner), out.dtype), np.empty(inner, out.dtype)
    columns = np.empty(inner + 1, np.int64)
    for b in range(samples):
        count = _scale(m[b if len(m) > 1 else 0], d[b if len(d) > 1 else 0], s, sizes, columns)
        for group in range(groups):
            v = min(group * rows, stack - rows)
            for at in range(0, width, wide):
                k = min(at, width - wide)
                left, right = _address(s, v * inner), _address(w, k)
                target, listed = _address(out, (b * stack + v) * width + k), _address(columns, 0)
                if rows == 5:
                    _tile5(left, inner, listed, count, right, width, target, width)
                elif rows == 4:
                    _tile4(left, inner, listed, count, right, width, target, width)
                elif rows == 3:
                    _tile3(left, inner, listed, count, right, width, target, width)
                elif rows == 2:
                    _tile2(left, inner, listed, count, right, width, target, width)
                else:
                    _tile1(left, inner, listed, count, right, width, target, width)


def product(m: np.ndarray, d: np.ndarray, w: np.ndarray, out: np.ndarray) -> None:
    """out[b] = (m[b] * d[b]) @ w for all samples. The GIL is free meanwhile.

    m: (B, V, N), or (1, V, N) for all samples; d: (B, N) or (1, N); w: (N, K) of finite numbers, K at least
    TILE_BYTES; out: (B, V, K), V at least 1. All C-contiguous and of one dtype, float32 or float64.
    """
    _product(m, d, w, out)


@njit(nogil=True, cache=True, error_model="numpy")
def _outer(u, v, d, out):
    for b in range(out.shape[0]):
        for i in range(out.shape[1]):
            x = u[b, i]
            for j in range(out.shape[2]):
                out[b, i, j] = x * v[b, j]
        for i in range(d.shape[1]):
            out[b, i, i] = d[b, i] + out[b, i, i]


def outer(u: np.ndarray, v: np.ndarray, d: np.ndarray | None, out: np.ndarray) -> None:
    """out[b] = u[b] v[b]ᵀ + diag(d[b]), each entry written once. The GIL is free meanwhile.

    u: (B, N), v: (B, K), d: (B, N) with N = K, or None for 0; out: (B, N, K). All C-contiguous, of one dtype.
    """
    _outer(u, v, u[:, :0] if d is None else d, out)
