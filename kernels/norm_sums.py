"""The parameter gradients of `layer_norm` and `rms_norm`: dw = sum of dy h, db = sum of dy over rows, without atomics.

Rows that fit in registers: blocks stay (one grid fills the device), walk over the rows, write dx and keep the sums of
their columns in registers, so x and dy are read once for all three results. Longer rows: dx by `norm_rows`, and blocks
that add up columns, 128 wide, of x and dy read again. Either way a block ends with one row of partial sums, and a
second, small sum over the blocks completes them: bit-identical from run to run.
"""

from .intrinsics import (
    across_groups,
    arithmetic,
    cuda,
    device,
    divide,
    int32,
    int64,
    pointer,
    tile_access,
    vector_access,
)
from .launch import FLOATS, HALVES, THREADS, cuda_kernel, vector_width
from .norm_rows import KINDS, is_wide, row_sum, row_tiles, shifter, tile_width, weighting

# (lanes that share a row, elements each holds) as in `norm_rows`; four arrays are held.
GROUPS = tuple((*g, "wide") for g in ((8, 4), (32, 4), (32, 8), (256, 8), (256, 16)))
GROUPS += tuple((*g, "single") for g in ((8, 4), (32, 4)))
HALF_GROUPS = ((32, 8, "wide"), (256, 16, "wide"))  # of float16 and bfloat16
STAYING = 4  # blocks that stay on each multiprocessor; of the longest rows half
DEPTH = 16  # rows a thread of `column_sums` adds up
LANES = 32  # threads of it across the columns


def _sums_store(S, L, R, access):
    """-> device function store(memory, base, n, lane, held): as that of `row_tiles`, in the type of the arithmetic."""
    T, W = arithmetic(S), tile_width(S, access)
    if T is S:
        return row_tiles(S, L, R, access)[1]
    part = min(W, vector_width(T))
    _, store_part = vector_access(T, part)

    @device
    def store(memory, base, n, lane, held):
        for t in range(R // W):
            if (t * L + lane) * W < n:
                for at in range(0, W, part):
                    store_part(memory, base + (t * L + lane) * W + at, held, t * W + at)

    return store


def tile_store(T, W):
    """-> device function store as that of `tile_access`, for tiles of several times 16 bytes too."""
    part = min(W, vector_width(T))
    _, store_part = tile_access(T, part)
    if part == W:
        return store_part

    @device
    def store(memory, start, end, local, at, wide):
        for k in range(0, W, part):
            store_part(memory, start + k, end, local, at + k, wide)

    return store


def _left_out(dtype, kind, *group):
    """As in `norm_rows`."""
    if dtype in HALVES:
        return group not in HALF_GROUPS
    return dtype == "float64" and (group[1] > 8 or group == GROUPS[0])


@cuda_kernel(
    dtypes=FLOATS + HALVES,
    variants=[(kind, *g) for kind in KINDS for g in GROUPS],
    without=_left_out,
    vector=is_wide,
    registers=128,  # two blocks a multiprocessor, which stay
)
def held_sums(S, kind, L, R, access):
    """dx[v] and partial[v, block] = (sums of dy h, sums of dy) of the block's rows, in the type of the arithmetic."""
    T, centred = arithmetic(S), kind == "layer_norm"
    add, subtract = row_sum(T, L), shifter(S, L, R, access)
    load, store = row_tiles(S, L, R, access)
    store_sums = _sums_store(S, L, R, access)
    times, _, _ = weighting(S, L, R, access)
    groups = THREADS // L
    add_groups = across_groups(T, L, R) if groups > 1 else None

    def body(
        x: pointer(S),
        mean: pointer(T),
        scale: pointer(T),
        w: pointer(S),
        dy: pointer(S),
        dx: pointer(S),
        partial: pointer(T),
        rows: int64,
        n: int32,
        V: int64,
        has_w: int32,
        need_dx: int32,
    ):
        group, lane = int32(cuda.threadIdx.x) // int32(L), int32(cuda.threadIdx.x) % int32(L)
        inverse = divide(T(1), T(n))
        h, d = cuda.local.array(R, T), cuda.local.array(R, T)
        of_w, of_b = cuda.local.array(R, T), cuda.local.array(R, T)
        v = int64(cuda.blockIdx.y)
        while v < V:
            for k in range(R):
                of_w[k], of_b[k] = T(0), T(0)
            first = int64(cuda.blockIdx.x) * groups
            while first < rows:
                row = first + group
                mine = n if row < rows else int32(0)
                base, s, q = (v * rows + row) * n, T(0), T(0)
                for k in range(R):
                    h[k], d[k] = T(0), T(0)
                load(x, row * n, mine, lane, h)
                load(dy, base, mine, lane, d)
                r = scale[row] if mine > 0 else T(0)
                if centred:
                    subtract(h, mine, lane, mean[row] if mine > 0 else T(0))
                for k in range(R):
                    h[k] *= r
                    of_w[k] += d[k] * h[k]
                    if centred:
                        of_b[k] += d[k]
                if need_dx:
                    if has_w:
                        times(d, w, 0, mine, lane)
                    for k in range(R):
                        s += d[k]
                        q += d[k] * h[k]
                    s = add(s) * inverse if centred else T(0)
                    q = add(q) * inverse
                    for k in range(R):
                        d[k] = r * (d[k] - s - h[k] * q)
                    store(dx, base, mine, lane, d)
                first += int64(cuda.gridDim.x) * groups
            if groups > 1:
                add_groups(of_w)
                if centred:
                    add_groups(of_b)
            place = (v * int64(cuda.gridDim.x) + int64(cuda.blockIdx.x)) * 2 * n
            if group == 0:
                store_sums(partial, place, n, lane, of_w)
                if centred:
                    store_sums(partial, place + n, n, lane, of_b)
            v += int64(cuda.gridDim.y)

    return body


@cuda_kernel(dtypes=FLOATS + HALVES, variants=[(kind,) for kind in KINDS], vector=lambda *key: True, registers=128)
def column_sums(S, kind):
    """partial[v, block of rows] = (sums of dy h, sums of dy), a block 32 threads wide and DEPTH rows a thread deep."""
    T, centred, W = arithmetic(S), kind == "layer_norm", vector_width(S)
    load, _ = tile_access(S, W)
    store = tile_store(T, W)
    add = across_groups(T, LANES, W)
    groups = THREADS // LANES

    def body(
        x: pointer(S),
        mean: pointer(T),
        scale: pointer(T),
        dy: pointer(S),
        partial: pointer(T),
        rows: int64,
        n: int32,
        V: int64,
        wide: int32,
    ):
        group, lane = int32(cuda.threadIdx.x) // int32(LANES), int32(cuda.threadIdx.x) % int32(LANES)
        column = (int32(cuda.blockIdx.y) * int32(LANES) + lane) * int32(W)
        h, d = cuda.local.array(W, T), cuda.local.array(W, T)
        of_w, of_b = cuda.local.array(W, T), cuda.local.array(W, T)
        v = int64(cuda.blockIdx.z)
        while v < V:
            for k in range(W):
                h[k], d[k], of_w[k], of_b[k] = T(0), T(0), T(0), T(0)
            for step in range(DEPTH):
                row = (int64(cuda.blockIdx.x) * DEPTH + step) * groups + group
                if row < rows and column < n:
                    here, there, m, r = row * n, (v * rows + row) * n, T(0), scale[row]
                    if centred:
                        m = mean[row]
                    load(x, here + column, here + n, h, 0, wide)
                    load(dy, there + column, there + n, d, 0, wide)
                    for k in range(W):
                        of_w[k] += d[k] * ((h[k] - m) * r)
                        of_b[k] += d[k]
            add(of_w)
            add(of_b)
            if group == 0 and column < n:
                place = (v * int64(cuda.gridDim.x) + int64(cuda.blockIdx.x)) * 2 * n
                store(partial, place + column, place + n, of_w, 0, wide)
                store(partial, place + n + column, place + 2 * n, of_b, 0, wide)
            v += int64(cuda.gridDim.z)

    return body
