"""The Jacobians of elementwise ops, softmax and the norms: a diagonal minus a few outer products.

    written    J[b, i, j] = δ_ij d[b, i] - Σₖ uₖ[b, i] vₖ[b, j] for i and j in one row of sample b, else 0
    applied    y = m d - Σₖ pₖ (m · qₖ) for every row m of a stack of sample b

Access, written. d, u and v are N times smaller than J and stay in the caches, so the cost is that of writing J: each
entry is written once, nothing is read back, no unit vectors are pushed through. A group of lanes writes one row (b, i)
of J, 16 bytes a lane, adjacent lanes adjacent addresses; rows of zeros cost their stores alone. d and the products are
joined by fused multiply-adds, so that p - p·p of a saturated softmax is rounded once.

Access, applied. A group of 8 or 32 lanes takes a row of m twice, for the sums and for the result; the second time it is
in the cache, as d, p and q are, which all rows of a sample share. So m is read and y written once, where array
functions pass over memory nine times (rank one) or sixteen.
"""

from ..precision import narrow, working
from ..precision import wide as widened
from .intrinsics import arithmetic, cuda, int32, int64, multiply_add, pointer, quotient, reductions, tile_access
from .launch import FLOATS, HALVES, THREADS, aligned, blocks, contiguous, cuda_kernel, empty, takes, vector_width

RANKS = (0, 1, 2)


@cuda_kernel(
    dtypes=FLOATS + HALVES,
    variants=[(rank,) for rank in RANKS],
    vector=lambda dtype, rank: True if rank else "stores",
    registers=80,
)
def low_rank_rows(S, rank):
    """J (places, n) of d (places,), u and v (rank, places): `places` rows of J, n a sample, `span` entries in a row of
    x; 2**shift lanes a row of J, which take `steps` tiles each."""
    T, W = arithmetic(S), vector_width(S)
    w, held = vector_width(T), max(rank, 1)
    load, _ = tile_access(T, w)
    _, store = tile_access(S, W)

    def body(
        d: pointer(T),
        u: pointer(T),
        v: pointer(T),
        out: pointer(S),
        places: int64,
        n: int32,
        span: int32,
        shift: int32,
        steps: int32,
        wide: int32,
    ):
        thread = int64(cuda.blockIdx.x) * THREADS + int64(cuda.threadIdx.x)
        place, lanes = thread >> shift, int32(1) << shift
        j = (int32(thread) & (lanes - 1)) * W
        if place >= places:
            return
        sample = quotient(int32(place), n)
        i = int32(place - sample * n)
        first = quotient(i, span) * span
        base, d_i = int64(sample) * n, d[place]
        left, tile, right = cuda.local.array(held, T), cuda.local.array(W, T), cuda.local.array(w, T)
        for k in range(rank):
            left[k] = -u[k * places + place]
        for _ in range(steps):
            for e in range(W):
                tile[e] = d_i if i == j + e else T(0)
            if rank and j < first + span and j + W > first:
                for k in range(rank):
                    start = k * places + base
                    for part in range(0, W, w):
                        load(v, start + j + part, start + n, right, 0, wide)
                        for e in range(w):
                            if first <= j + part + e and j + part + e < first + span:
                                tile[part + e] = multiply_add(left[k], right[e], tile[part + e])
            store(out, place * n + j, place * n + n, tile, 0, wide)
            j += lanes * W

    return body


@cuda_kernel(
    dtypes=FLOATS + HALVES,
    variants=[(rank, lanes) for rank in RANKS[1:] for lanes in (8, 32)],
    vector=lambda *key: True,
    registers=80,
)
def applied_rows(S, rank, L):
    """y (places, n) of m (places, n): rows (b, v, r) of a stack, `rows` of them to each v, `each` to each b; d (B,
    rows, n), p and q (rank, B, rows, n), `total` entries each; L lanes a row."""
    T, W = arithmetic(S), vector_width(S)
    w = vector_width(T)
    add, _ = reductions(T, L)
    load, store = tile_access(S, W)
    load_factor, _ = tile_access(T, w)

    def body(
        m: pointer(S),
        d: pointer(T),
        p: pointer(T),
        q: pointer(T),
        out: pointer(S),
        places: int64,
        total: int64,
        each: int32,
        rows: int32,
        n: int32,
        wide: int32,
    ):
        thread = int64(cuda.blockIdx.x) * THREADS + int64(cuda.threadIdx.x)
        place, j = thread // L, int32(thread % L) * W
        end = n if place < places else int32(0)
        b = quotient(int32(place), each)
        place_in = int32(place) - b * each
        start, base = place * n, (int64(b) * rows + place_in - quotient(place_in, rows) * rows) * n
        tile, factor, dots = cuda.local.array(W, T), cuda.local.array(w, T), cuda.local.array(rank, T)
        for k in range(rank):
            dots[k] = T(0)
        i = j
        while i < end:
            load(m, start + i, start + end, tile, 0, wide)
            for k in range(rank):
                here = k * total + base
                for part in range(0, W, w):
                    load_factor(q, here + i + part, here + end, factor, 0, wide)
                    for e in range(w):
                        if i + part + e < end:
                            dots[k] += tile[part + e] * factor[e]
            i += int32(L * W)
        for k in range(rank):
            dots[k] = add(dots[k])
        i = j
        while i < end:
            load(m, start + i, start + end, tile, 0, wide)
            for part in range(0, W, w):
                load_factor(d, base + i + part, base + end, factor, 0, wide)
                for e in range(w):
                    tile[part + e] *= factor[e]
            for k in range(rank):
                here = k * total + base
                for part in range(0, W, w):
                    load_factor(p, here + i + part, here + end, factor, 0, wide)
                    for e in range(w):
                        tile[part + e] -= factor[e] * dots[k]
            store(out, start + i, start + end, tile, 0, wide)
            i += int32(L * W)

    return body


def write(xp, d, u, v, out):
    """Write J into out (B, N, N); d, and each of u and v (tuples of up to two), of shape (B, *rows, C).

    NotImplemented for more factors, other dtypes, and where out is not contiguous or too large for 32-bit places.
    """
    if len(u) not in RANKS or not takes(out, dtypes=FLOATS + HALVES):
        return NotImplemented
    if not out.flags.c_contiguous or d.size > 2**31 - 1:
        return NotImplemented
    if not out.size:
        return None
    rank, span, n = len(u), d.shape[-1], out.shape[-1]
    S, W = out.dtype, vector_width(out.dtype)
    d, u, v = (_stacked(xp, arrays or (d,), working(S)) for arrays in ((d,), u, v))
    shift = 3 if n <= 8 * W else 5
    steps, wide = blocks(n, W << shift), aligned(v, out) and n % W == 0
    low_rank_rows[S, rank](blocks(d.size << shift, THREADS), THREADS, d, u, v, out, d.size, n, span, shift, steps, wide)
    return None


def apply(xp, m, d, left, right, out=None):
    """m d - Σₖ leftₖ (m · rightₖ) of a stack m (B, V, N), into `out` where one is given; d and the factors as above.

    NotImplemented for more than two factors, other dtypes, and more than 2**31 - 1 rows.
    """
    if len(left) not in RANKS[1:] or not takes(m, dtypes=FLOATS + HALVES) or not d.size:
        return NotImplemented
    S, n = m.dtype, d.shape[-1]
    rows, places = d[0].size // n, m.size // n
    if places > 2**31 - 1:
        return NotImplemented
    (m,) = contiguous(xp, m)
    target = out if out is not None and out.dtype == S and out.flags.c_contiguous else empty(xp, m.shape, S)
    d, p, q = (_stacked(xp, arrays, working(S)) for arrays in ((d,), left, right))
    wide, lanes = aligned(m, d, p, q, target) and n % vector_width(S) == 0, 8 if n <= 8 * vector_width(S) else 32
    arguments = (m, d, p, q, target, places, d.size, m.shape[1] * rows, rows, n, wide)
    applied_rows[S, len(left), lanes](blocks(places * lanes, THREADS), THREADS, *arguments)
    if out is None or target is out:
        return target
    out[...] = target
    return out


def _stacked(xp, arrays, dtype):
    """The arrays one behind the other, contiguous, in the dtype that is computed in."""
    arrays = [narrow(widened(a), dtype) for a in arrays]
    return xp.ascontiguousarray(arrays[0]) if len(arrays) == 1 else xp.stack(arrays)
