"""The epilogue of linear layers, fused: bias and activation forward, dz = dy act' with the bias's cotangent backward.

    z = x @ w + b, y = act(z)      dz = dy act'(z), dx = dz @ w^T, dw = x^T @ dz, db = sum of dz over rows
    dy = (dx @ w + x @ dw + db) act'(z)

The products are the BLAS's. Access: 16 bytes a thread, forward in place on the product; tiles never straddle a row, so
the bias is a plain load. Backward, a block takes up to 128 columns and some rows: each thread writes dz and keeps the
sum of its columns in registers; the block adds them up in shared memory and writes one row of partial sums, which a
second, small sum completes. No atomics: the result is bit-identical from run to run. Of float16 and bfloat16 the
product is rounded, bias and activation are added in float32, and so are the sums.
"""

from ..op import total
from ..ops.linear import sparse_tangent, tangent
from ..ops.matmul import multiplied, weight_cotangent
from ..precision import is_narrow, narrow, working
from . import csr
from .elementwise import ACTIVATIONS, run_scale
from .formulas import formula
from .intrinsics import across_groups, arithmetic, cuda, int32, int64, pointer, quotient, tile_access
from .launch import (
    FLOATS,
    GRID_Z,
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

# name -> whether the slope needs y (else it needs z); the formula's parameter
FROM_OUTPUT = ("relu", "sigmoid", "tanh")
PARAMETER = {"elu": 1.0, "leaky_relu": 0.01}
DEPTH = 16  # rows a thread adds up


@cuda_kernel(
    FLOATS + HALVES,
    [(name,) for name in ACTIVATIONS] + [("identity",)],
    without=lambda dtype, name: name == "identity" and dtype not in HALVES,
    vector=lambda *key: True,
)
def bias_activate(S, name):
    """y = act(z + b) for z (rows, n); with keep_z, z becomes z + b. y may be z where z is not kept."""
    T, W = arithmetic(S), vector_width(S)
    f, _ = formula(T, name)
    load, store = tile_access(S, W)

    def body(
        z: pointer(S),
        b: pointer(S),
        y: pointer(S),
        rows: int32,
        n: int32,
        has_b: int32,
        keep_z: int32,
        wide: int32,
        a: T,
    ):
        tiles = (n + int32(W - 1)) // int32(W)
        t = int64(cuda.blockIdx.x) * THREADS + int64(cuda.threadIdx.x)
        if t >= int64(rows) * tiles:
            return
        row = quotient(int32(t), int32(tiles))
        column = (int32(t) - row * tiles) * W
        base = int64(row) * n
        zs, bs = cuda.local.array(W, T), cuda.local.array(W, T)
        load(z, base + column, base + n, zs, 0, wide)
        if has_b:
            load(b, column, n, bs, 0, wide)
            for k in range(W):
                zs[k] += bs[k]
        if keep_z:
            store(z, base + column, base + n, zs, 0, wide)
        for k in range(W):
            zs[k] = f(zs[k], a)
        store(y, base + column, base + n, zs, 0, wide)

    return body


@cuda_kernel(
    FLOATS + HALVES,
    [(name, lanes) for name in ACTIVATIONS for lanes in (8, 32)],
    without=lambda dtype, name, lanes: lanes == 8 and dtype in HALVES,
    vector=lambda *key: True,
    registers=128,  # of halves: eight columns a thread, of several rows at a time
)
def slope_sums(S, name, L):
    """dz[v] = dy[v] act', partial[v, block of rows] = sums of its columns; saved s (rows, n) is y or z."""
    T, W = arithmetic(S), vector_width(S)
    _, df = formula(T, name)
    load, store = tile_access(S, W)
    part = vector_width(T)
    _, store_part = tile_access(T, part)
    add = across_groups(T, L, W)
    groups = THREADS // L

    def body(
        s: pointer(S),
        dy: pointer(S),
        dz: pointer(S),
        partial: pointer(T),
        rows: int64,
        n: int32,
        V: int64,
        wide: int32,
        a: T,
    ):
        group, lane = int32(cuda.threadIdx.x) // int32(L), int32(cuda.threadIdx.x) % int32(L)
        column = (int32(cuda.blockIdx.x) * int32(L) + lane) * int32(W)
        saved, d, total = cuda.local.array(W, T), cuda.local.array(W, T), cuda.local.array(W, T)
        v = int64(cuda.blockIdx.z)
        while v < V:
            for k in range(W):
                saved[k], d[k], total[k] = T(0), T(0), T(0)
            for r in range(DEPTH):
                row = (int64(cuda.blockIdx.y) * DEPTH + r) * groups + group
                if row < rows and column < n:
                    here, there = row * n, (v * rows + row) * n
                    load(s, here + column, here + n, saved, 0, wide)
                    load(dy, there + column, there + n, d, 0, wide)
                    for k in range(W):
                        d[k] = d[k] * df(saved[k], saved[k], a)
                        total[k] += d[k]
                    store(dz, there + column, there + n, d, 0, wide)
            add(total)
            if group == 0 and column < n:
                base = (v * int64(cuda.gridDim.y) + int64(cuda.blockIdx.y)) * n
                store_part(partial, base + column, base + n, total, 0, wide)
                if part < W:
                    store_part(partial, base + column + part, base + n, total, part, wide)
            v += int64(cuda.gridDim.z)

    return body


def bias_act(xp, z, b, *, activation):
    """act(z + b), z (..., n) overwritten -> (y, z or None, y or None): what the slope needs is kept, z with its bias.

    b: (n,) or None. NotImplemented where the arrays are not of one dtype that has kernels, or are empty."""
    if not takes(z, b, dtypes=FLOATS + HALVES) or not 0 < z.size < 2**31:
        return NotImplemented
    if activation is None and (b is None or not is_narrow(z.dtype)):
        return (z if b is None else xp.add(z, b, out=z)), None, None
    keep_z = activation is not None and activation not in FROM_OUTPUT
    (b,) = contiguous(xp, b)
    y = empty(xp, z.shape, z.dtype) if keep_z else z
    n, W = z.shape[-1], vector_width(z.dtype)
    rows, wide = z.size // n, aligned(z, b, y) and n % W == 0
    grid, a = blocks(rows * blocks(n, W), THREADS), PARAMETER.get(activation, 0.0)
    bias = z if b is None else b
    bias_activate[z.dtype, activation or "identity"](grid, THREADS, z, bias, y, rows, n, b is not None, keep_z, wide, a)
    return y, (z if keep_z else None), (None if activation is None else y)


def slope_and_sums(xp, saved, dy, activation):
    """(dz, db): dz = dy act' (V, ..., n) and its sum over rows (V, n); `saved` is y or z, as the activation needs."""
    saved, dy = contiguous(xp, saved, dy)
    V, n, W = dy.shape[0], dy.shape[-1], vector_width(dy.dtype)
    rows, (lanes, deep) = saved.size // n, _slope_shape(saved)
    dz, partial = empty(xp, dy.shape, dy.dtype), empty(xp, (V, deep, n), working(dy.dtype))
    wide = aligned(saved, dy, dz, partial) and n % W == 0
    grid, a = (blocks(n, lanes * W), deep, min(V, GRID_Z)), PARAMETER.get(activation, 0.0)
    slope_sums[dy.dtype, activation, lanes](grid, THREADS, saved, dy, dz, partial, rows, n, V, wide, a)
    return dz, narrow(partial[:, 0] if deep == 1 else xp.sum(partial, axis=1), dy.dtype)


def _slope_shape(saved):
    """(lanes, blocks of rows) of `slope_sums`."""
    n = saved.shape[-1]
    lanes = 8 if n <= 8 * vector_width(saved.dtype) and not is_narrow(saved.dtype) else 32
    return lanes, blocks(saved.size // n, DEPTH * (THREADS // lanes))


def cotangents(xp, z, y, dy, need_db, activation):
    """(dz, db or None) of the epilogue; z, y as `bias_act` keeps them."""
    saved, dz = y if activation in FROM_OUTPUT else z, dy
    if activation is not None:
        if need_db and dy.size and _slope_shape(saved)[1] <= GRID_Z:
            return slope_and_sums(xp, saved, dy, activation)
        dz = _sloped(xp, z, y, dy, activation)
    return dz, total(xp, dz, tuple(range(1, dz.ndim - 1))) if need_db else None


def _forward(xp, x, w, b=None, *, activation):
    if not takes(x, w, b, dtypes=FLOATS + HALVES) or 0 in (x.size, w.size):
        return NotImplemented
    result = bias_act(xp, multiplied(xp, x, w), b, activation=activation)
    if result is NotImplemented:
        return NotImplemented
    y, z, kept = result
    return y, (x, w, b, z, kept)


def _vjp(xp, saved, dy, need, *, activation):
    x, w, _, z, y = saved
    if not takes(x, w, z, y, dy, dtypes=FLOATS + HALVES) or 0 in (x.size, w.size):
        return NotImplemented
    dz, db = cotangents(xp, z, y, dy, len(need) > 2 and need[2], activation)
    dx = multiplied(xp, dz, w.T) if need[0] else None
    dw = weight_cotangent(xp, x, dz) if need[1] else None
    return (dx, dw, db)[: len(need)]


def _jvp(xp, saved, dx, *, activation):
    x, w, _, z, y = saved
    if not takes(x, w, z, y, *dx, dtypes=FLOATS + HALVES) or 0 in (x.size, w.size):
        return NotImplemented
    return _sloped(xp, z, y, tangent(xp, x, w, dx), activation)


def _sloped(xp, z, y, dz, activation):
    """dz act', z and y as `bias_act` keeps them."""
    saved = y if activation in FROM_OUTPUT else z
    return dz if activation is None else run_scale(xp, activation, saved, saved, dz, PARAMETER.get(activation, 0.0))


def _csr_forward(xp, data, indices, indptr, w, b=None, *, activation):
    if not csr.serves(data, indices, indptr, w, b):
        return NotImplemented
    result = bias_act(xp, csr.product(xp, data, indices, indptr, w[None])[0], b, activation=activation)
    if result is NotImplemented:
        return NotImplemented
    y, z, kept = result
    return y, (data, indices, indptr, w, b, z, kept)


def _csr_vjp(xp, saved, dy, need, *, activation):
    data, indices, indptr, w, _, z, y = saved
    if not csr.serves(data, indices, indptr, w, dy) or not takes(w, z, y, dtypes=FLOATS + HALVES):
        return NotImplemented
    dz, db = cotangents(xp, z, y, dy, len(need) > 4 and need[4], activation)
    ddata = csr.dots(xp, dz, w, indices, indptr) if need[0] else None
    dw = csr.transposed(xp, data, indices, indptr, dz, w.shape[0]) if need[3] else None
    return (ddata, None, None, dw, db)[: len(need)]


def _csr_jvp(xp, saved, dx, *, activation):
    data, indices, indptr, w, _, z, y = saved
    if not csr.serves(data, indices, indptr, w, *dx[3:]) or not takes(w, z, y, dx[0], dtypes=FLOATS + HALVES):
        return NotImplemented
    dz = csr.tangent(xp, data, indices, indptr, w, dx[0], dx[3])
    return _sloped(xp, z, y, sparse_tangent(xp, dz, indptr, w, dx[4:]), activation)


linear = Kernel(_forward, _vjp, _jvp)
csr_linear = Kernel(_csr_forward, _csr_vjp, _csr_jvp)
