"""The host side of reductions: which axes become rows or columns, in how many passes, and the derivatives along rows.

Axes that lie side by side count as one, so x is [A, n, B] and n is reduced: where B is 1, rows; else columns. Axes that
lie apart are reduced in turn, and so are the results of the spans of what is long.
"""

from itertools import groupby
from math import prod

from ..precision import narrow, working
from .launch import FLOATS, HALVES, THREADS, aligned, blocks, contiguous, empty, takes, vector_width
from .reduce_rows import (
    DEPTH,
    TILES,
    column_lanes,
    reduce_columns,
    reduce_rows,
    row_lanes,
    slope_rows,
)

FILL = 4096  # blocks that keep any GPU busy
LONG = 1 << 16  # the longest rows whose derivative one block writes
SMALL = 1 << 10  # the least [n, B] worth a block of `reduce_columns`, where there are many


def stages(shape, axis):
    """-> [(A, n, B)]: reducing the middle of each, in this order, reduces an array of `shape` over `axis`."""
    sides = ((i in axis, n) for i, n in enumerate(shape) if n != 1)
    runs = [(reduced, prod(n for _, n in run)) for reduced, run in groupby(sides, key=lambda side: side[0])]
    found, behind = [], 1  # behind: the size of the kept axes that follow
    while runs:
        reduced, n = runs.pop()
        if reduced:
            found.append((prod(m for _, m in runs), n, behind))
        else:
            behind *= n
    return found


def reduced(xp, x, axis, keepdims, kind, factor=1.0, square=0, root=0):
    """x reduced over `axis`, or NotImplemented. kind: "sum", of squares if so wanted, times `factor` or the root of
    that; or "max", with a factor of -1 the minimum."""
    if not takes(x, dtypes=FLOATS + HALVES) or x.size == 0:
        return NotImplemented
    left = stages(x.shape, axis)
    if not left or any(A > FILL and B > 1 and n * B < SMALL for A, n, B in left):
        return NotImplemented
    (y,) = contiguous(xp, x)
    while left:
        A, n, B = left.pop(0)
        lanes, span = _rows_shape(n, x.dtype) if B == 1 else _columns_shape(B, x.dtype)
        parts = blocks(n, span)
        if parts > 1:
            left.insert(0, (A, parts, B))
        last = not left
        how = (square, root and last, factor if last or kind == "max" else 1.0)
        y, square = _stage(xp, y, (A, n, B), kind, lanes, span, parts, how), 0
    shape = tuple(1 if i in axis else n for i, n in enumerate(x.shape) if keepdims or i not in axis)
    return narrow(y, x.dtype).reshape(shape)


def _rows_shape(n, dtype):
    """(threads that share a row, elements of a span), for rows of n elements."""
    step = TILES * vector_width(dtype)
    lanes = next((lanes for lanes in row_lanes(dtype) if n <= lanes * step), THREADS)
    return lanes, lanes * step * DEPTH


def _columns_shape(B, dtype):
    """(threads along the columns, rows of a span), for B columns."""
    few, *_, many = column_lanes(dtype) * 2
    lanes = many if few * vector_width(dtype) < B else few
    return lanes, THREADS // lanes * TILES * DEPTH


def _stage(xp, x, shape, kind, lanes, span, parts, how):
    """x of `shape` (A, n, B) -> y (A, parts, B), of every `span` along n, in the dtype of the arithmetic."""
    A, n, B = shape
    y, W = empty(xp, (A, parts, B), working(x.dtype)), vector_width(x.dtype)
    if B == 1:
        wide = aligned(x) and (n % W == 0 or A == 1)
        grid = (blocks(A * lanes, THREADS), min(parts, FILL))
        reduce_rows[x.dtype, kind, lanes](grid, THREADS, x, y, A, n, span, parts, *how, wide)
    else:
        wide = aligned(x, y) and B % W == 0
        grid = (blocks(B, lanes * W), min(parts, FILL), min(A, FILL))
        reduce_columns[x.dtype, kind, lanes](grid, THREADS, x, y, A, n, B, span, parts, *how, wide)
    return y


def slopes(xp, kind, rule, saved, d, axis, out_shape):
    """The derivative ("vjp" or "jvp") of `kind`, "max" or "norm", from its saved (x, y), for a stack d; NotImplemented
    but for rows."""
    x, y = saved
    if not takes(x, y, d, dtypes=FLOATS + HALVES) or x.size == 0 or d.size == 0:
        return NotImplemented
    found = stages(x.shape, axis)
    if len(found) != 1 or found[0][2] != 1 or found[0][1] > LONG:
        return NotImplemented
    ((rows, n, _),) = found
    x, y, d = contiguous(xp, x, y, d)
    out, V = empty(xp, out_shape, d.dtype), d.shape[0]
    moved = out if rule == "vjp" else d
    wide = aligned(x, moved) and n % vector_width(x.dtype) == 0
    lanes = 32 if str(x.dtype) in HALVES else max(_rows_shape(n, x.dtype)[0], 32)
    across = blocks(rows * lanes, THREADS)
    grid = (across, min(V, max(1, FILL // across)))
    slope_rows[x.dtype, kind, rule, lanes](grid, THREADS, x, y, d, out, rows, n, V, wide)
    return out


def kept(x, y, axis, keepdims):
    """What an op returns whose `slopes` need its result y with the axes kept, unless that is NotImplemented."""
    if y is NotImplemented:
        return NotImplemented
    return (y if keepdims else y.squeeze(axis)), (x, y)


def slopes_vjp(xp, kind, saved, dy, need, axis):
    """An op's vjp by `slopes`."""
    if not need[0]:
        return (None,)
    dx = slopes(xp, kind, "vjp", saved, dy, axis, (dy.shape[0], *saved[0].shape))
    return dx if dx is NotImplemented else (dx,)


def slopes_jvp(xp, kind, saved, dx, axis, keepdims):
    """An op's jvp by `slopes`."""
    if dx[0] is None:
        return NotImplemented
    shape = saved[1].shape if keepdims else saved[1].squeeze(axis).shape
    return slopes(xp, kind, "jvp", saved, dx[0], axis, (dx[0].shape[0], *shape))
