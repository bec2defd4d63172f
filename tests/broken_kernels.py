"""Kernels that each break one rule of the gate, for `test_gate.py`, which compiles them in a process of its own."""

from gradlib.kernels.intrinsics import cuda, dynamic_shared, int32, int64, pointer
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
