"""The kernels of `softmax` over rows: held in registers by a group of lanes, or streamed by a block.

Short rows live in the registers of 8 or 32 lanes: read once, written once, 16 bytes a lane where rows are aligned; the
reductions are shuffles, and no thread waits for another warp. Long rows take a block each: one pass finds the maximum m
and the sum s together, rescaling the sum when the maximum moves (Milakov & Gimelshein 2018, arXiv:1805.02867); a second
finds the row in L2. A row that is all -inf has no m to subtract: it is replaced by 0, and 1/s by 0.

float16 and bfloat16 (S) are widened to float32 (T) as they are loaded and rounded once as they are stored; they have
half as many shapes, and the scalar path of a block serves what is not aligned.
"""

from .intrinsics import (
    INFINITY,
    arithmetic,
    cuda,
    device,
    divide,
    element_access,
    int32,
    int64,
    math,
    pointer,
    quotient,
    reductions,
    row_access,
    tile_access,
)
from .launch import FLOATS, HALVES, cuda_kernel, vector_width

FORWARD = ("softmax", "log_softmax", "logsumexp")
BACKWARD = ("softmax", "log_softmax", "log_softmax_jvp", "logsumexp", "logsumexp_jvp")
# (lanes that share a row, elements each holds): a row takes the first shape it fits in, or a whole block.
GROUPS = ((8, 1), (32, 1), (32, 4), (32, 16))
HALF_GROUPS = ((8, 8), (32, 16))  # of float16 and bfloat16
FILL = 4096  # blocks that keep any GPU busy


def _promise(dtype, kind, lanes, held):
    return held > 1


def _left_out(dtype, kind, *group):
    """Shapes of the other storage."""
    return group not in ((), *groups_of(dtype))


def finite_shift(T):
    """-> device function: m, or 0 for the m of a row that is all -inf."""

    @device
    def finite(m):
        return m if m > T(-INFINITY) else T(0)

    return finite


@cuda_kernel(
    dtypes=FLOATS + HALVES,
    variants=[(kind, *g) for kind in FORWARD for g in dict.fromkeys(GROUPS + HALF_GROUPS)],
    without=_left_out,
    vector=_promise,
)
def held_rows(S, kind, L, R):
    """y = kind(x) for rows of n <= L * R elements, a group of L lanes a row, R elements a lane."""
    T = arithmetic(S)
    add, largest = reductions(T, L)
    finite = finite_shift(T)
    load, store = row_access(S, L, R)
    _, put = element_access(S)
    is_softmax, is_sum = kind == "softmax", kind == "logsumexp"

    def body(x: pointer(S), y: pointer(S), rows: int64, n: int32, wide: int32):
        thread = int64(cuda.blockIdx.x) * int64(cuda.blockDim.x) + int64(cuda.threadIdx.x)
        row, lane = thread // L, int32(thread % L)
        mine = n if row < rows else int32(0)
        held = cuda.local.array(R, T)
        for k in range(R):
            held[k] = T(-INFINITY)
        load(x, row * n, mine, lane, held, wide)
        m, s = held[0], T(0)
        for k in range(1, R):
            m = held[k] if held[k] > m else m
        m = finite(largest(m))
        for k in range(R):
            e = math.exp(held[k] - m)
            s += e
            if is_softmax:
                held[k] = e
        s = add(s)
        log_s = math.log(s)
        scale = divide(T(1), s) if s != T(0) else T(0)
        if is_sum:
            if mine > 0 and lane == 0:
                put(y, row, m + log_s)
        else:
            for k in range(R):
                if is_softmax:
                    held[k] = held[k] * scale
                else:
                    held[k] = (held[k] - m) - log_s if s != T(0) else held[k]
            store(y, row * n, mine, lane, held, wide)

    return body


@cuda_kernel(
    dtypes=FLOATS + HALVES, variants=[(kind,) for kind in FORWARD], without=_left_out, vector=lambda *key: True
)
def streamed_rows(S, kind):
    """y = kind(x) for long rows, a block a row: m and s in one pass, y in a second."""
    T = arithmetic(S)
    add, largest = reductions(T, None)
    finite = finite_shift(T)
    W = vector_width(S)
    load, store = tile_access(S, W)
    _, put = element_access(S)
    is_softmax, is_sum = kind == "softmax", kind == "logsumexp"

    def body(x: pointer(S), y: pointer(S), n: int32, wide: int32):
        row, first = int64(cuda.blockIdx.x), int32(cuda.threadIdx.x) * W
        base = row * n
        tile = cuda.local.array(W, T)
        m, s = T(-INFINITY), T(0)
        j = first
        while j < n:
            for k in range(W):
                tile[k] = T(-INFINITY)
            load(x, base + j, base + n, tile, 0, wide)
            top = m
            for k in range(W):
                top = tile[k] if tile[k] > top else top
            s *= math.exp(m - finite(top))
            m = top
            for k in range(W):
                s += math.exp(tile[k] - finite(top))
            j += int32(cuda.blockDim.x) * W
        top = finite(largest(m))
        s = add(s * math.exp(m - top))
        log_s = math.log(s)
        scale = divide(T(1), s) if s != T(0) else T(0)
        if is_sum:
            if first == 0:
                put(y, row, top + log_s)
            return
        j = first
        while j < n:
            load(x, base + j, base + n, tile, 0, wide)
            for k in range(W):
                if is_softmax:
                    tile[k] = math.exp(tile[k] - top) * scale
                else:
                    tile[k] = (tile[k] - top) - log_s if s != T(0) else tile[k]
            store(y, base + j, base + n, tile, 0, wide)
            j += int32(cuda.blockDim.x) * W

    return body


def _derivative(T, kind):
    """-> device functions: p from what was saved, the term that is summed, the result from the sum."""
    finite = finite_shift(T)
    from_x, from_y, by_p = kind.startswith("logsumexp"), kind == "softmax", kind != "log_softmax"

    @device
    def probability(y, lse):
        if from_y:
            return y
        return math.exp(y - finite(lse)) if from_x else math.exp(y)

    @device
    def term(p, d):
        return p * d if by_p else d

    if kind == "softmax":
        result = device(lambda p, d, s: p * (d - s))
    elif kind == "log_softmax":
        result = device(lambda p, d, s: d - p * s)
    elif kind == "log_softmax_jvp":
        result = device(lambda p, d, s: d - s)
    else:
        result = device(lambda p, d, s: p * s)
    return probability, term, result


@cuda_kernel(
    dtypes=FLOATS + HALVES,
    variants=[(kind, *g) for kind in BACKWARD for g in dict.fromkeys(GROUPS + HALF_GROUPS)],
    without=_left_out,
    vector=_promise,
)
def held_rows_derivative(S, kind, L, R):
    """out[v] = the derivative of `kind` applied to d[v], v < V; y is what was saved, x and lse (rows) for logsumexp."""
    T = arithmetic(S)
    probability, term, result = _derivative(T, kind)
    add, _ = reductions(T, L)
    load, store = row_access(S, L, R)
    get, put = element_access(S)
    one_in, one_out = kind == "logsumexp", kind == "logsumexp_jvp"
    of_sum = one_in or one_out  # exp(x - lse) is normalised anew: a large lse is rounded
    PAD = 0.0 if kind == "softmax" else -INFINITY  # probability 0

    def body(
        y: pointer(S), lse: pointer(S), d: pointer(S), out: pointer(S), rows: int64, n: int32, V: int64, wide: int32
    ):
        thread = int64(cuda.blockIdx.x) * int64(cuda.blockDim.x) + int64(cuda.threadIdx.x)
        row, lane = thread // L, int32(thread % L)
        mine = n if row < rows else int32(0)
        shift = get(lse, row) if mine > 0 else T(0)
        p, held = cuda.local.array(R, T), cuda.local.array(R, T)
        for k in range(R):
            p[k] = T(PAD)
        load(y, row * n, mine, lane, p, wide)
        for k in range(R):
            p[k] = probability(p[k], shift)
        if of_sum:
            q = T(0)
            for k in range(R):
                q += p[k]
            q = add(q)
            for k in range(R):
                p[k] = divide(p[k], q) if q != T(0) else T(0)
        v = int64(cuda.blockIdx.y)
        while v < V:
            place = v * rows + row
            s = T(0)
            if one_in:
                s = get(d, place) if mine > 0 else T(0)
            else:
                for k in range(R):
                    held[k] = T(0)
                load(d, place * n, mine, lane, held, wide)
                for k in range(R):
                    s += term(p[k], held[k])
                s = add(s)
            if one_out:
                if mine > 0 and lane == 0:
                    put(out, place, s)
            else:
                for k in range(R):
                    held[k] = result(p[k], held[k], s)
                store(out, place * n, mine, lane, held, wide)
            v += int64(cuda.gridDim.y)

    return body


@cuda_kernel(
    dtypes=FLOATS + HALVES, variants=[(kind,) for kind in BACKWARD], without=_left_out, vector=lambda *key: True
)
def streamed_rows_derivative(S, kind):
    """The same for long rows, a block a row: the sum in one pass, the result in a second."""
    T = arithmetic(S)
    probability, term, result = _derivative(T, kind)
    add, _ = reductions(T, None)
    W = vector_width(S)
    load, store = tile_access(S, W)
    get, put = element_access(S)
    one_in, one_out = kind == "logsumexp", kind == "logsumexp_jvp"
    of_sum = one_in or one_out
    PAD = 0.0 if kind == "softmax" else -INFINITY

    def body(
        y: pointer(S), lse: pointer(S), d: pointer(S), out: pointer(S), rows: int64, n: int32, V: int64, wide: int32
    ):
        row, first = int64(cuda.blockIdx.x), int32(cuda.threadIdx.x) * W
        base, shift = row * n, get(lse, row)
        p, tile = cuda.local.array(W, T), cuda.local.array(W, T)
        q = T(0)
        if of_sum:
            j = first
            while j < n:
                load(y, base + j, base + n, p, 0, wide)
                for k in range(W):
                    q += probability(p[k], shift) if j + k < n else T(0)
                j += int32(cuda.blockDim.x) * W
            q = add(q)
        v = int64(cuda.blockIdx.y)
        while v < V:
            place = v * rows + row
            there, s = place * n, T(0)
            if one_in:
                s = get(d, place)
            else:
                j = first
                while j < n:
                    for k in range(W):
                        p[k], tile[k] = T(PAD), T(0)
                    load(y, base + j, base + n, p, 0, wide)
                    load(d, there + j, there + n, tile, 0, wide)
                    for k in range(W):
                        s += term(probability(p[k], shift), tile[k])
                    j += int32(cuda.blockDim.x) * W
                s = add(s)
            if of_sum:
                s = divide(s, q) if q != T(0) else T(0)
            j = first
            if one_out:
                if j == 0:
                    put(out, place, s)
                j = n
            while j < n:
                load(y, base + j, base + n, p, 0, wide)
                if not one_in:
                    load(d, there + j, there + n, tile, 0, wide)
                for k in range(W):
                    tile[k] = result(probability(p[k], shift), tile[k], s)
                store(out, there + j, there + n, tile, 0, wide)
                j += int32(cuda.blockDim.x) * W
            v += int64(cuda.gridDim.y)

    return body


@cuda_kernel(
    dtypes=FLOATS + HALVES,
    variants=[(8,), (32,)],
    without=lambda dtype, lanes: lanes not in jacobian_lanes(dtype),
    vector=lambda *key: True,
)
def outer_rows(S, L):
    """J[row, i, j] = p_i (delta_ij - p_j): a group of L lanes writes one row (row, i) of the Jacobian."""
    T, W = arithmetic(S), vector_width(S)
    load, store = tile_access(S, W)
    get, _ = element_access(S)

    def body(p: pointer(S), out: pointer(S), rows: int64, n: int32, wide: int32):
        thread = int64(cuda.blockIdx.x) * int64(cuda.blockDim.x) + int64(cuda.threadIdx.x)
        place, j = thread // L, int32(thread % L) * W
        if place >= rows * n:
            return
        row = quotient(int32(place), n)
        i = int32(place - row * n)
        p_i = get(p, place)
        tile = cuda.local.array(W, T)
        while j < n:
            load(p, int64(row) * n + j, int64(row) * n + n, tile, 0, wide)
            for k in range(W):
                tile[k] = p_i * ((T(1) if i == j + k else T(0)) - tile[k])
            store(out, place * n + j, place * n + n, tile, 0, wide)
            j += int32(L * W)

    return body


def jacobian_lanes(dtype):
    """The numbers of lanes that may write a row of a Jacobian; 8 of float16 and bfloat16: whole lines of 128 bytes."""
    return (8,) if str(dtype) in HALVES else (8, 32)


def groups_of(dtype):
    """The shapes that kernels of a dtype have."""
    return HALF_GROUPS if str(dtype) in HALVES else GROUPS


def group_of(n, groups):
    """The first of the shapes that holds a row of n elements, or None."""
    return next(((lanes, held) for lanes, held in groups if n <= lanes * held), None)
