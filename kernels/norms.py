"""Launching the kernels of `layer_norm` and `rms_norm`: which shape takes which rows, on what grid.

    y = h w + b,   dx = P (dy w),   dw = sum of dy h, db = sum of dy over rows      (h and P: `norm_rows`)

Access: rows that fit in registers are loaded whole, 16 bytes a lane where aligned, and blocks keep the sums for dw and
db on the way (`norm_sums`); longer rows are streamed (`norm_streams`), and read again for these sums, by columns.

Host functions of arrays, with `kind` one of KINDS; a mean or weights that are not there are None.
"""

from functools import lru_cache

from ..precision import narrow, working
from .launch import FLOATS, GRID_Z, HALVES, THREADS, aligned, blocks, contiguous, empty, takes, vector_width
from .machine import machine_of
from .norm_rows import GROUPS, LONG, group_of, held_derivative, held_forward, long_forward
from .norm_streams import streamed_derivative, streamed_forward
from .norm_sums import DEPTH, LANES, STAYING, column_sums, held_sums
from .norm_sums import GROUPS as SUM_GROUPS
from .softmax_rows import FILL

LONGEST = GRID_Z * LANES * 2  # elements of a row: GRID_Z blocks across, of float64 too


def serves(*arrays, statistics=()):
    """Whether the kernels take these arrays, x first: of one dtype, something to compute; `statistics`, mean
    and r (None is skipped), of the dtype that x is computed in."""
    if not takes(*arrays, dtypes=FLOATS + HALVES) or any(
        s is not None and s.dtype != working(arrays[0].dtype) for s in statistics
    ):
        return False
    return 0 < arrays[0].shape[-1] <= LONGEST and arrays[0].size > 0


def _wide(n, *arrays):
    return aligned(*arrays) and n % vector_width(arrays[0].dtype) == 0


def _grid(across, V):
    """Blocks for `across` of them a member of a stack of V; they walk the stack where that fills the device."""
    return across, min(V, max(1, FILL // across))


@lru_cache(4096)
def _held(kernel, dtype, kinds, n, wide, groups):
    """The first shape of `groups` that holds rows of n elements and that the kernel has for the dtype, or None."""
    has = [g for g in groups if (dtype.name, *kinds, *g) in kernel.instances()]
    return group_of(n, wide, has)


def forward(xp, kind, x, w, b, eps):
    """y (..., n), mean and r (..., 1); no mean of rms_norm."""
    x, w, b = contiguous(xp, x, w, b)
    n = x.shape[-1]
    rows = x.size // n
    y, r = empty(xp, x.shape, x.dtype), empty(xp, (*x.shape[:-1], 1), working(x.dtype))
    mean = empty(xp, r.shape, r.dtype) if kind == "layer_norm" else None
    given = (x, x if w is None else w, x if b is None else b, y, r if mean is None else mean, r)
    wide, flags = _wide(n, x, w, b, y), (w is not None, b is not None, eps)
    if group := _held(held_forward, x.dtype, (kind,), n, wide, GROUPS):
        held_forward[x.dtype, kind, *group](blocks(rows * group[0], THREADS), THREADS, *given, rows, n, *flags)
    elif group := _held(long_forward, x.dtype, (kind,), n, wide, LONG):
        long_forward[x.dtype, kind, *group](rows, THREADS, *given, rows, n, *flags)
    else:
        streamed_forward[x.dtype, kind](rows, THREADS, *given, n, wide, *flags)
    return y, mean, r


def derivative(xp, kind, mode, x, mean, r, w, d, dw=None, db=None):
    """dx for cotangents d of y (mode "vjp"), or dy for tangents d, dw, db of x, w and b ("jvp"), of stacks [V, ...]."""
    x, mean, r, w, d, dw, db = contiguous(xp, x, mean, r, w, d, dw, db)
    n, V = x.shape[-1], next(a.shape[0] for a in (d, dw, db) if a is not None)
    rows = x.size // n
    out = empty(xp, (V, *x.shape), x.dtype)
    given = (x, r if mean is None else mean, r, *(x if a is None else a for a in (w, d, dw, db)), out)
    wide, flags = _wide(n, x, w, d, dw, db, out), [a is not None for a in (w, d, dw, db)]
    if group := _held(held_derivative, x.dtype, (kind, mode), n, wide, GROUPS):
        across = blocks(rows * group[0], THREADS)
        held_derivative[x.dtype, kind, mode, *group](_grid(across, V), THREADS, *given, rows, n, V, *flags)
    else:
        streamed_derivative[x.dtype, kind, mode](_grid(rows, V), THREADS, *given, rows, n, V, wide, *flags)
    return out


def cotangents(xp, kind, x, mean, r, w, dy, need):
    """[dx, dw, db], as far as `need` goes and where it is true."""
    if not any(need[1:]):
        return [derivative(xp, kind, "vjp", x, mean, r, w, dy) if need[0] else None, *[None] * (len(need) - 1)]
    x, mean, r, w, dy = contiguous(xp, x, mean, r, w, dy)
    # what is allocated is aligned
    if group := _held(held_sums, x.dtype, (kind,), x.shape[-1], _wide(x.shape[-1], x, w, dy), SUM_GROUPS):
        dx, partial = _held_cotangents(xp, kind, x, mean, r, w, dy, need[0], group)
    else:
        dx = derivative(xp, kind, "vjp", x, mean, r, w, dy) if need[0] else None
        partial = _column_partials(xp, kind, x, mean, r, dy)
    used = partial if kind == "layer_norm" else partial[:, :, :1]  # no sums for a bias
    sums = used[:, 0] if partial.shape[1] == 1 else xp.sum(used, axis=1)
    sums = narrow(sums, dy.dtype)
    return [dx, *(sums[:, i] if needed else None for i, needed in enumerate(need[1:]))]


def _held_cotangents(xp, kind, x, mean, r, w, dy, need_dx, group):
    """(dx or None, partial [V, blocks, 2, n])."""
    n, V, (lanes, held, _) = x.shape[-1], dy.shape[0], group
    rows = x.size // n
    staying = (STAYING if held < 16 else STAYING // 2) * machine_of(xp).multiprocessors
    across = min(blocks(rows * lanes, THREADS), staying)
    dx, partial = empty(xp, dy.shape, x.dtype) if need_dx else None, empty(xp, (V, across, 2, n), r.dtype)
    given = (x, r if mean is None else mean, r, x if w is None else w, dy, dy if dx is None else dx, partial)
    held_sums[x.dtype, kind, *group](_grid(across, V), THREADS, *given, rows, n, V, w is not None, need_dx)
    return dx, partial


def _column_partials(xp, kind, x, mean, r, dy):
    """Partial sums [V, blocks of rows, 2, n]."""
    n, V, W = x.shape[-1], dy.shape[0], vector_width(x.dtype)
    rows = x.size // n
    deep = blocks(rows, DEPTH * (THREADS // LANES))
    partial = empty(xp, (V, deep, 2, n), r.dtype)
    grid = (deep, blocks(n, LANES * W), min(V, GRID_Z))
    given = (x, r if mean is None else mean, r, dy, partial, rows, n, V, _wide(n, x, dy, partial))
    column_sums[x.dtype, kind](grid, THREADS, *given)
    return partial
