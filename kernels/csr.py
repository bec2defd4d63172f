"""Sparse rows S (B, K) in CSR form (data, indices, indptr) against dense matrices.

    csr_product     z = S w          z[r] = sum_j data[j] w[indices[j]],  j of row r
    csr_transposed  t = S^T z        the same product with the entries sorted by column
    csr_dots        r_j = z[row(j)] . w[indices[j]]

Access: a block takes one row of the result and up to 128 of its columns; 8 (or 32) groups of threads share the row's
entries and add up through shared memory, so a word that occurs in every row does not hold a single thread; rows of w
are read 16 bytes a thread. Sums run in a fixed order, without atomics: bit-identical from run to run. The stack is an
axis of the grid. float16 and bfloat16 (S) are widened to float32 (T) as they are loaded, for csr_dots beforehand, and
rounded once, when a sum is complete.
"""

from ..precision import is_narrow, narrow, working
from .intrinsics import (
    across_groups,
    arithmetic,
    cuda,
    element_access,
    int32,
    int64,
    pointer,
    reductions,
    tile_access,
)
from .launch import (
    FLOATS,
    GRID_Z,
    HALVES,
    MOST,
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

LANES = ((8,), (32,))  # threads across the columns
WIDEST = GRID_Z * 32 * 2  # columns of a dense matrix: GRID_Z blocks across, of float64 too


@cuda_kernel(FLOATS + HALVES, LANES, vector=lambda *key: True)
def gather_rows(S, L):
    """out[v, r] = sum of data[j] w[v, indices[j]] over the entries j of row r; w (V, K, n), out (V, rows, n)."""
    T, W = arithmetic(S), vector_width(S)
    load, store = tile_access(S, W)
    get, _ = element_access(S)
    add = across_groups(T, L, W)
    groups = THREADS // L

    def body(
        data: pointer(S),
        indices: pointer(int32),
        indptr: pointer(int32),
        w: pointer(S),
        out: pointer(S),
        rows: int64,
        K: int64,
        n: int32,
        V: int64,
        wide: int32,
    ):
        row = int64(cuda.blockIdx.x)
        group, lane = int32(cuda.threadIdx.x) // int32(L), int32(cuda.threadIdx.x) % int32(L)
        column = (int32(cuda.blockIdx.y) * int32(L) + lane) * int32(W)
        end = int64(indptr[row + 1])
        total, tile = cuda.local.array(W, T), cuda.local.array(W, T)
        v = int64(cuda.blockIdx.z)
        while v < V:
            for k in range(W):
                total[k], tile[k] = T(0), T(0)
            j = int64(indptr[row]) + group
            while j < end and column < n:
                base = (v * K + indices[j]) * n
                load(w, base + column, base + n, tile, 0, wide)
                factor = get(data, j)
                for k in range(W):
                    total[k] += factor * tile[k]
                j += groups
            add(total)
            if group == 0 and column < n:
                base = (v * rows + row) * n
                store(out, base + column, base + n, total, 0, wide)
            v += int64(cuda.gridDim.z)

    return body


@cuda_kernel(variants=LANES, vector=lambda *key: "loads", registers=80)
def entry_dots(T, L):
    """out[v, j] = z[v, row[j]] . w[column[j]], a group of L lanes an entry; z (V, B, n), w (K, n), out (V, entries)."""
    W = vector_width(T)
    load, _ = tile_access(T, W)
    add, _ = reductions(T, L)

    def body(
        z: pointer(T),
        w: pointer(T),
        row: pointer(int32),
        column: pointer(int32),
        out: pointer(T),
        entries: int64,
        B: int64,
        n: int32,
        V: int64,
        wide: int32,
    ):
        j = (int64(cuda.blockIdx.x) * THREADS + int64(cuda.threadIdx.x)) // L
        lane = int32(cuda.threadIdx.x) % int32(L)
        mine = n if j < entries else int32(0)
        a, b = cuda.local.array(W, T), cuda.local.array(W, T)
        v = int64(cuda.blockIdx.y)
        while v < V:
            s, c = T(0), lane * int32(W)
            while c < mine:
                there, here = (v * B + row[j]) * n, int64(column[j]) * n
                load(z, there + c, there + n, a, 0, wide)
                load(w, here + c, here + n, b, 0, wide)
                for k in range(W):
                    if c + k < n:
                        s += a[k] * b[k]
                c += int32(L * W)
            s = add(s)
            if mine > 0 and lane == 0:
                out[v * entries + j] = s
            v += int64(cuda.gridDim.y)

    return body


def serves(data, indices, indptr, *dense):
    """Whether the kernels take these arrays: one dtype of floats, integer patterns, something to compute, and no more
    rows, columns and entries than they number."""
    integers = all(getattr(i, "dtype", None) is not None and i.dtype.kind in "iu" for i in (indices, indptr))
    floats = [a for a in (data, *dense) if a is not None]
    if not integers or not takes(*floats, dtypes=FLOATS + HALVES) or not all(a.size for a in (*floats, indices)):
        return False
    matrices = [a for a in dense if a is not None and a.ndim > 1]
    rows = max(indices.size, indptr.size, *(a.shape[-2] for a in matrices))
    return rows <= MOST and all(a.shape[-1] <= WIDEST for a in matrices)


def product(xp, data, indices, indptr, w):
    """S w[v] of a stack w (V, K, n) -> (V, B, n)."""
    data, w, indices, indptr = _ready(xp, data, w, indices, indptr)
    (V, K, n), rows = w.shape, indptr.shape[0] - 1
    out = empty(xp, (V, rows, n), w.dtype)
    wide = aligned(w, out) and n % vector_width(w.dtype) == 0
    lanes = _lanes(n, w.dtype)
    grid = (rows, blocks(n, lanes * vector_width(w.dtype)), min(V, GRID_Z))
    gather_rows[w.dtype, lanes](grid, THREADS, data, indices, indptr, w, out, rows, K, n, V, wide)
    return out


def tangent(xp, data, indices, indptr, w, ddata, dw):
    """dS w + S dw of stacks ddata (V, entries) and dw (V, K, n), None for 0 -> (V, B, n); None of neither."""
    parts = [] if dw is None else [product(xp, data, indices, indptr, dw)]
    if ddata is not None:  # another sparse matrix for each member of the stack
        out = empty(xp, (len(ddata), indptr.shape[0] - 1, w.shape[1]), w.dtype)
        for d, target in zip(ddata, out, strict=True):
            target[...] = product(xp, d, indices, indptr, w[None])[0]
        parts.append(out)
    return sum(parts[1:], parts[0]) if parts else None


def transposed(xp, data, indices, indptr, z, width):
    """S^T z[v] of a stack z (V, B, n) -> (V, width, n): the product with the entries in the order of their columns."""
    order = xp.argsort(indices, kind="stable")
    bounds = xp.searchsorted(indices[order], xp.arange(width + 1, dtype=indices.dtype))
    return product(xp, data[order], rows_of_entries(xp, indices.size, indptr)[order], bounds, z)


def dots(xp, z, w, indices, indptr):
    """csr_dots of a stack z (V, B, n) with w (K, n) -> (V, entries)."""
    if is_narrow(z.dtype):  # in float32: as kernels of their own they spill
        exact = working(z.dtype)
        return narrow(dots(xp, z.astype(exact), w.astype(exact), indices, indptr), z.dtype)
    rows = rows_of_entries(xp, indices.size, indptr)
    z, w, rows, indices = _ready(xp, z, w, rows, indices)
    V, B, n = z.shape
    out = empty(xp, (V, indices.size), z.dtype)
    wide = aligned(z, w) and n % vector_width(z.dtype) == 0
    lanes = _lanes(n, z.dtype)
    grid = (blocks(indices.size * lanes, THREADS), min(V, GRID_Z))
    entry_dots[z.dtype, lanes](grid, THREADS, z, w, rows, indices, out, indices.size, B, n, V, wide)
    return out


def rows_of_entries(xp, entries, indptr):
    """(entries,) the row of each entry."""
    return xp.searchsorted(indptr[1:], xp.arange(entries, dtype=indptr.dtype), side="right")


def _lanes(n, dtype):
    return 8 if n <= 8 * vector_width(dtype) else 32


def _ready(xp, a, b, *patterns):
    return *contiguous(xp, a, b), *(xp.ascontiguousarray(i, dtype=xp.int32) for i in patterns)


def _product_forward(xp, data, indices, indptr, w):
    if not serves(data, indices, indptr, w):
        return NotImplemented
    return product(xp, data, indices, indptr, w[None])[0], (data, indices, indptr, w)


def _product_vjp(xp, saved, dz, need):
    data, indices, indptr, w = saved
    if not serves(data, indices, indptr, w, dz):
        return NotImplemented
    ddata = dots(xp, dz, w, indices, indptr) if need[0] else None
    return ddata, None, None, transposed(xp, data, indices, indptr, dz, w.shape[0]) if need[3] else None


def _product_jvp(xp, saved, dx):
    data, indices, indptr, w = saved
    if not serves(data, indices, indptr, w, dx[3]) or not takes(w, dx[0], dtypes=FLOATS + HALVES):
        return NotImplemented
    return tangent(xp, data, indices, indptr, w, dx[0], dx[3])


def _transposed_forward(xp, data, indices, indptr, z, *, width):
    if not serves(data, indices, indptr, z) or width > MOST:
        return NotImplemented
    return transposed(xp, data, indices, indptr, z[None], width)[0], (data, indices, indptr, z)


def _dots_forward(xp, z, w, indices, indptr):
    if not serves(None, indices, indptr, z, w):
        return NotImplemented
    return dots(xp, z[None], w, indices, indptr)[0], (z, w, indices, indptr)


csr_product = Kernel(_product_forward, _product_vjp, _product_jvp)
csr_transposed = Kernel(_transposed_forward)
csr_dots = Kernel(_dots_forward)
