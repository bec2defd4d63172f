"""Numba's names for what kernels use, and the few instructions Numba lacks, as LLVM or inline PTX."""

import math  # noqa: F401  (on hardware Numba maps it to libdevice, by dtype)
from functools import cache

import numpy as np


def _load_numba_cuda():
    """numba-cuda 0.30 refers to np.row_stack, which NumPy 2.5 dropped: lend it the name while it loads."""
    lend = not hasattr(np, "row_stack")
    if lend:
        np.row_stack = np.vstack
    try:
        import numba.cuda.np.arrayobj  # noqa: F401
        from numba import cuda
    finally:
        if lend:
            del np.row_stack
    return cuda


cuda = _load_numba_cuda()

from llvmlite import ir  # noqa: E402
from numba.cuda import types  # noqa: E402
from numba.cuda.extending import intrinsic  # noqa: E402

from .intrinsics_half import PACKED, half_access, half_vectors  # noqa: E402

float32, float64 = types.float32, types.float64
int32, int64, uint32, uint64 = types.int32, types.int64, types.uint32, types.uint64
uint8 = types.uint8

_DECLARED: dict[tuple, object] = {}


def device(function):
    """Declare a device function; it is always inlined.

    Kernels of one kind make the same device functions again and again: one made of the same code and the same
    surrounding values (which must be hashable) is the one made before, so Numba types and lowers it once for all.
    """
    around = [_distinct(cell.cell_contents) for cell in function.__closure__ or ()]
    key = (function.__module__, function.__code__, *around)
    if key not in _DECLARED:
        _DECLARED[key] = cuda.jit(device=True, forceinline=True)(function)
    return _DECLARED[key]


def _distinct(value):
    """Tell apart what Python calls equal: 1, 1.0 and True; 0.0 and -0.0."""
    return (type(value), repr(value)) if isinstance(value, int | float) else value


def _assembly(builder, template, constraints, values):
    """Call inline PTX of one result and operands of the result's type."""
    kind = ir.FunctionType(values[0].type, [v.type for v in values])
    return builder.call(ir.InlineAsm(kind, template, constraints, side_effect=False), values)


@intrinsic
def divide(typing_context, a, b):
    """a / b. For float32 within 2 ulp and without the slow path of IEEE division: a call in the middle of a kernel."""

    def emit(context, builder, signature, values):
        if signature.return_type == float32:
            return _assembly(builder, "div.full.f32 $0, $1, $2;", "=f,f,f", values)
        return builder.fdiv(*values)

    return a(a, a), emit


@intrinsic
def square_root(typing_context, x):
    """The square root; for float32 within 1 ulp, again without a call."""

    def emit(context, builder, signature, values):
        single = signature.return_type == float32
        template, constraints = ("sqrt.approx.f32", "=f,f") if single else ("sqrt.rn.f64", "=d,d")
        return _assembly(builder, template + " $0, $1;", constraints, values)

    return x(x), emit


@intrinsic
def power_of_two(typing_context, x):
    """2^x of float32 within 2 ulp, 0 below 2^-126: one instruction."""

    def emit(context, builder, signature, values):
        return _assembly(builder, "ex2.approx.ftz.f32 $0, $1;", "=f,f", values)

    return float32(float32), emit


@intrinsic
def multiply_add(typing_context, a, b, c):
    """a b + c, rounded once."""

    def emit(context, builder, signature, values):
        return builder.fma(*values)

    return a(a, a, a), emit


@intrinsic
def quotient(typing_context, a, b):
    """a // b of int32, 0 <= a, 0 < b. Numba would divide 64-bit numbers, which is a call."""

    def emit(context, builder, signature, values):
        return builder.udiv(*values)

    return types.int32(types.int32, types.int32), emit


@cache
def element_access(S):
    """-> (get, put): one element of a pointer, as a number of its arithmetic type."""
    if S.name in PACKED:
        return half_access(S.name)
    return device(lambda memory, i: memory[i]), device(_put)


def _put(memory, i, value):
    memory[i] = value


@cache
def vector_access(T, width):
    """-> (load, store): move `width` elements of a pointer, from index i, to and from local[at:].

    width * itemsize is 16: one LDG.E.128 or STG.E.128, so the address must be a multiple of 16.
    """
    if T.name in PACKED:
        return half_vectors(T.name, width)
    nbytes = width * T.bitwidth // 8

    def vector_at(context, builder, memory, i):
        kind = ir.VectorType(context.get_data_type(T), width)
        return builder.bitcast(builder.gep(memory, [i]), kind.as_pointer(memory.type.addrspace)), kind

    def slots(context, builder, kind, value, at):
        data = builder.gep(context.make_array(kind)(context, builder, value=value).data, [at])
        return [builder.gep(data, [_constant(k)]) for k in range(width)]

    @intrinsic
    def load(typing_context, memory, i, local, at):
        def emit(context, builder, signature, values):
            address, _ = vector_at(context, builder, *values[:2])
            vector = builder.load(address, align=nbytes)
            for k, slot in enumerate(slots(context, builder, signature.args[2], *values[2:])):
                builder.store(builder.extract_element(vector, _constant(k)), slot)
            return context.get_dummy_value()

        return types.void(memory, types.int64, local, types.int64), emit

    @intrinsic
    def store(typing_context, memory, i, local, at):
        def emit(context, builder, signature, values):
            address, kind = vector_at(context, builder, *values[:2])
            vector = ir.Constant(kind, ir.Undefined)
            for k, slot in enumerate(slots(context, builder, signature.args[2], *values[2:])):
                vector = builder.insert_element(vector, builder.load(slot), _constant(k))
            builder.store(vector, address, align=nbytes)
            return context.get_dummy_value()

        return types.void(memory, types.int64, local, types.int64), emit

    return load, store


def _constant(k):
    return ir.Constant(ir.IntType(32), k)


@cache
def as_pointer(S):
    """-> function from an address (uint64) and the size of what lies there (used by the simulator) to a pointer.

    The pointer passes through the address space of global memory, so that accesses are LDG and STG, not generic."""
    element = types.uint16 if S.name in PACKED else S

    @intrinsic
    def at(typing_context, address, size):
        def emit(context, builder, signature, values):
            kind = context.get_data_type(element)
            in_global = builder.inttoptr(values[0], ir.PointerType(kind, 1))
            return builder.addrspacecast(in_global, ir.PointerType(kind))

        return types.CPointer(element)(types.uint64, types.int64), emit

    return at


@cache
def dynamic_shared(T):
    """-> function of a number of elements (used by the simulator) to a pointer to the block's dynamic shared memory.

    The launch says how much there is. It starts on a boundary of 16 bytes; a kernel asks for it once."""

    @intrinsic
    def memory(typing_context, size):
        def emit(context, builder, signature, values):
            kind = context.get_data_type(T)
            array = ir.GlobalVariable(builder.module, ir.ArrayType(kind, 0), "dynamic_shared_memory", addrspace=3)
            array.linkage, array.align = "external", 16
            start = builder.bitcast(array, ir.PointerType(kind, 3))
            return builder.addrspacecast(start, ir.PointerType(kind))

        return types.CPointer(T)(types.int64), emit

    return memory
