"""The recorded graph, and the array that records it.

A transform runs the user's function once, on concrete values, with its inputs wrapped as `Traced`. Every op applied
to a traced array is appended to the trace of the highest level among its arguments; its values may belong to traces
of lower levels, and then the op's own rules are recorded there in turn. A unique, increasing level per transform
gives right nesting, so no state is global and threads do not meet.

One graph serves both directions: ``gradlib.sweep`` walks it with vjp or with jvp rules.
"""

from __future__ import annotations

import dis
import itertools
import sys
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

import numpy as np

from . import tree
from .device import SCALARS, SIMULATING, adopt, array_module
from .op import Dispatching, Op, describe
from .precision import is_bfloat16

ndarray = np.ndarray

_levels = itertools.count(1)

#: What `detect_anomaly` puts here looks at every value and derivative of the traces made meanwhile.
WATCHER: ContextVar[Any] = ContextVar("gradlib_watcher", default=None)

#: The recorder of the capture that is being recorded.
RECORDER: ContextVar[Any] = ContextVar("gradlib_recorder", default=None)

#: NumPy function or ufunc -> our function with the same signature, filled by ``gradlib.ops``.
HANDLERS: dict[Any, Callable[..., Any]] = {}

#: NumPy function with `like=` -> ours, which gets the traced array it should be like first.
CREATORS: dict[Any, Callable[..., Any]] = {}

#: Name of a function that is not supported -> what to write instead, filled by ``gradlib.ops.alternatives``.
ALTERNATIVES: dict[str, str] = {}


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

    __slots__ = ("alive", "batch", "level", "nodes", "outs", "watcher")
    unit: Any = None  # of a capture: the namespace that runs and records whole rules

    def __init__(self, batch: int | None = None) -> None:
        self.level = next(_levels)
        self.alive = True
        self.batch = batch
        self.watcher = WATCHER.get()
        self.nodes: list[Node] = []
        self.outs: list[tuple[tuple[int, ...], np.dtype]] = []  # slot -> shape, dtype

    def wrap(self, value: Any) -> Traced:
        """`value` as a traced array in a new slot."""
        self.outs.append((value.shape, value.dtype))
        return Traced(value, self, len(self.outs) - 1)

    def record(self, op: Op, xp: Any, static: dict, saved: tuple, slots: list, vals: Sequence, y: Any) -> Any:
        """Append a node; its result(s) as traced arrays."""
        first, outputs = len(self.outs), len(y) if type(y) is tuple else 0
        if self.batch is None and self.watcher is None:
            fields: tuple = (op, xp, static, saved, slots, first, outputs, slots, (), "")
        else:
            fields = (op, xp, static, saved, self._float(slots), first, outputs, slots, *self._details(op, vals, y))
        self.nodes.append(_node(Node, fields))
        if outputs:
            return tuple([self.wrap(part) for part in y])
        self.outs.append((y.shape, y.dtype))
        return Traced(y, self, first)

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
    vals = [v if type(v) is Traced else adopt(v) for v in vals]
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
        elif kind in SCALARS or v is None:
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


class Namespace(Dispatching):
    """NumPy's function names over traced arrays, on the device of `module`.

    What rules call as `xp` when they are traced in turn, and what a traced array's `__array_namespace__` gives.
    """

    def __init__(self, module: Any, twin: Any = np) -> None:
        self.module, self.twin = module, twin

    def __getattr__(self, name: str) -> Any:
        function, twin = getattr(self.module, name), getattr(self.twin, name, None)
        if isinstance(function, ModuleType):
            found: Any = Namespace(function, twin)
        elif not callable(function) or isinstance(function, type):
            return function
        else:
            handler = HANDLERS.get(twin, _unsupported(name))

            def found(*args: Any, **kwargs: Any) -> Any:
                return handler(*args, **kwargs) if _any_traced(args) else function(*args, **kwargs)

        setattr(self, name, found)
        return found


_namespaces: dict[Any, Namespace] = {}


def namespace(module: Any) -> Namespace:
    """The dispatching namespace over an array module."""
    found = _namespaces.get(module)
    return _namespaces.setdefault(module, Namespace(module)) if found is None else found


def lower_namespace(module: Any, values: Sequence[Any]) -> Any:
    """The `xp` for values that may belong to lower levels: dispatching, or a capture's if they are its alone."""
    owners = {v.owner for v in values if type(v) is Traced}
    if not owners:
        return module
    unit = next(iter(owners)).unit
    return unit if unit is not None and len(owners) == 1 else namespace(module)


def _any_traced(args: Sequence[Any]) -> bool:
    for a in args:
        if type(a) is Traced or (type(a) in (list, tuple) and _any_traced(a)):
            return True
    return False


def _unsupported(name: str) -> Callable[..., NoReturn]:
    def fail(*args: Any, **kwargs: Any) -> NoReturn:
        family = ALTERNATIVES.get(name.partition(".")[0], "rewrite it with supported functions")
        instead = ALTERNATIVES.get(name, family)
        raise NotImplementedError(
            f"gradlib does not differentiate {name}; {instead}, or wrap its argument in gl.stop_gradient where no "
            "derivative should pass"
        )

    return fail


def raw(x: Any) -> Any:
    """The concrete array (or number) inside a traced one, through all levels."""
    while type(x) is Traced:
        x = x.value
    return x


def module_of(x: Any) -> Any:
    """The module whose functions take x: NumPy, CuPy, or the dispatching namespace for a traced array."""
    return namespace(x.module) if type(x) is Traced else array_module(x) or np


def lose_trace(what: str, instead: str) -> TypeError:
    """The error for code that would silently drop derivatives."""
    return TypeError(f"{what} would lose the derivative of a traced array; {instead}")


_STORE_ITEM = dis.opmap["STORE_SUBSCR"]
_INSTEAD = (
    "join traced values with np.stack or np.concatenate, repeat one with np.broadcast_to, choose with np.where, "
    "or take gl.stop_gradient(x) first; for SciPy's logsumexp and softmax "
    "use gl.logsumexp(x, axis=None) and gl.softmax(x, axis=None)"
)


class Traced:
    """An array whose use is recorded. It behaves like the NumPy or CuPy array inside it.

    `if`, `float()` and comparisons see the concrete value; what would lose the derivative silently raises.
    Operators and methods are attached by ``gradlib.ops.methods``.
    """

    __slots__ = ("owner", "slot", "value")
    __array_priority__ = 1000.0
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, value: Any, owner: Trace, slot: int) -> None:
        self.value, self.owner, self.slot = value, owner, slot

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    @property
    def dtype(self) -> np.dtype:
        return self.value.dtype

    @property
    def ndim(self) -> int:
        return self.value.ndim

    @property
    def size(self) -> int:
        return self.value.size

    @property
    def nbytes(self) -> int:
        return self.value.nbytes

    @property
    def module(self) -> Any:
        """The array module of the concrete array inside."""
        return array_module(raw(self.value))

    def __repr__(self) -> str:
        return f"Traced({describe(self)}, level {self.owner.level})"

    def __len__(self) -> int:
        return len(self.value)

    def __iter__(self) -> Any:
        if not self.ndim:
            raise TypeError("iteration over a 0-d traced array")
        return (self[i] for i in range(self.shape[0]))  # type: ignore[index]

    def _concrete(self, what: str) -> Any:
        """The value inside, unless a capture would freeze what depends on it, or y[i] = traced lose its trace.

        NumPy asks for the float it stores in y[i]; only the caller's instruction tells that from float(x).
        """
        caller = sys._getframe(2)
        if caller.f_code.co_code[caller.f_lasti] == _STORE_ITEM:
            raise lose_trace("y[i] = traced", _INSTEAD)
        if self.owner.unit is not None:
            raise TypeError(
                f"{what} of a value inside gl.capture would freeze it as it is now; choose with np.where instead of "
                "`if`, and keep numbers as arrays"
            )
        return self.value

    def __bool__(self) -> bool:
        return bool(self._concrete("bool() or `if`"))

    def __float__(self) -> float:
        return float(self._concrete("float()"))

    def __int__(self) -> int:
        return int(self._concrete("int()"))

    def __index__(self) -> int:
        return self._concrete("an index or a size").__index__()

    def item(self) -> Any:
        return self._concrete("item()").item()

    def tolist(self) -> Any:
        return self._concrete("tolist()").tolist()

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise lose_trace("np.asarray, np.array or an item assignment", _INSTEAD)

    def __setitem__(self, index: Any, value: Any) -> None:
        raise lose_trace("item assignment", "build a new array with np.where, np.concatenate or np.stack instead")

    def __array_namespace__(self, *, api_version: str | None = None) -> Any:
        return namespace(self.module)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if len(inputs) > 1 and list in map(type, inputs):
            inputs = tuple(CREATORS[np.asarray](self, x) if type(x) is list else x for x in inputs)
        if method == "__call__" and not kwargs and (handler := HANDLERS.get(ufunc)) is not None:
            return handler(*inputs)
        name = ufunc.__name__
        if kwargs.pop("out", None) is not None:
            raise lose_trace(f"{name}: out= or an update in place (array += traced)", "write y = y + x")
        if method != "__call__":
            handler = HANDLERS.get((ufunc, method)) or _unsupported(f"{name}.{method}")
            return handler(*inputs, **{k: v for k, v in kwargs.items() if (k, v) != ("keepdims", False)})
        # SciPy's ufuncs are known by name, so that SciPy need not be imported
        handler = HANDLERS.get(ufunc) or HANDLERS.get(("scipy.special", name)) or _unsupported(name)
        if "dtype" in kwargs and np.dtype(kwargs["dtype"]).kind == "f":  # the dtype to compute in
            inputs = tuple([CREATORS[np.asarray](self, x, kwargs["dtype"]) for x in inputs])
            kwargs = {k: v for k, v in kwargs.items() if k != "dtype"}
        if kwargs and ufunc.signature is None:
            raise NotImplementedError(f"{name}: keyword {', '.join(kwargs)} is not supported on a traced array")
        return handler(*inputs, **kwargs)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if func in CREATORS:  # like=: an array of this one's kind
            return CREATORS[func](self, *args, **kwargs)
        handler = HANDLERS.get(func) or _unsupported(f"{func.__module__}.{func.__name__}".removeprefix("numpy."))
        return handler(*args, **kwargs)


tree.LEAVES.add(Traced)
