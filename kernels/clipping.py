"""Clipping by the global norm of all gradients, without the host's waiting for the norm.

    norm = sqrt(sum over all entries of g^2)      clipped = g scale,  scale = 1 if norm <= max_norm else max_norm / norm

Three launches, whatever the number of tensors. First a block takes a chunk of one tensor, by `optim`'s table on the
device: 16 bytes a load, all loads of a thread before its first product, one partial sum a block. Then one block adds up
the partial sums, 1 for 4096 entries, and leaves norm and scale in the device's memory, where the third launch finds
them. 3 numbers move for each entry. Sums are in the gradients' dtype, of float16 and bfloat16 in float32, in a fixed
order: no atomics, the same bits from run to run. Gradients of several dtypes take two launches each, and one for their
joint norm.
"""

from ..precision import working
from .intrinsics import (
    arithmetic,
    as_pointer,
    cuda,
    divide,
    int32,
    int64,
    pointer,
    reductions,
    square_root,
    tile_access,
    uint64,
)
from .launch import FLOATS, HALVES, THREADS, contiguous, cuda_kernel, empty, vector_width
from .optim import CHUNK, by_dtype, chunk_places, chunk_table


@cuda_kernel(FLOATS + HALVES, vector=lambda *key: "loads")
def squares_of_chunks(S):
    """partial[block] = the sum of squares of its chunk: rows of the table are n and g."""
    T, at, W = arithmetic(S), as_pointer(S), vector_width(S)
    places, (load, _) = chunk_places(1), tile_access(S, W)
    add, _ = reductions(T, None)
    TILES = CHUNK // (THREADS * W)
    HELD = TILES * W

    def body(table: pointer(uint64), chunks: pointer(int32), tensors: int64, partial: pointer(T)):
        t, start, n, end, wide = places(table, chunks, tensors)
        g = at(table[tensors + t], n)
        held, s = cuda.local.array(HELD, T), T(0)
        for k in range(HELD):
            held[k] = T(0)
        for r in range(TILES):
            i = start + (r * THREADS + int64(cuda.threadIdx.x)) * W
            if i < end:
                load(g, i, end, held, r * W, wide)
        for k in range(HELD):
            s += held[k] * held[k]
        s = add(s)
        if cuda.threadIdx.x == 0:
            partial[int64(cuda.blockIdx.x)] = s

    return body


@cuda_kernel(vector=lambda *key: "loads")
def norm_and_scale(T):
    """result = (norm, scale) from the partial sums; one block."""
    W = vector_width(T)
    load, _ = tile_access(T, W)
    add, _ = reductions(T, None)

    def body(partial: pointer(T), count: int64, max_norm: T, result: pointer(T)):
        tile, s = cuda.local.array(W, T), T(0)
        i = int64(cuda.threadIdx.x) * W
        while i < count:
            for k in range(W):
                tile[k] = T(0)
            load(partial, i, count, tile, 0, int32(1))
            for k in range(W):
                s += tile[k]
            i += THREADS * W
        norm = square_root(add(s))
        if cuda.threadIdx.x == 0:
            result[0] = norm
            result[1] = T(1) if norm <= max_norm else divide(max_norm, norm)

    return body


@cuda_kernel(FLOATS + HALVES, vector=lambda *key: True)
def scaled_chunks(S):
    """out = g scale for one chunk: rows of the table are n, g and out; result holds norm and scale."""
    T, at, W = arithmetic(S), as_pointer(S), vector_width(S)
    places, (load, store) = chunk_places(2), tile_access(S, W)

    def body(table: pointer(uint64), chunks: pointer(int32), tensors: int64, result: pointer(T)):
        t, start, n, end, wide = places(table, chunks, tensors)
        g, out = at(table[tensors + t], n), at(table[2 * tensors + t], n)
        scale = result[1]
        tile = cuda.local.array(W, T)
        i = start + int64(cuda.threadIdx.x) * W
        while i < end:
            load(g, i, end, tile, 0, wide)
            for k in range(W):
                tile[k] = tile[k] * scale
            store(out, i, end, tile, 0, wide)
            i += THREADS * W

    return body


def clip_by_global_norm(xp, grads, max_norm):
    """(tuple of clipped arrays, norm of shape ()), all on the device of `grads`, which are not changed.

    NotImplemented unless all are computed in one dtype, float32 or float64, and some entry exists."""
    dtypes = {working(g.dtype) for g in grads}
    if len(dtypes) != 1:
        return NotImplemented
    grads = contiguous(xp, *grads)
    clipped = tuple(empty(xp, g.shape, g.dtype) for g in grads)
    groups = by_dtype((grads, clipped))
    if groups is NotImplemented or not groups:
        return NotImplemented
    (dtype,) = dtypes
    tables = [(stored, len(lists[0]), *chunk_table(lists)) for stored, lists in groups]
    total = sum(count for *_, count in tables)
    partial, result, done = empty(xp, (total,), dtype), empty(xp, (2,), dtype), 0
    for stored, tensors, table, chunks, count in tables:
        squares_of_chunks[stored](count, THREADS, table, chunks, tensors, partial[done : done + count])
        done += count
    norm_and_scale[dtype](1, THREADS, partial, total, max_norm, result)
    for stored, tensors, table, chunks, count in tables:
        scaled_chunks[stored](count, THREADS, table, chunks, tensors, result)
    return clipped, result[:1].reshape(())
