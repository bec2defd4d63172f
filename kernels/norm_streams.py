"""The kernels of `layer_norm` and `rms_norm` for rows too long for registers, a block a row; formulas: `norm_rows`.

Forward, the row comes from memory once, for its mean, and twice from L2: the squares of x - mean and what the mean is
off by are added in one pass (mean d^2 - (mean d)^2, where the second is small), then y is written; rms_norm does
without the first. Derivatives take two passes. 16 bytes a thread, adjacent threads adjacent addresses.
"""

from .intrinsics import INFINITY, arithmetic, cuda, device, divide, int32, int64, pointer, tile_access
from .launch import FLOATS, HALVES, THREADS, cuda_kernel, vector_width
from .norm_rows import KINDS, MODES, reciprocal_root, row_sum


@cuda_kernel(dtypes=FLOATS + HALVES, variants=[(kind,) for kind in KINDS], vector=lambda *key: True)
def streamed_forward(S, kind):
    """The same for long rows, a block a row: the mean, then its correction and the squares, then y."""
    T, centred, W = arithmetic(S), kind == "layer_norm", vector_width(S)
    add = row_sum(T, THREADS)
    load, store = tile_access(S, W)
    root = reciprocal_root(S)

    @device
    def moments(x, base, n, m, wide):
        """The mean of x - m and the mean of its squares."""
        tile = cuda.local.array(W, T)
        inverse, s, q = divide(T(1), T(n)), T(0), T(0)
        j = int32(cuda.threadIdx.x) * W
        while j < n:
            load(x, base + j, base + n, tile, 0, wide)
            for k in range(W):
                d = tile[k] - m if j + k < n else T(0)
                s += d * inverse
                q += d * d
            j += int32(THREADS * W)
        return add(s), add(q) * inverse

    def body(
        x: pointer(S),
        w: pointer(S),
        b: pointer(S),
        y: pointer(S),
        mean: pointer(T),
        scale: pointer(T),
        n: int32,
        wide: int32,
        has_w: int32,
        has_b: int32,
        eps: T,
    ):
        row, first = int64(cuda.blockIdx.x), int32(cuda.threadIdx.x) * W
        base, m = row * n, T(0)
        if centred:
            m, _ = moments(x, base, n, T(0), wide)
        left, v = moments(x, base, n, m, wide)
        if centred:
            m += left
            v = v - left * left if v < T(INFINITY) else v
            v = T(0) if v < T(0) else v
        r = root(x, base, n, m, v, eps)
        if first == 0:
            scale[row] = r
            if centred:
                mean[row] = m
        tile, ws, bs = cuda.local.array(W, T), cuda.local.array(W, T), cuda.local.array(W, T)
        j = first
        while j < n:
            for k in range(W):
                ws[k], bs[k] = T(1), T(0)
            load(x, base + j, base + n, tile, 0, wide)
            if has_w:
                load(w, j, n, ws, 0, wide)
            if has_b:
                load(b, j, n, bs, 0, wide)
            for k in range(W):
                tile[k] = (tile[k] - m) * r * ws[k] + bs[k]
            store(y, base + j, base + n, tile, 0, wide)
            j += int32(THREADS * W)

    return body


def _registers_of_tangents(dtype, kind, mode):
    """The jvp of layer_norm in float16 and bfloat16 takes 80 registers on sm_100, of which nothing spills."""
    return ("registers",) if dtype in HALVES and (kind, mode) == ("layer_norm", "jvp") else ()


@cuda_kernel(
    dtypes=FLOATS + HALVES,
    variants=[(kind, mode) for kind in KINDS for mode in MODES],
    vector=lambda *key: True,
    except_for=_registers_of_tangents,
)
def streamed_derivative(S, kind, mode):
    """The same for long rows, a block a row: the two sums in one pass, the result in a second."""
    T, centred, back, W = arithmetic(S), kind == "layer_norm", mode == "vjp", vector_width(S)
    early = W == 8  # products before the next load: three tiles of 8 numbers are more than the registers hold
    add = row_sum(T, THREADS)
    load, store = tile_access(S, W)

    def body(
        x: pointer(S),
        mean: pointer(T),
        scale: pointer(T),
        w: pointer(S),
        d: pointer(S),
        dw: pointer(S),
        db: pointer(S),
        out: pointer(S),
        rows: int64,
        n: int32,
        V: int64,
        wide: int32,
        has_w: int32,
        has_d: int32,
        has_dw: int32,
        has_db: int32,
    ):
        row, first = int64(cuda.blockIdx.x), int32(cuda.threadIdx.x) * W
        here, inverse, m, r = row * n, divide(T(1), T(n)), T(0), scale[row]
        if centred:
            m = mean[row]
        h, tile = cuda.local.array(W, T), cuda.local.array(W, T)
        ws, bs = cuda.local.array(W, T), cuda.local.array(W, T)
        v = int64(cuda.blockIdx.y)
        while v < V:
            base, s, q = (v * rows + row) * n, T(0), T(0)
            j = first if has_d else n
            while j < n:
                for k in range(W):
                    ws[k] = T(1)
                load(x, here + j, here + n, h, 0, wide)
                load(d, base + j, base + n, tile, 0, wide)
                if back and has_w:
                    load(w, j, n, ws, 0, wide)
                for k in range(W):
                    if j + k < n:
                        s += tile[k] * ws[k]
                        q += tile[k] * ws[k] * ((h[k] - m) * r)
                j += int32(THREADS * W)
            s = add(s) * inverse if centred else T(0)
            q = add(q) * inverse
            j = first
            while j < n:
                for k in range(W):
                    ws[k], bs[k], tile[k] = T(1), T(0), T(0)
                if not early:
                    load(x, here + j, here + n, h, 0, wide)
                if has_d:
                    load(d, base + j, base + n, tile, 0, wide)
                if has_w:
                    load(w, j, n, ws, 0, wide)
                if back and early:
                    for k in range(W):
                        tile[k], ws[k] = tile[k] * ws[k], T(1)
                if not back:  # dy = c + h e:  c = r (d - s) w + db,  e = dw - r q w
                    if has_db:
                        load(db, v * n + j, v * n + n, bs, 0, wide)
                    for k in range(W):
                        ws[k] *= r
                        tile[k], ws[k], bs[k] = (tile[k] - s) * ws[k] + bs[k], -q * ws[k], T(0)
                    if has_dw:
                        load(dw, v * n + j, v * n + n, bs, 0, wide)
                    for k in range(W):
                        ws[k] += bs[k]
                if early:
                    load(x, here + j, here + n, h, 0, wide)
                for k in range(W):
                    h[k] = (h[k] - m) * r
                    tile[k] = r * (tile[k] * ws[k] - s - h[k] * q) if back else tile[k] + h[k] * ws[k]
                store(out, base + j, base + n, tile, 0, wide)
                j += int32(THREADS * W)
            v += int64(cuda.gridDim.y)

    return body
