"""The kernels of reductions: of rows, of columns, and the derivatives of maximum and 2-norm along rows.

    y = sum_j x_j or max_j x_j, NaN before all numbers      out = d w or sum_j d_j w_j,
    w_j = [x_j = y] / (how many are) for max and min, w_j = x_j / y for the norm, 0 where y = 0

A thread starts four loads of 16 bytes before it combines a number, and keeps one result for each element of a load:
partial sums, which meet by shuffles, then through shared memory, always in one order. A row is shared by 8 or 32 lanes
or a block. Of columns, a block takes 32 or 128 (float32) with its warps spread down the rows; neighbouring lanes read
along a row. Grids cover spans of what is reduced, one result a span.

float16 and bfloat16 (S) are widened to float32 (T) as they are loaded; results are float32, those of spans too, and the
host rounds the last ones.
"""

from .intrinsics import (
    INFINITY,
    across_groups,
    add,
    arithmetic,
    cuda,
    device,
    divide,
    element_access,
    int32,
    int64,
    larger,
    pointer,
    reduction,
    square_root,
    tile_access,
    vector_access,
)
from .launch import FLOATS, HALVES, THREADS, cuda_kernel, vector_width
from .norm_sums import tile_store

TILES = 4  # loads in flight
DEPTH = 4  # of these, one after another, in a span
ROW_LANES = (8, 32, THREADS)
COLUMN_LANES = (8, 32)
HALF_ROW_LANES, HALF_COLUMN_LANES = (32, THREADS), (8,)  # of float16 and bfloat16: fewer
KINDS = ("sum", "max")


def _steps(kind):
    """-> device functions term, combine and finish, and the neutral number.

    sum: of numbers or squares, times a factor, or the root of that. max: of numbers times a factor of 1 or -1, which
    makes it the minimum."""
    if kind == "sum":
        term = device(lambda v, square, factor: v * v if square else v)
        return term, add, device(lambda s, root, factor: square_root(s * factor) if root else s * factor), 0.0
    return device(lambda v, square, factor: v * factor), larger, device(lambda s, root, factor: s * factor), -INFINITY


def row_lanes(dtype):
    """The numbers of threads that may share a row."""
    return HALF_ROW_LANES if str(dtype) in HALVES else ROW_LANES


def column_lanes(dtype):
    """The numbers of threads along the columns."""
    return HALF_COLUMN_LANES if str(dtype) in HALVES else COLUMN_LANES


def _over(T, combine, neutral, L):
    """The reduction over the L threads that share a row."""
    return reduction(T, combine, neutral, L if L <= 32 else None)


@cuda_kernel(
    FLOATS + HALVES,
    variants=[(kind, L) for kind in KINDS for L in ROW_LANES],
    without=lambda dtype, kind, L: L not in row_lanes(dtype),
    vector=lambda *key: "loads",
    registers=112,
)
def reduce_rows(S, kind, L):
    """y[row, part] = the result of x[row, part * span:][:span], L threads a row, of rows of n numbers."""
    T, W = arithmetic(S), vector_width(S)
    load, _ = tile_access(S, W)
    term, combine, finish, neutral = _steps(kind)
    over = _over(T, combine, neutral, L)
    load_vector, _ = vector_access(S, W)
    HELD, ACROSS, STEP = TILES * W, L * W, TILES * L * W

    def body(
        x: pointer(S),
        y: pointer(T),
        rows: int64,
        n: int64,
        span: int32,
        parts: int32,
        square: int32,
        root: int32,
        factor: T,
        wide: int32,
    ):
        thread = int64(cuda.blockIdx.x) * THREADS + int64(cuda.threadIdx.x)
        row, lane = thread // L, int32(thread % L)
        held, results = cuda.local.array(HELD, T), cuda.local.array(W, T)
        pad = T(neutral) * factor
        part = int32(cuda.blockIdx.y)
        while part < parts:
            start, mine = int64(part) * span, int32(0)
            if row < rows:
                mine = span if start + span <= n else int32(n - start)
            base = row * n + start
            for k in range(W):
                results[k] = T(neutral)
            j = lane * int32(W)
            while wide and j + (STEP - ACROSS + W) <= mine:
                for r in range(TILES):
                    load_vector(x, base + (j + r * ACROSS), held, r * W)
                for k in range(HELD):
                    results[k % W] = combine(results[k % W], term(held[k], square, factor))
                j += int32(STEP)
            while j < mine:
                for k in range(W):
                    held[k] = pad
                load(x, base + j, base + mine, held, 0, wide)
                for k in range(W):
                    results[k] = combine(results[k], term(held[k], square, factor))
                j += int32(ACROSS)
            for k in range(1, W):
                results[0] = combine(results[0], results[k])
            whole = over(results[0])
            if mine > 0 and lane == 0:
                y[row * parts + part] = finish(whole, root, factor)
            part += int32(cuda.gridDim.y)

    return body


@cuda_kernel(
    FLOATS + HALVES,
    variants=[(kind, L) for kind in KINDS for L in COLUMN_LANES],
    without=lambda dtype, kind, L: L not in column_lanes(dtype),
    vector=lambda *key: True,
    registers=112,
)
def reduce_columns(S, kind, L):
    """y[a, part, column] = the result of x[a, part * span:, column][:span], of n rows; L threads along the columns."""
    T, W = arithmetic(S), vector_width(S)
    load, _ = tile_access(S, W)
    store = tile_store(T, W)
    term, combine, finish, neutral = _steps(kind)
    across = across_groups(T, L, W, combine, neutral)
    load_vector, _ = vector_access(S, W)
    AHEAD = TILES if W < 8 else TILES // 2  # of numbers widened there are twice as many
    HELD, GROUPS = AHEAD * W, THREADS // L

    def body(
        x: pointer(S),
        y: pointer(T),
        A: int64,
        n: int64,
        columns: int64,
        span: int32,
        parts: int32,
        square: int32,
        root: int32,
        factor: T,
        wide: int32,
    ):
        group, lane = int32(cuda.threadIdx.x) // int32(L), int32(cuda.threadIdx.x) % int32(L)
        column = (int64(cuda.blockIdx.x) * L + lane) * W
        held, results = cuda.local.array(HELD, T), cuda.local.array(W, T)
        pad, whole = T(neutral) * factor, wide and column + W <= columns
        a = int64(cuda.blockIdx.z)
        while a < A:
            part = int32(cuda.blockIdx.y)
            while part < parts:
                row = int64(part) * span
                last = row + span if row + span <= n else n
                row += group
                for k in range(W):
                    results[k] = T(neutral)
                while whole and row + (AHEAD - 1) * GROUPS < last:
                    for r in range(AHEAD):
                        load_vector(x, (a * n + row + r * GROUPS) * columns + column, held, r * W)
                    for k in range(HELD):
                        results[k % W] = combine(results[k % W], term(held[k], square, factor))
                    row += AHEAD * GROUPS
                while row < last and column < columns:
                    base = (a * n + row) * columns
                    for k in range(W):
                        held[k] = pad
                    load(x, base + column, base + columns, held, 0, wide)
                    for k in range(W):
                        results[k] = combine(results[k], term(held[k], square, factor))
                    row += GROUPS
                across(results)
                if group == 0 and column < columns:
                    for k in range(W):
                        results[k] = finish(results[k], root, factor)
                    base = (a * parts + part) * columns
                    store(y, base + column, base + columns, results, 0, wide)
                part += int32(cuda.gridDim.y)
            a += int64(cuda.gridDim.z)

    return body


@cuda_kernel(
    variants=[(kind, rule, L) for kind in ("max", "norm") for rule in ("vjp", "jvp") for L in ROW_LANES[1:]],
    dtypes=FLOATS + HALVES,
    without=lambda dtype, kind, rule, L: dtype in HALVES and L == THREADS,
    vector=lambda dtype, kind, rule, L: True if rule == "vjp" else "loads",
    registers=112,
)
def slope_rows(S, kind, rule, L):
    """out[v] = d[v] w (vjp; d has a number a row) or sum of d[v] w (jvp), for y = max x or min x: w = [x = y] / (how
    many are), or for y = |x|: w = x / y, 0 where y is 0. L threads a row."""
    T, W = arithmetic(S), vector_width(S)
    load, store = tile_access(S, W)
    get, put = element_access(S)
    over = _over(T, add, 0.0, L)
    shared, back = kind == "max", rule == "vjp"

    @device
    def weight(v, top, share):
        if shared:
            return share if v == top else T(0)
        return divide(v, top) if top != T(0) else T(0)

    def body(
        x: pointer(S), y: pointer(S), d: pointer(S), out: pointer(S), rows: int64, n: int32, V: int64, wide: int32
    ):
        thread = int64(cuda.blockIdx.x) * THREADS + int64(cuda.threadIdx.x)
        row, first = thread // L, int32(thread % L) * int32(W)
        mine = n if row < rows else int32(0)
        base, top, share = row * n, T(0), T(0)
        if mine > 0:
            top = get(y, row)
        tile, moved = cuda.local.array(W, T), cuda.local.array(W, T)
        if shared:
            j = first
            while j < mine:
                load(x, base + j, base + mine, tile, 0, wide)
                for k in range(W):
                    share += T(1) if tile[k] == top and j + k < mine else T(0)
                j += int32(L * W)
            share = over(share)
            share = divide(T(1), share) if share > T(0) else T(0)
        v = int64(cuda.blockIdx.y)
        while v < V:
            place, s = v * rows + row, T(0)
            if back and mine > 0:
                s = get(d, place)
            j = first
            while j < mine:
                if not back:
                    for k in range(W):
                        tile[k], moved[k] = T(0), T(0)
                load(x, base + j, base + mine, tile, 0, wide)
                if back:
                    for k in range(W):
                        tile[k] = s * weight(tile[k], top, share)
                    store(out, place * n + j, place * n + mine, tile, 0, wide)
                else:
                    load(d, place * n + j, place * n + mine, moved, 0, wide)
                    for k in range(W):
                        s += moved[k] * weight(tile[k], top, share)
                j += int32(L * W)
            if not back:
                s = over(s)
                if mine > 0 and first == 0:
                    put(out, place, s)
            v += int64(cuda.gridDim.y)

    return body
