"""Op: one registered operation and its derivative rules.

An op is written once, in plain array code:

    check(*x, **static)                            the only place errors are raised; shapes, dtypes
    forward(xp, *x, **static) -> y, saved          y may be a tuple
    vjp(xp, saved, dy, need, **static)             dy [V, *y] -> one [V, *x] per input, None where need is False
    jvp(xp, saved, dx, **static)                   dx a tuple of [V, *x], None = no tangent -> [V, *y]
    block(xp, saved, i, **static)                  optional: the structured Jacobian of input i
    vjp_each(xp, saved, dy, need, axis, **static)  optional: [V*B, *x] or a factor of each shared input, by sample
    each_takes(shapes, need, axis, static)         optional: whether vjp_each serves the inputs `need`; else it does
    batch(tags, shapes, static)                    optional: where the batch axis goes
    reads                                          optional: for each input, the places of `saved` that its derivative
                                                   is made of; of the others a recorded op keeps the `Form` alone

Every rule takes a stack of V cotangents or tangents at once and broadcasts what the forward pass saved over it.
The statics reach the rules as keywords, so that `saved` holds arrays alone and can be traced in turn.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .device import EXTRA_ARRAYS, SIMULATING, array_module
from .kept import Keeper, Reads, keeper
from .precision import FLOAT32, is_narrow

_add_reduce: Callable[..., Any] = np.add.reduce

#: name -> Op, for the tests that walk over all of them.
REGISTRY: dict[str, Op] = {}


class Dispatching:
    """Marks the namespace that takes traced arrays: no kernel runs under it."""


class Unit(Dispatching):
    """Marks the namespace of a capture, under which a rule runs on concrete arrays and is recorded as a whole."""

    def run(self, op: Op, rule: str, *args: Any, **static: Any) -> Any:
        raise NotImplementedError


class Op:
    """One operation with its rules; calling it computes, and records where an argument is traced."""

    if TYPE_CHECKING:

        def __call__(self, *args: Any, **static: Any) -> Any: ...  # set by gradlib.trace

    __slots__ = (
        "_kernel",
        "batch",
        "block",
        "check",
        "each_takes",
        "forward",
        "jvp",
        "keep",
        "module",
        "name",
        "partials",
        "reads",
        "vjp",
        "vjp_each",
    )

    def __init__(
        self,
        name: str,
        *,
        forward: Callable[..., Any],
        vjp: Callable[..., Any] | None = None,
        jvp: Callable[..., Any] | None = None,
        check: Callable[..., None] | None = None,
        block: Callable[..., Any] | None = None,
        vjp_each: Callable[..., Any] | None = None,
        each_takes: Callable[..., bool] | None = None,
        batch: Callable[..., Any] | None = None,
        partials: tuple = (),
        reads: Reads | Callable[[], Reads] | None = None,
        module: str | None = None,
        registered: bool = True,
    ) -> None:
        self.name, self.forward, self.vjp, self.jvp = name, forward, vjp, jvp
        self.check, self.block, self.batch = check, block, batch
        self.vjp_each, self.each_takes = vjp_each, each_takes
        self.partials = partials  # of an elementwise op: partials[i](xp, *x, y, **static) is ∂y/∂x_i
        self.reads = reads  # or a function that tells, called once it is needed; `saved` then begins with the inputs
        self.keep: Keeper | None = None if reads is None else self._first_keep
        self.module = module or forward.__module__.rpartition(".")[2]
        self._kernel: Any = _UNSOUGHT
        if registered:
            REGISTRY[name] = self

    def __repr__(self) -> str:
        return f"<op {self.name}>"

    @property
    def differentiable(self) -> bool:
        return self.vjp is not None

    @property
    def kernel(self) -> Any:
        """The op's ``Kernel`` in ``gradlib/kernels/<file>.py``, or None."""
        if self._kernel is _UNSOUGHT:
            try:
                file = importlib.import_module(f"gradlib.kernels.{self.module}")
            except ModuleNotFoundError as error:
                if error.name != f"gradlib.kernels.{self.module}":
                    raise
                file = None
            self._kernel = getattr(file, self.name, None)
        return self._kernel

    def _first_keep(self, saved: tuple, slots: Sequence[int], outs: Sequence[Any], form: Any) -> tuple:
        """Find out how to choose among `saved`, and do so."""
        reads = self.reads() if callable(self.reads) else self.reads
        self.keep = keeper(reads or (), len(saved))
        return self.keep(saved, slots, outs, form)

    def run(self, rule: str, xp: Any, *args: Any, **static: Any) -> Any:
        """Call forward, vjp or jvp: the kernel where arrays are on the GPU (or simulated), else the rule in `xp`."""
        if isinstance(xp, Unit):
            return xp.run(self, rule, *args, **static)
        if (xp is not np or SIMULATING.get()) and not isinstance(xp, Dispatching):
            kernel = getattr(self.kernel, rule, None)
            if kernel is not None:
                result = kernel(xp, *args, **static)
                if result is not NotImplemented:
                    return result
        return getattr(self, rule)(xp, *args, **static)


_UNSOUGHT = object()


def shape_of(x: Any) -> tuple[int, ...]:
    """The shape of an array, () of a Python number."""
    return getattr(x, "shape", ())


def describe(x: Any) -> str:
    """How error messages name an argument: ``float32[100, 64]``, ``cupy float32[3]`` or ``str``."""
    if hasattr(x, "shape") and hasattr(x, "dtype"):
        where = "" if array_module(x) in (np, None) else "cupy "
        return f"{where}{x.dtype}[{', '.join(map(str, x.shape))}]"
    return type(x).__name__


def normalize_axis(name: str, axis: Any, ndim: int) -> int:
    """A static axis as a non-negative int; TypeError or ValueError that names the op."""
    try:
        index = axis.__index__()
    except AttributeError:
        raise TypeError(f"{name}: expected an int as axis, got {type(axis).__name__}") from None
    if not -ndim <= index < ndim:
        raise ValueError(f"{name}: axis {index} is out of range for an array of {ndim} dimensions")
    return index + ndim if index < 0 else index


def normalize_axes(name: str, axis: Any, ndim: int) -> tuple[int, ...]:
    """`axis` as NumPy's reductions take it (None, an int, a tuple) as a sorted tuple of non-negative ints."""
    if axis is None:
        return tuple(range(ndim))
    axes = tuple(normalize_axis(name, a, ndim) for a in (axis if isinstance(axis, (tuple, list)) else (axis,)))
    if len(set(axes)) != len(axes):
        raise ValueError(f"{name}: an axis occurs twice in {axis}")
    return tuple(sorted(axes))


def check_broadcast(name: str, *args: Any) -> None:
    """Raise ValueError naming the op unless the arguments' shapes broadcast."""
    shapes = [shape_of(a) for a in args]
    first = shapes[0]
    if all(s == first or not s for s in shapes):
        return
    try:
        np.broadcast_shapes(*shapes)
    except ValueError:
        raise ValueError(f"{name}: shapes do not broadcast: {' and '.join(map(describe, args))}") from None


def total(xp: Any, x: Any, axis: Any, keepdims: bool = False) -> Any:
    """xp.sum, without the Python wrapper around NumPy's (it costs as much as the sum of a small array).

    float16 and bfloat16 are summed in float32.
    """
    if x.dtype.itemsize == 2 and is_narrow(x.dtype):
        return xp.sum(x, axis=axis, keepdims=keepdims, dtype=FLOAT32).astype(x.dtype)
    return _add_reduce(x, axis, keepdims=keepdims) if xp is np else xp.sum(x, axis=axis, keepdims=keepdims)


def unbroadcast(xp: Any, d: Any, shape: tuple[int, ...]) -> Any:
    """Sum a stack d [V, *y.shape] down to [V, *shape], where an input of `shape` was broadcast to y."""
    if d.shape[1:] == shape:
        return d
    lead = d.ndim - 1 - len(shape)
    ones = [i + 1 + lead for i, n in enumerate(shape) if n == 1 and d.shape[i + 1 + lead] != 1]
    axes = (*range(1, lead + 1), *ones)
    if axes:
        d = total(xp, d, axes)
    return d.reshape((d.shape[0], *shape))


def lift(xp: Any, d: Any, ndim: int) -> Any:
    """A stack [V, *x.shape] with axes of size 1 behind V, so that x lines up with a result of rank `ndim`."""
    return d if d.ndim == ndim + 1 else d.reshape((d.shape[0],) + (1,) * (ndim + 1 - d.ndim) + d.shape[1:])


def register_array_type(kind: type, module: Any) -> None:
    """Let arrays of class `kind` pass through the ops, with `module` as their array module."""
    EXTRA_ARRAYS[kind] = module
