"""Optimiser updates of all parameters in one launch.

    SGD   d = g + wd p;  v = momentum v + d;  p -= lr (d + momentum v if Nesterov else v);  without momentum p -= lr d
    Adam  g += wd p (or, decoupled, p -= lr wd p);  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
          p -= lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

1 - b^t is computed as -expm1(t log b): exact to the last bits in float32 too. Of float16 and bfloat16 parameters, v and
m are float32, and p is rounded once. Access: a table on the device holds the addresses and sizes of all tensors; every
block takes one chunk of one tensor, so a hundred small parameters cost one launch, not a hundred. Reads and writes are
16 bytes wide (those of float16 and bfloat16 beside a state of float32: 8); each number moves once. lr and the step
count are read from the device's memory: a captured launch follows them.
"""

import math as host_math
from functools import lru_cache

import numpy as np

from ..device import array_module
from ..precision import working
from .intrinsics import (
    arithmetic,
    as_pointer,
    cuda,
    device,
    divide,
    float64,
    int32,
    int64,
    math,
    pointer,
    square_root,
    tile_access,
    uint64,
)
from .launch import FLOATS, HALVES, THREADS, address, cuda_kernel, takes, upload, vector_width

CHUNK = 4096  # elements a block updates


def chunk_places(arrays):
    """-> device function: (tensor, first element, size, end of the chunk, may it move 16 bytes).

    The table's rows are sizes, then the addresses of `arrays` lists of tensors; chunks are pairs (tensor, which of its
    chunks)."""

    @device
    def places(table, chunks, tensors):
        t = int64(chunks[2 * int64(cuda.blockIdx.x)])
        start = int64(chunks[2 * int64(cuda.blockIdx.x) + 1]) * CHUNK
        n = int64(table[t])
        end = start + CHUNK if start + CHUNK < n else n
        low = uint64(0)
        for k in range(arrays):
            low |= table[(k + 1) * tensors + t]
        return t, start, n, end, int32(low & uint64(15)) == 0

    return places


@cuda_kernel(FLOATS + HALVES, ((False,), (True,)), vector=lambda *key: True)
def sgd_chunks(S, has_velocity):
    """One chunk of SGD: rows of the table are n, p, g and, with momentum, v."""
    T = arithmetic(S)
    W = vector_width(T if has_velocity else S)
    at, at_state, places = as_pointer(S), as_pointer(T), chunk_places(2 + has_velocity)
    (load, store), (load_state, store_state) = tile_access(S, W), tile_access(T, min(W, vector_width(T)))

    def body(
        table: pointer(uint64),
        chunks: pointer(int32),
        tensors: int64,
        lr: pointer(float64),
        momentum: T,
        nesterov: int32,
        decay: T,
    ):
        t, start, n, end, wide = places(table, chunks, tensors)
        p, g = at(table[tensors + t], n), at(table[2 * tensors + t], n)
        if has_velocity:
            v = at_state(table[3 * tensors + t], n)
        rate = T(lr[0])
        ps, gs, vs = cuda.local.array(W, T), cuda.local.array(W, T), cuda.local.array(W, T)
        i = start + int64(cuda.threadIdx.x) * W
        while i < end:
            load(p, i, end, ps, 0, wide)
            load(g, i, end, gs, 0, wide)
            if has_velocity:
                load_state(v, i, end, vs, 0, wide)
            for k in range(W):
                d = gs[k] + decay * ps[k]
                if has_velocity:
                    vs[k] = momentum * vs[k] + d
                    d = d + momentum * vs[k] if nesterov else vs[k]
                ps[k] = ps[k] - rate * d
            store(p, i, end, ps, 0, wide)
            if has_velocity:
                store_state(v, i, end, vs, 0, wide)
            i += THREADS * W

    return body


@cuda_kernel(FLOATS + HALVES, vector=lambda *key: True)
def adam_chunks(S):
    """One chunk of Adam: rows of the table are n, p, g, m, v. log1, log2 are the logarithms of the betas."""
    T = arithmetic(S)
    W = vector_width(T)
    at, at_state, places = as_pointer(S), as_pointer(T), chunk_places(4)
    (load, store), (load_state, store_state) = tile_access(S, W), tile_access(T, W)

    def body(
        table: pointer(uint64),
        chunks: pointer(int32),
        tensors: int64,
        step: pointer(int64),
        lr: pointer(float64),
        beta1: T,
        rest1: T,
        log1: T,
        beta2: T,
        rest2: T,
        log2: T,
        eps: T,
        decay: T,
        decoupled: int32,
    ):
        t, start, n, end, wide = places(table, chunks, tensors)
        p, g = at(table[tensors + t], n), at(table[2 * tensors + t], n)
        m, v = at_state(table[3 * tensors + t], n), at_state(table[4 * tensors + t], n)
        rate, steps = T(lr[0]), T(step[0])
        scale1, scale2 = divide(T(-1), math.expm1(steps * log1)), divide(T(-1), math.expm1(steps * log2))
        keep = T(1) - rate * decay if decoupled else T(1)
        pull = T(0) if decoupled else decay
        ps, gs = cuda.local.array(W, T), cuda.local.array(W, T)
        ms, vs = cuda.local.array(W, T), cuda.local.array(W, T)
        i = start + int64(cuda.threadIdx.x) * W
        while i < end:
            load(p, i, end, ps, 0, wide)
            load(g, i, end, gs, 0, wide)
            load_state(m, i, end, ms, 0, wide)
            load_state(v, i, end, vs, 0, wide)
            for k in range(W):
                d = gs[k] + pull * ps[k]
                ms[k] = beta1 * ms[k] + rest1 * d
                vs[k] = beta2 * vs[k] + rest2 * d * d
                ps[k] = ps[k] * keep - divide(rate * (ms[k] * scale1), square_root(vs[k] * scale2) + eps)
            store(p, i, end, ps, 0, wide)
            store_state(m, i, end, ms, 0, wide)
            store_state(v, i, end, vs, 0, wide)
            i += THREADS * W

    return body


def sgd(params, grads, velocity, lr, *, momentum, nesterov, weight_decay):
    """Update params and velocity in place; velocity is empty where momentum is 0. lr: 0-d float64 on the device.

    NotImplemented, with nothing changed, for what `by_dtype` does not take."""
    columns = (params, grads, velocity) if velocity else (params, grads)
    groups = by_dtype(columns)
    if groups is NotImplemented:
        return NotImplemented
    for dtype, lists in groups:
        table, chunks, count = chunk_table(lists)
        kernel = sgd_chunks[dtype, bool(velocity)]
        kernel(count, THREADS, table, chunks, len(lists[0]), lr, momentum, nesterov, weight_decay)
    return None


def adam(params, grads, m, v, step, lr, *, beta1, beta2, eps, weight_decay, decoupled):
    """Update params, m and v in place. step: 0-d int64, counted from 1; lr: 0-d float64; both on the device.

    NotImplemented, with nothing changed, for what `by_dtype` does not take."""
    groups = by_dtype((params, grads, m, v))
    if groups is NotImplemented:
        return NotImplemented
    moments = [x for beta in (beta1, beta2) for x in (beta, 1 - beta, host_math.log(beta) if beta else -host_math.inf)]
    for dtype, lists in groups:
        table, chunks, count = chunk_table(lists)
        kernel = adam_chunks[dtype]
        kernel(count, THREADS, table, chunks, len(lists[0]), step, lr, *moments, eps, weight_decay, decoupled)
    return None


def by_dtype(columns):
    """[(dtype, columns of the tensors that have it)], empty tensors left out.

    NotImplemented unless all are contiguous, the first two columns of one dtype a row, the others, an optimiser's
    state, of the one that it is computed in."""
    groups = {}
    for tensors in zip(*columns, strict=True):
        own, state = tensors[:2], tensors[2:]
        if not takes(*own, dtypes=FLOATS + HALVES) or any(x.dtype != working(own[0].dtype) for x in state):
            return NotImplemented
        if not all(x.flags.c_contiguous for x in tensors):
            return NotImplemented
        if tensors[0].size:
            groups.setdefault(tensors[0].dtype.name, []).append(tensors)
    return [(dtype, list(zip(*rows, strict=True))) for dtype, rows in groups.items()]


def chunk_table(lists):
    """-> (table, chunks, number of chunks) on the device of the tensors."""
    xp = array_module(lists[0][0])
    rows = [[x.size for x in lists[0]]] + [[address(x) for x in column] for column in lists]
    chunks = _chunks(tuple(rows[0]))
    return upload(xp, np.array(rows, np.uint64)), upload(xp, chunks), chunks.size // 2


@lru_cache(maxsize=64)
def _chunks(sizes):
    """(tensor, which chunk of it) of every chunk, flat."""
    return np.array([(t, c) for t, n in enumerate(sizes) for c in range(-(-n // CHUNK))], np.int32).reshape(-1)
