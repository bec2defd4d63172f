"""The array that records its use: NumPy's protocols, operators and questions about values, and its array namespace.

What a traced array does with a NumPy function stands in tables that ``gradlib.ops`` fills; recording itself is in
``gradlib.trace``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from . import tree
from .device import OWN, array_module
from .op import Dispatching, describe
from .storing import storing

if TYPE_CHECKING:
    from .trace import Trace


#: NumPy function or ufunc -> our function with the same signature, filled by ``gradlib.ops``.
HANDLERS: dict[Any, Callable[..., Any]] = {}

#: NumPy function with `like=` -> ours, which gets the traced array it should be like first.
CREATORS: dict[Any, Callable[..., Any]] = {}

#: NumPy function whose own values a capture gives -> the keywords with which it does, None for always.
NUMPYS: dict[Any, frozenset[str] | None] = {}

#: Name of a function that is not supported -> what to write instead, filled by ``gradlib.ops.alternatives``.
ALTERNATIVES: dict[str, str] = {}


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
            creator = CREATORS.get(twin)
            handler = HANDLERS.get(twin, _unsupported(name))

            def found(*args: Any, **kwargs: Any) -> Any:
                if not _any_traced(args):
                    return function(*args, **kwargs)
                return handler(*args, **kwargs) if creator is None else creator(_first_traced(args), *args, **kwargs)

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


def _first_traced(args: Sequence[Any]) -> Any:
    for a in args:
        found = _first_traced(a) if type(a) in (list, tuple) else a
        if type(found) is Traced:
            return found
    return None


def _unsupported(name: str) -> Callable[..., NoReturn]:
    def fail(*args: Any, **kwargs: Any) -> NoReturn:
        family = ALTERNATIVES.get(
            name.partition(".")[0], "rewrite it with supported functions, or give its derivative in gl.custom_rules"
        )
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


_WHOLE = frozenset({"accumulate", "outer", "reduce", "reduceat"})  # methods of ufuncs that change no argument
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
    def itemsize(self) -> int:
        return self.value.itemsize

    @property
    def strides(self) -> tuple[int, ...]:
        return raw(self).strides

    @property
    def device(self) -> Any:
        """Where the array lives, as NumPy ("cpu") or CuPy says it."""
        return getattr(raw(self), "device", "cpu")  # NumPy's scalars have none before 2.1

    def to_device(self, device: Any, /, *, stream: Any = None) -> Traced:
        """x itself: a derivative does not move between devices."""
        if device != self.device:
            raise ValueError(f"to_device: a traced array stays on {self.device}; move the inputs with gl.to_device")
        return self

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
        """The value inside, unless a capture would freeze what depends on it, or y[i] = traced lose its trace."""
        stored = storing(sys._getframe(2))
        if stored is not None:
            self.owner.lost = lose_trace(stored, _INSTEAD)
            raise self.owner.lost
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

    def __trunc__(self) -> int:
        return int(self._concrete("math.trunc()"))

    def __format__(self, spec: str) -> str:
        return format(self._concrete("formatting"), spec) if spec else str(self)

    def item(self, *at: Any) -> Any:
        return self._concrete("item()").item(*at)

    def tolist(self) -> Any:
        return self._concrete("tolist()").tolist()

    def __copy__(self) -> Traced:
        return self  # nothing changes it

    def __deepcopy__(self, memo: Any) -> Traced:
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise lose_trace("pickling", "return it from the differentiated function, and pickle what that gives")

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
        if self.owner.unit is not None and (method in _WHOLE or (method == "__call__" and ufunc not in HANDLERS)):
            y = self.owner.own_function(getattr(ufunc, method), inputs, kwargs)
            if y is not NotImplemented:
                return y
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
        if self.owner.unit is not None and func in NUMPYS:
            y = numpys(func, args, kwargs)
            if y is not NotImplemented:
                return y
        handler = HANDLERS.get(func) or _unsupported(f"{func.__module__}.{func.__name__}".removeprefix("numpy."))
        return handler(*args, **kwargs)


def numpys(function: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    """NumPy's own function, recorded whole where all values are a capture's alone; else NotImplemented.

    The uncaptured function calls it too, and a replay gives the same to the last bit.
    """
    keywords = NUMPYS[function]
    if keywords is not None and keywords.isdisjoint(kwargs):
        return NotImplemented
    traced = next((x for x in (*args, *kwargs.values()) if type(x) is Traced), None)
    if traced is None or traced.owner.unit is None:
        return NotImplemented
    return traced.owner.own_function(function, args, kwargs)


tree.LEAVES.add(Traced)
tree.PLAIN.add(Traced)
OWN.add(Traced)
