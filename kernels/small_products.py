"""Products of the stacks of small layers on the CPU, compiled by numba. Loaded when first used.

    out_b = m_b diag(d_b) w diag(d'_b) w' …        m_b (V, N), d_b (N,), w (N, K) of all samples; V, N, K some tens

A library's matrix product is made for large matrices and cannot see that half of a ReLU's columns are zero. Here the
columns of a sample that are zero in all V rows are left out, and the others are summed in registers: a tile of up to
5 rows and 64 bytes of columns, one scalar times one row of w after the other. A tile that would reach over the end is
moved back so that it ends with the rows or columns; what two tiles share they calculate alike. A sample goes through
all layers while its rows are in the nearest cache. Its result depends on that sample alone, so the batch may be cut
anywhere, also between threads.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from ..threads import cores
from .team import INSIDE, NEXT, OPEN, PATIENCE, Team, added, closed, opened, pause, seen

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


@intrinsic
def _moved(typing, pointer, offset):
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
        return added

    def _pointer(self, base: Any, offset: Any) -> Any:
        b = self.builder
        return b.bitcast(b.gep(base, [offset]), self.vector.as_pointer())

    def _spread(self, scalar: Any) -> Any:
        b, empty = self.builder, ir.Constant(self.vector, ir.Undefined)
        one = b.insert_element(empty, scalar, _LANE(0))
        return b.shuffle_vector(one, empty, ir.Constant(ir.VectorType(_LANE, self.lanes), [0] * self.lanes))


@intrinsic
def _scaled_columns(typing, m, d, s, seen, rows, stride):
    """s[r, :] = m[r, :] d for r < rows, of 64 bytes of columns; seen: the bits but the sign's of all rows, by "or".

    The pointers stand at the columns; `stride` is entries from row to row.
    """

    def generate(context, builder, signature, args):
        _Columns(builder, context.get_value_type(signature.args[0].dtype)).write(*args)
        return context.get_dummy_value()

    return types.void(m, d, s, seen, rows, stride), generate


class _Columns:
    """Writes the loop of `_scaled_columns`, d and the bits in registers."""

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


_tile1, _tile2, _tile3, _tile4, _tile5 = (_tile_of(rows) for rows in range(1, ROWS + 1))


@intrinsic
def _pointer(typing, number, array):
    """The address `number` as a pointer to entries like the array's."""

    def generate(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(array.dtype)(number, array), generate


@njit(nogil=True, cache=True, error_model="numpy")
def _scale(m, d, rows, inner, wide, s, sizes, columns):
    """s = m diag(d) of one sample, rows x inner entries; the columns that are not zero (nan is not), their number."""
    if inner < wide:
        for n in range(inner):
            sizes[n] = 0
            for v in range(rows):
                x = m[v * inner + n] * d[n]
                s[v * inner + n] = x
                sizes[n] += abs(x)
    else:
        for at in range(0, inner, wide):
            n = min(at, inner - wide)
            _scaled_columns(_moved(m, n), _moved(d, n), _moved(s, n), _address(sizes, n), rows, inner)
    count = 0
    for n in range(inner):
        columns[count] = n
        count += sizes[n] != 0
    return count


@njit(nogil=True, cache=True, error_model="numpy")
def _narrow(s, inner, columns, count, w, width, out, rows):
    """out = s w, entry by entry, where a row of it is shorter than a tile."""
    for v in range(rows):
        for k in range(width):
            total = s[v * inner] * 0
            for i in range(count):
                total += s[v * inner + columns[i]] * w[columns[i] * width + k]
            out[v * width + k] = total


@njit(nogil=True, cache=True, error_model="numpy")
def _tiles(s, inner, columns, count, w, width, wide, out, stack):
    """out = s w of one sample, tile by tile of `wide` columns."""
    groups = (stack + ROWS - 1) // ROWS
    rows = (stack + groups - 1) // groups  # of all groups, the last moved back where it would reach over the end
    for group in range(groups):
        v = min(group * rows, stack - rows)
        for at in range(0, width, wide):
            k = min(at, width - wide)
            left, right, target = _moved(s, v * inner), _moved(w, k), _moved(out, v * width + k)
            if rows == 5:
                _tile5(left, inner, columns, count, right, width, target, width)
            elif rows == 4:
                _tile4(left, inner, columns, count, right, width, target, width)
            elif rows == 3:
                _tile3(left, inner, columns, count, right, width, target, width)
            elif rows == 2:
                _tile2(left, inner, columns, count, right, width, target, width)
            else:
                _tile1(left, inner, columns, count, right, width, target, width)


# A job is a row of integers, for helpers to read: these places, then for every layer the address of d, entries from one
# sample's d to the next one's (0: one for all), the address of w and its rows; last the columns of the result.
_M, _M_STEP, _OUT, _SAMPLES, _STACK, _ITEM, _WIDEST, _PIECE, _LAYERS, _FIRST = range(10)
_EACH, JOB = 4, 64


@njit(nogil=True, cache=True, error_model="numpy")
def _samples(job, start, stop, like):
    """The samples start..stop of a job, each through all layers."""
    stack, widest, layers, item = job[_STACK], job[_WIDEST], job[_LAYERS], job[_ITEM]
    wide = TILE_BYTES // item
    held, between = np.empty(stack * widest, like.dtype), np.empty(stack * widest, like.dtype)
    sizes, listed = np.empty(widest, like.dtype), np.empty(widest + 1, np.int64)
    last = job[_FIRST + _EACH * layers]
    for b in range(start, stop):
        s, columns = _address(held, 0), _address(listed, 0)  # in here: an array is freed after its last use
        given = _pointer(job[_M] + b * job[_M_STEP] * item, like)
        for layer in range(layers):
            at = _FIRST + _EACH * layer
            d, w = _pointer(job[at] + b * job[at + 1] * item, like), _pointer(job[at + 2], like)
            inner, width = job[at + 3], job[at + 3 + _EACH] if layer < layers - 1 else last
            count = _scale(given, d, stack, inner, wide, s, sizes, listed)
            given = _address(between, 0)
            if layer == layers - 1:
                given = _pointer(job[_OUT] + b * stack * last * item, like)
            if width < wide:
                _narrow(s, inner, columns, count, w, width, given, stack)
            else:
                _tiles(s, inner, columns, count, w, width, wide, given, stack)


@njit(nogil=True, cache=True, error_model="numpy")
def _alone(job, like):
    _samples(job, 0, job[_SAMPLES], like)


@njit(nogil=True, cache=True, error_model="numpy")
def _pieces(board, job, like):
    """Take pieces of a job until none is left; how many."""
    taken = 0
    while True:
        start = added(board, NEXT, 1) * job[_PIECE]
        if start >= job[_SAMPLES]:
            return taken
        _samples(job, start, min(start + job[_PIECE], job[_SAMPLES]), like)
        taken += 1


@njit(nogil=True, cache=True, error_model="numpy")
def _together(board, job, like):
    opened(board)
    _pieces(board, job, like)
    closed(board)


@njit(nogil=True, cache=True, error_model="numpy")
def _serve(board, job, single, double):
    """What a helper does, until it has looked out in vain for a while."""
    idle = 0
    while idle < PATIENCE:
        pause()
        idle += 1
        if seen(board, OPEN):
            added(board, INSIDE, 1)
            if seen(board, OPEN):
                taken = _pieces(board, job, single) if job[_ITEM] == 4 else _pieces(board, job, double)
                idle = 0 if taken else idle
            added(board, INSIDE, -1)


@cache
def _team(process: int) -> Team:
    single, double = np.empty(0, np.float32), np.empty(0, np.float64)
    return Team(lambda board, job: _serve(board, job, single, double), JOB)


@njit(cache=True)
def _place(array):
    """Its address, at a third of the time of NumPy's attribute."""
    return array.ctypes.data


def products(
    m: np.ndarray, factors: Sequence[tuple[np.ndarray, np.ndarray]], out: np.ndarray, together: bool = False
) -> None:
    """out[b] = m[b] diag(d1[b]) w1 diag(d2[b]) w2 … for all samples, factors ((d1, w1), …). The GIL is free meanwhile.

    m: (B, V, N1), or (1, V, N1) for all samples; d1: (B, N1) or (1, N1); w1: (N1, N2) of finite numbers; and so on;
    out: (B, V, N), V at least 1. All C-contiguous and of one dtype, float32 or float64. `together`: all cores share
    the samples, unless another caller's loop has them.
    """
    samples, stack, last = out.shape
    layers: list[int] = []
    for d, w in factors:
        layers += (_place(d), d.shape[1] if len(d) > 1 else 0, _place(w), len(w))
    step, widest = m[0].size if len(m) > 1 else 0, max(layers[3::_EACH])
    piece = max(1, samples // (8 * cores()))
    head = (_place(m), step, _place(out), samples, stack, out.itemsize, widest, piece, len(factors))
    job = np.array([*head, *layers, last], np.int64)
    team = _team(os.getpid()) if together and cores() > 1 and len(job) <= JOB else None
    if team is None or not team.taken.acquire(blocking=False):
        _alone(job, out)
        return
    try:
        team.job[: len(job)] = job
        team.wake()
        _together(team.board, team.job, out)
    finally:
        team.taken.release()


@njit(nogil=True, cache=True, error_model="numpy")
def _turn(w, out):
    """out = wᵀ; whether all of it is finite."""
    strange = 0
    for k in range(w.shape[1]):
        for n in range(w.shape[0]):
            x = w[n, k]
            out[k, n] = x
            strange += x - x != 0
    return strange == 0


def turned(w: np.ndarray) -> np.ndarray | None:
    """wᵀ as a contiguous array of its own; None where an entry is not finite. w: (N, K), C-contiguous."""
    out = np.empty(w.shape[::-1], w.dtype)
    return out if _turn(w, out) else None


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
