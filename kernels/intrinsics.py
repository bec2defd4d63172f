"""What kernels are written with: `cuda`, number types, math, 16-byte access, reductions.

One source for hardware and simulator. On hardware the names are Numba's (plus a few instructions Numba lacks); with
NUMBA_ENABLE_CUDASIM=1 each has a twin in Python. Everything private to numba-cuda is here and in `compiler`.
"""

from dataclasses import dataclass
from math import log

from .launch import SIMULATED, THREADS, pointer, vector_width

if SIMULATED:
    from .intrinsics_simulated import (
        as_pointer,
        cuda,
        device,
        divide,
        dynamic_shared,
        element_access,
        float32,
        float64,
        int32,
        int64,
        math,
        multiply_add,
        power_of_two,
        quotient,
        square_root,
        uint8,
        uint32,
        uint64,
        vector_access,
    )
else:
    from .intrinsics_hardware import (
        as_pointer,
        cuda,
        device,
        divide,
        dynamic_shared,
        element_access,
        float32,
        float64,
        int32,
        int64,
        math,
        multiply_add,
        power_of_two,
        quotient,
        square_root,
        uint8,
        uint32,
        uint64,
        vector_access,
    )

__all__ = [
    "INFINITY",
    "WARP",
    "across_groups",
    "add",
    "all_lanes",
    "arithmetic",
    "as_pointer",
    "bfloat16",
    "cuda",
    "device",
    "divide",
    "dynamic_shared",
    "element_access",
    "exponential",
    "float16",
    "float32",
    "float64",
    "int32",
    "int64",
    "larger",
    "math",
    "maximum",
    "multiply_add",
    "pointer",
    "power_of_two",
    "quotient",
    "reduction",
    "reductions",
    "row_access",
    "square_root",
    "tile_access",
    "uint8",
    "uint32",
    "uint64",
    "vector_access",
]

WARP = 32
INFINITY = float("inf")
LOG2_E = 1 / log(2)
all_lanes = 0xFFFFFFFF


@dataclass(frozen=True)
class Storage:
    """What memory holds and nothing is computed in: a dtype by its name, loaded as float32 and rounded when stored."""

    name: str


float16, bfloat16 = Storage("float16"), Storage("bfloat16")


def arithmetic(S):
    """The number type that memory of type S is computed in."""
    return float32 if isinstance(S, Storage) else S


@device
def maximum(a, b):
    """The larger; b where either is NaN."""
    return a if a > b else b


@device
def add(a, b):
    return a + b


@device
def larger(a, b):
    """The larger; NaN where either is, as NumPy's maximum."""
    return a if a > b or a != a else b


def exponential(T):
    """-> device function: e^x of x <= 0, the x_j - m of softmax and its like; NaN of NaN.

    For float32 2^(x log2 e): a product and one instruction, where libdevice has eight. Product and log2 e are rounded,
    so the result is off by up to (1.3 |x| + 4) 2^-24 of itself; x_j - m, rounded too, brings |x| 2^-24 anyway. Where
    |x| is large the result is small beside the maximum's, which is 1 exactly: |x| e^x < 0.4. Below 2^-126 it is 0.
    """
    if T is float32:
        return device(lambda x: power_of_two(x * T(LOG2_E)))
    return device(lambda x: math.exp(x))


def tile_access(S, width, whole=False):
    """-> device functions load, store(memory, start, end, local, at, wide): a tile of `width` elements, memory[start:],
    from and to local[at:]. S is the type of the memory; locals are of type arithmetic(S).

    One access of 16 bytes where `wide` (the host's word that `start` is aligned) and the tile ends before `end`, else
    element by element, leaving out those from `end` on. whole: every tile is aligned and ends before `end`, so that
    there is one access and no other path.
    """
    load_vector, store_vector = vector_access(S, width)
    get, put = element_access(S)

    @device
    def load(memory, start, end, local, at, wide):
        if whole or (width > 1 and wide and start + width <= end):
            load_vector(memory, start, local, at)
        else:
            for k in range(width):
                if start + k < end:
                    local[at + k] = get(memory, start + k)

    @device
    def store(memory, start, end, local, at, wide):
        if whole or (width > 1 and wide and start + width <= end):
            store_vector(memory, start, local, at)
        else:
            for k in range(width):
                if start + k < end:
                    put(memory, start + k, local[at + k])

    return load, store


def row_access(S, lanes, held, access="either"):
    """-> device functions load, store(memory, base, n, lane, local, wide).

    A row of n <= lanes * held elements at index `base`, spread over the local arrays of `held` elements of neighbouring
    lanes, tile by tile; load leaves what lies beyond n as it is. access: "wide", 16 bytes at a time, of rows that are
    aligned; "single", one element; "either", as `wide` says of each tile.
    """
    W = 1 if access == "single" else min(held, vector_width(S))
    load_tile, store_tile = tile_access(S, W, access != "either")

    @device
    def load(memory, base, n, lane, local, wide):
        for r in range(held // W):
            j = (r * lanes + lane) * W
            if j < n:
                load_tile(memory, base + j, base + n, local, r * W, wide)

    @device
    def store(memory, base, n, lane, local, wide):
        for r in range(held // W):
            j = (r * lanes + lane) * W
            if j < n:
                store_tile(memory, base + j, base + n, local, r * W, wide)

    return load, store


def _over_lanes(combine, lanes):
    """Butterfly over groups of `lanes` neighbouring lanes (a power of two): every lane ends with the group's result,
    combined in the same order, so all lanes hold the same bits."""

    @device
    def reduce(v):
        if lanes > 16:
            v = combine(v, cuda.shfl_xor_sync(all_lanes, v, 16))
        if lanes > 8:
            v = combine(v, cuda.shfl_xor_sync(all_lanes, v, 8))
        if lanes > 4:
            v = combine(v, cuda.shfl_xor_sync(all_lanes, v, 4))
        if lanes > 2:
            v = combine(v, cuda.shfl_xor_sync(all_lanes, v, 2))
        if lanes > 1:
            v = combine(v, cuda.shfl_xor_sync(all_lanes, v, 1))
        return v

    return reduce


def _over_block(T, combine, neutral):
    """Reduce over the warps of a block through shared memory; every thread gets the result."""
    over_warp = _over_lanes(combine, WARP)

    @device
    def reduce(v):
        slots = cuda.shared.array(32, T)
        lane = int32(cuda.threadIdx.x) & int32(31)
        warp = int32(cuda.threadIdx.x) >> int32(5)
        v = over_warp(v)
        if lane == 0:
            slots[warp] = v
        cuda.syncthreads()
        v = slots[lane] if lane < (int32(cuda.blockDim.x) >> int32(5)) else T(neutral)
        v = over_warp(v)
        cuda.syncthreads()  # the slots may be used again
        return v

    return reduce


def reductions(T, lanes=WARP):
    """-> device functions (sum, max) over groups of `lanes` lanes, or over the block where lanes is None or many.
    All lanes (all threads) must call them; the block's size is a multiple of 32."""
    return reduction(T, add, 0.0, lanes), reduction(T, maximum, -INFINITY, lanes)


def reduction(T, combine, neutral, lanes):
    """-> device function like those of `reductions`, for a function of two and its neutral number."""
    return _over_block(T, combine, neutral) if lanes is None or lanes > WARP else _over_lanes(combine, lanes)


def across_groups(T, lanes, width, combine=add, neutral=0.0):
    """-> device function reduce(local): sums (or combines) local arrays of `width` elements over the groups of `lanes`
    (8 to 32) neighbouring threads of a block of THREADS. The first group ends with the result; the order is fixed. All
    threads call it."""
    warps = THREADS // WARP
    size = THREADS * width

    @device
    def reduce(local):
        slots = cuda.shared.array(size, T)
        t = int32(cuda.threadIdx.x)
        lane, warp = t & int32(31), t >> int32(5)
        for k in range(width):
            s = local[k]
            if lanes <= 16:
                s = combine(s, cuda.shfl_xor_sync(all_lanes, s, 16))
            if lanes <= 8:
                s = combine(s, cuda.shfl_xor_sync(all_lanes, s, 8))
            slots[(k * warps + warp) * WARP + lane] = s
        cuda.syncthreads()
        if t < lanes:
            for k in range(width):
                s = T(neutral)
                for w in range(warps):
                    s = combine(s, slots[(k * warps + w) * WARP + t])
                local[k] = s
        cuda.syncthreads()  # the slots may be used again

    return reduce
