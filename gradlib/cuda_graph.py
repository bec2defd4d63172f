"""A capture's replay as one CUDA graph: the host launches all its kernels at the price of about one.

The first call of a captured function ran and recorded it, so every kernel is compiled and loaded. The second runs the
replay once more, on a stream that is being captured: nothing is computed then, every launch becomes a node of the
graph. From there on a call copies its arguments into the graph's inputs, launches it on the caller's current stream,
and copies its results out, so that the next call does not change them. The host waits for nothing.

    memory    what the replay allocates comes from a pool of the graph's own, which nobody else is given memory of
    numbers   what a kernel is given by value is what it will be given for ever; so what changes from call to call, the
              step count and learning rate of an optimiser, dropout's counter, lies on the device and is changed there
    tables    what the host makes for a kernel is copied to the device while the graph is made, and kept
    products  CuPy refuses cuBLAS on a captured stream: see ``gradlib.cublas``

What cannot be captured, since it asks for a value of the device or brings one from the host, is replayed call by call
as on the CPU, with one warning that says why.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from . import tree
from .cublas import products_of_ours
from .device import array_module
from .op import describe

Replay = Callable[..., tuple]

_making = threading.Lock()  # one graph at a time: CuPy's matmul is ours meanwhile


def graphed(name: str, replay: Replay, recorder: Any) -> Replay:
    """The replay of a record as a CUDA graph, if it computes on a GPU; otherwise as it is."""
    modules = {value.module for value in recorder.known.values()}
    gpu = next((m for m in modules if hasattr(m, "cuda")), None)
    if gpu is None:
        return replay
    found = GraphReplay(name, replay, gpu)
    if any(type(x) is np.ndarray for call in recorder.calls for x in tree.flatten(call.args)[0]):
        found.refuse("it uses a NumPy array, which could change: gl.to_device takes it to the GPU")
    return found


class GraphReplay:
    """`replay(*arrays)` as a CUDA graph, made by the first call; as it is where no graph can be made."""

    def __init__(self, name: str, replay: Replay, cupy: Any) -> None:
        self.name, self.replay, self.cupy = name, replay, cupy
        self.lock = threading.Lock()
        self.graph: Graph | None = None
        self.refused = False

    def __call__(self, *arrays: Any) -> tuple:
        if not self.refused:
            stream = self.cupy.cuda.get_current_stream()
            if not stream.is_capturing():  # else it becomes a part of the caller's own graph
                with self.lock:
                    graph = self.graph or self._made(arrays)
                    if graph is not None and graph.device == self.cupy.cuda.runtime.getDevice():
                        return graph.launch(arrays, stream)
        return self.replay(*arrays)

    def _made(self, arrays: tuple) -> Graph | None:
        if self.refused:  # while this thread waited
            return None
        for x in arrays:
            if array_module(x) is not self.cupy:
                self.refuse(f"it is given a NumPy {describe(x)}: gl.to_device takes it to the GPU")
                return None
        try:
            self.graph = Graph(self.cupy, self.replay, arrays)
        except Exception as error:
            self.refuse(f"{type(error).__name__}: {error}")
        return self.graph

    def refuse(self, reason: str) -> None:
        self.refused = True
        warnings.warn(
            f"gl.capture: {self.name} is replayed call by call, not as a CUDA graph. {reason}",
            RuntimeWarning,
            stacklevel=5,
        )


class Graph:
    """A CUDA graph with its memory: `inputs` to fill before a launch, `outputs` to read after it."""

    def __init__(self, cupy: Any, replay: Replay, arrays: tuple) -> None:
        self.cupy, self.device = cupy, cupy.cuda.runtime.getDevice()
        cupy.get_default_memory_pool().free_all_blocks()  # what the record left free there is needed here now
        self.blocks: list[Any] = []
        self.pool = cupy.cuda.MemoryPool(_keeping(cupy.cuda, self.blocks))
        self.kept: list[Any] = []
        self.done = cupy.cuda.Event(disable_timing=True)
        stream = cupy.cuda.Stream(non_blocking=True)
        with _making, cupy.cuda.using_allocator(self.pool.malloc), stream:
            self.inputs = [cupy.empty(x.shape, x.dtype) for x in arrays]
            with products_of_ours(cupy, stream, self.kept), _uploads(self._upload):
                self.outputs, self.graph = _captured(stream, lambda: replay(*self.inputs))

    def launch(self, arrays: tuple, stream: Any) -> tuple:
        """The results of one launch, behind what `stream` has to do before, and the launches of other streams."""
        stream.wait_event(self.done)
        try:
            for own, x in zip(self.inputs, arrays, strict=True):
                self._fill(own, x)
            self.graph.launch(stream)
            return tuple([x.copy() if isinstance(x, self.cupy.ndarray) else x for x in self.outputs])
        finally:
            self.done.record(stream)

    def _fill(self, own: Any, x: Any) -> None:
        if x.data.device_id != self.device:
            raise ValueError(
                f"capture: {describe(x)} lies on device {x.data.device_id}, the captured function works on device "
                f"{self.device}; move the array there"
            )
        if x.flags.c_contiguous:
            own.data.copy_from_device_async(x.data, x.nbytes)
        else:
            own[...] = x

    def _upload(self, host: np.ndarray) -> Any:
        """An array of the host's on the device, now and for good, by a stream that is not being captured."""
        side = self.cupy.cuda.Stream(non_blocking=True)
        with side:
            table = self.cupy.asarray(host)
        side.synchronize()
        self.kept.append(table)
        return table

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # the interpreter may be going down
            self.graph = self.inputs = self.outputs = self.kept = None  # type: ignore[assignment]
            self.blocks.clear()
            with self.cupy.cuda.Device(self.device):
                self.pool.free_all_blocks()  # a pool does not do it by itself


def _keeping(cuda: Any, blocks: list[Any]) -> Callable[[int], Any]:
    """An allocator for a pool. `blocks` keeps its memory: where the device has no more, a pool gives back what is free
    just then, but every launch of the graph uses that again."""

    def malloc(size: int) -> Any:
        blocks.append(cuda.Memory(size))
        return cuda.MemoryPointer(blocks[-1], 0)

    return malloc


def _captured(stream: Any, work: Callable[[], Any]) -> tuple[Any, Any]:
    """(what `work` returns, the graph of what it launches on `stream`, the current one). It computes nothing."""
    stream.begin_capture()
    try:
        result = work()
    except BaseException:
        with contextlib.suppress(Exception):  # the error that ended it says more
            stream.end_capture()
        raise
    return result, stream.end_capture()


@contextlib.contextmanager
def _uploads(upload: Callable[[np.ndarray], Any]) -> Any:
    """Tables that kernels' host functions make go to the device by `upload`."""
    from .kernels.launch import UPLOAD

    token = UPLOAD.set(upload)
    try:
        yield
    finally:
        UPLOAD.reset(token)
