"""The kernels of `softmax` over rows that are held in registers, by a group of lanes or by a block.

    m = max_j x_j, s = sum_j exp(x_j - m), p = exp(x - m) / s;   log_softmax = x - m - log s;   logsumexp = m + log s
    out = p (d - sum_j d_j p_j)    d - p sum_j d_j    d - sum_j d_j p_j    d p    sum_j d_j p_j    (kinds of BACKWARD)

Every number moves once, 16 bytes a lane where rows are aligned, adjacent lanes adjacent addresses: all of a row is on
its way before the first of it is looked at. Then its maximum m is taken, then exp(x - m) and their sum. Rows of up to
512 elements live in the registers of 8 or 32 lanes, whose reductions are shuffles: no thread waits for another warp.
Aligned rows of up to 16,384 elements (derivatives, which hold two rows: 8,192) have kernels of their own, without the
path for single elements and the registers that it takes: a warp's to 1,024, beyond that a block's. For the rest see
`softmax_streams`. A row that is all -inf has no m to subtract: it is replaced by 0, and 1/s by 0.

float16 and bfloat16 (S) are widened to float32 (T) as they are loaded and rounded once as they are stored; they have
fewer shapes.
"""

from functools import lru_cache
from math import prod

from .intrinsics import (
    INFINITY,
    arithmetic,
    cuda,
    device,
    divide,
    element_access,
    exponential,
    int32,
    int64,
    math,
    pointer,
    reductions,
    row_access,
)
from .launch import FLOATS, HALVES, cuda_kernel

FORWARD = ("softmax", "log_softmax", "logsumexp")
BACKWARD = ("softmax", "log_softmax", "log_softmax_jvp", "logsumexp", "logsumexp_jvp")
# (lanes that share a row, elements each holds): a row takes the first shape it fits in, or it is streamed.
GROUPS = ((8, 1), (32, 1), (32, 4), (32, 16))
HALF_GROUPS = ((8, 8), (32, 16))  # of float16 and bfloat16
LONG = ((32, 32), (256, 16), (256, 64))  # of aligned rows, forward
LONG_PAIRS = ((32, 32), (256, 16), (256, 32))  # of aligned rows, derivatives
FILL = 4096  # blocks that keep any GPU busy


def promise(number):
    """-> function of (dtype, kind, *shape): what is moved 16 bytes at a time. The result of the kind called `number` is
    one number a row."""

    def of(dtype, kind, lanes=1, held=2):
        return held > 1 and ("loads" if kind == number else True)

    return of


def _left_out(dtype, kind, *group):
    """Shapes of the other storage."""
    return group not in (HALF_GROUPS if dtype in HALVES else GROUPS)


def no_long(dtype, *variant):
    """Long shapes that float16 and bfloat16 do without."""
    return dtype in HALVES and variant[-2:] not in ((256, 16), (256, 64))


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
    vector=promise("logsumexp"),
)
def held_rows(S, kind, L, R, access="either"):
    """y = kind(x) for rows of n <= L * R elements, a group of L lanes a row, R elements a lane."""
    T = arithmetic(S)
    add, largest = reductions(T, L)
    finite, exp = finite_shift(T), exponential(T)
    load, store = row_access(S, L, R, access)
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
            held[k] -= m
            e = exp(held[k])
            s += e
            if is_softmax:
                held[k] = e
        s = add(s)
        if is_sum:
            if mine > 0 and lane == 0:
                put(y, row, m + math.log(s))
        else:
            scale, log_s = T(0), T(0)
            if s != T(0):
                scale, log_s = divide(T(1), s), math.log(s)
            for k in range(R):
                held[k] = held[k] * scale if is_softmax else held[k] - log_s
            store(y, row * n, mine, lane, held, wide)

    return body


@cuda_kernel(
    dtypes=("float32", *HALVES),
    variants=[(kind, *g) for kind in FORWARD[:2] for g in LONG],
    without=no_long,
    vector=lambda *key: True,
    registers=128,
)
def long_rows(S, kind, L, R):
    """held_rows of aligned rows alone; of the longest a multiprocessor holds two, 128 KB under way."""
    return held_rows.factory(S, kind, L, R, "wide")


def derivative_of(T, kind):
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
    vector=promise("logsumexp_jvp"),
)
def held_rows_derivative(S, kind, L, R, access="either"):
    """out[v] = the derivative of `kind` applied to d[v], v < V; y is what was saved, x and lse (rows) for logsumexp."""
    T = arithmetic(S)
    probability, term, result = derivative_of(T, kind)
    add, _ = reductions(T, L)
    load, store = row_access(S, L, R, access)
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
    dtypes=("float32", *HALVES),
    variants=[(kind, *g) for kind in BACKWARD[:3] for g in LONG_PAIRS],
    without=no_long,
    vector=lambda *key: True,
    registers=128,
)
def long_rows_derivative(S, kind, L, R):
    """held_rows_derivative of aligned rows alone."""
    return held_rows_derivative.factory(S, kind, L, R, "wide")


@lru_cache(4096)
def holder(kernels, n, dtype, *kind):
    """(kernel, lanes a row) of the smallest shape, of the first of `kernels` that has one for a dtype and kind, that
    holds rows of n elements; None where there is none."""
    key = (dtype.name, *kind)
    for kernel in kernels:
        shapes = [instance[len(key) :] for instance in kernel.instances() if instance[: len(key)] == key]
        shapes.sort(key=prod)
        if shape := group_of(n, shapes):
            return kernel[*key, *shape], shape[0]
    return None


def group_of(n, groups):
    """The first of the shapes that holds a row of n elements, or None."""
    return next(((lanes, held) for lanes, held in groups if n <= lanes * held), None)
