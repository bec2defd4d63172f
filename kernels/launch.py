"""Declare, catalogue and launch CUDA kernels; choose between the GPU and the simulator.

A kernel is a Python function over flat pointers and integers, made by a factory for one dtype (and, if it likes, for
one variant: an activation, a vector width). Its parameter annotations are its signature:

    @cuda_kernel(variants=[(1,), (4,)])
    def scale(T, W):
        def body(x: pointer(T), y: pointer(T), n: int64):
            i = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
            if i < n:
                y[i] = T(2) * x[i]
        return body

    scale["float32", 1](blocks(n, 256), 256, x, y, n)

On the GPU the function is compiled by Numba to a cubin for the current device, kept on disk, and launched on CuPy's
current stream (see `launchers`). Inside `simulate()` the same function runs on NumPy arrays, thread by thread.
Importing this module needs no GPU.
"""

import contextlib
import math
import os
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass

import numpy as np

from ..device import SIMULATING
from ..precision import is_floating
from . import launchers

GRID_Z = 65535  # the most blocks along y and z
MOST = 2**30  # of what a kernel numbers in 32 bits, with room for a step beyond the end
THREADS = 256  # threads of a block, unless a kernel says otherwise
FLOATS = ("float32", "float64")
HALVES = ("float16", "bfloat16")  # stored; the arithmetic is float32's
CATALOGUE: dict[str, "CudaKernel"] = {}
SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")
UPLOAD: ContextVar = ContextVar("gradlib_upload", default=None)  # set while a CUDA graph is made
POISON = os.environ.get("GRADLIB_POISON", "0") not in ("", "0")  # on a GPU too


@dataclass(frozen=True)
class Kernel:
    """The fused forms of one op: host functions with the signatures of the op's rules; None where the rule serves."""

    forward: Callable | None = None
    vjp: Callable | None = None
    jvp: Callable | None = None


@contextlib.contextmanager
def simulate():
    """Let NumPy arrays take the CUDA kernels, run by the simulator, inside the `with` block.

    Raises RuntimeError unless the process was started with NUMBA_ENABLE_CUDASIM=1.

    >>> with simulate():            # doctest: +SKIP
    ...     gl.softmax(np.ones((2, 3), np.float32))
    """
    if not SIMULATED:
        raise RuntimeError(
            "simulate: set NUMBA_ENABLE_CUDASIM=1 in the environment before gradlib.kernels is first imported"
        )
    token = SIMULATING.set(True)
    try:
        yield
    finally:
        SIMULATING.reset(token)


def simulating() -> bool:
    """True inside `simulate()`."""
    return SIMULATING.get()


@dataclass(frozen=True)
class pointer:
    """Parameter type: the first element of contiguous memory of a dtype (a NumPy scalar type, a Numba type, or
    `intrinsics.float16` and `bfloat16`)."""

    element: object

    @property
    def dtype(self) -> np.dtype:
        return dtype_of(self.element)


class CudaKernel:
    """A catalogued kernel: a factory and what it is made for. `kernel[dtype, *variant]` is launchable."""

    def __init__(self, factory, dtypes, variants, expect, without=lambda *key: False):
        self.name = f"{factory.__module__.rsplit('.', 1)[-1]}.{factory.__name__}"
        self.factory, self.dtypes, self.variants, self.expect = factory, tuple(dtypes), tuple(variants), expect
        self.without = without
        self._made = {}

    def __getitem__(self, key) -> "Launchable":
        key = key if isinstance(key, tuple) else (key,)
        found = self._made.get(key)
        if found is None:
            found = self._made[key] = self._make(dtype_of(key[0]).name, key[1:])
        return found

    def _make(self, dtype, variant):
        if dtype not in self.dtypes or variant not in self.variants or self.without(dtype, *variant):
            raise KeyError(f"{self.name}: made for {self.dtypes} and {self.variants}, not for {dtype} {variant}")
        from . import intrinsics

        return Launchable(self.name_of((dtype, *variant)), self.factory(getattr(intrinsics, dtype), *variant))

    def name_of(self, key) -> str:
        """The name of one instance, e.g. "softmax_rows.held_rows-float32-softmax-32-4"."""
        return "-".join([self.name, *map(str, key)])

    def instances(self):
        """Every (dtype, *variant) the kernel is made for."""
        return [(d, *v) for d in self.dtypes for v in self.variants if not self.without(d, *v)]


def cuda_kernel(dtypes=FLOATS, variants=((),), without=lambda *key: False, **expect):
    """Decorator: put a kernel factory into the catalogue.

    dtypes, variants: what it is made for; a variant is the tuple of the factory's arguments after the dtype.
    without: function of (dtype, *variant), True for a combination left out.
    expect: what `inspection.gate` holds it to. registers: a ceiling (64, for float64 128); vector: function of (dtype,
    *variant), True where 16-byte loads and stores are promised, "loads" or "stores" where these alone; except_for:
    function of the same, the names of the rules it may break.
    """

    def declare(factory):
        kernel = CudaKernel(factory, dtypes, variants, expect, without)
        if kernel.name in CATALOGUE:
            raise ValueError(f"two kernels are called {kernel.name}")
        CATALOGUE[kernel.name] = kernel
        return kernel

    return declare


class Launchable:
    """One kernel for one dtype and variant: call it with (grid, block, *arguments)."""

    def __init__(self, name, body):
        self.name, self.body = name, body
        self.parameters = tuple(body.__annotations__.items())
        # (name, dtype of the array or None, type of the number or None)
        self._checks = [
            (name, kind.dtype, None) if isinstance(kind, pointer) else (name, None, dtype_of(kind).type)
            for name, kind in self.parameters
        ]
        self._arrays = [i for i, (_, dtype, _) in enumerate(self._checks) if dtype is not None]
        self._loaded = {}

    def __call__(self, grid, block, *args):
        """Launch. grid: blocks, an int or a tuple; block: threads, an int. Arrays must be C-contiguous and of the
        declared dtype, integers are converted. Asynchronous on the GPU; an empty grid is no launch."""
        grid = tuple(map(int, grid)) if isinstance(grid, tuple) else (int(grid),)
        args = self._marshal(args)
        if 0 in grid:
            return
        if simulating():
            from .simulator import run_grid

            run_grid(self.name, self.body, grid, int(block), args)
        else:
            device, function = self._function()
            for i in self._arrays:
                other = args[i].data.device_id
                if other != device:
                    raise ValueError(
                        f"{self.name}: {self.parameters[i][0]} lies on device {other}, the current one is {device}; "
                        f"move it, or work inside `with cupy.cuda.Device({other}):`"
                    )
            function(grid, (int(block),), args)

    def _marshal(self, args):
        if len(args) != len(self.parameters):
            raise TypeError(f"{self.name}: {len(self.parameters)} arguments expected, got {len(args)}")
        return tuple(self._argument(*check, a) for check, a in zip(self._checks, args, strict=True))

    def _argument(self, name, dtype, number, a):
        if number is not None:
            return number(a)
        if a.dtype != dtype or not a.flags.c_contiguous:
            raise TypeError(f"{self.name}: {name} must be contiguous {dtype}, got {a.dtype} with strides {a.strides}")
        return a if dtype.kind != "V" or isinstance(a, np.ndarray) else a.view(np.uint16)  # bfloat16 on a GPU

    def _function(self):
        """(number of the current device, the function loaded there), compiled on first use."""
        import cupy

        device = cupy.cuda.runtime.getDevice()
        function = self._loaded.get((device, launchers.LAUNCHER))
        if function is None:
            from .cache import cubin_of

            load = launchers.loader()

            digits = cupy.cuda.Device(device).compute_capability  # "90", "100"
            entry, cubin = cubin_of(self, (int(digits[:-1]), int(digits[-1])))
            try:
                function = self._loaded[device, launchers.LAUNCHER] = load(cupy, entry, cubin)
            except Exception as error:
                raise RuntimeError(_refused(cupy, self.name, digits, error)) from error
        return device, function


def _refused(cupy, name, digits, error) -> str:
    driver = cupy.cuda.runtime.driverGetVersion()
    return (
        f"{name}: the driver, which knows CUDA {driver // 1000}.{driver % 1000 // 10}, does not load what was compiled "
        f"for compute capability {digits[:-1]}.{digits[-1]}: {error}; if it is older than CuPy's CUDA, update it or "
        'install "gradlib[cuda12]"'
    )


def blocks(items, each) -> int:
    """How many blocks of `each` cover `items`."""
    return -(-int(items) // int(each))


def empty(xp, shape, dtype):
    """Uninitialised C-contiguous memory; full of NaN in the simulator, so that what a kernel forgets to write shows.

    With GRADLIB_POISON=1 in the environment on a GPU too. MemoryError says what was asked for and what is free.
    """
    try:
        out = xp.empty(shape, dtype)
    except MemoryError as error:
        raise MemoryError(_no_room(xp, shape, np.dtype(dtype))) from error
    if POISON or simulating():
        out.fill(np.nan if is_floating(out.dtype) else 0x55)
    return out


def upload(xp, host):
    """A table that the host made for a kernel, on the device: for this launch, or all of a CUDA graph that is made."""
    take = UPLOAD.get()
    return xp.asarray(host) if take is None else take(host)


def _no_room(xp, shape, dtype) -> str:
    asked = f"no room for a result {dtype}[{', '.join(map(str, shape))}] of {math.prod(shape) * dtype.itemsize:,} bytes"
    if not hasattr(xp, "cuda"):
        return asked
    free, total = xp.cuda.runtime.memGetInfo()
    pool = xp.get_default_memory_pool()
    return (
        f"{asked}: of the GPU's {total:,} bytes {free + pool.free_bytes():,} are free; bound the work with max_bytes= "
        "or chunk_size=, take a smaller batch, or let go of arrays that are not needed"
    )


def dtype_of(kind) -> np.dtype:
    """The NumPy dtype of a dtype, its name, a NumPy scalar type or a Numba type."""
    if isinstance(kind, np.dtype):
        return kind
    name = getattr(kind, "name", kind)
    if name == "bfloat16":
        _know_bfloat16()
    return np.dtype(name)


def _know_bfloat16():
    """NumPy knows the name once its package is imported."""
    try:
        import ml_dtypes  # noqa: F401
    except ImportError as error:
        raise RuntimeError('bfloat16 needs the package ml_dtypes: pip install "gradlib[half]"') from error


def vector_width(kind) -> int:
    """Elements in one 16-byte access; `kind` as for `dtype_of`."""
    return 16 // dtype_of(kind).itemsize


def aligned(*arrays) -> bool:
    """True where every array (None is skipped) starts on a 16-byte boundary."""
    return all(address(a) % 16 == 0 for a in arrays if a is not None)


def address(array) -> int:
    """Where an array starts."""
    return array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr


def takes(*arrays, dtypes=FLOATS) -> bool:
    """True where all are arrays of one dtype among `dtypes` (None is skipped): what most kernels ask for."""
    kinds = {getattr(a, "dtype", None) for a in arrays if a is not None}
    return len(kinds) == 1 and str(kinds.pop()) in dtypes and not any(isinstance(a, np.generic) for a in arrays)


def contiguous(xp, *arrays):
    """The arrays, C-contiguous (copied only where they are not); None stays None."""
    return [None if a is None else xp.ascontiguousarray(a).reshape(a.shape) for a in arrays]
