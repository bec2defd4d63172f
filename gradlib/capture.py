"""capture: record a computation once, replay it without tracing.

While recording, arguments are wrapped at the lowest level. What transforms above do with them arrives here as whole
rules on concrete arrays (`Recorder.run`), so a replay calls the same rules in the same order on new arguments: equal
values to the last bit. The record is turned into one straight Python function, without what is never used.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial, wraps
from math import prod
from typing import Any, NamedTuple

import numpy as np

from . import tree
from .cuda_graph import graphed
from .device import OWN, SIMULATING, adopt, array_module
from .memory import keep_freed_memory
from .op import Op, Unit, describe
from .storing import raise_hidden
from .threads import one_blas_thread
from .trace import RECORDER, WATCHER, Trace, Traced, find_module, raw

_PROGRAMS = 128  # recorded for one function before the least recently used is forgotten
_LARGE = 1 << 15  # bytes from which a value is dropped after its last use, so that its memory is used again


class Slot(int):
    """A recorded value, in the templates of arguments and results."""


class Call(NamedTuple):
    """One recorded call: `result` is the template of what it returns, None for what is done for its effect alone."""

    function: Callable[..., Any]
    args: tuple
    static: dict[str, Any]
    result: Any


def tree_of(x: Any, f: Callable[[Any], Any]) -> Any:
    """f of everything in nested tuples and lists (which become tuples)."""
    return tuple([tree_of(part, f) for part in x]) if type(x) in (tuple, list) else f(x)


def slots_in(x: Any) -> list[Slot]:
    """The slots in a template."""
    if type(x) is tuple:
        return [slot for part in x for slot in slots_in(part)]
    return [x] if type(x) is Slot else []


def concrete(x: Any) -> Any:
    """Arguments with the arrays inside recorded values."""
    return tree_of(x, lambda v: v.value if type(v) is Traced else v)


class Recorder(Trace):
    """The trace of one capture: a list of calls, with arrays known by identity."""

    __slots__ = ("calls", "held", "known", "spares_blas", "unit")

    def __init__(self) -> None:
        super().__init__()
        self.level = -self.level  # below every transform
        self.unit = _Whole(self)
        self.calls: list[Call] = []
        self.known: dict[int, Traced] = {}
        self.held: set[int] = set()
        self.spares_blas = False

    def wrap(self, value: Any) -> Traced:
        """One slot an array, also where a rule returns what it was given."""
        found = self.known.get(id(value))
        if found is None:
            found = self.known[id(value)] = super().wrap(value)
        return found

    def hold(self, value: Any) -> Traced:
        """An array from outside, read anew at every replay."""
        new = id(value) not in self.known
        found = self.wrap(value)
        if new:
            self.held.add(found.slot)
        return found

    def template(self, x: Any) -> Any:
        """Arguments or results with slots for what is recorded."""
        return tree_of(x, lambda v: v if type(v) is not Traced else v.value if v.slot in self.held else Slot(v.slot))

    def run(self, op: Op, rule: str, *args: Any, **static: Any) -> Any:
        """A whole rule on concrete arrays, recorded; its results are wrapped."""
        args = tree_of(args, adopt)
        module, _ = find_module(op.name, _leaves(concrete(args)))
        direct = module is np and not SIMULATING.get()
        return self.call(getattr(op, rule) if direct else partial(op.run, rule), (module, *args), static)

    def call(self, function: Callable[..., Any], args: tuple, static: dict[str, Any]) -> Any:
        """Any function of arrays in nested tuples, recorded; its results are wrapped."""
        if not self.alive:
            raise RuntimeError(
                "capture: a value of the captured function is used outside of it (by a pullback or an operator that it "
                "made); finish the computation inside the function, and return its result"
            )
        token = RECORDER.set(None)
        try:
            result = function(*concrete(args), **static)
        finally:
            RECORDER.reset(token)
        wrapped = tree_of(result, lambda x: self.wrap(x) if array_module(x) is not None else x)
        self.calls.append(Call(function, self.template(args), static, self.template(wrapped)))
        return wrapped

    def own_function(self, function: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        """NumPy's own function, recorded; NotImplemented unless all its arrays are this capture's or NumPy's."""
        values = (*args, *kwargs.values())
        leaves = _leaves(tree_of(values, lambda x: x))
        foreign = any(x.owner is not self or x.module is not np for x in leaves if type(x) is Traced)
        if foreign or SIMULATING.get() or kwargs.get("out") is not None:
            return NotImplemented
        n, names = len(args), tuple(kwargs)
        kinds: list[type] = []

        def call(*values: Any) -> Any:
            y = function(*values[:n], **dict(zip(names, values[n:], strict=True)))
            if isinstance(y, tuple):  # a named one perhaps
                kinds[:] = [type(y)]
                return tuple(y)
            return y

        y = self.call(call, values, {})
        return y if not kinds or kinds[0] is tuple else kinds[0](*y)

    def effect(self, action: Callable[..., None], args: tuple) -> None:
        """Do something for its effect, now and at every replay."""
        token = RECORDER.set(None)
        try:
            action(*concrete(args))
        finally:
            RECORDER.reset(token)
        self.calls.append(Call(action, self.template(args), {}, None))


class _Whole(Unit):
    """The `xp` of values that belong to a capture alone: rules run and are recorded whole."""

    def __init__(self, recorder: Recorder) -> None:
        self.run = recorder.run  # type: ignore[method-assign]


def _leaves(x: Any) -> list[Any]:
    return [leaf for part in x for leaf in _leaves(part)] if type(x) is tuple else [x]


def effect(action: Callable[..., None], *args: Any) -> None:
    """`action(*args)`, done for what it changes or checks; inside gl.capture on concrete arrays, at every replay."""
    recorder = RECORDER.get()
    if recorder is None:
        action(*args)
    else:
        recorder.effect(action, args)


def copied(x: Any) -> Any:
    return x.copy()


def recorded(function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)`; inside gl.capture on concrete arrays, and recorded as one call."""
    recorder = RECORDER.get()
    return function(*args) if recorder is None else recorder.call(function, args, {})


def spare_blas() -> None:
    """Let what is being captured, if anything is, be replayed with BLAS on one thread: our own loops have the cores."""
    recorder = RECORDER.get()
    if recorder is not None:
        recorder.spares_blas = True


def compile_program(recorder: Recorder, inputs: list[int], outputs: Any) -> Callable[..., Any]:
    """The recorded calls that matter, as one Python function of the input slots."""
    needed: set[int] = set(slots_in(outputs))
    kept: list[Call] = []
    first: dict[int, Call | None] = {s: call for call in reversed(recorder.calls) for s in slots_in(call.result)}
    first.update(dict.fromkeys(inputs))  # a call may hand on what it was given: then it does not make it
    for call in reversed(recorder.calls):
        if call.result is None or any(first[slot] is call for slot in needed.intersection(slots_in(call.result))):
            kept.insert(0, call)
            needed.update(slots_in(call.args))
    last = {slot: at for at, call in enumerate(kept) for slot in slots_in(call.args)}
    keep = {*inputs, *slots_in(outputs)}
    program = _Program(needed, set(inputs))
    for at, call in enumerate(kept):
        program.call(call)
        program.drop(s for s, n in last.items() if n == at and s not in keep and _bytes(*recorder.outs[s]) >= _LARGE)
    return program.function(inputs, outputs)


def _bytes(shape: tuple[int, ...], dtype: Any) -> int:
    return prod(shape) * dtype.itemsize


class _Program:
    """Lines of Python over variables v0, v1, … (slots) and constants c0, c1, …"""

    def __init__(self, needed: set, made: set) -> None:
        self.needed, self.made = needed, made
        self.lines: list[str] = []
        self.constants: dict[str, Any] = {}

    def call(self, call: Call) -> None:
        given = [self.expression(a) for a in call.args]
        given += [f"{k}={self.constant(v)}" for k, v in call.static.items()]
        targets = self.targets(call.result)
        line = f"{self.constant(call.function)}({', '.join(given)})"
        self.lines.append(f"{targets} = {line}" if targets else line)

    def drop(self, slots: Iterable[int]) -> None:
        self.lines += [f"v{int(s)} = None" for s in slots]

    def expression(self, x: Any) -> str:
        if type(x) is Slot:
            return f"v{int(x)}"
        if slots_in(x):
            return "(" + "".join(f"{self.expression(part)}, " for part in x) + ")"
        return self.constant(x)

    def constant(self, value: Any) -> str:
        if value is None or type(value) in (bool, int, str):
            return repr(value)
        name = f"c{len(self.constants)}"
        self.constants[name] = value
        return name

    def targets(self, result: Any) -> str:
        """The left side that takes the new slots someone needs out of a nested result."""
        if not any(s in self.needed and s not in self.made for s in slots_in(result)):
            return ""
        if type(result) is Slot:
            self.made.add(result)
            return f"v{int(result)}"
        return "(" + "".join(f"{self.targets(part) or '_'}, " for part in result) + ")"

    def function(self, inputs: list[int], outputs: Any) -> Callable[..., Any]:
        body = "".join(f"    {line}\n" for line in [*self.lines, f"return {self.expression(outputs)}"])
        exec(compile(f"def replay({', '.join(f'v{s}' for s in inputs)}):\n{body}", "<capture>", "exec"), self.constants)
        return self.constants["replay"]


class Captured:
    """A recorded call: its replay function, and how to rebuild the result."""

    def __init__(self, f: Callable[..., Any], leaves: list[Any], structure: Any) -> None:
        recorder, full = Recorder(), list(leaves)
        self.at = [i for i, x in enumerate(leaves) if array_module(x) is not None]
        for i in self.at:  # copies, since arrays are known by identity and one may be given twice
            full[i] = recorder.wrap(leaves[i].copy())
        token = RECORDER.set(recorder)
        try:
            args, kwargs = tree.unflatten(structure, full)
            out, self.structure = tree.flatten(f(*args, **kwargs))
            if any(type(x) is Traced and x.owner is not recorder for x in out):
                raise TypeError("capture: the function uses a traced array from outside; pass it as an argument")
            if any(callable(x) and not isinstance(x, type) for x in out):
                raise TypeError(
                    "capture: the function returns a function, whose calls would not be part of the record; call the "
                    "pullback or pushforward inside the captured function, and return what it gives"
                )
            # What no op made (zeros, a parameter) must not be one array for all replays
            out = [x if array_module(x) is None else recorder.call(copied, (x,), {}) for x in out]
        except ValueError as error:
            raise_hidden(error, recorder.lost)
            raise
        finally:
            RECORDER.reset(token)
            recorder.alive = False
        replay = compile_program(recorder, [full[i].slot for i in self.at], recorder.template(tuple(out)))
        if recorder.spares_blas:
            replay = one_blas_thread()(replay)
        self.replay = graphed(getattr(f, "__name__", "the function"), replay, recorder)
        self.first = [raw(x) for x in out]
        recorder.known.clear()  # a circle of references, which holds all values until Python looks for circles


def capture(f: Callable[..., Any]) -> Callable[..., Any]:
    """f, recorded once for given shapes and then replayed without tracing.

    f takes and returns pytrees; it may hold transforms (`gl.value_and_grad`), `opt.step` and dropout. The first call
    with new shapes, dtypes or other arguments runs and records it; later calls run the recorded rules on the new
    arrays, with values equal to the last bit. Every other value of a Python number or string is a record of its own,
    of which the last 128 used are kept: give numbers that change as arrays. Arrays of torch and JAX are taken without
    a copy; results are NumPy's or CuPy's.

    Arrays that f uses without taking them as arguments are held by reference: what changes in place (parameters under
    `opt.step`) is seen, a new array under the same name is not. Nor is a change seen through what NumPy computes of
    such arrays alone (`np.sum(W * W)`, `W > 0`): nothing tells gradlib of that, and its result is kept as it was. Take
    W as an argument then.

    Python code of f (printing, counting) runs only while it is recorded. Intermediate results are freed after their
    last use and their memory is used again: on Linux the process keeps up to 256 MB of it.

    On CuPy arrays the second call makes a CUDA graph of the record, with memory of its own; it and later calls copy
    their arguments in, launch the graph on the current stream and copy the results out, without waiting for the device.
    Where the record asks for a value of the device or brings an array from the host, it is replayed call by call
    instead, with a RuntimeWarning that says why.

    Raises TypeError while recording where the result would depend on an array's value outside of array code:
    `if`, `float()`, `int()` of an array, and NumPy calls that do not dispatch; and where f returns a function (a
    pullback), since what that computes is not part of the record.

    >>> import gradlib as gl, numpy as np
    >>> step = gl.capture(gl.grad(lambda x: np.sum(x**2)))
    >>> step(np.ones(2)), step(np.array([3.0, 4.0]))
    (array([2., 2.]), array([6., 8.]))
    """
    programs: OrderedDict[Any, Captured] = OrderedDict()  # the least recently used first
    keep_freed_memory()
    lock = threading.Lock()

    @wraps(f)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        leaves, structure = tree.flatten((args, kwargs))
        kinds = set(map(type, leaves))
        # part of a larger computation, which records it; detect_anomaly looks at traces
        if RECORDER.get() is not None or WATCHER.get() is not None or Traced in kinds:
            return f(*args, **kwargs)
        if not kinds <= OWN:
            leaves = list(map(adopt, leaves))
        key = structure, tuple([(x.shape, x.dtype) if type(x) is np.ndarray else _signature(x) for x in leaves])
        try:
            program = programs.get(key)
        except TypeError:
            raise TypeError(
                f"capture: expected arrays and hashable settings as arguments, got {', '.join(map(describe, leaves))}"
            ) from None
        if program is None:
            with lock:
                program = programs[key] = Captured(f, leaves, structure)
                if len(programs) > _PROGRAMS:
                    programs.popitem(last=False)
                first, program.first = program.first, []
                return tree.unflatten(program.structure, first)
        if len(programs) > 1:
            with suppress(KeyError):  # another thread's record took its place
                programs.move_to_end(key)
        return tree.unflatten(program.structure, program.replay(*[leaves[i] for i in program.at]))

    return wrapped


def _signature(x: Any) -> Any:
    """What a program is recorded for: of an array its shape and dtype, of anything else itself."""
    if type(x) in (float, complex):
        return type(x), repr(x)  # exact; 0.0 and -0.0 are equal, nan is not equal to itself
    module = array_module(x)
    return (type(x), x) if module is None else (module.__name__, x.shape, x.dtype)
