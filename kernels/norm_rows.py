"""The kernels of `layer_norm` and `rms_norm` over rows: values and derivatives of rows.

    d = x - mean x, or x itself     r = 1 / sqrt(mean d^2 + eps)     h = d r     y = h w + b
    P t = r (t - mean t - h mean(t h))    vjp: dx = P (dy w)    jvp: dy = (P dx) w + h dw + db
                                                                     (rms_norm: without the means)

Rows of up to 4,096 elements (forward, float32: 16,384) are held in registers: by 8 or 32 lanes, whose reductions are
shuffles, or by a block. Each number moves once, 16 bytes a lane where rows are aligned; so a second pass for the
variance costs no memory traffic, nor does a third, which corrects the mean. Weights come from the cache, where every
row finds them.
Aligned rows and others have kernels of their own: one branch an element fewer, and half the registers.
Longer rows: see `norm_streams`. float16 and bfloat16 (S) are widened to float32 (T) as they are loaded; mean and r are
float32. They have the shapes of HALF_GROUPS; streams serve the rows that those do not.
"""

import numpy as np

from .intrinsics import (
    arithmetic,
    cuda,
    device,
    divide,
    element_access,
    int32,
    int64,
    pointer,
    reductions,
    square_root,
    vector_access,
)
from .launch import FLOATS, HALVES, THREADS, cuda_kernel, dtype_of, vector_width

KINDS = ("layer_norm", "rms_norm")
MODES = ("vjp", "jvp")
# (lanes that share a row, elements each holds, access): a row takes the first shape it fits in, or it is streamed.
# "wide": 16 bytes at a time, for aligned rows; "single": one element.
GROUPS = tuple((*g, "wide") for g in ((8, 4), (32, 4), (32, 16), (256, 8), (256, 16)))
GROUPS += tuple((*g, "single") for g in ((8, 4), (32, 4), (32, 8)))
HALF_GROUPS = ((32, 16, "wide"), (256, 16, "wide"))  # of float16 and bfloat16
LONG = ((256, 32, "wide"), (256, 64, "wide"))  # forward alone, which holds one array
SHRINK = {"float32": 2.0**-80, "float64": 2.0**-600}


def left_out(dtype, *variant):
    """Shapes of the other storage; float64 on sm_100 keeps the first in local memory."""
    group = tuple(variant[-3:])
    if dtype in HALVES:
        return group not in HALF_GROUPS
    return group not in GROUPS or (dtype == "float64" and group == GROUPS[0])


def is_wide(*key):
    """Whether an instance, whose key ends with a shape of GROUPS, promises accesses of 16 bytes."""
    return key[-1] == "wide"


def group_of(n, wide, groups=GROUPS):
    """The first of the shapes that holds a row of n elements, or None."""
    return next((g for g in groups if n <= g[0] * g[1] and wide == is_wide(g[2])), None)


def row_sum(T, L):
    """-> device function: the sum over the lanes of a row."""
    return reductions(T, L if L <= 32 else None)[0]


def tile_width(S, access):
    """Elements of one access."""
    return vector_width(S) if access == "wide" else 1


def row_tiles(S, L, R, access):
    """-> device functions load, store(memory, base, n, lane, held): a row of n elements at memory[base:], spread over
    the local arrays of L lanes tile by tile; what lies beyond n is left as it is. n is a multiple of the access."""
    W = tile_width(S, access)
    load_tile, store_tile = vector_access(S, W)

    @device
    def load(memory, base, n, lane, held):
        for t in range(R // W):
            if (t * L + lane) * W < n:
                load_tile(memory, base + (t * L + lane) * W, held, t * W)

    @device
    def store(memory, base, n, lane, held):
        for t in range(R // W):
            if (t * L + lane) * W < n:
                store_tile(memory, base + (t * L + lane) * W, held, t * W)

    return load, store


def shifter(S, L, R, access):
    """-> device function: held -= m for the n elements of a row, not for what lies beyond."""
    W = tile_width(S, access)

    @device
    def subtract(held, n, lane, m):
        for t in range(R // W):
            if (t * L + lane) * W < n:
                for k in range(W):
                    held[t * W + k] -= m

    return subtract


def weighting(S, L, R, access):
    """-> device functions times, plus and plus_product(held, [factor,] vector, base, n, lane): a held row by the row at
    vector[base:], element by element; plus_product adds factor * vector."""
    T, W = arithmetic(S), tile_width(S, access)
    load_tile, _ = vector_access(S, W)

    def over_tiles(combine):
        @device
        def run(held, factor, vector, base, n, lane):
            tile = cuda.local.array(W, T)
            for t in range(R // W):
                if (t * L + lane) * W < n:
                    load_tile(vector, base + (t * L + lane) * W, tile, 0)
                    for k in range(W):
                        held[t * W + k] = combine(held[t * W + k], factor[t * W + k], tile[k])

        return run

    scaled, shifted = over_tiles(device(lambda a, h, b: a * b)), over_tiles(device(lambda a, h, b: a + b))
    times = device(lambda held, vector, base, n, lane: scaled(held, held, vector, base, n, lane))
    plus = device(lambda held, vector, base, n, lane: shifted(held, held, vector, base, n, lane))
    return times, plus, over_tiles(device(lambda a, h, b: a + h * b))


def reciprocal_root(S):
    """-> device function: r = 1 / sqrt(v + eps) of the row x[base : base + n] with mean m and variance v.

    Where v overflowed, every lane adds up the squares of smaller numbers by itself: such rows are rare, and shuffles
    in a branch would be calls on sm_80. Kahan's sum, since one lane adds them all."""
    T = arithmetic(S)
    get, _ = element_access(S)
    limits, small = np.finfo(dtype_of(T)), SHRINK[dtype_of(T).name]
    least, largest = float(limits.tiny), float(limits.max)

    @device
    def mean_of_small_squares(x, base, n, m):
        s, lost, j = T(0), T(0), int32(0)
        while j < n:
            d = (get(x, base + j) - m) * T(small)
            t = d * d - lost
            total = s + t
            lost = (total - s) - t
            s = total
            j += int32(1)
        return divide(s, T(n))

    @device
    def root(x, base, n, m, v, eps):
        u, factor = v + eps, T(1)
        if v > T(largest):
            u, factor = mean_of_small_squares(x, base, n, m) + T(least), T(small)
        return divide(factor, square_root(u))

    return root


@cuda_kernel(
    dtypes=FLOATS + HALVES,
    variants=[(kind, *g) for kind in KINDS for g in GROUPS],
    without=left_out,
    vector=is_wide,
)
def held_forward(S, kind, L, R, access):
    """y, mean and r of rows of n <= L * R elements, a group of L lanes a row, R elements a lane."""
    T, centred = arithmetic(S), kind == "layer_norm"
    add, root = row_sum(T, L), reciprocal_root(S)
    load, store = row_tiles(S, L, R, access)
    subtract, (times, plus, _) = shifter(S, L, R, access), weighting(S, L, R, access)

    def body(
        x: pointer(S),
        w: pointer(S),
        b: pointer(S),
        y: pointer(S),
        mean: pointer(T),
        scale: pointer(T),
        rows: int64,
        n: int32,
        has_w: int32,
        has_b: int32,
        eps: T,
    ):
        thread = int64(cuda.blockIdx.x) * THREADS + int64(cuda.threadIdx.x)
        row, lane = thread // L, int32(thread % L)
        mine = n if row < rows else int32(0)
        inverse, m = divide(T(1), T(n)), T(0)
        held = cuda.local.array(R, T)
        for k in range(R):
            held[k] = T(0)
        load(x, row * n, mine, lane, held)
        if centred:
            s = T(0)
            for k in range(R):
                s += held[k] * inverse
            m, s = add(s), T(0)
            subtract(held, mine, lane, m)
            for k in range(R):
                s += held[k] * inverse
            left = add(s)
            subtract(held, mine, lane, left)
            m += left
        q = T(0)
        for k in range(R):
            q += held[k] * held[k]
        r = root(x, row * n, mine, m, add(q) * inverse, eps)
        if mine > 0 and lane == 0:
            scale[row] = r
            if centred:
                mean[row] = m
        for k in range(R):
            held[k] *= r
        if has_w:
            times(held, w, 0, mine, lane)
        if has_b:
            plus(held, b, 0, mine, lane)
        store(y, row * n, mine, lane, held)

    return body


@cuda_kernel(dtypes=("float32",), variants=[(kind, *g) for kind in KINDS for g in LONG], vector=is_wide, registers=160)
def long_forward(T, kind, L, R, access):
    """held_forward for up to 16,384 elements; of the longest a multiprocessor holds one, 64 KB under way."""
    return held_forward.factory(T, kind, L, R, access)


@cuda_kernel(
    dtypes=FLOATS + HALVES,
    variants=[(kind, mode, *g) for kind in KINDS for mode in MODES for g in GROUPS],
    without=left_out,
    vector=is_wide,
    registers=128,  # two rows held: two blocks a multiprocessor, at most
)
def held_derivative(S, kind, mode, L, R, access):
    """out[v] = dx (vjp, of d[v]) or dy (jvp, of d[v], dw[v] and db[v]), v < V; h stays in registers."""
    T, centred, back = arithmetic(S), kind == "layer_norm", mode == "vjp"
    add, subtract = row_sum(T, L), shifter(S, L, R, access)
    load, store = row_tiles(S, L, R, access)
    times, plus, plus_product = weighting(S, L, R, access)

    def body(
        x: pointer(S),
        mean: pointer(T),
        scale: pointer(T),
        w: pointer(S),
        d: pointer(S),
        dw: pointer(S),
        db: pointer(S),
        out: pointer(S),
        rows: int64,
        n: int32,
        V: int64,
        has_w: int32,
        has_d: int32,
        has_dw: int32,
        has_db: int32,
    ):
        thread = int64(cuda.blockIdx.x) * THREADS + int64(cuda.threadIdx.x)
        row, lane = thread // L, int32(thread % L)
        mine = n if row < rows else int32(0)
        inverse = divide(T(1), T(n))
        r = scale[row] if mine > 0 else T(0)
        h, held = cuda.local.array(R, T), cuda.local.array(R, T)
        for k in range(R):
            h[k] = T(0)
        load(x, row * n, mine, lane, h)
        if centred:
            subtract(h, mine, lane, mean[row] if mine > 0 else T(0))
        for k in range(R):
            h[k] *= r
        v = int64(cuda.blockIdx.y)
        while v < V:
            base, s, q = (v * rows + row) * n, T(0), T(0)
            for k in range(R):
                held[k] = T(0)
            if has_d:
                load(d, base, mine, lane, held)
            if back and has_w:
                times(held, w, 0, mine, lane)
            for k in range(R):
                s += held[k]
                q += held[k] * h[k]
            s = add(s) * inverse if centred else T(0)
            q = add(q) * inverse
            for k in range(R):
                held[k] = r * (held[k] - s - h[k] * q)
            if not back and has_w:
                times(held, w, 0, mine, lane)
            if not back and has_dw:
                plus_product(held, h, dw, v * n, mine, lane)
            if not back and has_db:
                plus(held, db, v * n, mine, lane)
            store(out, base, mine, lane, held)
            v += int64(cuda.gridDim.y)

    return body
