"""Cross entropy of logits (..., C) and integer labels (...), with its gradient, in one pass over the logits.

    loss = log s - (1 - e) (x_t - m) - e/C sum_j (x_j - m),   g = p - (1 - e) onehot(t) - e/C
    m = max_j x_j,  s = sum_j exp(x_j - m),  p = exp(x - m) / s,  t the label, e the label smoothing
    dlogits[v] = dy[v] g / count,   dloss[v] = sum_j dx[v]_j g_j / count

Access (kernels in `cross_entropy_rows`): as in `softmax`, rows of up to 16,384 classes (float64 and rows that are not
aligned: 512) are held in registers, so the logits are read once and g is written once; longer rows are walked twice.
Softmax and log-softmax are never stored. What is written is g / count, the gradient of the mean (float16: g, which a
scaled loss keeps from vanishing); so where the cotangent is known to be 1, as it is in `gl.grad` of the loss, nothing
moves in the backward pass. An ignored row has loss 0 and g = 0; a label that is no class gives NaN, as a kernel cannot
raise.
"""

from ..ones import are_ones, known_ones
from ..precision import narrow, working
from .cross_entropy_rows import far_streamed_loss, held_loss, long_loss, streamed_loss
from .intrinsics import (
    arithmetic,
    cuda,
    divide,
    element_access,
    int32,
    int64,
    maximum,
    pointer,
    reductions,
    tile_access,
)
from .launch import (
    FLOATS,
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
from .softmax_rows import FILL, holder


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


@cuda_kernel(FLOATS + HALVES, ((8,), (32,)), without=_left_out, vector=lambda *key: "loads", registers=72)
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
    if not _serves(logits) or not _integers(labels):
        return NotImplemented
    (logits,) = contiguous(xp, logits)
    labels = xp.ascontiguousarray(labels, dtype=xp.int64)
    n = logits.shape[-1]
    rows = logits.size // n
    losses, g = empty(xp, logits.shape[:-1], working(logits.dtype)), empty(xp, logits.shape, logits.dtype)
    wide = aligned(logits, g) and n % vector_width(logits.dtype) == 0
    ignore = (0, False) if ignore_index is None else (ignore_index, True)
    if chosen := holder((held_loss, long_loss) if wide else (held_loss,), n, logits.dtype):
        kernel, lanes = chosen
        grid = blocks(rows * lanes, THREADS)
    else:
        far = wide and str(logits.dtype) in far_streamed_loss.dtypes
        kernel, grid = (far_streamed_loss if far else streamed_loss)[logits.dtype], rows
    one = known_ones(xp, (), losses.dtype)
    count = _rows_that_count(xp, labels, ignore_index, one) if reduction == "mean" else one
    ahead = count is one or str(g.dtype) != "float16"  # g / count may vanish there, and a loss is scaled for that
    kernel(grid, THREADS, logits, labels, losses, g, rows, n, *ignore, label_smoothing, count if ahead else one, wide)
    if reduction == "none":
        return narrow(losses, g.dtype), (g, one)
    total = xp.asarray(xp.sum(losses) / count, dtype=g.dtype)  # of no rows NaN, with a gradient of 0
    return total, (g, one if ahead else xp.maximum(count, 1))


def _rows_that_count(xp, labels, ignore_index, one):
    """Their number, as `one`: float32 for float16 and bfloat16, which hold no count of a long text."""
    valid = labels.size if ignore_index is None else xp.count_nonzero(labels != ignore_index)
    return xp.asarray(valid, dtype=one.dtype)


def _serves(logits, *others):
    """Whether the kernels take logits, or what has their shape, and arrays of the same dtype."""
    return takes(logits, *others, dtypes=FLOATS + HALVES) and logits.size > 0 and logits.shape[-1] <= MOST


def _integers(labels):
    return hasattr(labels, "dtype") and labels.dtype.kind in "iu"


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
    if not _serves(g, dy):
        return NotImplemented
    if reduction != "none" and are_ones(dy) and are_ones(count):
        return g[None], None
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
    if dx[0] is None or not _serves(g, dx[0]):
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
