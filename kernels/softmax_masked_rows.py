"""The kernels of masked and causal softmax over rows, held in registers by a group of lanes or streamed by a block.

    y_j = exp(x_j - m) / s of the entries j that are attended to, else 0;   m = max, s = sum of exp(x_j - m) over these
    out_j = y_j (d_j - sum_i d_i y_i)

What may not be attended to is never read: a causal row (query i of T_q, T_k keys) ends at key i + T_k - T_q, and a tile
of 16 bytes whose bits of the mask are all 0 is skipped, which is what padding is made of. Adjacent lanes read adjacent
tiles. The result is written whole, 0 where masked. The mask has a byte an entry (0 or 1) and is read four at a time, as
words of 32 bits; its rows are padded to whole words; a tile of 8 takes two. It is not repeated in memory where it is
broadcast: row r of x = (outer, repeated, inner) takes row (outer, inner) of the mask. A row without any entry to attend
to has sum 0, and 1/0 is replaced by 0.

float16 and bfloat16 (S) are widened to float32 (T) as they are loaded and rounded once as they are stored.
"""

from .intrinsics import (
    INFINITY,
    arithmetic,
    cuda,
    device,
    divide,
    exponential,
    int32,
    int64,
    pointer,
    quotient,
    reductions,
    row_access,
    tile_access,
    uint32,
)
from .launch import FLOATS, HALVES, cuda_kernel, vector_width
from .softmax_rows import finite_shift

# (lanes that share a row, elements each holds): a row takes the first shape it fits in, or a whole block.
GROUPS = ((8, 4), (32, 4), (32, 16))
HALF_GROUPS = ((8, 8), (32, 16))  # of float16 and bfloat16
SHAPES = tuple(dict.fromkeys(GROUPS + HALF_GROUPS))


def groups_of(dtype):
    """The shapes that kernels of a dtype have."""
    return HALF_GROUPS if str(dtype) in HALVES else GROUPS


def _left_out(dtype, *group):
    """Shapes of the other storage."""
    return group not in groups_of(dtype)


@device
def _keys_of(row, n, queries, causal):
    """How many keys of the row, from the first, causality lets it attend to; 0 or less where none."""
    if not causal:
        return n
    i = row - quotient(row, queries) * queries
    return i + int32(1) + n - queries


@device
def _words_of(row, n, repeated, inner, has_mask):
    """Where the row's words of the mask start: (row // (repeated inner)) inner + row % inner, of the mask's rows."""
    if not has_mask:
        return int64(0)
    outer = quotient(row, repeated * inner)
    words = (n + int32(3)) >> int32(2)
    return (int64(outer) * inner + (row - quotient(row, inner) * inner)) * words


def _bits(W):
    """-> device functions: bits(mask, words, j, keys, has_mask), the entries of the tile of W from j on, as one number;
    and is_shown(bits, k), not 0 where entry k of it may be attended to.

    Entries 0 to 3 are the lowest bits of the number's bytes, as memory has them; 4 to 7 those beside them."""
    chosen = {2: 0x0101, 4: 0x01010101, 8: 0x03030303}[W]

    @device
    def bits(mask, words, j, keys, has_mask):
        if not has_mask:
            return uint32(chosen)
        at = words + int64(j >> int32(2))
        word = uint32(mask[at] >> uint32((j & int32(2)) * int32(8)))
        if W == 8 and j + int32(4) < keys:
            word = uint32(word | (mask[at + int64(1)] << uint32(1)))
        return uint32(word & uint32(chosen))

    @device
    def is_shown(found, k):
        return (found >> uint32(8 * (k % 4) + k // 4)) & uint32(1)

    return bits, is_shown


@cuda_kernel(FLOATS + HALVES, SHAPES, without=_left_out, vector=lambda *key: True)
def held_attended(S, L, R):
    """y = softmax of x over the entries to attend to, rows of n <= L * R elements, a group of L lanes a row."""
    T = arithmetic(S)
    add, largest = reductions(T, L)
    finite, exp = finite_shift(T), exponential(T)
    W = vector_width(S)
    bits, is_shown = _bits(W)
    TILES = R // W
    load, _ = tile_access(S, W)
    _, store = row_access(S, L, R)

    def body(
        x: pointer(S),
        mask: pointer(uint32),
        y: pointer(S),
        rows: int32,
        n: int32,
        queries: int32,
        repeated: int32,
        inner: int32,
        causal: int32,
        has_mask: int32,
        wide: int32,
    ):
        thread = int64(cuda.blockIdx.x) * int64(cuda.blockDim.x) + int64(cuda.threadIdx.x)
        row, lane = int32(thread // L), int32(thread % L)
        mine, keys, words = int32(0), int32(0), int64(0)
        if row < rows:
            mine = n
            keys = _keys_of(row, n, queries, causal)
            words = _words_of(row, n, repeated, inner, has_mask)
        base = int64(row) * n
        held = cuda.local.array(R, T)
        seen = cuda.local.array(TILES, uint32)
        for r in range(TILES):
            j = (r * int32(L) + lane) * int32(W)
            seen[r] = bits(mask, words, j, keys, has_mask) if j < keys else uint32(0)
        for k in range(R):
            held[k] = T(-INFINITY)
        for r in range(TILES):
            if seen[r] != uint32(0):
                load(x, base + (r * int32(L) + lane) * int32(W), base + keys, held, r * W, wide)
        m, s = T(-INFINITY), T(0)
        for k in range(R):
            held[k] = held[k] if is_shown(seen[k // W], k % W) != uint32(0) else T(-INFINITY)
            m = held[k] if held[k] > m else m
        m = finite(largest(m))
        for k in range(R):
            held[k] = exp(held[k] - m)
            s += held[k]
        s = add(s)
        scale = divide(T(1), s) if s != T(0) else T(0)
        for k in range(R):
            held[k] = held[k] * scale
        store(y, base, mine, lane, held, wide)

    return body


@cuda_kernel(FLOATS + HALVES, vector=lambda *key: True)
def streamed_attended(S):
    """The same for long rows, a block a row: maximum and sum in one pass, y in a second."""
    T = arithmetic(S)
    add, largest = reductions(T, None)
    finite, exp = finite_shift(T), exponential(T)
    W = vector_width(S)
    bits, is_shown = _bits(W)
    load, store = tile_access(S, W)

    @device
    def read(x, mask, base, words, j, keys, tile, has_mask, wide):
        seen = bits(mask, words, j, keys, has_mask) if j < keys else uint32(0)
        for k in range(W):
            tile[k] = T(-INFINITY)
        if seen != uint32(0):
            load(x, base + j, base + keys, tile, 0, wide)
        for k in range(W):
            tile[k] = tile[k] if is_shown(seen, k) != uint32(0) else T(-INFINITY)

    def body(
        x: pointer(S),
        mask: pointer(uint32),
        y: pointer(S),
        n: int32,
        queries: int32,
        repeated: int32,
        inner: int32,
        causal: int32,
        has_mask: int32,
        wide: int32,
    ):
        row, first = int32(cuda.blockIdx.x), int32(cuda.threadIdx.x) * int32(W)
        keys = _keys_of(row, n, queries, causal)
        words = _words_of(row, n, repeated, inner, has_mask)
        base = int64(row) * n
        tile = cuda.local.array(W, T)
        m, s = T(-INFINITY), T(0)
        j = first
        while j < keys:
            read(x, mask, base, words, j, keys, tile, has_mask, wide)
            top = m
            for k in range(W):
                top = tile[k] if tile[k] > top else top
            s *= exp(m - finite(top))
            m = top
            for k in range(W):
                s += exp(tile[k] - finite(top))
            j += int32(cuda.blockDim.x) * int32(W)
        top = finite(largest(m))
        s = add(s * exp(m - top))
        scale = divide(T(1), s) if s != T(0) else T(0)
        j = first
        while j < n:
            read(x, mask, base, words, j, keys, tile, has_mask, wide)
            for k in range(W):
                tile[k] = exp(tile[k] - top) * scale
            store(y, base + j, base + n, tile, 0, wide)
            j += int32(cuda.blockDim.x) * int32(W)

    return body


@cuda_kernel(FLOATS + HALVES, SHAPES, without=_left_out, vector=lambda *key: True)
def held_attended_derivative(S, L, R):
    """out[v] = y (d[v] - sum d[v] y), v < V, for causal rows: y and d are read up to the row's last key."""
    T = arithmetic(S)
    add, _ = reductions(T, L)
    load, store = row_access(S, L, R)

    def body(
        y: pointer(S), d: pointer(S), out: pointer(S), rows: int32, n: int32, queries: int32, V: int64, wide: int32
    ):
        thread = int64(cuda.blockIdx.x) * int64(cuda.blockDim.x) + int64(cuda.threadIdx.x)
        row, lane = int32(thread // L), int32(thread % L)
        mine, keys = int32(0), int32(0)
        if row < rows:
            mine, keys = n, _keys_of(row, n, queries, int32(1))
        p, held = cuda.local.array(R, T), cuda.local.array(R, T)
        base = int64(row) * n
        for k in range(R):
            p[k] = T(0)
        load(y, base, keys, lane, p, wide)
        v = int64(cuda.blockIdx.y)
        while v < V:
            base = (v * rows + row) * n
            s = T(0)
            for k in range(R):
                held[k] = T(0)
            load(d, base, keys, lane, held, wide)
            for k in range(R):
                s += p[k] * held[k]
            s = add(s)
            for k in range(R):
                held[k] = p[k] * (held[k] - s)
            store(out, base, mine, lane, held, wide)
            v += int64(cuda.gridDim.y)

    return body


@cuda_kernel(FLOATS + HALVES, vector=lambda *key: True)
def streamed_attended_derivative(S):
    """The same for long rows, a block a row: the sum in one pass, the result in a second."""
    T = arithmetic(S)
    add, _ = reductions(T, None)
    W = vector_width(S)
    load, store = tile_access(S, W)

    def body(
        y: pointer(S), d: pointer(S), out: pointer(S), rows: int32, n: int32, queries: int32, V: int64, wide: int32
    ):
        row, first = int32(cuda.blockIdx.x), int32(cuda.threadIdx.x) * int32(W)
        keys = _keys_of(row, n, queries, int32(1))
        base = int64(row) * n
        p, tile = cuda.local.array(W, T), cuda.local.array(W, T)
        v = int64(cuda.blockIdx.y)
        while v < V:
            there, s = (v * rows + row) * n, T(0)
            j = first
            while j < keys:
                for k in range(W):
                    p[k], tile[k] = T(0), T(0)
                load(y, base + j, base + keys, p, 0, wide)
                load(d, there + j, there + keys, tile, 0, wide)
                for k in range(W):
                    s += p[k] * tile[k]
                j += int32(cuda.blockDim.x) * int32(W)
            s = add(s)
            j = first
            while j < n:
                for k in range(W):
                    p[k], tile[k] = T(0), T(0)
                load(y, base + j, base + keys, p, 0, wide)
                load(d, there + j, there + keys, tile, 0, wide)
                for k in range(W):
                    tile[k] = p[k] * (tile[k] - s)
                store(out, there + j, there + n, tile, 0, wide)
                j += int32(cuda.blockDim.x) * int32(W)
            v += int64(cuda.gridDim.y)

    return body
