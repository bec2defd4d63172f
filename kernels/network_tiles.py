"""The parts of `network_jacobian`'s kernel: how a weight and rows of samples stand in shared memory, and the products.

Everything stands in tiles of 16 bytes, W elements; what fills the last tile of a row is zero. A row of n elements takes
an odd number of tiles, `pitch`, so that tiles one below the other fall into different banks. Row n of a weight stands
at place (n % W) T + n // W, T tiles covering all rows: a thread that makes W neighbouring columns of A wᵀ reads rows T
apart, and neighbouring threads neighbouring rows. What it is computed in stands there, T: float16 and bfloat16 (S) are
widened to float32 on the way into shared memory, and rounded once on the way from it.
"""

from .formulas import formula
from .intrinsics import arithmetic, cuda, device, int32, int64, quotient, tile_access, vector_access
from .launch import vector_width
from .linear import PARAMETER

ROWS = 8  # of a thread's tile of a product
ACTIVATIONS = ("relu", "tanh", "sigmoid", "silu", "gelu", "gelu_tanh", "softplus", "elu", "leaky_relu", "identity")


def geometry(T):
    """-> device functions units(n), tiles that cover n elements, and pitch(n), elements from row to row of n."""
    W = vector_width(T)
    shift = W.bit_length() - 1

    @device
    def units(n):
        return int32(int32(n + int32(W - 1)) >> int32(shift))

    @device
    def pitch(n):
        return int32((units(n) | int32(1)) * int32(W))

    return units, pitch


def width_of(T):
    """-> device function width(low, high, l): n_l, packed four to a number."""

    @device
    def width(low, high, l):
        packed = low if l < 4 else high
        return int32((packed >> int64(16 * (l & 3))) & int64(0xFFFF))

    return width


def weight_loader(S):
    """-> device function: a weight from device memory into its order in shared memory."""
    T = arithmetic(S)
    W = vector_width(T)
    shift = W.bit_length() - 1
    units, pitch = geometry(T)
    load, store = tile_access(S, W)[0], tile_access(T, W)[1]

    @device
    def load_weight(w, shared, at, rows, columns, wide):
        tiles, across, step = units(rows), units(columns), pitch(columns)
        tile = cuda.local.array(W, T)
        t = int32(cuda.threadIdx.x)
        while t < tiles * across * int32(W):
            n = quotient(t, across)
            c = int32((t - n * across) * int32(W))
            for k in range(W):
                tile[k] = T(0)
            if n < rows:
                load(w, int64(n) * columns + c, int64(n + 1) * columns, tile, 0, wide)
            place = at + ((n & int32(W - 1)) * tiles + (n >> int32(shift))) * step + c
            store(shared, place, place + W, tile, 0, int32(1))
            t += int32(cuda.blockDim.x)

    return load_weight


def row_loader(S, masks=False):
    """-> device function: rows of n, `from_row` apart, into shared memory, or `fill` where there are none; the rest of
    the last tile is zero. `masks`: the rows are bytes, 0 or 1."""
    T = arithmetic(S)
    W = vector_width(T)
    units, _ = geometry(T)
    load, store = tile_access(S, W)[0], tile_access(T, W)[1]

    @device
    def load_rows(v, has, fill, first, from_row, count, n, shared, at, wide):
        across = units(n)
        tile = cuda.local.array(W, T)
        t = int32(cuda.threadIdx.x)
        while t < count * across:
            s = quotient(t, across)
            c = int32((t - s * across) * int32(W))
            for k in range(W):
                tile[k] = fill if c + k < n else T(0)
            if has:
                base = (first + s) * from_row
                if masks:
                    for k in range(W):
                        if c + k < n:
                            tile[k] = T(v[base + c + k])
                else:
                    load(v, base + c, base + n, tile, 0, wide)
            place = at + t * int32(W)
            store(shared, place, place + W, tile, 0, int32(1))
            t += int32(cuda.blockDim.x)

    return load_rows


def _any_activation(T):
    """-> device function (kind, z) -> (act(z), act'(z)), kind a place in ACTIVATIONS."""
    chosen = None
    for kind, name in reversed(list(enumerate(ACTIVATIONS))):
        chosen = _either(T, kind, name, chosen)
    return chosen


def _either(T, kind, name, otherwise):
    f, df = formula(T, name)
    a = T(PARAMETER.get(name, 0.0))
    if otherwise is None:

        @device
        def last(which, z):
            y = f(z, a)
            return y, df(z, y, a)

        return last

    @device
    def chosen(which, z):
        if which == kind:
            y = f(z, a)
            return y, df(z, y, a)
        return otherwise(which, z)

    return chosen


def layer_of(T):
    """-> device function: z = h w + b, h and act(z) at `source` and `target`; act'(z) takes the place of b at `slope`.

    A thread makes one tile of one sample."""
    W = vector_width(T)
    units, pitch = geometry(T)
    load, store = vector_access(T, W)
    activation = _any_activation(T)

    @device
    def layer(shared, source, from_row, target, slope, at, rows, columns, count, kind):
        tiles, across, step = units(rows), units(columns), pitch(columns)
        z, h, w = cuda.local.array(W, T), cuda.local.array(W, T), cuda.local.array(W, T)
        t = int32(cuda.threadIdx.x)
        while t < count * across:
            s = quotient(t, across)
            c = int32((t - s * across) * int32(W))
            load(shared, slope + t * int32(W), z, 0)
            for i in range(tiles):
                load(shared, source + s * from_row + i * int32(W), h, 0)
                for j in range(W):
                    load(shared, at + (int32(j) * tiles + i) * step + c, w, 0)
                    for k in range(W):
                        z[k] += h[j] * w[k]
            for k in range(W):
                z[k] = z[k] if c + k < columns else T(0)
            there = target + s * step + c
            store(shared, there, z, 0)
            for k in range(min(int32(W), columns - c)):
                y, dy = activation(kind, shared[there + k])
                shared[there + k] = y
                shared[slope + t * int32(W) + k] = dy
            t += int32(cuda.blockDim.x)

    return layer


def first_rows_of(T):
    """-> device function: A_{L-1} = D_L w_Lᵀ D_{L-1} into `target`, V rows a sample."""
    W = vector_width(T)
    units, pitch = geometry(T)
    load, store = vector_access(T, W)

    @device
    def first_rows(shared, at, rows, V, after, before, target, count):
        tiles, step = units(rows), pitch(V)
        d = cuda.local.array(W, T)
        t = int32(cuda.threadIdx.x)
        while t < count * V * tiles:
            m = quotient(t, tiles)
            i = int32(t - m * tiles)
            s = quotient(m, V)
            v = int32(m - s * V)
            outer = shared[after + s * units(V) * int32(W) + v]
            load(shared, before + (s * tiles + i) * int32(W), d, 0)
            for k in range(W):
                w = shared[at + (int32(k) * tiles + i) * step + v]
                d[k] = outer * w * d[k] if i * int32(W) + k < rows else T(0)
            store(shared, target + m * pitch(rows) + i * int32(W), d, 0)
            t += int32(cuda.blockDim.x)

    return first_rows


def _product(T):
    """-> device function: a tile of A wᵀ in `sums`, rows row, row + across, … and the i-th tile of columns."""
    W = vector_width(T)
    square, held = W * W, ROWS * W
    load, _ = vector_access(T, W)

    @device
    def product(shared, source, step, row, across, at, tiles, i, inner, sums):
        a, w = cuda.local.array(W, T), cuda.local.array(square, T)
        for k in range(held):
            sums[k] = T(0)
        here, there = int32(source + row * step), int32(at + i * step)
        for c in range(inner):
            for k in range(W):
                load(shared, there + int32(k) * tiles * step + c * int32(W), w, k * W)
            for r in range(ROWS):
                load(shared, here + int32(r) * across * step + c * int32(W), a, 0)
                for k in range(W):
                    for j in range(W):
                        sums[r * W + k] += a[j] * w[k * W + j]

    return product


def multiplication(S):
    """-> device function: A_{l-1} = A_l wᵀ D_{l-1}, A_l (M, n) at `source`, to `target`; the last is J, without D_0."""
    T = arithmetic(S)
    W = vector_width(T)
    held, shift = ROWS * W, ROWS.bit_length() - 1
    units, pitch = geometry(T)
    product, (load, store), store_tile = _product(T), vector_access(T, W), tile_access(S, W)[1]

    @device
    def multiply(shared, source, target, at, slope, n, columns, M, V, jacobian, first, last, wide):
        tiles, across = units(columns), int32(int32(M + int32(ROWS - 1)) >> int32(shift))
        sums, d = cuda.local.array(held, T), cuda.local.array(W, T)
        t = int32(cuda.threadIdx.x)
        while t < tiles * across:
            row = quotient(t, tiles)
            i = int32(t - row * tiles)
            c = int32(i * int32(W))
            product(shared, source, pitch(n), row, across, at, tiles, i, units(n), sums)
            for r in range(ROWS):
                m = int32(row + int32(r) * across)
                if m < M:
                    if last:
                        base = (first * V + m) * columns
                        store_tile(jacobian, base + c, base + columns, sums, r * W, wide)
                    else:
                        load(shared, slope + quotient(m, V) * tiles * int32(W) + c, d, 0)
                        for k in range(W):
                            d[k] = d[k] * sums[r * W + k] if c + k < columns else T(0)
                        store(shared, target + m * pitch(columns) + c, d, 0)
            t += int32(cuda.blockDim.x)

    return multiply


def output_rows_of(S):
    """-> device function: rows of n from shared memory to y."""
    T = arithmetic(S)
    W = vector_width(T)
    units, pitch = geometry(T)
    load, store = vector_access(T, W)[0], tile_access(S, W)[1]

    @device
    def output_rows(shared, source, y, first, count, n, wide):
        across, tile = units(n), cuda.local.array(W, T)
        t = int32(cuda.threadIdx.x)
        while t < count * across:
            s = quotient(t, across)
            c = int32((t - s * across) * int32(W))
            load(shared, source + s * pitch(n) + c, tile, 0)
            store(y, (first + s) * n + c, (first + s + 1) * n, tile, 0, wide)
            t += int32(cuda.blockDim.x)

    return output_rows
