"""Dropout on a counter-based generator: the mask is a function of seed, counter and position, and is never stored.

    word(e) = Philox4x32-10(counter = (lo e/4, hi e/4, lo c, hi c), key = (lo s, hi s))[e % 4]
    y = x (word >= rate 2^32) / (1 - rate),   dx = dy (the same mask) / (1 - rate)

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3". Access: a thread computes one Philox block,
so 4 elements (of float16 and bfloat16 two, so 8), and moves 16 bytes at a time; it keeps its mask in registers and
walks the stack. Seed and counter are read from the device's memory, so the host never waits for them and a captured
launch draws a new mask when the counter moves.
"""

from .intrinsics import arithmetic, cuda, device, int32, int64, pointer, tile_access, uint32, uint64
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

LOW = 0xFFFFFFFF
FILL = 4096  # blocks that keep any GPU busy


@device
def low(x):
    return uint32(x & uint64(LOW))


@device
def high(x):
    return uint32(x >> uint64(32))


@device
def philox(c0, c1, c2, c3, k0, k1):
    """Philox4x32-10: four words from a counter of four words and a key of two, all uint32."""
    for _ in range(10):
        a, b = uint64(c0) * uint64(0xD2511F53), uint64(c2) * uint64(0xCD9E8D57)
        c0, c1, c2, c3 = uint32(high(b) ^ c1 ^ k0), low(b), uint32(high(a) ^ c3 ^ k1), low(a)
        k0, k1 = uint32(k0 + uint32(0x9E3779B9)), uint32(k1 + uint32(0xBB67AE85))
    return c0, c1, c2, c3


def scaled_masks(T, width):
    """-> device function fill(m, e, seed, counter, threshold, scale): what the `width` elements (2, 4 or 8) from e on
    are multiplied by."""

    @device
    def fill(m, e, seed, counter, threshold, scale):
        at = uint64(e >> int64(2))
        w0, w1, w2, w3 = philox(low(at), high(at), low(counter), high(counter), low(seed), high(seed))
        if width > 2:
            m[2] = scale if w2 >= threshold else T(0)
            m[3] = scale if w3 >= threshold else T(0)
        elif e & int64(2):
            w0, w1 = w2, w3
        m[0] = scale if w0 >= threshold else T(0)
        m[1] = scale if w1 >= threshold else T(0)
        if width > 4:
            at += uint64(1)
            w0, w1, w2, w3 = philox(low(at), high(at), low(counter), high(counter), low(seed), high(seed))
            m[4] = scale if w0 >= threshold else T(0)
            m[5] = scale if w1 >= threshold else T(0)
            m[6] = scale if w2 >= threshold else T(0)
            m[7] = scale if w3 >= threshold else T(0)

    return fill


def elements_of(kind):
    """How many neighbouring elements a thread has: whole blocks of words, whole accesses."""
    return max(4, vector_width(kind))


@cuda_kernel(FLOATS + HALVES, vector=lambda *key: True)
def masked(S):
    """out[v] = x[v] * mask * scale for v < V; a thread has four or eight neighbouring elements of the n."""
    T, W, E = arithmetic(S), vector_width(S), elements_of(S)
    load, store = tile_access(S, W)
    fill = scaled_masks(T, E)

    def body(
        x: pointer(S),
        seed: pointer(uint64),
        counter: pointer(uint64),
        out: pointer(S),
        n: int64,
        V: int64,
        threshold: uint32,
        scale: T,
        wide: int32,
    ):
        start = (int64(cuda.blockIdx.x) * int64(cuda.blockDim.x) + int64(cuda.threadIdx.x)) * E
        if start >= n:
            return
        tile, m = cuda.local.array(E, T), cuda.local.array(E, T)
        fill(m, start, seed[0], counter[0], threshold, scale)
        v = int64(cuda.blockIdx.y)
        while v < V:
            base = v * n
            load(x, base + start, base + n, tile, 0, wide)
            if W == 2:  # float64: written out, since sm_100 keeps what a loop indexes in local memory
                load(x, base + start + 2, base + n, tile, 2, wide)
            for k in range(E):
                tile[k] = tile[k] * m[k]
            store(out, base + start, base + n, tile, 0, wide)
            if W == 2:
                store(out, base + start + 2, base + n, tile, 2, wide)
            v += int64(cuda.gridDim.y)

    return body


def _masked(xp, x, seed, counter, V, rate):
    """x (V elements of a stack) times the mask of one of them."""
    if not takes(x, dtypes=FLOATS + HALVES) or not takes(seed, counter, dtypes=("uint64",)):
        return NotImplemented
    (x,) = contiguous(xp, x)
    out = empty(xp, x.shape, x.dtype)
    if x.size == 0:
        return out
    n = x.size // V
    wide = aligned(x, out) and (V == 1 or n % vector_width(x.dtype) == 0)
    across = blocks(n, elements_of(x.dtype) * THREADS)
    grid = (across, min(V, max(1, FILL // across)))
    threshold = min(round(rate * 2**32), LOW)
    masked[x.dtype](grid, THREADS, x, seed, counter, out, n, V, threshold, 1 / (1 - rate), wide)
    return out


def _forward(xp, x, seed, counter, *, rate):
    y = _masked(xp, x, seed, counter, 1, rate)
    if y is NotImplemented:
        return NotImplemented
    # The counter is copied: its owner goes on counting in place. The last is there for its shape, and holds no memory.
    return y, (seed, counter.copy(), xp.broadcast_to(xp.zeros((), x.dtype), x.shape))


def _vjp(xp, saved, dy, need, *, rate, first=0):
    if not need[0]:
        return None, None, None
    if first:  # the mask of some of the samples
        return NotImplemented
    dx = _masked(xp, dy, *saved[:2], dy.shape[0], rate)
    return NotImplemented if dx is NotImplemented else (dx, None, None)


def _jvp(xp, saved, dx, *, rate, first=0):
    return NotImplemented if dx[0] is None or first else _masked(xp, dx[0], *saved[:2], dx[0].shape[0], rate)


dropout = Kernel(_forward, _vjp, _jvp)
