"""The kernels of `cross_entropy` over rows: losses and gradients, held in registers or streamed by a block.

    loss = log s - (1 - e) (x_t - m) - e/C sum_j (x_j - m),   g = p - (1 - e) onehot(t) - e/C
    m = max_j x_j,  s = sum_j exp(x_j - m),  p = exp(x - m) / s,  t the label, e the label smoothing

Access, shapes and walks are those of `softmax_rows` and `softmax_streams`: the logits of rows of up to 16,384 classes
are read once and g is written once; longer rows are read again, but for the last chunk, which stays in the registers.
x_t is read by the one lane that writes the loss, from a line that is on its way for the row. Which of its numbers are a
row's, and which one is the label's, a lane knows from two small integers. float16 and bfloat16 (S) are widened to
float32 (T) as they are loaded and rounded once as they are stored; losses are float32.
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
    maximum,
    pointer,
    quotient,
    reductions,
    row_access,
)
from .launch import FLOATS, HALVES, THREADS, cuda_kernel, vector_width
from .softmax_rows import GROUPS, LONG, finite_shift, no_long
from .softmax_streams import FAR, chunk_access, held_of

NAN = float("nan")
HALF_GROUPS = ((8, 8), (32, 8))  # as `softmax_rows.GROUPS`, of float16 and bfloat16


def _pieces(T):
    """-> device functions: class_of, the label as a small number, or -1 where it is no class; loss, of a row; slope, g
    of one class from its e = exp(x - m)."""

    @device
    def class_of(label, n):
        return int32(label) if label >= 0 and label < n else int32(-1)

    @device
    def loss(t, n, ignored, m, s, x_t, total, smooth):
        """total = sum_j (x_j - m); x_t = x_label - m."""
        value = math.log(s) - (T(1) - smooth) * x_t
        if smooth > T(0):
            value -= divide(smooth, T(n)) * total
        if t < 0:
            value = T(NAN)
        return T(0) if ignored else value

    @device
    def slope(e, scale, even, own, is_label, ignored):
        """scale = 1 / (s count); even, what smoothing takes off every class, is NaN where the label is none; own, what
        the label's class loses beside."""
        value = e * scale - even
        if is_label:
            value -= own
        return T(0) if ignored else value

    @device
    def shares(t, n, smooth, count):
        """-> 1 / count, and even and own of `slope`."""
        each = divide(T(1), maximum(count[0], T(1)))
        return each, each * divide(smooth, T(n)) if t >= 0 else T(NAN), each * (T(1) - smooth)

    return class_of, loss, slope, shares


def _slots(L, R, W):
    """Lane l of L holds the tiles (r L + l) of a row, of W elements each, one after another in R slots.

    -> device functions: filled(n, lane), how many of its slots, the first ones, a row of n elements fills;
    slot_of(j, lane), the slot of element j: negative, or not below R, where the lane does not hold it."""

    @device
    def filled(n, lane):
        left = int32(n - lane * W)
        if left <= 0:
            return int32(0)
        rounds = int32(0) if R == W else quotient(left, int32(L * W))
        left = int32(left - rounds * int32(L * W))
        slots = int32(rounds * int32(W) + (left if left < W else int32(W)))
        return slots if slots < R else int32(R)

    @device
    def slot_of(j, lane):
        if R == W:
            return int32(j - lane * W)
        if j < 0:
            return int32(-1)
        tile = quotient(int32(j), int32(W))
        rounds = quotient(tile, int32(L))
        if tile - rounds * int32(L) != lane:
            return int32(-1)
        return int32(rounds * int32(W) + (int32(j) - tile * int32(W)))

    return filled, slot_of


def _chunk_slots(R, W, access):
    """-> filled and slot_of of the chunks of `chunk_access`, with `wide` as a last argument."""
    filled_wide, slot_wide = _slots(THREADS, R, W)
    filled_single, slot_single = _slots(THREADS, R, 1)
    always = access == "wide"

    @device
    def filled(n, lane, wide):
        return filled_wide(n, lane) if always or wide else filled_single(n, lane)

    @device
    def slot_of(j, lane, wide):
        return slot_wide(j, lane) if always or wide else slot_single(j, lane)

    return filled, slot_of


@cuda_kernel(
    FLOATS + HALVES,
    tuple(dict.fromkeys(GROUPS + HALF_GROUPS)),
    without=lambda dtype, *group: group not in (HALF_GROUPS if dtype in HALVES else GROUPS),
    vector=lambda dtype, lanes, held: held > 1,
    registers=128,
)
def held_loss(S, L, R, access="either"):
    """losses (rows), g / count (rows, n) of rows of n <= L * R classes, a group of L lanes a row, R classes a lane."""
    T = arithmetic(S)
    add, largest = reductions(T, L)
    finite, exp, (class_of, loss, slope, shares) = finite_shift(T), exponential(T), _pieces(T)
    load, store = row_access(S, L, R, access)
    get, _ = element_access(S)
    filled, slot_of = _slots(L, R, min(R, vector_width(S)))

    def body(
        x: pointer(S),
        labels: pointer(int64),
        losses: pointer(T),
        g: pointer(S),
        rows: int64,
        n: int32,
        ignore: int64,
        has_ignore: int32,
        smooth: T,
        count: pointer(T),
        wide: int32,
    ):
        thread = int64(cuda.blockIdx.x) * int64(cuda.blockDim.x) + int64(cuda.threadIdx.x)
        row, lane = thread // L, int32(thread % L)
        mine = n if row < rows else int32(0)
        label = labels[row] if mine > 0 else int64(0)
        t, ignored = class_of(label, n), has_ignore != 0 and label == ignore
        held = cuda.local.array(R, T)
        for k in range(R):
            held[k] = T(-INFINITY)
        load(x, row * n, mine, lane, held, wide)
        x_t = get(x, row * n + t) if lane == 0 and mine > 0 and t >= 0 else T(0)
        m, s, total = held[0], T(0), T(0)
        for k in range(1, R):
            m = held[k] if held[k] > m else m
        m = finite(largest(m))
        full = filled(mine, lane)
        for k in range(R):
            shifted = held[k] - m
            if k < full:
                total += shifted
            held[k] = exp(shifted)
            s += held[k]
        s, total = add(s), add(total)
        each, even, own = shares(t, n, smooth, count)
        scale, at = divide(each, s), slot_of(t, lane)
        for k in range(R):
            held[k] = slope(held[k], scale, even, own, k == at, ignored)
        store(g, row * n, mine, lane, held, wide)
        if mine > 0 and lane == 0:
            losses[row] = loss(t, n, ignored, m, s, x_t - m, total, smooth)

    return body


@cuda_kernel(("float32", *HALVES), LONG, without=no_long, vector=lambda *key: True, registers=128)
def long_loss(S, L, R):
    """held_loss of aligned rows alone."""
    return held_loss.factory(S, L, R, "wide")


@cuda_kernel(FLOATS + HALVES, vector=lambda *key: True, registers=128)
def streamed_loss(S, R=None, access="either"):
    """The same for long rows, a block a row, R classes a thread at a time."""
    T, R = arithmetic(S), R or held_of(S)
    CHUNK = THREADS * R
    get, _ = element_access(S)
    add, largest = reductions(T, THREADS)
    finite, exp, (class_of, loss, slope, shares) = finite_shift(T), exponential(T), _pieces(T)
    load, store = chunk_access(S, R, access)
    filled, slot_of = _chunk_slots(R, vector_width(S), access)

    def body(
        x: pointer(S),
        labels: pointer(int64),
        losses: pointer(T),
        g: pointer(S),
        rows: int64,
        n: int32,
        ignore: int64,
        has_ignore: int32,
        smooth: T,
        count: pointer(T),
        wide: int32,
    ):
        row, lane = int64(cuda.blockIdx.x), int32(cuda.threadIdx.x)
        base, start, label = row * n, int64(0), labels[row]
        t, ignored = class_of(label, n), has_ignore != 0 and label == ignore
        held = cuda.local.array(R, T)
        m, s, total, seen = T(-INFINITY), T(0), T(0), int32(0)
        while start < n:
            left = int32(n - start)
            for k in range(R):
                held[k] = T(-INFINITY)
            load(x, base + start, left, lane, held, wide)
            top = m
            for k in range(R):
                top = held[k] if held[k] > top else top
            shift = finite(top)
            s *= exp(m - shift)
            total += T(seen) * (finite(m) - shift)  # it stays the sum of x_j - shift
            full = filled(left, lane, wide)
            for k in range(R):
                shifted = held[k] - shift
                if k < full:
                    total += shifted
                s += exp(shifted)
            seen = int32(seen + full)
            m = top
            start += CHUNK
        mine = m
        m = finite(largest(m))
        s = add(s * exp(mine - m))
        total = add(total + T(seen) * (finite(mine) - m))
        if lane == 0:
            x_t = get(x, base + t) - m if t >= 0 else T(0)
            losses[row] = loss(t, n, ignored, m, s, x_t, total, smooth)
        each, even, own = shares(t, n, smooth, count)
        scale = divide(each, s)
        while start > 0:
            start -= CHUNK
            left = int32(n - start)
            if left > CHUNK:  # the last chunk is still held
                load(x, base + start, left, lane, held, wide)
            at = slot_of(t - start, lane, wide)
            for k in range(R):
                held[k] = slope(exp(held[k] - m), scale, even, own, k == at, ignored)
            store(g, base + start, left, lane, held, wide)

    return body


@cuda_kernel(("float32",), vector=lambda *key: True, registers=128)
def far_streamed_loss(S):
    """streamed_loss of aligned rows, in the longest chunks."""
    return streamed_loss.factory(S, FAR, "wide")
