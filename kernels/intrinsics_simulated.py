"""The simulator's twins of `intrinsics_hardware`: same names, plain Python on NumPy scalars."""

import ctypes
from types import SimpleNamespace

import numpy as np
from numpy import float32, float64, int32, int64, uint8, uint32, uint64  # noqa: F401
from scipy.special import erf

from .launch import dtype_of
from .simulator import Cuda, Memory

cuda = Cuda()
math = SimpleNamespace(
    exp=np.exp, log=np.log, log1p=np.log1p, expm1=np.expm1, tanh=np.tanh, sin=np.sin, cos=np.cos, erf=erf, fabs=np.abs
)
square_root = np.sqrt


def device(function):
    """A device function is a function."""
    return function


def divide(a, b):
    """a / b, by NumPy's rules where b is 0."""
    return np.divide(a, b)


def multiply_add(a, b, c):
    """a b + c, computed with more digits."""
    wide = float64 if a.dtype == float32 else np.longdouble
    return a.dtype.type(wide(a) * wide(b) + wide(c))


def power_of_two(x):
    """2^x of float32, 0 below 2^-126."""
    y = np.exp2(x)
    return float32(0) if y < np.finfo(float32).tiny else y


def quotient(a, b):
    """a // b of int32, 0 <= a, 0 < b."""
    return int32(a) // int32(b)


def element_access(S):
    """-> (get, put): one element of memory, as a number of its arithmetic type."""
    narrow = getattr(S, "name", None) in ("float16", "bfloat16")

    def get(memory, i):
        return float32(memory[i]) if narrow else memory[i]

    def put(memory, i, value):
        memory[i] = value

    return get, put


def vector_access(S, width):
    """-> (load, store): move `width` elements between memory[i:] and local[at:]; NumPy converts halves."""

    def load(memory, i, local, at):
        local.array[at : at + width] = memory.vector(i, width)

    def store(memory, i, local, at):
        memory.vector(i, width)[:] = local.array[at : at + width]

    return load, store


def as_pointer(S):
    """-> function from an address and the size of what lies there to indexable memory."""
    element = dtype_of(S)

    def at(address, size):
        raw = (ctypes.c_char * (int(size) * element.itemsize)).from_address(int(address))
        return Memory(np.frombuffer(raw, element), f"memory at {int(address):#x}")

    return at


def dynamic_shared(T):
    """-> function of a number of elements to the block's shared memory of that size."""

    def memory(size):
        return cuda.shared.array(int(size), T)

    return memory
