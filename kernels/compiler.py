"""From a kernel's Python to machine code, with no GPU and no driver: Numba -> NVVM -> LTO-IR -> nvJitLink -> cubin.

Numba's dispatcher asks the current device only for its compute capability; while a kernel is compiled, that question is
answered with the architecture wanted, so the same path serves the launch on a GPU and the inspection on a laptop.

Most of the time goes into the first steps. Their result, LTO-IR for the oldest architecture, is linked for any newer
one, to the same machine code as LTO-IR of its own.
"""

import contextlib
import inspect
import threading
from types import FunctionType, SimpleNamespace

import numpy as np

from .launch import HALVES, SIMULATED, THREADS, dtype_of, pointer

OLDEST = (8, 0)  # the compute capability whose LTO-IR serves all newer ones
_ASKING = threading.Lock()  # one answer at a time, so that no thread takes another's for the question


class Lowered:
    """A `Launchable` as LTO-IR: `entry`, the function's name, and `link`, its machine code for an architecture.

    threads: the most threads of a block it will be launched with; it bounds the registers.
    Raises RuntimeError where the simulator is on: it takes the compiler's place in a process.
    """

    def __init__(self, launchable, cc=OLDEST, threads=THREADS):
        if SIMULATED:
            raise RuntimeError("compile_cubin: the simulator is on (NUMBA_ENABLE_CUDASIM=1); use a process without it")
        from . import intrinsics  # noqa: F401  (numba.cuda is loaded there, with its shim)

        self._lowest = min(cc[:2], OLDEST)
        self._library, self.entry = _lower(launchable, self._lowest, threads)

    def link(self, cc) -> bytes:
        """The cubin for a compute capability, e.g. (9, 0) or (9, 0, "a")."""
        self._library._ltoir_cache[cc] = self._library.get_ltoir(cc=self._lowest)
        cubin = self._library.get_cubin(cc=cc)
        return bytes(getattr(cubin, "code", cubin))


def compile_cubin(launchable, cc, threads=THREADS):
    """-> (entry name, cubin bytes) of a `Launchable` for compute capability `cc`. See `Lowered`."""
    lowered = Lowered(launchable, cc, threads)
    return lowered.entry, lowered.link(cc)


def versions() -> str:
    """What compiles, on this machine."""
    import numba
    import numba_cuda
    from cuda.bindings import nvjitlink

    linker = ".".join(map(str, nvjitlink.version()))
    return f"numba {numba.__version__}, numba-cuda {numba_cuda.__version__}, nvJitLink {linker}"


def _lower(launchable, cc, threads):
    from numba.cuda import types
    from numba.cuda.compiler import compile_cuda, kernel_fixup
    from numba.cuda.cudadrv import nvvm

    kinds = tuple(_type(kind) for _, kind in launchable.parameters)
    with _asked_for(cc):
        result = compile_cuda(
            _plain(launchable.body), types.void, kinds, cc=cc, lto=True, nvvm_options={"opt": 3, "fastmath": False}
        )
    entry = result.fndesc.llvm_func_name
    function = result.library.get_function(entry)
    result.library._entry_name = entry
    kernel_fixup(function, False)
    # Left to itself ptxas gives float64 kernels few registers and spills; two blocks a multiprocessor allow 128.
    double = any(dtype_of(getattr(k, "element", k)) == np.float64 for _, k in launchable.parameters)
    nvvm.set_launch_bounds(function, (threads, 2) if double else threads)
    result.library._llvm_strs = [str(module) for module in _ordered(result.library.modules)]
    return result.library, entry


def _ordered(modules):
    """A kernel's module and those of its device functions, in the order in which they are called, depth first.

    Numba keeps them in a set. Their order moves what the optimiser sees first, and so registers and instructions.
    """
    defining = {f.name: module for module in modules for f in module.functions if not f.is_declaration}
    found = {}

    def visit(module):
        if module.name not in found:
            found[module.name] = module
            for f in module.functions:
                if f.is_declaration and f.name in defining:
                    visit(defining[f.name])

    visit(modules[0])
    return found.values()


def _type(kind):
    """Numba's type of a parameter; float16 and bfloat16 are 16 bits of memory."""
    from numba.cuda import types

    if not isinstance(kind, pointer):
        return kind
    return types.CPointer(types.uint16 if kind.dtype.name in HALVES else kind.element)


def _plain(body):
    """The same function without annotations: they are ours to read, and to read again, not Numba's."""
    body = inspect.unwrap(body)
    return FunctionType(body.__code__, body.__globals__, body.__name__, body.__defaults__, body.__closure__)


@contextlib.contextmanager
def _asked_for(cc):
    from numba.cuda import dispatcher

    with _ASKING:
        ask = dispatcher.get_current_device
        dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=cc[:2])
        try:
            yield
        finally:
            dispatcher.get_current_device = ask
