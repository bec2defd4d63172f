"""softmax, log_softmax and logsumexp over the last axis and their derivatives.

    m = max_j x_j, s = sum_j exp(x_j - m), p = exp(x - m) / s;   log_softmax = x - m - log s;   logsumexp = m + log s
    softmax      dx = p (dy - sum_j dy_j p_j), dy likewise
    log_softmax  dx = dy - p sum_j dy_j,       dy = dx - sum_j dx_j p_j
    logsumexp    dx = dy p,                    dy = sum_j dx_j p_j

Access (kernels in `softmax_rows`): rows of up to 16,384 elements (float64 and rows that are not aligned: 512) are held
in registers, so every number moves once; 8 or 32 lanes share a row, a block the long ones. Derivatives keep p in
registers and walk the stack: 2V + 1 rows move for V cotangents. Rows that are longer still are walked twice (kernels in
`softmax_streams`).
A row that is all -inf has softmax 0, log_softmax -inf and logsumexp -inf.

Masked and causal softmax (kernels in `softmax_masked_rows`) is softmax over what may be attended to, and 0 elsewhere;
its derivative is softmax's, and that of causal rows moves only what is attended to: half of a square.
"""

from functools import lru_cache
from math import prod

from . import softmax_masked_rows as masked
from .launch import (
    FLOATS,
    HALVES,
    MOST,
    THREADS,
    Kernel,
    address,
    aligned,
    blocks,
    contiguous,
    empty,
    takes,
    vector_width,
)
from .softmax_rows import (
    FILL,
    group_of,
    held_rows,
    held_rows_derivative,
    holder,
    long_rows,
    long_rows_derivative,
)
from .softmax_streams import far_streamed_rows, streamed_rows, streamed_rows_derivative


def _forward(xp, kind, x, out_shape):
    (x,) = contiguous(xp, x)
    n = x.shape[-1]
    rows = x.size // n
    y = empty(xp, out_shape, x.dtype)
    wide = aligned(x, y) and n % vector_width(x.dtype) == 0
    if chosen := holder((held_rows, long_rows) if wide else (held_rows,), n, x.dtype, kind):
        kernel, lanes = chosen
        kernel(blocks(rows * lanes, THREADS), THREADS, x, y, rows, n, wide)
    else:
        _walker(wide, x.dtype, kind)(rows, THREADS, x, y, n, wide)
    return y


@lru_cache(64)
def _walker(wide, dtype, kind):
    """The kernel that streams rows."""
    key = (dtype.name, kind)
    return far_streamed_rows[key] if wide and key in far_streamed_rows.instances() else streamed_rows[key]


def _derivative_of(xp, kind, y, lse, d, out_shape):
    """The derivative of `kind` on a stack d; y is what was saved (..., n), lse (...) is logsumexp's result or None."""
    if not takes(y, lse, d, dtypes=FLOATS + HALVES) or y.size == 0:
        return NotImplemented
    y, lse, d = contiguous(xp, y, lse, d)
    n, V = y.shape[-1], d.shape[0]
    rows = y.size // n
    out = empty(xp, out_shape, d.dtype)
    wide = aligned(y, d, out) and n % vector_width(y.dtype) == 0
    arguments = (y, y if lse is None else lse, d, out, rows, n, V, wide)
    kernels = (held_rows_derivative, long_rows_derivative) if wide else (held_rows_derivative,)
    if chosen := holder(kernels, n, y.dtype, kind):
        kernel, lanes = chosen
        across = blocks(rows * lanes, THREADS)
    else:
        across, kernel = rows, streamed_rows_derivative[y.dtype, kind]
    kernel((across, min(V, max(1, FILL // across))), THREADS, *arguments)
    return out


def _serves(x, axis):
    return takes(x, dtypes=FLOATS + HALVES) and x.size > 0 and axis == x.ndim - 1 and x.shape[-1] <= MOST


def _row_op(kind, jvp_kind):
    """The Kernel of softmax or log_softmax."""

    def forward(xp, x, *, axis):
        if not _serves(x, axis):
            return NotImplemented
        y = _forward(xp, kind, x, x.shape)
        return y, (y,)

    def vjp(xp, saved, dy, need, *, axis):
        (y,) = saved
        if not need[0] or not _serves(y, axis):
            return (None,) if not need[0] else NotImplemented
        dx = _derivative_of(xp, kind, y, None, dy, dy.shape)
        return dx if dx is NotImplemented else (dx,)

    def jvp(xp, saved, dx, *, axis):
        (y,) = saved
        if dx[0] is None or not _serves(y, axis):
            return NotImplemented
        return _derivative_of(xp, jvp_kind, y, None, dx[0], dx[0].shape)

    return Kernel(forward, vjp, jvp)


def _logsumexp_forward(xp, x, *, axis, keepdims):
    if not _serves(x, axis):
        return NotImplemented
    y = _forward(xp, "logsumexp", x, (*x.shape[:-1], 1) if keepdims else x.shape[:-1])
    return y, (x, y)


def _logsumexp_vjp(xp, saved, dy, need, *, axis, keepdims):
    x, y = saved
    if not need[0] or not _serves(x, axis):
        return (None,) if not need[0] else NotImplemented
    dx = _derivative_of(xp, "logsumexp", x, y, dy, (dy.shape[0], *x.shape))
    return dx if dx is NotImplemented else (dx,)


def _logsumexp_jvp(xp, saved, dx, *, axis, keepdims):
    x, y = saved
    if dx[0] is None or not _serves(x, axis):
        return NotImplemented
    return _derivative_of(xp, "logsumexp_jvp", x, y, dx[0], (dx[0].shape[0], *y.shape))


def _masked_forward(xp, x, mask=None, *, axis, causal):
    known = mask is None or takes(mask, dtypes=("bool",))
    if not known or not _serves(x, axis) or x.size // x.shape[-1] > MOST:
        return NotImplemented
    (x,) = contiguous(xp, x)
    n, queries = x.shape[-1], x.shape[-2] if causal else 1
    rows, y = x.size // n, empty(xp, x.shape, x.dtype)
    words, repeated, inner = (xp.zeros(1, "uint32"), 1, 1) if mask is None else _mask_words(xp, mask, x.shape)
    wide = aligned(x, y) and n % vector_width(x.dtype) == 0
    how = (queries, repeated, inner, causal, mask is not None, wide)
    if group := group_of(n, masked.groups_of(x.dtype)):
        grid = blocks(rows * group[0], THREADS)
        masked.held_attended[x.dtype, *group](grid, THREADS, x, words, y, rows, n, *how)
    else:
        masked.streamed_attended[x.dtype](rows, THREADS, x, words, y, n, *how)
    return y, (y,)


def _mask_words(xp, mask, shape):
    """-> (rows of the mask as uint32 words of 4 bytes, repeated, inner): row (outer, repeated, inner) of x, which has
    `shape`, takes row (outer, inner) of the mask. A mask that is repeated in two places is written out in the second.
    """
    lead, n = len(shape) - 1, shape[-1]
    mask = mask.reshape((1,) * (lead + 1 - mask.ndim) + mask.shape)
    first = next((i for i in range(lead) if mask.shape[i] != shape[i]), lead)  # of the axes that are repeated
    last = next((i for i in range(first + 1, lead) if mask.shape[i] == shape[i] != 1), lead)  # kept from here on
    bytes_ = xp.broadcast_to(mask, (*shape[:first], *mask.shape[first:last], *shape[last:]))
    bytes_ = xp.ascontiguousarray(bytes_).reshape(-1, n)
    if n % 4 or address(bytes_) % 4:
        padded = xp.zeros((bytes_.shape[0], blocks(n, 4) * 4), bool)
        padded[:, :n] = bytes_
        bytes_ = padded
    return bytes_.view("uint32"), prod(shape[first:last]), prod(shape[last:-1])


def _masked_derivative(xp, saved, d, axis, causal):
    (y,) = saved
    if not causal:
        return _derivative_of(xp, "softmax", y, None, d, d.shape)
    if not takes(y, d, dtypes=FLOATS + HALVES) or y.size // y.shape[-1] > MOST:
        return NotImplemented
    y, d = contiguous(xp, y, d)
    (queries, n), V = y.shape[-2:], d.shape[0]
    rows, out = y.size // n, empty(xp, d.shape, d.dtype)
    wide = aligned(y, d, out) and n % vector_width(y.dtype) == 0
    if group := group_of(n, masked.groups_of(y.dtype)):
        across, kernel = blocks(rows * group[0], THREADS), masked.held_attended_derivative[y.dtype, *group]
    else:
        across, kernel = rows, masked.streamed_attended_derivative[y.dtype]
    kernel((across, min(V, max(1, FILL // across))), THREADS, y, d, out, rows, n, queries, V, wide)
    return out


def _masked_vjp(xp, saved, dy, need, *, axis, causal):
    if not need[0] or not _serves(saved[0], axis):
        return (None,) * len(need) if not need[0] else NotImplemented
    dx = _masked_derivative(xp, saved, dy, axis, causal)
    return dx if dx is NotImplemented else (dx, None)[: len(need)]


def _masked_jvp(xp, saved, dx, *, axis, causal):
    if dx[0] is None or not _serves(saved[0], axis):
        return NotImplemented
    return _masked_derivative(xp, saved, dx[0], axis, causal)


masked_softmax = Kernel(_masked_forward, _masked_vjp, _masked_jvp)
softmax = _row_op("softmax", "softmax")
log_softmax = _row_op("log_softmax", "log_softmax_jvp")
logsumexp = Kernel(_logsumexp_forward, _logsumexp_vjp, _logsumexp_jvp)
