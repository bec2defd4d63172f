"""embedding: rows of a table by id, and the sum of rows by id that is its transpose.

    y[j] = table[ids[j]]          dtable[k] = sum of dy[j] over the places j with ids[j] = k

Access. Gather: 8 or 32 lanes copy a row, 16 bytes a lane, four loads under way before the first store. Scatter: the ids
are sorted (stable); 8 or 32 lanes walk over RUN sorted places, keep the sum of the running id in registers and write it
once, when the id changes. What a run begins in one piece and ends in another is left as partial sums, two rows a piece,
and added up by a second kernel, whose blocks share long runs: a word in every sentence holds nobody up. No atomics,
every sum in a fixed order: bit-identical from run to run.

float16 and bfloat16 are gathered two at a time, as the bits of a float32, and added up in float32.

Nobody has looked at the ids, which would be waiting for the device: one outside [0, K) gives a row of NaN (the first
row is read in its place); to be added up it counts as K, and that sum is not written.
"""

import numpy as np

from ..precision import narrow, working
from .intrinsics import across_groups, arithmetic, cuda, device, int32, int64, pointer, vector_access
from .launch import (
    FLOATS,
    GRID_Z,
    HALVES,
    THREADS,
    Kernel,
    address,
    aligned,
    blocks,
    contiguous,
    cuda_kernel,
    empty,
    takes,
    vector_width,
)
from .norm_rows import is_wide, tile_width
from .softmax_rows import FILL

WIDEST = GRID_Z * 32  # elements of a row: GRID_Z blocks across, one element a lane
RUN = 32  # sorted places a group of lanes walks over
AHEAD = 4  # rows or tiles loaded before the first is used
NAN = np.array([0x7FC07FC0], np.uint32).view(np.float32)[0]  # as float16 and bfloat16 twice NaN
SHAPES = [(lanes, access) for lanes in (8, 32) for access in ("wide", "single")]


@cuda_kernel(variants=SHAPES, vector=is_wide)
def gather_rows(T, L, access):
    """out[v, j] = table[v, ids[j]], `missing` where there is no such row; table (V, K, n), out (V, count, n), L lanes
    a row."""
    W = tile_width(T, access)
    size = AHEAD * W
    load, store = vector_access(T, W)

    def body(
        table: pointer(T), ids: pointer(int64), out: pointer(T), missing: T, count: int64, K: int64, n: int32, V: int64
    ):  # fmt: skip
        thread = int64(cuda.blockIdx.x) * THREADS + int64(cuda.threadIdx.x)
        place, lane = thread // L, int32(thread % L)
        if place >= count:
            return
        row, tiles = ids[place], cuda.local.array(size, T)
        known = row >= 0 and row < K
        row = row if known else int64(0)
        v = int64(cuda.blockIdx.y)
        while v < V:
            source, target = (v * K + row) * n, (v * count + place) * n
            column = lane * int32(W)
            while column < n:
                for u in range(AHEAD):
                    if column + u * L * W < n:
                        load(table, source + column + u * L * W, tiles, u * W)
                for k in range(size):
                    tiles[k] = tiles[k] if known else missing
                for u in range(AHEAD):
                    if column + u * L * W < n:
                        store(out, target + column + u * L * W, tiles, u * W)
                column += int32(AHEAD * L * W)
            v += int64(cuda.gridDim.y)

    return body


def _store(T, W, part):
    """-> device function store(memory, i, local, at): W elements, `part` of them an access."""
    _, store_part = vector_access(T, part)

    @device
    def store(memory, i, local, at):
        for k in range(0, W, part):
            store_part(memory, i + k, local, at + k)

    return store_part if part == W else store


@cuda_kernel(
    FLOATS + HALVES, SHAPES, without=lambda dtype, lanes, access: dtype in HALVES and lanes != 32, vector=is_wide
)
def run_sums(S, L, access):
    """Of RUN sorted places: out[v, id] of the ids that begin and end among them; partial[v, piece] = (the sum of the
    id that began before, that of the one that goes on behind). The id K, the last one, stands for those of no row."""
    T, W = arithmetic(S), tile_width(S, access)
    part = tile_width(T, access)
    ahead = AHEAD if part == W else AHEAD // 2  # as many bytes under way
    size = ahead * W
    load, store = vector_access(S, W)[0], _store(T, W, part)

    @device
    def clear(total):
        for k in range(W):
            total[k] = T(0)

    def body(
        ids: pointer(int32),
        order: pointer(int32),
        dy: pointer(S),
        out: pointer(T),
        partial: pointer(T),
        count: int64,
        K: int64,
        n: int32,
        V: int64,
    ):
        thread = int64(cuda.blockIdx.x) * THREADS + int64(cuda.threadIdx.x)
        piece, lane = thread // L, int32(thread % L)
        column = (int32(cuda.blockIdx.y) * int32(L) + lane) * int32(W)
        start, pieces = piece * RUN, (count + (RUN - 1)) // RUN
        if start >= count or column >= n:
            return
        end = start + RUN if start + RUN < count else count
        rows, total = cuda.local.array(size, T), cuda.local.array(W, T)
        v = int64(cuda.blockIdx.z)
        while v < V:
            clear(total)
            own = ids[start]
            before = start > 0 and ids[start - 1] == own
            kept = (v * pieces + piece) * 2 * n + column
            p = start
            while p < end:
                for u in range(ahead):
                    if p + u < end:
                        load(dy, (v * count + order[p + u]) * n + column, rows, u * W)
                for u in range(ahead):
                    if p + u < end:
                        if ids[p + u] != own:
                            if before:
                                store(partial, kept, total, 0)
                            else:
                                store(out, (v * K + own) * n + column, total, 0)
                            clear(total)
                            own, before = ids[p + u], False
                        for k in range(W):
                            total[k] += rows[u * W + k]
                p += ahead
            if before:
                store(partial, kept, total, 0)
            elif own == K or (end < count and ids[end] == own):
                store(partial, kept + n, total, 0)
            else:
                store(out, (v * K + own) * n + column, total, 0)
            v += int64(cuda.gridDim.z)

    return body


@cuda_kernel(variants=SHAPES, vector=is_wide)
def join_runs(T, L, access):
    """out[v, id] of the ids that begin in one piece and end in another: a block adds up 128 columns of their sums."""
    W = tile_width(T, access)
    load, store = vector_access(T, W)
    add = across_groups(T, L, W)
    groups = THREADS // L

    def body(
        ids: pointer(int32), partial: pointer(T), out: pointer(T), count: int64, K: int64, n: int32, V: int64
    ):  # fmt: skip
        first = int64(cuda.blockIdx.x) * RUN
        behind = first + RUN  # < count: the last piece has no block
        own = ids[behind - 1]
        began_before = ids[first] == own and first > 0 and ids[first - 1] == own
        if ids[behind] != own or began_before or own == K:
            return
        pieces = (count + (RUN - 1)) // RUN
        group, lane = int32(cuda.threadIdx.x) // int32(L), int32(cuda.threadIdx.x) % int32(L)
        column = (int32(cuda.blockIdx.y) * int32(L) + lane) * int32(W)
        total, tile = cuda.local.array(W, T), cuda.local.array(W, T)
        v = int64(cuda.blockIdx.z)
        while v < V:
            for k in range(W):
                total[k], tile[k] = T(0), T(0)
            base = v * pieces * 2 * n + column
            if group == 0 and column < n:
                load(partial, base + (2 * int64(cuda.blockIdx.x) + 1) * n, total, 0)
            piece = int64(cuda.blockIdx.x) + 1 + group
            while column < n and piece < pieces and ids[piece * RUN] == own:
                load(partial, base + 2 * piece * n, tile, 0)
                for k in range(W):
                    total[k] += tile[k]
                piece += groups
            add(total)
            if group == 0 and column < n:
                store(out, (v * K + own) * n + column, total, 0)
            v += int64(cuda.gridDim.z)

    return body


def _serves(ids, *arrays):
    """Whether the kernels take ids, and arrays of one dtype, with something to move."""
    integers = getattr(ids, "dtype", None) is not None and ids.dtype.kind in "iu"
    known = integers and 0 < ids.size < 2**31 and takes(*arrays, dtypes=FLOATS + HALVES)
    return known and arrays[0].shape[-1] <= WIDEST


def _in_pairs(table):
    """Whether rows of float16 and bfloat16 can be moved as float32."""
    return str(table.dtype) in FLOATS or (table.shape[-1] % 2 == 0 and address(table) % 4 == 0)


def _shape(n, *arrays):
    """(lanes, access) for rows of n elements."""
    wide = aligned(*arrays) and n % vector_width(arrays[0].dtype) == 0
    W = vector_width(arrays[0].dtype) if wide else 1
    return 8 if n <= 8 * W else 32, "wide" if wide else "single"


def _width(n, T, shape):
    """Blocks across the columns."""
    return blocks(n, shape[0] * tile_width(T, shape[1]))


def gathered(xp, ids, table):
    """table[v, ids] of a stack (V, K, n) -> (V, *ids, n)."""
    (table,) = contiguous(xp, table)
    if str(table.dtype) in HALVES:
        return gathered(xp, ids, table.view(xp.float32)).view(table.dtype)
    places = xp.ascontiguousarray(ids, dtype=xp.int64)
    (V, K, n), count = table.shape, ids.size
    out = empty(xp, (V, *ids.shape, n), table.dtype)
    shape = _shape(n, table, out)
    across = blocks(count * shape[0], THREADS)
    grid = (across, min(V, max(1, FILL // across)))
    gather_rows[table.dtype, *shape](grid, THREADS, table, places, out, NAN, count, K, n, V)
    return out


def summed(xp, ids, dy, K):
    """The rows of a stack dy (V, *ids, n) added up by id -> (V, K, n)."""
    (dy,) = contiguous(xp, dy)
    V, n, count = dy.shape[0], dy.shape[-1], ids.size
    # as unsigned numbers, those below 0 are the largest
    keys = xp.minimum(ids.reshape(-1).astype(xp.int64, copy=False).view(xp.uint64), K).astype(xp.int32)
    order = xp.argsort(keys, kind="stable")
    places, order = keys[order], order.astype(xp.int32)
    pieces = blocks(count, RUN)
    T, deep = working(dy.dtype), min(V, GRID_Z)
    out, partial = xp.zeros((V, K, n), T), empty(xp, (V, pieces, 2, n), T)
    shape = _shape(n, dy, out, partial)
    shape = (32, shape[1]) if dy.dtype != T else shape
    grid = (blocks(pieces * shape[0], THREADS), _width(n, dy.dtype, shape), deep)
    run_sums[dy.dtype, *shape](grid, THREADS, places, order, dy, out, partial, count, K, n, V)
    grid = (pieces - 1, _width(n, T, shape), deep)
    join_runs[T, *shape](grid, THREADS, places, partial, out, count, K, n, V)
    return narrow(out, dy.dtype)


def _forward(xp, ids, table):
    if not _serves(ids, table) or not table.size or not _in_pairs(table):
        return NotImplemented
    return gathered(xp, ids, table[None])[0], (ids, table)


def _vjp(xp, saved, dy, need):
    ids, table = saved
    if not need[1]:
        return None, None
    if not _serves(ids, table, dy) or not table.size or table.shape[0] >= 2**31:
        return NotImplemented
    return None, summed(xp, ids, dy, table.shape[0])


def _jvp(xp, saved, dx):
    ids, table = saved
    if not _serves(ids, table, dx[1]) or not table.size or not _in_pairs(dx[1]):
        return NotImplemented
    return gathered(xp, ids, dx[1])


embedding = Kernel(_forward, _vjp, _jvp)
