"""Kernels that each break one rule of the gate, for `test_gate.py`, which compiles them in a process of its own."""

from llvmlite import ir
from numba.cuda import types
from numba.cuda.extending import intrinsic

from gradlib.kernels.intrinsics import cuda, dynamic_shared, int32, int64, pointer, tile_access
from gradlib.kernels.launch import cuda_kernel

FLOAT32 = ("float32",)


@cuda_kernel(dtypes=FLOAT32, registers=64)
def registers(T):
    """96 numbers at once."""

    def body(x: pointer(T), y: pointer(T), n: int64):
        held = cuda.local.array(96, T)
        for k in range(96):
            held[k] = x[n * k + cuda.threadIdx.x]
        cuda.syncthreads()
        for k in range(96):
            y[n * k + cuda.threadIdx.x] = held[95 - k] * held[k]

    return body


@cuda_kernel(dtypes=FLOAT32)
def local_memory(T):
    """An index into an array in registers that only the GPU knows."""

    def body(x: pointer(T), y: pointer(T), n: int32):
        held = cuda.local.array(16, T)
        for k in range(16):
            held[k] = x[k]
        for k in range(n):
            held[(k * n) & 15] += x[k]
        y[cuda.threadIdx.x] = held[n & 15]

    return body


@cuda_kernel(dtypes=FLOAT32)
def float64(T):
    """A number of Python's is float64, and so is its product."""

    def body(x: pointer(T), y: pointer(T)):
        y[cuda.threadIdx.x] = x[cuda.threadIdx.x] * 0.1

    return body


@cuda_kernel(dtypes=FLOAT32)
def call(T):
    """IEEE division has a slow path."""

    def body(x: pointer(T), y: pointer(T)):
        y[cuda.threadIdx.x] = T(x[cuda.threadIdx.x] / y[cuda.threadIdx.x])

    return body


@cuda_kernel(dtypes=FLOAT32)
def generic_access(T):
    """Memory that is shared or global, as it turns out."""
    shared = dynamic_shared(T)

    def body(x: pointer(T), y: pointer(T), n: int64):
        memory = x if n > 0 else shared(n)
        y[cuda.threadIdx.x] = memory[cuda.threadIdx.x]

    return body


@cuda_kernel(dtypes=FLOAT32, vector=lambda *key: True)
def vector_access(T):
    """One number a load, though more are promised."""

    def body(x: pointer(T), y: pointer(T)):
        y[cuda.threadIdx.x] = x[cuda.threadIdx.x]

    return body


@cuda_kernel(dtypes=FLOAT32, vector=lambda *key: True)
def narrow_stores(T):
    """Four numbers a load, one a store."""
    load, _ = tile_access(T, 4)

    def body(x: pointer(T), y: pointer(T), n: int64):
        tile = cuda.local.array(4, T)
        load(x, cuda.threadIdx.x * 4, n, tile, 0, int32(1))
        for k in range(4):
            y[k * n + cuda.threadIdx.x] = tile[k]

    return body


@intrinsic
def added(typing_context, memory, value):
    """memory[0] += value, of all threads in any order."""

    def emit(context, builder, signature, values):
        kind = ir.FunctionType(ir.VoidType(), [v.type for v in values])
        builder.call(ir.InlineAsm(kind, "red.global.add.f32 [$0], $1;", "l,f", side_effect=True), values)
        return context.get_dummy_value()

    return types.void(memory, value), emit


@cuda_kernel(dtypes=FLOAT32)
def atomics(T):
    """A sum whose last bits differ from run to run."""

    def body(x: pointer(T), y: pointer(T)):
        added(y, x[cuda.threadIdx.x])

    return body
