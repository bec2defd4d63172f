"""How a compiled kernel is loaded and launched: by CuPy's own Function, or by cuda.core.

Both launch on CuPy's current stream: behind what CuPy was asked for there, and as a node of the graph where that stream
is being captured. CuPy's is the default; GRADLIB_LAUNCHER=cuda.core in the environment takes the other, a package that
numba-cuda brings along. What a launch costs by each is a case of `gradlib bench --gpu`.

A loaded kernel is a function f(grid, block, args, shared_mem=0) of the device that was the current one: tuples of
blocks and of threads, CuPy arrays and NumPy numbers, bytes of dynamic shared memory.
"""

import os
import threading
from collections.abc import Callable
from functools import lru_cache

import numpy as np

LAUNCHER = os.environ.get("GRADLIB_LAUNCHER") or "cupy"

_thread = threading.local()


def loader() -> Callable:
    """-> load(cupy, entry, cubin), which gives the kernel `entry` of a cubin; of the launcher that is chosen."""
    if LAUNCHER not in _LOADERS:
        raise ValueError(f"GRADLIB_LAUNCHER: expected one of {', '.join(_LOADERS)}, got {LAUNCHER!r}")
    if LAUNCHER == "cuda.core":
        try:
            import cuda.core  # noqa: F401
        except ImportError as error:
            raise RuntimeError(
                'GRADLIB_LAUNCHER=cuda.core needs that package: pip install "gradlib[cuda13]" (or [cuda12])'
            ) from error
    return _LOADERS[LAUNCHER]


def by_cupy(cupy, entry, cubin) -> Callable:
    """A kernel that CuPy launches."""
    module = cupy.cuda.Module()
    module.load(cubin)
    return module.get_function(entry)


class ByCore:
    """A kernel that cuda.core launches."""

    def __init__(self, cupy, entry, cubin):
        from cuda.core import Device, LaunchConfig, ObjectCode, Stream, launch

        self.cupy, self.device = cupy, cupy.cuda.runtime.getDevice()
        self._device, self._launch = Device, launch
        self._bind()
        self.kernel = ObjectCode.from_cubin(cubin).get_kernel(entry)
        # making them takes longer than a launch
        self._stream = lru_cache(maxsize=32)(Stream.from_handle)
        self._config = lru_cache(maxsize=256)(lambda g, b, shared: LaunchConfig(grid=g, block=b, shmem_size=shared))

    def __call__(self, grid, block, args, shared_mem=0):
        self._bind()
        given = [a if isinstance(a, np.generic) else a.data.ptr for a in args]
        stream = self._stream(self.cupy.cuda.get_current_stream().ptr)
        self._launch(stream, self._config(grid, block, shared_mem), self.kernel, *given)

    def _bind(self):
        """A thread that CuPy has not worked in yet has no CUDA context."""
        if not hasattr(_thread, "bound"):
            self._device(self.device).set_current()
            _thread.bound = True

    def allow_shared(self, nbytes):
        from cuda.bindings import driver

        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        (status,) = driver.cuKernelSetAttribute(attribute, nbytes, self.kernel.handle, self.device)
        if status:
            raise RuntimeError(f"cuda.core: {nbytes} bytes of shared memory are refused: {status}")


_LOADERS = {"cupy": by_cupy, "cuda.core": ByCore}


def allow_shared(function, nbytes) -> None:
    """Let a loaded kernel be launched with up to `nbytes` of dynamic shared memory, beyond 48 KiB too."""
    if isinstance(function, ByCore):
        function.allow_shared(nbytes)
        return
    from cupy.cuda import driver

    driver.funcSetAttribute(function.ptr, driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, nbytes)
