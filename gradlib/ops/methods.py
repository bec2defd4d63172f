"""The operators and methods of a traced array, each the handler of the NumPy function of the same meaning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..op import describe
from ..trace import HANDLERS, Traced, lose_trace
from ..traced import numpys
from . import (
    arithmetic,
    cumulative,
    elementwise,
    index,
    masked,
    matmul,
    nondiff,
    numeric,
    picking,
    questions,
    reduce,
    shape,
)
from .building import compress
from .join import as_array

_UNUSUAL = frozenset({type(None), str, list, tuple})


def _in_place(name: str) -> Callable[..., Any]:
    """x.sort() and x.partition() would change x: it says what to write."""

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise lose_trace(f"x.{name}()", f"write y = np.{name}(x)")

    return method


def _view(a: Any, dtype: Any = None) -> Any:
    """x.view() is x, which nothing changes."""
    if dtype is not None and dtype is not np.ndarray and np.dtype(dtype) != a.dtype:
        raise lose_trace(
            f"x.view({np.dtype(dtype)}), its bits as other numbers,", "write x.astype(dtype) for its values"
        )
    return elementwise.positive(a)


_BINARY: dict[str, Callable[..., Any]] = {
    "add": arithmetic.add,
    "sub": arithmetic.subtract,
    "mul": arithmetic.multiply,
    "truediv": arithmetic.divide,
    "mod": numeric.mod,
    "pow": arithmetic.power,
    "matmul": matmul.matmul,
    "floordiv": nondiff.floor_divide,
    "and": nondiff.bitwise_and,
    "or": nondiff.bitwise_or,
    "xor": nondiff.bitwise_xor,
}
_COMPARISONS: dict[str, Callable[..., Any]] = {
    "eq": nondiff.equal,
    "ne": nondiff.not_equal,
    "lt": nondiff.less,
    "le": nondiff.less_equal,
    "gt": nondiff.greater,
    "ge": nondiff.greater_equal,
}
_UNARY: dict[str, Callable[..., Any]] = {
    "neg": elementwise.negative,
    "pos": elementwise.positive,
    "abs": elementwise.absolute,
    "invert": nondiff.invert,
}
_METHODS: dict[str, Callable[..., Any]] = {
    "sum": masked.sum_,
    "mean": masked.mean,
    "prod": masked.prod,
    "max": masked.max_,
    "min": masked.min_,
    "var": masked.var,
    "std": masked.std,
    "cumsum": reduce.cumsum,
    "clip": arithmetic.clip,
    "squeeze": shape.squeeze,
    "ravel": shape.ravel,
    "flatten": shape.ravel,
    "swapaxes": shape.swapaxes,
    "astype": shape.astype,
    "dot": matmul.dot,
    "take": picking.take,
    "diagonal": picking.diagonal,
    "trace": picking.trace,
    "argmax": HANDLERS[np.argmax],
    "argmin": HANDLERS[np.argmin],
    "argsort": HANDLERS[np.argsort],
    "all": HANDLERS[np.all],
    "any": HANDLERS[np.any],
    "nonzero": questions.nonzero,
    "searchsorted": questions.searchsorted,
    "cumprod": cumulative.cumprod,
    "round": nondiff.round_,
    "conj": elementwise.positive,
    "conjugate": elementwise.positive,
    "compress": lambda a, condition, axis=None: compress(condition, a, axis),
    "sort": _in_place("sort"),
    "partition": _in_place("partition"),
    "repeat": picking.repeat,
    "copy": lambda a, order="C": elementwise.positive(a),
    "view": _view,
}


def _operator(call: Callable[..., Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The method and its reflected twin. Lists become arrays; what NumPy cannot handle gets its own turn."""

    def method(self: Any, other: Any) -> Any:
        if type(other) in _UNUSUAL:
            return call(self, as_array(other, self)) if isinstance(other, (list, tuple)) else NotImplemented
        return call(self, other)

    def reflected(self: Any, other: Any) -> Any:
        if type(other) in _UNUSUAL:
            return call(as_array(other, self), self) if isinstance(other, (list, tuple)) else NotImplemented
        return call(other, self)

    return method, reflected


def _many(call: Callable[..., Any]) -> Callable[..., Any]:
    """reshape(2, 3) as well as reshape((2, 3)); the same for transpose."""

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        one = len(args) == 1 and (args[0] is None or isinstance(args[0], (tuple, list)))
        return call(self, args[0] if one else (args or None), **kwargs)

    return method


for _name, _call in _BINARY.items():
    _method, _reflected = _operator(_call)
    setattr(Traced, f"__{_name}__", _method)
    setattr(Traced, f"__r{_name}__", _reflected)
for _name, _call in _COMPARISONS.items():
    setattr(Traced, f"__{_name}__", _operator(_call)[0])
for _name, _call in _UNARY.items():
    setattr(Traced, f"__{_name}__", lambda self, _call=_call: _call(self))


_REDUCTIONS = ("sum", "mean", "prod", "max", "min", "var", "std")


def _reducing(call: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """x.sum() and its kin; as np.sum for a capture."""

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.owner.unit is not None and (y := numpys(function, (self, *args), kwargs)) is not NotImplemented:
            return y
        return call(self, *args, **kwargs)

    return method


for _name, _call in _METHODS.items():
    setattr(Traced, _name, lambda self, *args, _call=_call, **kwargs: _call(self, *args, **kwargs))
_divmod, _rdivmod = _operator(numeric.divmod_)


def _round(self: Any, ndigits: int | None = None) -> Any:
    """round(x) of a number: plain, an integer without `ndigits`."""
    if self.shape:
        raise TypeError(f"round: expected a number, got {describe(self)}; use np.round")
    y = nondiff.round_(self, ndigits or 0)
    return y.astype(int) if ndigits is None else y


_REST: dict[str, Any] = {
    "__round__": _round,
    "__divmod__": _divmod,
    "__rdivmod__": _rdivmod,
    "__getitem__": index.getitem,
    **{name: _reducing(_METHODS[name], getattr(np, name)) for name in _REDUCTIONS},
    "reshape": _many(shape.reshape),
    "transpose": _many(shape.transpose),
    "T": property(shape.transpose),
    "flat": property(shape.ravel),
    "mT": property(shape.matrix_transpose),
    "real": property(elementwise.positive),
    "imag": property(numeric.imag),
}
for _name, _value in _REST.items():
    setattr(Traced, _name, _value)
