"""Elementwise ops: y = f(x), dx = dy * f'(x), dy = dx * f'(x): one kernel forward, one for both derivatives.

Access: a thread moves 16 bytes, neighbouring threads neighbouring addresses, so memory's speed is the kernel's speed: 2
elements move per element forward. Backward keeps f'(x) in registers and walks the stack: 2V + 1 elements move for V
cotangents, not 3V. Where f' is cheaper from y (exp, tanh, sigmoid, relu) it is taken from y, and the compiler drops the
loads of x. float16 and bfloat16 (S) are widened to float32 (T) as they are loaded and rounded once as they are stored.
"""

from gradlib.kept import Form

from .formulas import FORMULAS, except_for, formula, without
from .intrinsics import arithmetic, cuda, int32, int64, pointer, tile_access
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

ACTIVATIONS = ("relu", "sigmoid", "tanh", "silu", "softplus", "gelu", "gelu_tanh", "elu", "leaky_relu")
VARIANTS = [(name,) for name in FORMULAS if name != "identity"]
FILL = 4096  # blocks that keep any GPU busy
DTYPES = FLOATS + HALVES


@cuda_kernel(DTYPES, VARIANTS, without=without, vector=lambda *key: True, except_for=except_for)
def pointwise(S, name):
    """y = f(x), n elements."""
    T, W = arithmetic(S), vector_width(S)
    f, _ = formula(T, name)
    load, store = tile_access(S, W)

    def body(x: pointer(S), y: pointer(S), n: int64, wide: int32, a: T):
        start = (int64(cuda.blockIdx.x) * int64(cuda.blockDim.x) + int64(cuda.threadIdx.x)) * W
        tile = cuda.local.array(W, T)
        if start < n:
            load(x, start, n, tile, 0, wide)
            for k in range(W):
                tile[k] = f(tile[k], a)
            store(y, start, n, tile, 0, wide)

    return body


@cuda_kernel(DTYPES, VARIANTS, without=without, vector=lambda *key: True, except_for=except_for)
def pointwise_scale(S, name):
    """out[v] = d[v] * f'(x) for v < V; x and y have n elements, d and out V * n."""
    T, W = arithmetic(S), vector_width(S)
    _, df = formula(T, name)
    load, store = tile_access(S, W)

    def body(x: pointer(S), y: pointer(S), d: pointer(S), out: pointer(S), n: int64, V: int64, wide: int32, a: T):
        start = (int64(cuda.blockIdx.x) * int64(cuda.blockDim.x) + int64(cuda.threadIdx.x)) * W
        xs, ys = cuda.local.array(W, T), cuda.local.array(W, T)
        slope, tile = cuda.local.array(W, T), cuda.local.array(W, T)
        if start < n:
            load(x, start, n, xs, 0, wide)
            load(y, start, n, ys, 0, wide)
            for k in range(W):
                slope[k] = df(xs[k], ys[k], a)
            v = int64(cuda.blockIdx.y)
            while v < V:
                load(d, v * n + start, v * n + n, tile, 0, wide)
                for k in range(W):
                    tile[k] = tile[k] * slope[k]
                store(out, v * n + start, v * n + n, tile, 0, wide)
                v += int64(cuda.gridDim.y)

    return body


def unary(name, parameter=None):
    """The Kernel of op `name`; `parameter` is the static keyword that is the formula's a, if it has one."""

    def forward(xp, x, **static):
        if not takes(x, dtypes=DTYPES) or without(str(x.dtype), name):
            return NotImplemented
        y = run_forward(xp, name, x, static.get(parameter, 0.0))
        return y, (x, y)

    def vjp(xp, saved, dy, need, **static):
        if not need[0]:
            return (None,)
        dx = run_scale(xp, name, *both(saved), dy, static.get(parameter, 0.0))
        return NotImplemented if dx is NotImplemented else (dx,)

    def jvp(xp, saved, dx, **static):
        return NotImplemented if dx[0] is None else run_scale(xp, name, *both(saved), dx[0], static.get(parameter, 0.0))

    return Kernel(forward, vjp, jvp)


def both(saved):
    """(x, y): where the op kept one of them, since f' is made of that alone, it stands for the other too."""
    x, y = saved
    return (y if type(x) is Form else x), (x if type(y) is Form else y)


def run_forward(xp, name, x, a=0.0):
    """f(x) by the kernel."""
    (x,) = contiguous(xp, x)
    y = empty(xp, x.shape, x.dtype)
    each = THREADS * vector_width(x.dtype)
    pointwise[x.dtype, name](blocks(x.size, each), THREADS, x, y, x.size, aligned(x, y), a)
    return y


def run_scale(xp, name, x, y, d, a=0.0):
    """d * f'(x) by the kernel; x, y (...), d (V, ...)."""
    if type(x) is Form or not takes(x, y, d, dtypes=DTYPES) or without(str(x.dtype), name):
        return NotImplemented  # without x and y f' is a number, which the rule serves
    x, y, d = contiguous(xp, x, y, d)
    out, V = empty(xp, d.shape, d.dtype), d.shape[0]
    W = vector_width(x.dtype)
    wide = aligned(x, y, d, out) and (V == 1 or x.size % W == 0)
    across = blocks(x.size, THREADS * W)
    grid = (across, min(V, max(1, FILL // max(across, 1))))
    pointwise_scale[x.dtype, name](grid, THREADS, x, y, d, out, x.size, V, wide, a)
    return out


def _either_gelu():
    """gelu has two formulas; the static `approximate` chooses."""
    kernels = {False: unary("gelu"), True: unary("gelu_tanh")}

    def forward(xp, x, *, approximate):
        return kernels[bool(approximate)].forward(xp, x)

    def vjp(xp, saved, dy, need, *, approximate):
        return kernels[bool(approximate)].vjp(xp, saved, dy, need)

    def jvp(xp, saved, dx, *, approximate):
        return kernels[bool(approximate)].jvp(xp, saved, dx)

    return Kernel(forward, vjp, jvp)


exp, log, log1p, expm1 = unary("exp"), unary("log"), unary("log1p"), unary("expm1")
tanh, sqrt, square, reciprocal = unary("tanh"), unary("sqrt"), unary("square"), unary("reciprocal")
sin, cos, negative, absolute = unary("sin"), unary("cos"), unary("negative"), unary("absolute")
relu, silu, sigmoid, softplus, erf = unary("relu"), unary("silu"), unary("sigmoid"), unary("softplus"), unary("erf")
elu, leaky_relu, gelu = unary("elu", "alpha"), unary("leaky_relu", "negative_slope"), _either_gelu()
