"""The kernels of `softmax` for rows too long for registers, a block a row; formulas: `softmax_rows`.

    chunk by chunk  m' = max(m, max of x_j),  s' = s exp(m - m') + sum of exp(x_j - m');   then  p = exp(x - m) / s

A row is walked in chunks that the block holds in registers, 64 bytes a thread: several loads are on their way before
anything waits for the first. Forward, a first walk finds the maximum m and the sum s together, of a chunk the maximum
first, then one rescaling of s, then the chunk's exp(x - m) (Milakov & Gimelshein 2018, arXiv:1805.02867). A second walk
goes back from the end of the row, which is nearest in the caches; the last chunk is still in the registers. Aligned
rows of float32 have chunks of 16,384 elements: two or three blocks fill a multiprocessor, so few rows are under way at
a time, and L2 keeps what is to be read again. Derivatives take two walks likewise.

Of aligned rows a thread takes 16 bytes at a time, of others one element; adjacent threads adjacent addresses.
"""

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
    quotient,
    reductions,
    row_access,
)
from .launch import FLOATS, HALVES, THREADS, cuda_kernel, dtype_of
from .softmax_rows import BACKWARD, FORWARD, derivative_of, finite_shift, promise

FAR = 64  # elements a thread, of the longest chunks


def held_of(S):
    """Elements of a chunk that a thread holds: 64 bytes of what is computed in."""
    return 64 // dtype_of(arithmetic(S)).itemsize


def chunk_access(S, R, access="either"):
    """-> device functions load, store(memory, base, n, lane, held, wide): of the n elements at memory[base:] those of a
    chunk of THREADS * R, 16 bytes at a time where `wide` or where access is "wide", else one element."""
    load_wide, store_wide = row_access(S, THREADS, R, "wide")
    if access == "wide":
        return load_wide, store_wide
    load_single, store_single = row_access(S, THREADS, R, "single")

    @device
    def load(memory, base, n, lane, held, wide):
        if wide:
            load_wide(memory, base, n, lane, held, wide)
        else:
            load_single(memory, base, n, lane, held, wide)

    @device
    def store(memory, base, n, lane, held, wide):
        if wide:
            store_wide(memory, base, n, lane, held, wide)
        else:
            store_single(memory, base, n, lane, held, wide)

    return load, store


@cuda_kernel(dtypes=FLOATS + HALVES, variants=[(kind,) for kind in FORWARD], vector=promise("logsumexp"), registers=128)
def streamed_rows(S, kind, R=None, access="either"):
    """y = kind(x) for long rows, a block a row, R elements a thread at a time: m and s in one walk, y in a second."""
    T, R = arithmetic(S), R or held_of(S)
    CHUNK = THREADS * R
    add, largest = reductions(T, THREADS)
    finite, exp = finite_shift(T), exponential(T)
    load, store = chunk_access(S, R, access)
    _, put = element_access(S)
    is_softmax, is_sum = kind == "softmax", kind == "logsumexp"

    def body(x: pointer(S), y: pointer(S), n: int32, wide: int32):
        row, lane = int64(cuda.blockIdx.x), int32(cuda.threadIdx.x)
        base, start = row * n, int64(0)
        held = cuda.local.array(R, T)
        m, s = T(-INFINITY), T(0)
        while start < n:
            for k in range(R):
                held[k] = T(-INFINITY)
            load(x, base + start, int32(n - start), lane, held, wide)
            top = m
            for k in range(R):
                top = held[k] if held[k] > top else top
            shift = finite(top)
            s *= exp(m - shift)
            for k in range(R):
                s += exp(held[k] - shift)
            m = top
            start += CHUNK
        top = finite(largest(m))
        s = add(s * exp(m - top))
        if is_sum:
            if lane == 0:
                put(y, row, top + math.log(s))
            return
        scale, log_s = T(0), T(0)
        if s != T(0):
            scale, log_s = divide(T(1), s), math.log(s)
        while start > 0:
            start -= CHUNK
            left = int32(n - start)
            if left > CHUNK:  # the last chunk is still held
                load(x, base + start, left, lane, held, wide)
            for k in range(R):
                held[k] -= top
                held[k] = exp(held[k]) * scale if is_softmax else held[k] - log_s
            store(y, base + start, left, lane, held, wide)

    return body


@cuda_kernel(dtypes=("float32",), variants=[(kind,) for kind in FORWARD[:2]], vector=lambda *key: True, registers=128)
def far_streamed_rows(S, kind):
    """streamed_rows of aligned rows, in the longest chunks."""
    return streamed_rows.factory(S, kind, FAR, "wide")


@cuda_kernel(
    dtypes=FLOATS + HALVES,
    variants=[(kind,) for kind in BACKWARD],
    vector=promise("logsumexp_jvp"),
    registers=128,  # two chunks held
)
def streamed_rows_derivative(S, kind):
    """The same for long rows, a block a row: the sum in one walk, the result in a second."""
    T, R = arithmetic(S), held_of(S)
    CHUNK = THREADS * R
    probability, term, result = derivative_of(T, kind)
    add, _ = reductions(T, THREADS)
    load, store = chunk_access(S, R)
    get, put = element_access(S)
    one_in, one_out = kind == "logsumexp", kind == "logsumexp_jvp"
    of_sum = one_in or one_out
    PAD = 0.0 if kind == "softmax" else -INFINITY  # probability 0

    @device
    def probabilities(y, base, n, lane, shift, p, wide):
        for k in range(R):
            p[k] = T(PAD)
        load(y, base, n, lane, p, wide)
        for k in range(R):
            p[k] = probability(p[k], shift)

    @device
    def whole(y, base, n, lane, shift, p, wide):
        """A thread's part of the row's sum of probabilities: 1, but for a large lse, which is rounded."""
        q, start = T(0), int64(0)
        while start < n:
            probabilities(y, base + start, int32(n - start), lane, shift, p, wide)
            for k in range(R):
                q += p[k]
            start += CHUNK
        return q

    @device
    def total(y, d, base, there, n, lane, shift, p, held, wide):
        """A thread's part of the sum of the terms; the last chunk stays held."""
        s, start = T(0), int64(0)
        while start < n:
            left = int32(n - start)
            for k in range(R):
                held[k] = T(0)
            load(d, there + start, left, lane, held, wide)
            probabilities(y, base + start, left, lane, shift, p, wide)
            for k in range(R):
                s += term(p[k], held[k])
            start += CHUNK
        return s

    @device
    def finish(y, d, out, base, there, n, lane, shift, s, p, held, wide):
        start = int64(quotient(n + int32(CHUNK - 1), int32(CHUNK))) * CHUNK
        while start > 0:
            start -= CHUNK
            left = int32(n - start)
            if one_in or left > CHUNK:  # else the last chunk is still held
                probabilities(y, base + start, left, lane, shift, p, wide)
            if not one_in and left > CHUNK:
                load(d, there + start, left, lane, held, wide)
            for k in range(R):
                held[k] = result(p[k], held[k], s)
            store(out, there + start, left, lane, held, wide)

    def body(
        y: pointer(S), lse: pointer(S), d: pointer(S), out: pointer(S), rows: int64, n: int32, V: int64, wide: int32
    ):
        row, lane = int64(cuda.blockIdx.x), int32(cuda.threadIdx.x)
        base, shift = row * n, get(lse, row)
        p, held = cuda.local.array(R, T), cuda.local.array(R, T)
        q = add(whole(y, base, n, lane, shift, p, wide)) if of_sum else T(1)
        v = int64(cuda.blockIdx.y)
        while v < V:
            place = v * rows + row
            there = place * n
            s = get(d, place) if one_in else add(total(y, d, base, there, n, lane, shift, p, held, wide))
            if of_sum:
                s = divide(s, q) if q != T(0) else T(0)
            if one_out:
                if lane == 0:
                    put(out, place, s)
            else:
                finish(y, d, out, base, there, n, lane, shift, s, p, held, wide)
            v += int64(cuda.gridDim.y)

    return body
