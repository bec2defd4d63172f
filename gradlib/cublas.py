"""cuBLAS on a stream that is being captured, where CUDA allows it and CuPy does not.

While a graph is made, `cupy.matmul` and `@` of the thread that makes it go to cuBLAS by a handle of ours, with the
graph's own workspace, so that no replay meets another product there. Operands are passed as CuPy passes them (which of
them transposed, which leading dimension, its default arithmetic), so that cuBLAS chooses the kernels it chooses there:

    C = A B in rows is Cᵀ = Bᵀ Aᵀ in cuBLAS's columns: the operands change places, and neither is moved in memory.

Products of integers, of nothing and of two vectors need no cuBLAS in CuPy either, and stay there.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator
from functools import cache
from math import prod
from typing import Any

import numpy as np

# dtype -> cudaDataType and cublasComputeType_t, whose sums are float32 for all but float64
_TYPES = {"float32": (0, 68), "float64": (1, 70), "float16": (2, 68), "bfloat16": (14, 68)}
_PLAIN, _TRANSPOSED = 0, 1  # cublasOperation_t
_DEFAULT = -1  # cublasGemmAlgo_t
_MAX = 2**31 - 1


@contextlib.contextmanager
def products_of_ours(cupy: Any, stream: Any, kept: list[Any]) -> Iterator[None]:
    """Inside, matmul on `stream` goes to cuBLAS by our own handle. `kept` gets the workspace, which the graph needs."""
    product, me = Product(cupy, stream, kept), threading.get_ident()
    theirs = cupy.matmul
    over: list[bool] = []
    with contextlib.suppress(Exception):  # made before the capture begins; where a product needs it the error returns
        _handle(cupy.cuda.runtime.getDevice())

    def matmul(a: Any, b: Any, out: Any = None, **others: Any) -> Any:
        if threading.get_ident() == me and not others and not over:  # somebody may have kept this function
            result = product(a, b, out)
            if result is not NotImplemented:
                return result
        return theirs(a, b, out=out, **others)

    def operator(a: Any, b: Any) -> Any:
        return matmul(a, b) if isinstance(b, cupy.ndarray) else NotImplemented

    with _set(cupy, "matmul", matmul), _set(cupy.ndarray, "__matmul__", operator):
        try:
            yield
        finally:
            over.append(True)


@contextlib.contextmanager
def _set(owner: Any, name: str, value: Any) -> Iterator[None]:
    """`owner.name` is `value` meanwhile; afterwards what it was, also where it was inherited."""
    own, before = name in vars(owner), getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


class Product:
    """a @ b by cuBLAS on one stream: of all floating dtypes, on broadcast leading axes."""

    def __init__(self, cupy: Any, stream: Any, kept: list[Any]) -> None:
        self.cupy, self.stream, self.kept = cupy, stream, kept
        self.library: Any = None
        self.handle: Any = None

    def __call__(self, a: Any, b: Any, out: Any) -> Any:
        """NotImplemented for what needs no cuBLAS."""
        dtype = np.promote_types(a.dtype, b.dtype)
        if dtype.name not in _TYPES or min(a.ndim, b.ndim) < 2 or not a.size or not b.size:
            return NotImplemented
        lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        shape = (*lead, a.shape[-2], b.shape[-1])
        if a.shape[-1] != b.shape[-2] or shape == (1, 1):
            return NotImplemented
        fits = out is not None and out.flags.c_contiguous and out.dtype == dtype and out.shape == shape
        fits = fits and not any(self.cupy.may_share_memory(out, x) for x in (a, b))
        c = out if fits else self.cupy.empty(shape, dtype)
        a, b = a.astype(dtype, copy=False), b.astype(dtype, copy=False)
        first, second = (self._batch(a, lead), self._batch(b, lead)) if lead else (_first(a), _second(b))
        self._gemm(first, second, Operand(c, _PLAIN, shape[-1], shape[-2] * shape[-1]), lead, a.shape[-1])
        if out is None or fits:
            return c
        out[...] = c
        return out

    def _batch(self, x: Any, lead: tuple[int, ...]) -> Operand:
        """Matrices one behind the other; one for all where x has but one."""
        rows, columns = x.shape[-2:]
        alone = prod(x.shape[:-2]) == 1
        if not alone and x.shape[:-2] != lead:
            x = self.cupy.broadcast_to(x, (*lead, rows, columns))
        return Operand(self.cupy.ascontiguousarray(x), _PLAIN, columns, 0 if alone else rows * columns)

    def _gemm(self, a: Operand, b: Operand, c: Operand, lead: tuple[int, ...], k: int) -> None:
        m, n = c.array.shape[-2:]
        if max(m, n, k, a.leading, b.leading, prod(lead)) > _MAX:
            raise NotImplementedError(f"a product of more than {_MAX} rows, columns or matrices")
        if self.library is None:
            self.library, self.handle = _ready(self.cupy, self.stream, self.kept)
        kind, compute = _TYPES[c.array.dtype.name]
        number = ctypes.c_double if kind == 1 else ctypes.c_float
        one, zero = ctypes.byref(number(1)), ctypes.byref(number(0))
        call = self.library.cublasGemmStridedBatchedEx if lead else self.library.cublasGemmEx
        first, second, result = (x.arguments(kind, bool(lead)) for x in (b, a, c))
        count = [prod(lead)] if lead else []
        _check(
            call(
                self.handle, b.operation, a.operation, n, m, k, one, *first, *second, zero, *result, *count, compute,
                _DEFAULT,
            )
        )  # fmt: skip


class Operand:
    """How cuBLAS finds matrices: where, transposed or not, the way from a row to the next and from one to the next."""

    def __init__(self, x: Any, operation: int, leading: int, stride: int = 0) -> None:
        self.array, self.operation, self.leading, self.stride = x, operation, leading, stride

    def arguments(self, kind: int, batched: bool) -> list[Any]:
        """Its part of the arguments."""
        plain = [ctypes.c_void_p(self.array.data.ptr), kind, self.leading]
        return [*plain, ctypes.c_longlong(self.stride)] if batched else plain


def _first(x: Any) -> Operand:
    """The matrix A of A B: by its rows where they are contiguous, even if its columns are as well."""
    if x.flags.c_contiguous:
        return Operand(x, _PLAIN, max(x.strides[0] // x.itemsize, x.shape[1]))
    x = x if x.flags.f_contiguous else x.T.copy().T
    return Operand(x, _TRANSPOSED, max(x.strides[1] // x.itemsize, x.shape[0]))


def _second(x: Any) -> Operand:
    """The matrix B of A B: by its columns where they are contiguous, even if its rows are as well."""
    if x.flags.f_contiguous:
        return Operand(x, _TRANSPOSED, max(x.strides[1] // x.itemsize, x.shape[0]))
    x = x if x.flags.c_contiguous else x.copy()
    return Operand(x, _PLAIN, max(x.strides[0] // x.itemsize, x.shape[1]))


def _ready(cupy: Any, stream: Any, kept: list[Any]) -> tuple[Any, ctypes.c_void_p]:
    """cuBLAS and our handle on the current device, on `stream`, with a workspace from the current pool."""
    library, handle = _library(), _handle(cupy.cuda.runtime.getDevice())
    newer = int(cupy.cuda.Device().compute_capability) >= 90
    workspace = cupy.empty(32 << 20 if newer else 4 << 20, np.uint8)  # as large as a handle's own
    kept.append(workspace)
    _check(library.cublasSetStream_v2(handle, ctypes.c_void_p(stream.ptr)))
    _check(library.cublasSetWorkspace_v2(handle, ctypes.c_void_p(workspace.data.ptr), ctypes.c_size_t(workspace.size)))
    return library, handle


@cache
def _library() -> Any:
    """The cuBLAS that CuPy has loaded."""
    from cuda.pathfinder import load_nvidia_dynamic_lib  # CuPy needs it too

    return ctypes.CDLL(load_nvidia_dynamic_lib("cublas").abs_path)


@cache
def _handle(device: int) -> ctypes.c_void_p:
    """A handle on the current device, for the life of the process: captured kernels may use what belongs to it."""
    handle = ctypes.c_void_p()
    _check(_library().cublasCreate_v2(ctypes.byref(handle)))
    return handle


def _check(status: int) -> None:
    if status:
        raise RuntimeError(f"cuBLAS answers with status {status}")
