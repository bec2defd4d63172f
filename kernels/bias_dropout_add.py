"""Bias, activation, dropout and residual in one pass, and their cotangents in one.

    y = residual + act(x + b) m,   m = mask / (1 - rate)      dx = dy act'(x + b) m,   db = sum of dx over rows
    dy = (dx + db) act'(x + b) m + dresidual, by the kernel of the cotangents

Access: 16 bytes a thread, neighbouring threads neighbouring addresses; forward 3 numbers move for each entry, where op
by op it were 8. The mask is `dropout`'s, a function of seed, counter and position: a thread draws the words of its own
entries from Philox in registers, in the backward pass again, and x + b is added again instead of kept. Backward, a
block takes 32 tiles of columns and some rows: each thread writes dx and keeps the sum of its columns in registers; the
block adds them up in shared memory and writes one row of partial sums, which a second, small sum completes. No
atomics: the result is bit-identical from run to run. Rows must be a multiple of 4 entries, the words of one draw, of
float16 and bfloat16 of 8; their sums stay float32 until the last one is rounded.
"""

from ..precision import narrow, working
from .dropout import LOW, elements_of, scaled_masks
from .formulas import formula
from .intrinsics import (
    WARP,
    across_groups,
    arithmetic,
    cuda,
    int32,
    int64,
    pointer,
    quotient,
    tile_access,
    uint32,
    uint64,
)
from .launch import (
    FLOATS,
    GRID_Z,
    HALVES,
    THREADS,
    Kernel,
    aligned,
    blocks,
    contiguous,
    cuda_kernel,
    empty,
    takes,
    vector_width,
)

NAMES = {None: "identity", "relu": "relu", "gelu": "gelu", "silu": "silu"}  # activation -> formula
VARIANTS = [(name,) for name in NAMES.values()]
DEPTH = 8  # rows a thread adds up


@cuda_kernel(FLOATS + HALVES, VARIANTS, vector=lambda *key: True)
def add_forward(S, name):
    """y = residual + act(x + b) m for x (rows, n)."""
    T, W = arithmetic(S), vector_width(S)
    f, _ = formula(T, name)
    load, store = tile_access(S, W)
    fill = scaled_masks(T, W)

    def body(
        x: pointer(S),
        b: pointer(S),
        residual: pointer(S),
        seed: pointer(uint64),
        counter: pointer(uint64),
        y: pointer(S),
        tiles: int32,
        n: int32,
        has_b: int32,
        has_residual: int32,
        has_mask: int32,
        threshold: uint32,
        scale: T,
        wide: int32,
    ):
        t = int64(cuda.blockIdx.x) * THREADS + int64(cuda.threadIdx.x)
        if t >= int64(tiles):
            return
        start, end = t * W, int64(tiles) * W
        xs, added, m = cuda.local.array(W, T), cuda.local.array(W, T), cuda.local.array(W, T)
        load(x, start, end, xs, 0, wide)
        if has_b:
            across = quotient(n, int32(W))
            column = (int32(t) - quotient(int32(t), across) * across) * int32(W)
            load(b, column, n, added, 0, wide)
            for k in range(W):
                xs[k] += added[k]
        for k in range(W):
            xs[k] = f(xs[k], T(0))
            added[k] = T(0)
        if has_residual:
            load(residual, start, end, added, 0, wide)
        if has_mask:
            fill(m, start, seed[0], counter[0], threshold, scale)
            for k in range(W):
                xs[k] = xs[k] * m[k]
        for k in range(W):
            xs[k] += added[k]
        store(y, start, end, xs, 0, wide)

    return body


@cuda_kernel(FLOATS + HALVES, VARIANTS, vector=lambda *key: True, registers=128)  # of halves: two draws, eight sums
def add_backward(S, name):
    """dx[v] = dy[v] act'(x + b) m, partial[v, block of rows] = sums of its columns, if `sums`; x and b as given."""
    T, W = arithmetic(S), vector_width(S)
    f, df = formula(T, name)
    load, store = tile_access(S, W)
    part = vector_width(T)
    _, store_part = tile_access(T, part)
    add = across_groups(T, WARP, W)
    fill = scaled_masks(T, W)
    groups = THREADS // WARP
    needs_x = name != "identity"

    def body(
        x: pointer(S),
        b: pointer(S),
        seed: pointer(uint64),
        counter: pointer(uint64),
        dy: pointer(S),
        dx: pointer(S),
        partial: pointer(T),
        rows: int64,
        n: int32,
        V: int64,
        has_b: int32,
        has_mask: int32,
        sums: int32,
        threshold: uint32,
        scale: T,
        wide: int32,
    ):
        group, lane = int32(cuda.threadIdx.x) >> int32(5), int32(cuda.threadIdx.x) & int32(31)
        column = (int32(cuda.blockIdx.x) * int32(WARP) + lane) * int32(W)
        xs, bs, d = cuda.local.array(W, T), cuda.local.array(W, T), cuda.local.array(W, T)
        m, total = cuda.local.array(W, T), cuda.local.array(W, T)
        for k in range(W):
            bs[k], m[k] = T(0), T(1)
        if has_b and needs_x and column < n:
            load(b, column, n, bs, 0, wide)
        v = int64(cuda.blockIdx.z)
        while v < V:
            for k in range(W):
                total[k], d[k], xs[k] = T(0), T(0), T(0)
            for r in range(DEPTH):
                row = (int64(cuda.blockIdx.y) * DEPTH + r) * groups + group
                if row < rows and column < n:
                    here, there = row * n, (v * rows + row) * n
                    load(dy, there + column, there + n, d, 0, wide)
                    if has_mask:
                        fill(m, here + column, seed[0], counter[0], threshold, scale)
                    if needs_x:
                        load(x, here + column, here + n, xs, 0, wide)
                        for k in range(W):
                            z = xs[k] + bs[k]
                            d[k] = d[k] * df(z, f(z, T(0)), T(0))
                    for k in range(W):
                        d[k] = d[k] * m[k]
                        total[k] += d[k]
                    store(dx, there + column, there + n, d, 0, wide)
            if sums:
                add(total)
                if group == 0 and column < n:
                    base = (v * int64(cuda.gridDim.y) + int64(cuda.blockIdx.y)) * n
                    store_part(partial, base + column, base + n, total, 0, wide)
                    if part < W:
                        store_part(partial, base + column + part, base + n, total, part, wide)
            v += int64(cuda.gridDim.z)

    return body


def _mask_arguments(xp, seed, counter, rate):
    """(seed, counter), and (has_mask, threshold, scale), of what the kernels take."""
    if seed is None:
        nothing = xp.zeros((), "uint64")
        return (nothing, nothing), (False, 0, 1.0)
    return (seed, counter), (True, min(round(rate * 2**32), LOW), 1 / (1 - rate))


def _serves(x, *others, seed, counter, activation):
    return (
        takes(x, *others, dtypes=FLOATS + HALVES)
        and (seed is None or takes(seed, counter, dtypes=("uint64",)))
        and activation in NAMES
        and 0 < x.size < 2**31
        and x.shape[-1] % elements_of(x.dtype) == 0
    )


def _forward(xp, x, b, residual, seed, counter, *, activation, rate):
    if not _serves(x, b, residual, seed=seed, counter=counter, activation=activation):
        return NotImplemented
    x, b, residual = contiguous(xp, x, b, residual)
    y, W = empty(xp, x.shape, x.dtype), vector_width(x.dtype)
    drawn, (has_mask, threshold, scale) = _mask_arguments(xp, seed, counter, rate)
    wide, tiles = aligned(x, b, residual, y), x.size // W
    arrays = (x, x if b is None else b, x if residual is None else residual, *drawn, y)
    flags = (b is not None, residual is not None, has_mask, threshold, scale, wide)
    add_forward[x.dtype, NAMES[activation]](blocks(tiles, THREADS), THREADS, *arrays, tiles, x.shape[-1], *flags)
    # The counter is copied: its owner goes on counting in place. The last is there for its shape, and holds no memory.
    like = xp.broadcast_to(xp.zeros((), x.dtype), x.shape)
    return y, (None if activation is None else x, b, seed, None if seed is None else counter.copy(), like)


def _vjp(xp, saved, dy, need, *, activation, rate, first=0):
    dx = db = None
    if need[0] or need[1]:
        result = NotImplemented if first else _scaled(xp, saved, dy, activation, rate, need[1])
        if result is NotImplemented:  # first: the mask of some of the samples
            return NotImplemented
        dx, db = result
    return dx if need[0] else None, db, dy if need[2] else None, None, None


def _jvp(xp, saved, dx, *, activation, rate, first=0):
    like = saved[-1]
    d, db, dresidual = dx[:3]
    if first or not takes(like, d, db, dresidual, dtypes=FLOATS + HALVES):
        return NotImplemented
    if db is not None:
        rows = xp.reshape(db, (db.shape[0], *(1,) * (like.ndim - 1), db.shape[1]))
        d = xp.broadcast_to(rows, (db.shape[0], *like.shape)) if d is None else d + rows
    if d is None:
        return NotImplemented
    result = _scaled(xp, saved, d, activation, rate, False)
    if result is NotImplemented:
        return NotImplemented
    return result[0] if dresidual is None else result[0] + dresidual


def _scaled(xp, saved, d, activation, rate, summed):
    """(d act'(x + b) m, its sum over rows or None) of a stack d (V, ..., n)."""
    x, b, seed, counter, like = saved
    if not _serves(like, x, b, d, seed=seed, counter=counter, activation=activation):
        return NotImplemented
    x, b, d = contiguous(xp, x, b, d)
    V, n, W = d.shape[0], d.shape[-1], vector_width(d.dtype)
    rows = like.size // n
    deep = blocks(rows, DEPTH * (THREADS // WARP))
    if deep > GRID_Z:
        return NotImplemented
    out, partial = empty(xp, d.shape, d.dtype), empty(xp, (V, deep if summed else 0, n), working(d.dtype))
    drawn, (has_mask, threshold, scale) = _mask_arguments(xp, seed, counter, rate)
    wide = aligned(x, b, d, out, partial)
    arrays = (d if x is None else x, d if b is None else b, *drawn, d, out, partial)
    flags = (b is not None, has_mask, summed, threshold, scale, wide)
    grid = (blocks(n, WARP * W), deep, min(V, GRID_Z))
    add_backward[d.dtype, NAMES[activation]](grid, THREADS, *arrays, rows, n, V, *flags)
    return out, narrow(partial[:, 0] if deep == 1 else xp.sum(partial, axis=1), d.dtype) if summed else None


bias_dropout_add = Kernel(_forward, _vjp, _jvp)
