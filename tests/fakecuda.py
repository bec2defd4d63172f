"""A stand-in for `cupy.cuda` over the stand-in's arrays: streams, graphs, memory pools, kernels, cuBLAS.

While a stream is captured, what is asked for on it is written down and not done: results are full of NaN until the
graph is launched, and asking for a value, or bringing an array from the host, raises as CuPy does. A launch does it all
again, in the same memory. Kernels run in the simulator.
"""

import contextlib
import ctypes
import os
import sys
import weakref
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import standin
from standin import MODULE, DeviceArray

from gradlib.kernels.launch import pointer
from gradlib.kernels.simulator import run_grid

_SIZED_BY_VALUES = (np.nonzero, np.flatnonzero, np.argwhere, np.unique)  # the host waits to know how many


class Stream:
    """A stream; `work` is a list while it is captured."""

    def __init__(self, cuda, non_blocking=False):
        self.cuda, self.work, self.non_blocking = cuda, None, non_blocking
        self.ptr = id(self) if non_blocking else 0
        self.waited_for = False
        cuda.all_streams.append(self)

    def __enter__(self):
        self.cuda.streams.append(self)
        return self

    def __exit__(self, *error):
        assert self.cuda.streams.pop() is self

    def is_capturing(self):
        return self.work is not None

    def begin_capture(self):
        assert self.non_blocking, "cannot capture on the default (legacy) stream"
        self.work = []

    def end_capture(self):
        work, self.work = self.work, None
        return Graph(self.cuda, work)

    def wait_event(self, event):
        self.cuda.log.append(("wait", self, event.on))

    def synchronize(self):
        assert not self.is_capturing()
        self.waited_for = True


class Graph:
    def __init__(self, cuda, work):
        self.cuda, self.work = cuda, work

    def launch(self, stream):
        self.cuda.log.append(("launch", stream, len(self.work)))
        for table, on in self.cuda.uploads:
            assert table() is not None and on.waited_for, "a kernel's table is gone, or not there yet"
        for step in self.work:
            step()


class Event:
    def __init__(self, disable_timing=False):
        self.on = None

    def record(self, stream):
        self.on = stream


class Function:
    """A loaded kernel; kept from test to test, so that it looks for the stand-in in use when it is launched."""

    ptr = 0

    def __init__(self, kernel):
        self.kernel = kernel

    def __call__(self, grid, block, args, shared_mem=0):
        MODULE.cuda.kernel(self.kernel, grid, block, args)


class Data:
    """What `array.data` is: an address."""

    def __init__(self, host):
        self.host, self.ptr, self.device_id = host, host.ctypes.data, 0

    def copy_from_device_async(self, other, size):
        standin.change(ctypes.memmove, self.ptr, other.ptr, size)


class Memory:
    """Memory of the device, which goes back to it with this object."""

    def __init__(self, size):
        self.size = size


class Pool:
    def __init__(self, cuda, allocator=None):
        self.cuda, self.allocator, self.freed = cuda, allocator, False
        cuda.pools.append(self)

    def malloc(self, size):
        raise AssertionError("the stand-in's memory is NumPy's")

    def free_all_blocks(self):
        self.freed = True


class Cuda:
    """`cupy.cuda`; `log` is what it was asked for, `allocators` the pools in use, `device` the current device."""

    Memory = Memory

    def __init__(self):
        self.log, self.pools, self.allocators, self.all_streams, self.device = [], [], [], [], 0
        self.uploads = []  # of arrays brought from the host while a stream was captured: weak reference, stream
        self.streams = [Stream(self)]
        self.common = SimpleNamespace(freed=0, free_all_blocks=self._free)
        self.runtime = SimpleNamespace(getDevice=lambda: self.device)
        self.driver = SimpleNamespace(
            CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=8, funcSetAttribute=lambda function, attribute, value: None
        )

    def _free(self):
        assert not self.streams[-1].is_capturing()
        self.common.freed += 1

    def get_current_stream(self):
        return self.streams[-1]

    def Stream(self, non_blocking):
        return Stream(self, non_blocking)

    def Event(self, disable_timing):
        return Event(disable_timing)

    def MemoryPool(self, allocator=None):
        return Pool(self, allocator)

    def MemoryPointer(self, memory, offset):
        return SimpleNamespace(mem=memory, offset=offset)

    @contextlib.contextmanager
    def using_allocator(self, malloc):
        self.allocators.append(malloc)
        yield
        self.allocators.pop()

    @contextlib.contextmanager
    def _inside(self, device):
        before, self.device = self.device, device
        yield
        self.device = before

    def Device(self, number=None):
        inside = self._inside(self.device if number is None else number)
        inside.compute_capability = "90"
        inside.attributes = {
            "MultiProcessorCount": 2,
            "MaxSharedMemoryPerBlockOptin": 227 << 10,
            "MaxSharedMemoryPerMultiprocessor": 228 << 10,
        }
        return inside

    def Module(self):
        module = SimpleNamespace()
        module.load = lambda cubin: None
        module.get_function = Function
        return module

    def kernel(self, kernel, grid, block, args):
        hosts = [a.host if isinstance(a, DeviceArray) else a for a in args]
        for i, (_, kind) in enumerate(kernel.parameters):
            if isinstance(kind, pointer):  # bfloat16 is launched as CuPy's uint16
                hosts[i] = hosts[i].view(kind.dtype)
        self.log.append(("kernel", kernel.name))
        self.change(run_grid, kernel.name, kernel.body, grid, block[0], hosts)

    # the place of standin.run, change, read and upload

    def run(self, f, args, kwargs):
        work = self.streams[-1].work
        if work is None:
            return f(*args, **kwargs)
        if f is np.matmul or getattr(f, "__name__", "") == "__matmul__":
            raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
        if f in _SIZED_BY_VALUES or any(x.dtype == bool for x in _arrays(args[1:]) if f is np.ndarray.__getitem__):
            self.read(None)
        if kwargs.get("out") is not None:
            work.append(lambda: f(*args, **kwargs))
            return kwargs["out"]
        with np.errstate(all="ignore"):
            result = f(*args, **kwargs)
        return self._later(work, result, lambda: f(*args, **kwargs), _arrays((args, kwargs)))

    def _later(self, work, result, again, sources):
        """The result(s), which the graph will fill; views of what there is are views."""
        if not isinstance(result, (np.ndarray, np.generic, tuple, list)):
            return result
        parts = list(result) if isinstance(result, (tuple, list)) else [result]
        made = [p if _is_view(p, sources) else np.array(p) for p in parts]
        new = [(i, p) for i, p in enumerate(made) if not _is_view(p, sources)]
        for _, p in new:
            p.fill(np.nan if p.dtype.kind == "f" else 0)

        def step():
            values = again()
            values = values if isinstance(values, (tuple, list)) else [values]
            for i, p in new:
                p[...] = values[i]

        if new:
            work.append(step)
        return type(result)(made) if isinstance(result, (tuple, list)) else made[0]

    def change(self, f, *args):
        work = self.streams[-1].work
        if work is None:
            f(*args)
        else:
            work.append(lambda: f(*args))

    def read(self, host):
        if self.streams[-1].is_capturing():
            raise RuntimeError("the current stream is capturing, so D2H transfers are disallowed")
        return host

    def upload(self, x, dtype):
        if self.streams[-1].is_capturing() and np.ndim(x):
            raise RuntimeError("the current stream is capturing, so H2D transfers are disallowed")
        return np.array(x, dtype)

    def asarray(self, x, dtype=None, of=MODULE.asarray):
        result = of(x, dtype)
        if isinstance(x, np.ndarray) and any(s.is_capturing() for s in self.streams):
            self.uploads.append((weakref.ref(result), self.streams[-1]))
        return result


def _arrays(x):
    if isinstance(x, dict):
        x = list(x.values())
    if isinstance(x, (tuple, list)):
        return [a for part in x for a in _arrays(part)]
    return [x] if isinstance(x, np.ndarray) else []


def _is_view(x, sources):
    return isinstance(x, np.ndarray) and any(np.may_share_memory(x, a) for a in sources)


class Cublas:
    """The library's few functions that gradlib.cublas calls, column by column as cuBLAS counts."""

    def __init__(self, cuda):
        self.cuda, self.calls, self.results, self.stream, self.workspace = cuda, [], [], None, None

    def cublasCreate_v2(self, handle):
        assert not self.cuda.get_current_stream().is_capturing()
        handle._obj.value = 7
        return 0

    def cublasSetStream_v2(self, handle, stream):
        self.stream, self.workspace = stream.value, None  # as in cuBLAS, the workspace is forgotten
        return 0

    def cublasSetWorkspace_v2(self, handle, address, size):
        self.workspace = (address.value, size.value)
        return 0

    def cublasGemmEx(self, handle, ta, tb, m, n, k, one, a, ka, lda, b, kb, ldb, zero, c, kc, ldc, compute, algorithm):
        return self._gemm(ta, tb, m, n, k, (one, zero), (a, lda, 0), (b, ldb, 0), (c, ldc, 0), 1, (ka, kb, kc), compute)

    def cublasGemmStridedBatchedEx(self, handle, ta, tb, m, n, k, one, a, ka, lda, sa, b, kb, ldb, sb, zero, c, kc, ldc,
                                   sc, count, compute, algorithm):  # fmt: skip
        return self._gemm(ta, tb, m, n, k, (one, zero), (a, lda, sa.value), (b, ldb, sb.value), (c, ldc, sc.value),
                          count, (ka, kb, kc), compute)  # fmt: skip

    def _gemm(self, ta, tb, m, n, k, numbers, a, b, c, count, kinds, compute):
        assert self.workspace is not None and self.stream == self.cuda.get_current_stream().ptr
        assert [x._obj.value for x in numbers] == [1, 0]
        dtype, sums = {0: (np.float32, 68), 1: (np.float64, 70), 2: (np.float16, 68)}[kinds[0]]
        assert set(kinds) == {kinds[0]} and compute == sums
        first = _columns(*a, dtype, count, *((k, m) if ta else (m, k)), ta)
        second = _columns(*b, dtype, count, *((n, k) if tb else (k, n)), tb)
        result = _columns(*c, dtype, count, m, n, 0)
        self.calls.append((ta, tb, m, n, k, count))
        self.results.append(c[0].value)

        def multiply():  # as NumPy's product of the rows, to the bit
            for i in range(count):
                np.matmul(second[i].T, first[i].T, out=result[i].T)

        self.cuda.change(multiply)
        return 0


def _columns(pointer, leading, stride, dtype, count, rows, columns, transposed):
    """Matrices of `rows` x `columns` that lie column by column; their transposes if asked for."""
    assert leading >= rows
    size = dtype(0).itemsize
    total = (count - 1) * stride + (columns - 1) * leading + rows
    flat = np.frombuffer((ctypes.c_char * (total * size)).from_address(pointer.value), dtype)
    x = np.lib.stride_tricks.as_strided(flat, (count, rows, columns), (stride * size, size, leading * size))
    return x.swapaxes(1, 2) if transposed else x


def install(monkeypatch):
    """(the stand-in as CuPy with CUDA, its cuBLAS) until the test ends."""
    from gradlib import cublas

    cuda = Cuda()
    library = Cublas(cuda)
    for name in ("run", "change", "read", "upload"):
        monkeypatch.setattr(standin, name, getattr(cuda, name))
    monkeypatch.setattr(DeviceArray, "data", property(lambda self: Data(self.host)))
    monkeypatch.setattr(MODULE, "cuda", cuda, raising=False)
    monkeypatch.setattr(MODULE, "asarray", cuda.asarray)
    monkeypatch.setattr(MODULE, "get_default_memory_pool", lambda: cuda.common, raising=False)
    monkeypatch.setitem(sys.modules, "cupy", MODULE)
    monkeypatch.setitem(sys.modules, "cupy.cuda", cuda)
    monkeypatch.setattr("gradlib.kernels.cache.cubin_of", lambda kernel, cc: (kernel, b""))
    monkeypatch.setattr(cublas, "_library", lambda: library)
    monkeypatch.setattr(cublas, "_handle", cache(cublas._handle.__wrapped__))
    return cuda, library


def pretend():
    """Let this process's tests run as on a GPU, on the stand-in: `GRADLIB_FAKE_GPU=1 pytest tests/test_kernel_*.py`."""
    from gradlib.kernels import inspection, launch

    inspection.load_catalogue()  # of the simulator's intrinsics
    os.environ["NUMBA_ENABLE_CUDASIM"] = "0"  # what tests ask
    launch.SIMULATED, launch.POISON = False, True
    install(pytest.MonkeyPatch())
