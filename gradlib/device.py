"""Where arrays live: the array module of an array, moving trees between CPU and GPU, what the machine has."""

from __future__ import annotations

import sys
from contextvars import ContextVar
from types import ModuleType
from typing import Any

import numpy as np
import optree

from . import tree as trees

__all__ = ["array_module", "device_info", "is_array", "to_device"]

#: True inside ``gradlib.kernels.launch.simulate()``: NumPy arrays then take the CUDA kernels (in the simulator).
SIMULATING: ContextVar[bool] = ContextVar("gradlib_simulating", default=False)

#: Array types beside NumPy's and CuPy's, with their module (tests register a stand-in device array here).
EXTRA_ARRAYS: dict[type, Any] = {}

SCALARS = frozenset({bool, int, float, *(t for t in np.sctypeDict.values() if np.dtype(t).kind in "biuf")})


def array_module(x: Any) -> Any:
    """The module (``numpy``, ``cupy``) whose functions take `x`, or None when `x` is not an array.

    CuPy is never imported here: an array of CuPy's can only exist once it has been.

    >>> import numpy as np
    >>> array_module(np.ones(3)).__name__
    'numpy'
    """
    kind = type(x)
    if kind is np.ndarray or isinstance(x, (np.ndarray, np.generic)):
        return np
    if kind in EXTRA_ARRAYS:
        return EXTRA_ARRAYS[kind]
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(x, getattr(cupy, "ndarray", ())):
        return cupy
    return None


#: Classes known to be no arrays of other libraries; ``gradlib.traced`` adds its own.
OWN: set[type] = {np.ndarray, float, int, bool, str, type(None)}


def adopt(x: Any) -> Any:
    """`x` as an array of ours without a copy, if it is another library's (torch, JAX) on the CPU or a CUDA device.

    It goes by DLPack or, on CUDA, by `__cuda_array_interface__`. Anything else is returned as it is.
    """
    if type(x) in OWN or array_module(x) is not None or isinstance(x, type):
        return x
    if hasattr(x, "__dlpack__") and hasattr(x, "__dlpack_device__"):
        kind = int(x.__dlpack_device__()[0])
        if kind == 1:  # kDLCPU
            return np.from_dlpack(x)
        if kind == 2:  # kDLCUDA
            return import_cupy().from_dlpack(x)
    elif hasattr(x, "__cuda_array_interface__"):
        return import_cupy().asarray(x)
    return x


def is_array(x: Any) -> bool:
    """Whether `x` is a NumPy or CuPy array (NumPy scalars count)."""
    return array_module(x) is not None


def import_cupy() -> ModuleType:
    """CuPy, with a GPU that answers; RuntimeError says which of the two is missing and what to do."""
    try:
        import cupy
    except ImportError as error:
        raise RuntimeError('CuPy is not installed: pip install "gradlib[cuda13]" (or [cuda12])') from error
    if not cupy.is_available():
        raise RuntimeError("CuPy is installed but finds no CUDA GPU or driver; `gradlib info` tells what is missing")
    return cupy


def to_device(tree: Any, device: str) -> Any:
    """Copy every array of `tree` to `device`, "cuda" or "cpu"; other leaves stay as they are.

    Arrays that already live there are passed through. Raises ValueError for another device name and
    RuntimeError when there is no CuPy or no GPU.

    >>> import gradlib as gl, numpy as np
    >>> gl.to_device({"w": np.ones(2)}, "cpu")["w"]
    array([1., 1.])
    """
    if device not in ("cuda", "cpu"):
        raise ValueError(f'to_device: expected device "cuda" or "cpu", got {device!r}')
    cupy = import_cupy() if device == "cuda" else None

    def move(x: Any) -> Any:
        if hasattr(x, "moved"):  # a gl.CSR, whose pattern is made of arrays too
            return x.moved(move)
        if cupy is not None:
            return cupy.asarray(x) if isinstance(x, np.ndarray) else x
        return x.get() if hasattr(x, "get") and array_module(x) not in (None, np) else x

    trees.flatten(tree)  # which makes pytrees of the dataclasses in it
    return optree.tree_map(
        move, tree, is_leaf=lambda x: hasattr(x, "moved"), none_is_leaf=True, namespace=trees.NAMESPACE
    )


def device_info() -> list[dict[str, Any]]:
    """One row a CUDA device: name, compute capability, memory in bytes. Empty without CuPy or GPU.

    >>> import gradlib as gl
    >>> sorted({key for row in gl.device_info() for key in row} | {"cc", "memory", "name"})
    ['cc', 'memory', 'name']
    """
    try:
        cupy = import_cupy()
    except RuntimeError:
        return []
    rows = []
    for i in range(cupy.cuda.runtime.getDeviceCount()):
        p = cupy.cuda.runtime.getDeviceProperties(i)
        rows.append({"name": p["name"].decode(), "cc": f"{p['major']}.{p['minor']}", "memory": p["totalGlobalMem"]})
    return rows
