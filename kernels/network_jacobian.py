"""The Jacobians of a small network's outputs by its inputs, sample by sample, in one launch.

    h_0 = x,  z_l = h_{l-1} w_l + b_l,  h_l = act_l(z_l)      w_l (n_{l-1}, n_l), l = 1 … L
    J = D_L w_Lᵀ D_{L-1} w_{L-1}ᵀ … D_1 w_1ᵀ                  D_l = diag(act_l'(z_l)), of each sample its own

J (B, n_L, n_0) is multiplied from the left: A_{L-1} = D_L w_Lᵀ D_{L-1}, A_{l-1} = A_l w_lᵀ D_{l-1}, J = A_1 w_1ᵀ. The
rows of s samples stand one below the other, so that each step is one product of matrices: A_l, s n_L rows, by w_lᵀ.

`given`: the diagonals come from memory, (B, n_l) each, of whatever made them; `masks`: they are bools, as of a relu.
`computed`: the kernel runs the network itself, from x, on the same weights, and writes its outputs too.

Access: a block loads the weights into shared memory once and stays, taking a tile of s samples after another: x or the
diagonals are read, J is written, 16 bytes a thread, and nothing else moves; activations, masks and the A_l stay in
shared memory. A thread makes 8 rows by 16 bytes of columns of a product in registers: in float32 128 multiplications to
12 loads of 16 bytes from shared memory, 8 of them of one address for most lanes. So multiplying is what limits it, not
memory. Weights stand so that neighbouring threads' loads fall into different banks, forwards and backwards, without a
transposed copy (see `network_tiles`); the rows of A that one thread makes lie far apart for the same reason.

float16 and bfloat16 (S) are widened as they are loaded; shared memory holds float32 (T), and J and y are rounded once.
"""

from functools import lru_cache, partial
from itertools import accumulate, pairwise
from typing import NamedTuple

from ..precision import working
from . import launchers
from .intrinsics import arithmetic, cuda, device, dynamic_shared, int32, int64, pointer, uint8
from .launch import (
    FLOATS,
    HALVES,
    THREADS,
    Launchable,
    aligned,
    blocks,
    contiguous,
    cuda_kernel,
    empty,
    takes,
    vector_width,
)
from .machine import device_machine, machine_of
from .network_tiles import (
    ACTIVATIONS,
    ROWS,
    first_rows_of,
    geometry,
    layer_of,
    multiplication,
    output_rows_of,
    row_loader,
    weight_loader,
    width_of,
)

LAYERS = 6  # at most
WIDEST = 1 << 15  # of a layer


@cuda_kernel(
    FLOATS + HALVES,
    variants=(("given",), ("masks",), ("computed",)),
    vector=lambda dtype, diagonals: dtype in FLOATS,  # four numbers at a time of the others too, 8 bytes
    registers=128,
)
def tiles_of_samples(S, diagonals):
    """J of B samples, `each` of them at a time. v1 … v6: the diagonals D_l, or the biases beside x; bit l of `has` says
    whether there is a v_l, of `wide` whether arrays of width n_l may move W elements at a time. low, high: the widths
    n_l, 16 bits each; kinds: the activations, 8 bits each. In shared memory stand the weights; from `slots` on, a row
    of each D_l for each sample; from `even` and `odd` on, the A_l and h_l in turn; from `inputs` on, x. `size` is all
    of it, in elements."""
    computed, D = diagonals == "computed", uint8 if diagonals == "masks" else S
    T = arithmetic(S)
    W = vector_width(T)
    units, pitch = geometry(T)
    memory, width = dynamic_shared(T), width_of(T)
    load_weight, load_rows, load_x = weight_loader(S), row_loader(S, diagonals == "masks"), row_loader(S)
    layer, first_rows, multiply, output_rows = layer_of(T), first_rows_of(T), multiplication(S), output_rows_of(S)

    @device
    def area(rows, columns):
        return int32(units(rows) * int32(W) * pitch(columns))

    def body(
        w1: pointer(S),
        w2: pointer(S),
        w3: pointer(S),
        w4: pointer(S),
        w5: pointer(S),
        w6: pointer(S),
        v1: pointer(D),
        v2: pointer(D),
        v3: pointer(D),
        v4: pointer(D),
        v5: pointer(D),
        v6: pointer(D),
        x: pointer(S),
        y: pointer(S),
        jacobian: pointer(S),
        B: int64,
        L: int32,
        low: int64,
        high: int64,
        kinds: int64,
        has: int32,
        wide: int32,
        each: int32,
        slots: int32,
        even: int32,
        odd: int32,
        inputs: int32,
        size: int32,
    ):
        shared = memory(size)
        ws, vs = (w1, w2, w3, w4, w5, w6), (v1, v2, v3, v4, v5, v6)
        at = int32(0)
        for l in range(1, L + 1):
            rows, columns = width(low, high, l - 1), width(low, high, l)
            load_weight(ws[l - 1], shared, at, rows, columns, wide >> l & 1)
            at += area(rows, columns)
        V, ends = width(low, high, L), at
        first = int64(cuda.blockIdx.x) * each
        while first < B:
            count, slot = int32(min(int64(each), B - first)), slots
            for l in range(1, L + 1):
                n = width(low, high, l)
                apart, fill = (int32(0), T(0)) if computed else (n, T(1))
                load_rows(vs[l - 1], has >> l & 1, fill, first, apart, count, n, shared, slot, wide >> l & 1)
                slot += each * units(n) * int32(W)
            if computed:
                n = width(low, high, 0)
                load_x(x, 1, T(0), first, n, count, n, shared, inputs, wide & 1)
                cuda.syncthreads()
                at, slot, source, apart = int32(0), slots, inputs, int32(units(n) * int32(W))
                for l in range(1, L + 1):
                    rows, columns = width(low, high, l - 1), width(low, high, l)
                    target, kind = odd if l & 1 else even, int32(kinds >> int64(8 * (l - 1)) & int64(255))
                    layer(shared, source, apart, target, slot, at, rows, columns, count, kind)
                    at += area(rows, columns)
                    slot += each * units(columns) * int32(W)
                    source, apart = target, pitch(columns)
                    cuda.syncthreads()
                output_rows(shared, source, y, first, count, V, wide >> L & 1)
            else:
                cuda.syncthreads()
            n = width(low, high, L - 1)
            at, after = ends - area(n, V), slot - each * units(V) * int32(W)
            slot = after - each * units(n) * int32(W)
            first_rows(shared, at, n, V, after, slot, even if L & 1 else odd, count)
            cuda.syncthreads()
            for step in range(1, L):
                l = L - step  # type: ignore[assignment]
                columns = width(low, high, l - 1)
                at -= area(columns, n)
                slot -= each * units(columns) * int32(W)
                source, target = (odd, even) if l & 1 else (even, odd)
                multiply(shared, source, target, at, slot, n, columns, count * V, V, jacobian, first, l == 1, wide & 1)
                n = columns
                cuda.syncthreads()
            first += int64(cuda.gridDim.x) * each

    return body


RESIDENT = {4: 3, 8: 2}  # itemsize -> blocks that a multiprocessor's registers hold
RESERVED = 1024  # bytes of shared memory that a block takes beside its own
MOST_SAMPLES = 64  # of a tile


class Plan(NamedTuple):
    """samples of a tile, blocks, and where in shared memory (in elements) what stands; see `tiles_of_samples`."""

    samples: int
    grid: int
    slots: int
    even: int
    odd: int
    inputs: int
    size: int


@lru_cache(maxsize=256)
def plan(widths, itemsize, batch, machine, computed):
    """The `Plan` of least time for widths n_0 … n_L, or None where shared memory does not hold a network so large.

    Time is counted in steps of a thread, times the rounds that the blocks beside each other on a multiprocessor take;
    where they are few, less of the waiting is hidden."""
    if not 2 <= len(widths) - 1 <= LAYERS or min(widths) < 1 or max(widths) >= WIDEST:
        return None
    best, least = None, float("inf")
    for samples in range(1, min(batch, MOST_SAMPLES) + 1):
        layout = _layout(widths, itemsize, samples, computed)
        nbytes = layout[-1] * itemsize
        if nbytes > machine.block_bytes:
            break
        tiles, room = blocks(batch, samples), max(1, min(RESIDENT[itemsize], machine.bytes // (nbytes + RESERVED)))
        resident = min(room, blocks(tiles, machine.multiprocessors))
        rounds = blocks(tiles, machine.multiprocessors * resident)
        time = rounds * (2 * resident + 3) * _work(widths, itemsize, samples, computed)
        if time < least:
            best, least = Plan(samples, min(tiles, machine.multiprocessors * resident), *layout), time
    return best


def _layout(widths, itemsize, samples, computed):
    """(slots, even, odd, inputs, size) of shared memory, in elements."""
    W = 16 // itemsize
    units = [blocks(n, W) for n in widths]
    pitch = [(u | 1) * W for u in units]
    rows = blocks(samples * widths[-1], ROWS) * ROWS
    L = len(widths) - 1
    held = [0, 0]
    for l in range(1, L + 1):
        held[l % 2] = max(held[l % 2], pitch[l] * (rows if l < L else samples * computed))
    weights = sum(W * u * p for u, p in zip(units, pitch[1:], strict=False))
    sizes = (weights, samples * W * sum(units[1:]), *held, samples * W * units[0] * computed)
    return tuple(accumulate(sizes))


def _work(widths, itemsize, samples, computed):
    """Steps of a thread in one tile of samples: the tiles of the products that it makes, each as long as its inner axis
    and what it costs to store it; in the network itself a step is a third; and what waiting at barriers costs."""
    W, rows = 16 // itemsize, blocks(samples * widths[-1], ROWS)
    products = (blocks(rows * blocks(n, W), THREADS) * (blocks(k, W) + 3) + 4 for n, k in pairwise(widths[:-1]))
    layers = (blocks(samples * blocks(k, W), THREADS) * blocks(n, W) / 3 + 4 for n, k in pairwise(widths))
    return sum(products) + computed * sum(layers)


class _Sized(Launchable):
    """A kernel launched with some bytes of dynamic shared memory."""

    def __init__(self, plain, nbytes):
        super().__init__(plain.name, plain.body)
        self.plain, self.nbytes = plain, nbytes

    def _function(self):
        device, function = self.plain._function()
        key = device, launchers.LAUNCHER
        if key not in self._loaded:
            launchers.allow_shared(function, device_machine(device).block_bytes)
            self._loaded[key] = partial(function, shared_mem=self.nbytes)
        return device, self._loaded[key]


@lru_cache(maxsize=256)
def _sized(dtype, diagonals, nbytes):
    return _Sized(tiles_of_samples[dtype, diagonals], nbytes)


def network_jacobian(xp, x, weights, biases, activations, out=None):
    """(y, J) of a network of 2 to LAYERS layers: y (B, n_L), J (B, n_L, n_0).

    x (B, n_0), weights (n_{l-1}, n_l), biases (n_l,) or None, activations: names of ACTIVATIONS or None, one of each a
    layer. `out`: a C-contiguous array for J. NotImplemented where `serves` says no."""
    if not serves(xp, x, weights, biases, activations):
        return NotImplemented
    kinds = [ACTIVATIONS.index(name or "identity") for name in activations]
    y = empty(xp, (x.shape[0], weights[-1].shape[1]), x.dtype)
    J = _run(xp, "computed", weights, biases, x.shape[0], out, x, y, kinds)
    return J if J is NotImplemented else (y, J)


def serves(xp, x, weights, biases, activations):
    """Whether `network_jacobian` takes a network: arrays of one dtype, activations that it knows, and shared memory
    enough."""
    known = all(name is None or name in ACTIVATIONS for name in activations)
    served = known and takes(x, *weights, *biases, dtypes=FLOATS + HALVES)
    return served and _places(xp, weights, x.shape[0], True) is not None


def chain_jacobian(xp, weights, diagonals, samples, out=None):
    """J (B, n_L, n_0) = D_L w_Lᵀ … D_1 w_1ᵀ of B samples.

    weights (n_{l-1}, n_l), 2 to LAYERS of them; diagonals: the D_l as (B, n_l) of the weights' dtype or bools, None for
    1. `out`: as in `network_jacobian`. NotImplemented where shared memory does not hold it or dtypes differ."""
    kinds = {d.dtype.kind for d in diagonals if d is not None}
    if kinds == {"b"}:
        masks = [None if d is None else xp.ascontiguousarray(d).view("uint8") for d in diagonals]
        return _run(xp, "masks", weights, masks, samples, out)
    dtype = weights[0].dtype
    diagonals = [d.astype(dtype) if d is not None and d.dtype.kind == "b" else d for d in diagonals]
    return _run(xp, "given", weights, diagonals, samples, out)


def _run(xp, variant, weights, values, batch, out, x=None, y=None, kinds=()):
    """J; values: the diagonals or biases v_1 … v_L."""
    typed = () if variant == "masks" else values
    served = takes(*weights, *typed, x, out, dtypes=FLOATS + HALVES)
    places = _places(xp, weights, batch, x is not None) if served else None
    if places is None:
        return NotImplemented
    dtype, L, widths = weights[0].dtype, len(weights), _widths(weights)
    W = vector_width(working(dtype))
    J = empty(xp, (batch, widths[-1], widths[0]), dtype) if out is None else out
    weights, values, (x,) = contiguous(xp, *weights), contiguous(xp, *values), contiguous(xp, x)
    beside = [(x, J), *zip(weights, values, strict=True)]
    beside[-1] += (y,)
    wide = _bits(n % W == 0 and aligned(*arrays) for n, arrays in zip(widths, beside, strict=True))
    has = _bits([False, *[v is not None for v in values]])
    none = [None] * (LAYERS - L)
    arrays = [*_filled([*weights, *none], weights[0]), *_filled([*values, *none], weights[0])]
    arrays += _filled([x, y, J], weights[0])
    numbers = batch, L, _packed(widths[:4], 16), _packed(widths[4:], 16), _packed(kinds, 8), has, wide
    samples, grid, *rest = places
    nbytes = places.size * working(dtype).itemsize
    _sized(dtype.name, variant, nbytes)(grid if batch else 0, THREADS, *arrays, *numbers, samples, *rest)
    return J


def _widths(weights):
    return (*[w.shape[0] for w in weights], weights[-1].shape[1])


def _places(xp, weights, batch, computed):
    """The `Plan`, or None."""
    return plan(_widths(weights), working(weights[0].dtype).itemsize, max(batch, 1), machine_of(xp), computed)


def _filled(arrays, otherwise):
    """The arrays, with one of them (or `otherwise`) in the places of None, which the kernel does not look at."""
    other = next((a for a in arrays if a is not None), otherwise)
    return [other if a is None else a for a in arrays]


def _packed(numbers, bits):
    return sum(n << bits * i for i, n in enumerate(numbers))


def _bits(flags):
    return _packed(map(int, flags), 1)
