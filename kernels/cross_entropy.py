"""Cross entropy of logits (..., C) and integer labels (...), with its gradient, in one pass over the logits.

    loss = log s - (1 - e) (x_t - m) - e/C sum_j (x_j - m),   g = p - (1 - e) onehot(t) - e/C
    m = max_j x_j,  s = sum_j exp(x_j - m),  p = exp(x - m) / s,  t the label, e the label smoothing
    dlogits[v] = dy[v] g / count,   dloss[v] = sum_j dx[v]_j g_j / count

Access: as in `softmax`, rows of up to 512 classes are held in the registers of a group of lanes, so the logits are read
once and g is written once; longer rows take a block and a second reading, from L2. Softmax and log-softmax are never
stored. An ignored row has loss 0 and g = 0; a label that is no class gives NaN, as a kernel cannot raise.
"""

from ..precision import narrow, working
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
    maximum,
    pointer,
    reductions,
    row_access,
    tile_access,
)
from .launch import (
    FLOATS,
    HALVES,
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
from .softmax_rows import FILL, GROUPS, finite_shift, group_of

NAN = float("nan")
HALF_GROUPS = ((8, 8), (32, 8))  # as `softmax_rows.GROUPS`, of float16 and bfloat16


def _pieces(T):
    """-> device functions: loss and target of a row, from its label."""

    @device
    def loss(label, n, ignored, m, s, x_t, total, smooth):
        """total = sum_j (x_j - m); x_t = x_label - m."""
        value = math.log(s) - (T(1) - smooth) * x_t
        if smooth > T(0):
            value -= divide(smooth, T(n)) * total
        if label < 0 or label >= n:
            value = T(NAN)
        return T(0) if ignored else value

    @device
    def slope(p, is_label, label, n, ignored, smooth):
        value = p - divide(smooth, T(n))
        if is_label:
            value -= T(1) - smooth
        if label < 0 or label >= n:
            value = T(NAN)
        return T(0) if ignored else value

    return loss, slope


@cuda_kernel(
    FLOATS + HALVES,
    tuple(dict.fromkeys(GROUPS + HALF_GROUPS)),
    without=lambda dtype, *group: group not in (HALF_GROUPS if dtype in HALVES else GROUPS),
    vector=lambda dtype, lanes, held: held > 1,
    registers=128,
)
def held_loss(S, L, R):
    """losses (rows) and g (rows, n) of rows of n <= L * R classes, a group of L lanes a row, R classes a lane."""
    T = arithmetic(S)
    add, largest = reductions(T, L)
    finite, (loss, slope) = finite_shift(T), _pieces(T)
    load, store = row_access(S, L, R)
    W = min(R, vector_width(S))

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
        wide: int32,
    ):
        thread = int64(cuda.blockIdx.x) * int64(cuda.blockDim.x) + int64(cuda.threadIdx.x)
        row, lane = thread // L, int32(thread % L)
        mine = n if row < rows else int32(0)
        label = labels[row] if mine > 0 else int64(0)
        ignored = has_ignore != 0 and label == ignore
        held = cuda.local.array(R, T)
        for k in range(R):
            held[k] = T(-INFINITY)
        load(x, row * n, mine, lane, held, wide)
        m = held[0]
        for k in range(1, R):
            m = held[k] if held[k] > m else m
        m = finite(largest(m))
        s, x_t, total = T(0), T(0), T(0)
        for k in range(R):
            j = ((k // W) * L + lane) * W + k % W
            shifted = held[k] - m
            if j < mine:
                total += shifted
            if j == label:
                x_t = shifted
            held[k] = math.exp(shifted)
            s += held[k]
        s, x_t, total = add(s), add(x_t), add(total)
        scale = divide(T(1), s)
        for k in range(R):
            j = ((k // W) * L + lane) * W + k % W
            held[k] = slope(held[k] * scale, j == label, label, n, ignored, smooth)
        store(g, row * n, mine, lane, held, wide)
        if mine > 0 and lane == 0:
            losses[row] = loss(label, n, ignored, m, s, x_t, total, smooth)

    return body


@cuda_kernel(FLOATS + HALVES, vector=lambda *key: True)
def streamed_loss(S):
    """The same for long rows, a block a row."""
    T, W = arithmetic(S), vector_width(S)
    get, _ = element_access(S)
    add, largest = reductions(T, None)
    finite, (loss, slope) = finite_shift(T), _pieces(T)
    load, store = tile_access(S, W)

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
        wide: int32,
    ):
        row, first = int64(cuda.blockIdx.x), int32(cuda.threadIdx.x) * W
        base, label = row * n, labels[row]
        ignored = has_ignore != 0 and label == ignore
        tile = cuda.local.array(W, T)
        m, s, total, count = T(-INFINITY), T(0), T(0), int32(0)
        j = first
        while j < n:
            for k in range(W):
                tile[k] = T(-INFINITY)
            load(x, base + j, base + n, tile, 0, wide)
            top = m
            for k in range(W):
                top = tile[k] if tile[k] > top else top
            shift = finite(top)
            s *= math.exp(m - shift)
            if m > T(-INFINITY):  # total follows the maximum: it stays the sum of x_j - shift
                total += T(count) * (m - shift)
            for k in range(W):
                s += math.exp(tile[k] - shift)
                if j + k < n:
                    total += tile[k] - shift
                    count += int32(1)
            m = top
            j += int32(cuda.blockDim.x) * W
        mine = m
        m = finite(largest(m))
        s = add(s * math.exp(mine - m))
        total = add(total + T(count) * (finite(mine) - m))
        scale = divide(T(1), s)
        j = first
        while j < n:
            load(x, base + j, base + n, tile, 0, wide)
            for k in range(W):
                p = math.exp(tile[k] - m) * scale
                tile[k] = slope(p, j + k == label, label, n, ignored, smooth)
            store(g, base + j, base + n, tile, 0, wide)
            j += int32(cuda.blockDim.x) * W
        if first == 0:
            x_t = get(x, base + label) - m if label >= 0 and label < n else T(0)
            losses[row] = loss(label, n, ignored, m, s, x_t, total, smooth)

    return body


def _left_out(dtype, lanes):
    """Short rows of float16 and bfloat16 take a warp too."""
    return dtype in HALVES and lanes == 8


@cuda_kernel(FLOATS + HALVES, ((8,), (32,)), without=_left_out, vector=lambda *key: True)
def spread(S, L):
    """out[v] = dy[v] g / count: dy (V, rows) if per_row else (V); a group of L lanes a row."""
    T, W = arithmetic(S), vector_width(S)
    load, store = tile_access(S, W)
    get, _ = element_access(S)

    def body(
        g: pointer(S),
        count: pointer(T),
        dy: pointer(S),
        out: pointer(S),
        rows: int64,
        n: int32,
        V: int64,
        per_row: int32,
        wide: int32,
    ):
        thread = int64(cuda.blockIdx.x) * int64(cuda.blockDim.x) + int64(cuda.threadIdx.x)
        row, first = thread // L, int32(thread % L) * W
        if row >= rows:
            return
        tile = cuda.local.array(W, T)
        v = int64(cuda.blockIdx.y)
        while v < V:
            scale = divide(get(dy, v * rows + row) if per_row else get(dy, v), maximum(count[0], T(1)))
            base, there = row * n, (v * rows + row) * n
            j = first
            while j < n:
                load(g, base + j, base + n, tile, 0, wide)
                for k in range(W):
                    tile[k] = tile[k] * scale
                store(out, there + j, there + n, tile, 0, wide)
                j += int32(L * W)
            v += int64(cuda.gridDim.y)

    return body


@cuda_kernel(FLOATS + HALVES, ((8,), (32,)), without=_left_out, vector=lambda *key: True, registers=72)
def row_dots(S, L):
    """out[v, row] = sum_j d[v, row, j] g[row, j], in the type of the arithmetic; a group of L lanes a row."""
    T, W = arithmetic(S), vector_width(S)
    add, _ = reductions(T, L)
    load, _ = tile_access(S, W)

    def body(g: pointer(S), d: pointer(S), out: pointer(T), rows: int64, n: int32, V: int64, wide: int32):
        thread = int64(cuda.blockIdx.x) * int64(cuda.blockDim.x) + int64(cuda.threadIdx.x)
        row, first = thread // L, int32(thread % L) * W
        mine = n if row < rows else int32(0)
        a, b = cuda.local.array(W, T), cuda.local.array(W, T)
        v = int64(cuda.blockIdx.y)
        while v < V:
            base, there, s = row * n, (v * rows + row) * n, T(0)
            j = first
            while j < mine:
                load(g, base + j, base + n, a, 0, wide)
                load(d, there + j, there + n, b, 0, wide)
                for k in range(W):
                    if j + k < n:
                        s += a[k] * b[k]
                j += int32(L * W)
            s = add(s)
            if mine > 0 and first == 0:
                out[v * rows + row] = s
            v += int64(cuda.gridDim.y)

    return body


def _forward(xp, logits, labels, *, reduction, ignore_index, label_smoothing):
    if not takes(logits, dtypes=FLOATS + HALVES) or logits.size == 0 or not _integers(labels):
        return NotImplemented
    (logits,) = contiguous(xp, logits)
    labels = xp.ascontiguousarray(labels, dtype=xp.int64)
    n = logits.shape[-1]
    rows = logits.size // n
    losses, g = empty(xp, logits.shape[:-1], working(logits.dtype)), empty(xp, logits.shape, logits.dtype)
    wide = aligned(logits, g) and n % vector_width(logits.dtype) == 0
    ignore = (0, False) if ignore_index is None else (ignore_index, True)
    if group := group_of(n, HALF_GROUPS if str(logits.dtype) in HALVES else GROUPS):
        kernel, grid = held_loss[logits.dtype, *group], blocks(rows * group[0], THREADS)
    else:
        kernel, grid = streamed_loss[logits.dtype], rows
    kernel(grid, THREADS, logits, labels, losses, g, rows, n, *ignore, label_smoothing, wide)
    return _reduced(xp, losses, labels, g, reduction, ignore_index)


def _integers(labels):
    return hasattr(labels, "dtype") and labels.dtype.kind in "iu"


def _reduced(xp, losses, labels, g, reduction, ignore_index):
    dtype = losses.dtype  # float32 of float16 and bfloat16: neither the sum nor the count of a long text fits
    count = xp.ones((), dtype)
    if reduction == "mean":
        valid = labels.size if ignore_index is None else xp.count_nonzero(labels != ignore_index)
        count = xp.asarray(valid, dtype=dtype)
    if reduction == "none":
        return narrow(losses, g.dtype), (g, count)
    total = xp.asarray(xp.sum(losses) / count, dtype=g.dtype)
    return total, (g, count if ignore_index is None else xp.maximum(count, 1))  # 0 rows: NaN, with a gradient of 0


def _lanes(g):
    """Lanes for a row of g."""
    return 8 if str(g.dtype) in FLOATS and g.shape[-1] <= 8 * vector_width(g.dtype) else 32


def _grid(rows, lanes, V):
    across = blocks(rows * lanes, THREADS)
    return across, min(V, max(1, FILL // across))


def _vjp(xp, saved, dy, need, *, reduction, ignore_index, label_smoothing):
    g, count = saved
    if not need[0]:
        return None, None
    if not takes(g, dy, dtypes=FLOATS + HALVES) or g.size == 0:
        return NotImplemented
    g, dy, count = contiguous(xp, g, dy, xp.asarray(count, dtype=working(g.dtype)))
    n, V, lanes = g.shape[-1], dy.shape[0], _lanes(g)
    rows = g.size // n
    out = empty(xp, (V, *g.shape), g.dtype)
    wide = aligned(g, out) and n % vector_width(g.dtype) == 0
    arguments = (g, count, dy, out, rows, n, V, reduction == "none", wide)
    spread[g.dtype, lanes](_grid(rows, lanes, V), THREADS, *arguments)
    return out, None


def _jvp(xp, saved, dx, *, reduction, ignore_index, label_smoothing):
    g, count = saved
    if dx[0] is None or not takes(g, dx[0], dtypes=FLOATS + HALVES) or g.size == 0:
        return NotImplemented
    g, d = contiguous(xp, g, dx[0])
    n, V, lanes = g.shape[-1], d.shape[0], _lanes(g)
    rows = g.size // n
    dots = empty(xp, (V, *g.shape[:-1]), working(g.dtype))
    wide = aligned(g, d) and n % vector_width(g.dtype) == 0
    row_dots[g.dtype, lanes](_grid(rows, lanes, V), THREADS, g, d, dots, rows, n, V, wide)
    dy = dots if reduction == "none" else xp.sum(dots.reshape(V, rows), axis=1) / xp.maximum(count, 1)
    return narrow(dy, g.dtype)


cross_entropy = Kernel(_forward, _vjp, _jvp)
