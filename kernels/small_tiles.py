"""Pieces of ``small_products`` in LLVM's own language, in which sums can be told to stay in registers.

Numba's cache of compiled loops on disk looks at the file of the loops alone: who changes this one touches that too.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

ROWS, VECTORS, VECTOR_BYTES = 5, 2, 32  # 10 sums, 2 pieces of w and a scalar: within the 16 registers of AVX2
TILE_BYTES = VECTORS * VECTOR_BYTES

_INT, _LANE = ir.IntType(64), ir.IntType(32)


@intrinsic
def address(typing, array, offset):
    """Pointer to an entry of a contiguous array, counted through all its axes."""

    def generate(context, builder, signature, args):
        data = cgutils.create_struct_proxy(signature.args[0])(context, builder, args[0]).data
        return builder.gep(data, [args[1]])

    return types.CPointer(array.dtype)(array, types.intp), generate


@intrinsic
def moved(typing, pointer, offset):
    """A pointer some entries on."""

    def generate(context, builder, signature, args):
        return builder.gep(args[0], [args[1]])

    return pointer(pointer, types.intp), generate


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
            self._no_loads_ahead()
        return added

    def _no_loads_ahead(self) -> None:
        """An empty instruction that loads do not pass. LLVM would first load the scalars of all rows, and of the next
        columns, then have too few registers for the sums: with AVX2's 16 that takes 2.5 times as long."""
        self.builder.asm(ir.FunctionType(ir.VoidType(), []), "", "~{memory}", (), True)

    def _pointer(self, base: Any, offset: Any) -> Any:
        b = self.builder
        return b.bitcast(b.gep(base, [offset]), self.vector.as_pointer())

    def _spread(self, scalar: Any) -> Any:
        b, empty = self.builder, ir.Constant(self.vector, ir.Undefined)
        one = b.insert_element(empty, scalar, _LANE(0))
        return b.shuffle_vector(one, empty, ir.Constant(ir.VectorType(_LANE, self.lanes), [0] * self.lanes))


@intrinsic
def scaled_columns(typing, m, d, s, seen, rows, stride):
    """s[r, :] = m[r, :] d for r < rows, of 64 bytes of columns; seen: the bits but the sign's of all rows, by "or".

    The pointers stand at the columns; `stride` is entries from row to row.
    """

    def generate(context, builder, signature, args):
        _Columns(builder, context.get_value_type(signature.args[0].dtype)).write(*args)
        return context.get_dummy_value()

    return types.void(m, d, s, seen, rows, stride), generate


class _Columns:
    """Writes the loop of `scaled_columns`, d and the bits in registers."""

    def __init__(self, builder: Any, number: Any) -> None:
        self.builder = builder
        self.bytes = 8 if isinstance(number, ir.DoubleType) else 4
        self.lanes = VECTOR_BYTES // self.bytes
        self.vector = ir.VectorType(number, self.lanes)
        self.bits = ir.VectorType(ir.IntType(8 * self.bytes), self.lanes)

    def write(self, m: Any, d: Any, s: Any, seen: Any, rows: Any, stride: Any) -> None:
        b = self.builder
        scales = [b.load(self._at(d, _INT(0), p, self.vector), align=self.bytes) for p in range(VECTORS)]
        before, head, body, after = b.block, *(b.append_basic_block() for _ in range(3))
        b.branch(head)
        b.position_at_end(head)
        row, found = b.phi(_INT), [b.phi(self.bits) for _ in range(VECTORS)]
        b.cbranch(b.icmp_signed("<", row, rows), body, after)
        b.position_at_end(body)
        unsigned = ir.Constant(self.bits, [(1 << (8 * self.bytes - 1)) - 1] * self.lanes)
        place, later = b.mul(row, stride), []
        for p in range(VECTORS):
            product = b.fmul(b.load(self._at(m, place, p, self.vector), align=self.bytes), scales[p])
            b.store(product, self._at(s, place, p, self.vector), align=self.bytes)
            later.append(b.or_(found[p], b.and_(b.bitcast(product, self.bits), unsigned)))
        following = b.add(row, _INT(1))
        b.branch(head)
        none = ir.Constant(self.bits, [0] * self.lanes)
        for phi, first, then in zip([row, *found], [_INT(0), none, none], [following, *later], strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(then, body)
        b.position_at_end(after)
        for p, bits in enumerate(found):
            b.store(bits, self._at(seen, _INT(0), p, self.bits), align=self.bytes)

    def _at(self, base: Any, offset: Any, part: int, kind: Any) -> Any:
        b = self.builder
        return b.bitcast(b.gep(base, [b.add(offset, _INT(part * self.lanes))]), kind.as_pointer())


tile1, tile2, tile3, tile4, tile5 = (_tile_of(rows) for rows in range(1, ROWS + 1))


@intrinsic
def pointer_to(typing, number, array):
    """The address `number` as a pointer to entries like the array's."""

    def generate(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(array.dtype)(number, array), generate
