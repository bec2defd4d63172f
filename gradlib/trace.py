"""The recorded graph, and the recording of ops.

A transform runs the user's function once, on concrete values, with its inputs wrapped as `Traced`. Every op applied
to a traced array is appended to the trace of the highest level among its arguments; its values may belong to traces
of lower levels, and then the op's own rules are recorded there in turn. A unique, increasing level per transform
gives right nesting, so no state is global and threads do not meet.

One graph serves both directions: ``gradlib.sweep`` walks it with vjp or with jvp rules.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np

from .device import SCALARS, SIMULATING, adopt, array_module
from .kept import FORMS, Form
from .op import Op, describe
from .precision import is_bfloat16
from .traced import (
    ALTERNATIVES,
    CREATORS,
    HANDLERS,
    NUMPYS,
    Namespace,
    Traced,
    lose_trace,
    lower_namespace,
    module_of,
    namespace,
    raw,
)

__all__ = [
    "ALTERNATIVES",
    "CREATORS",
    "HANDLERS",
    "NUMPYS",
    "RECORDER",
    "WATCHER",
    "Namespace",
    "Node",
    "Trace",
    "Traced",
    "apply",
    "find_module",
    "lose_trace",
    "lower_namespace",
    "module_of",
    "namespace",
    "raw",
]

ndarray = np.ndarray

_levels = itertools.count(1)

#: What `detect_anomaly` puts here looks at every value and derivative of the traces made meanwhile.
WATCHER: ContextVar[Any] = ContextVar("gradlib_watcher", default=None)

#: The recorder of the capture that is being recorded.
RECORDER: ContextVar[Any] = ContextVar("gradlib_recorder", default=None)


class Node(NamedTuple):
    """One recorded op: what its rules need, and the slots of its inputs (-1: not differentiated) and outputs.

    A trace of samples (`Trace.batch`) also keeps every traced input, integers included, and all inputs' shapes; a
    watched one (`Trace.watcher`) the line of the user's code.
    """

    op: Op
    xp: Any
    static: dict[str, Any]
    saved: tuple
    parents: list[int]
    slot: int
    outputs: int  # how many; 0 for one that is not in a tuple
    inputs: Sequence[int] = ()
    shapes: tuple[tuple[int, ...], ...] = ()
    line: str = ""


_node: Callable[[type[Node], tuple], Node] = tuple.__new__  # a third of the time of Node(…)


class Trace:
    """The graph one transform records. `batch` is the number of samples when batch axes are to be followed."""

    __slots__ = ("alive", "batch", "level", "lost", "nodes", "outs", "watcher")
    unit: Any = None  # of a capture: the namespace that runs and records whole rules
    own_function: Any = None  # of a capture: records a function of NumPy's whole

    def __init__(self, batch: int | None = None) -> None:
        self.level = next(_levels)
        self.alive = True
        self.lost: TypeError | None = None  # raised while NumPy stored a value of this trace
        self.batch = batch
        self.watcher = WATCHER.get()
        self.nodes: list[Node] = []
        self.outs: list[Form] = []  # of every slot

    def wrap(self, value: Any) -> Traced:
        """`value` as a traced array in a new slot."""
        self.outs.append(FORMS[value.shape, value.dtype])
        return Traced(value, self, len(self.outs) - 1)

    def record(self, op: Op, xp: Any, static: dict, saved: tuple, slots: list, vals: Sequence, y: Any) -> Any:
        """Append a node; its result(s) as traced arrays."""
        outs, outputs = self.outs, 0
        first = len(outs)
        if type(y) is tuple:
            outputs = len(y)
            result: Any = tuple([self.wrap(part) for part in y])
        else:
            form, result = FORMS[y.shape, y.dtype], Traced(y, self, first)  # type: ignore[assignment]
            outs.append(form)
            if op.keep is not None:
                saved = op.keep(saved, slots, outs, form)
        if self.batch is None and self.watcher is None:
            fields: tuple = (op, xp, static, saved, slots, first, outputs, slots, (), "")
        else:
            fields = (op, xp, static, saved, self._float(slots), first, outputs, slots, *self._details(op, vals, y))
        self.nodes.append(_node(Node, fields))
        return result

    def _float(self, slots: list) -> list[int]:
        """The slots that are differentiated: a trace of samples follows integers too."""
        outs = self.outs
        return [s if s < 0 or outs[s][1].kind == "f" or is_bfloat16(outs[s][1]) else -1 for s in slots]

    def _details(self, op: Op, vals: Sequence, y: Any) -> tuple:
        """(shapes of the inputs, line) for a trace of samples or a watched one."""
        line = "" if self.watcher is None else self.watcher.recorded(op, vals, y)
        return tuple([getattr(v, "shape", ()) for v in vals]), line


def apply(op: Op, /, *args: Any, **static: Any) -> Any:
    """Compute an op, and record it on the highest trace among its arguments: what calling an op does."""
    top = None
    for a in args:
        if type(a) is Traced and a.owner is not top and (top is None or a.owner.level > top.level):
            top = a.owner
    if op.check is not None:
        op.check(*args, **static)
    if top is None:
        recorder = RECORDER.get()
        if recorder is not None:
            return recorder.run(op, "forward", *args, **static)[0]
        args = tuple(map(adopt, args))
        module, _ = find_module(op.name, args)
        return op.run("forward", module, *(args if module is np else _scalars(args)), **static)[0]
    if not top.alive:
        raise RuntimeError(
            f"{op.name}: a traced array is used outside the gradlib transform that made it; "
            "return it from the differentiated function instead of keeping it"
        )
    if top.unit is not None:
        return top.unit.run(op, "forward", *args, **static)[0]
    vals, slots, plain = [], [], not SIMULATING.get()
    for a in args:
        kind, slot = type(a), -1
        if kind is Traced and a.owner is top:
            a, slot = a.value, a.slot
            kind = type(a)
        vals.append(a)
        slots.append(slot)
        if kind not in SCALARS and (kind is not ndarray or (slot < 0 and a.dtype.kind not in "fbiu")):
            plain = False
    if op.vjp is None and top.batch is None:
        return apply(op, *vals, **static)
    if plain:  # numbers and NumPy arrays alone: no need to look further
        y, saved = op.forward(np, *vals, **static)
        return top.record(op, np, static, saved, slots, vals, y)
    vals = list(map(adopt, vals))
    module, _ = find_module(op.name, vals)
    if module is not np:
        vals = _scalars(vals)
    xp = lower_namespace(module, vals)
    y, saved = op.run("forward", xp, *vals, **static)
    return top.record(op, xp, static, saved, slots, vals, y)


setattr(Op, "__call__", apply)  # noqa: B010  (calling an op is this module's business)


def _scalars(args: Sequence[Any]) -> list[Any]:
    """0-d NumPy arrays as NumPy scalars, which mix with arrays of any device."""
    return [a[()] if type(a) is np.ndarray and not a.ndim else a for a in args]


def find_module(name: str, values: Any) -> tuple[Any, bool]:
    """(array module, whether any value is traced) of an op's arguments.

    TypeError for arrays of two devices, and for dtypes that no op takes.
    """
    module, traced = None, False
    for v in values:
        kind = type(v)
        if kind is np.ndarray:
            if v.dtype.kind not in "fbiu" and not is_bfloat16(v.dtype):
                raise TypeError(f"{name}: expected arrays of real numbers, got {describe(v)}")
            if module is not None and module is not np and v.ndim:
                raise _mixed(name, module, np)
            if module is None:
                module = np if v.ndim else module
        elif kind is Traced:
            traced = True
            here = v.module
            if module is not None and here is not module:
                raise _mixed(name, module, here)
            module = here
        elif kind in SCALARS or v is None or kind is Form:
            continue
        else:
            here = array_module(v)
            if here is None:
                raise TypeError(f"{name}: expected arrays or numbers, got {kind.__name__}")
            if here is np:
                if v.dtype.kind not in "fbiu" and not is_bfloat16(v.dtype):
                    raise TypeError(f"{name}: expected arrays of real numbers, got {describe(v)}")
                continue
            if module is not None and here is not module:
                raise _mixed(name, module, here)
            module = here
    return (np if module is None else module), traced


def _mixed(name: str, a: Any, b: Any) -> TypeError:
    names = sorted({a.__name__, b.__name__})
    return TypeError(
        f"{name}: arguments live on different devices ({' and '.join(names)}); create arrays on the device of another "
        "array with np.asarray(x, like=that_array), or move whole trees with gl.to_device"
    )
