"""The transforms of functions: vjp, jvp, linearize, grad, hessian-vector products, over pytrees, at any nesting.

Each runs the function once on traced inputs and walks the recorded graph with stacks of cotangents or tangents.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from operator import itemgetter
from typing import Any

import numpy as np

from . import tree
from .device import adopt, array_module
from .ones import known_ones
from .op import describe
from .ops.nondiff import stopped
from .precision import is_bfloat16, is_floating, is_real
from .storing import raise_hidden
from .sweep import accumulate, sweep_back, sweep_forward
from .trace import RECORDER, Trace, Traced, module_of, raw


class Primals:
    """The differentiated arguments of one call: leaves, their structure, and their slots in the trace."""

    def __init__(self, name: str, trace: Trace, args: tuple) -> None:
        self.trace = trace
        self.leaves, self.structure = tree.flatten(args)
        for i, x in enumerate(self.leaves):
            self.leaves[i] = check_float(name, x, partial(_path, args, i))
        recorder = RECORDER.get()
        if recorder is not None:  # parameters held from outside: what is computed of them is recorded too
            self.leaves = [x if type(x) is Traced else recorder.hold(x) for x in self.leaves]
        self.traced = [trace.wrap(x) for x in self.leaves]
        self.slots = range(len(self.leaves))

    def rebuilt(self) -> tuple:
        return tree.unflatten(self.structure, self.traced)


def _path(args: tuple, i: int) -> str:
    return tree.paths(args)[i]


def check_float(name: str, x: Any, path: Callable[[], str]) -> Any:
    """A leaf that can be differentiated, Python floats as 0-d; TypeError that names op, leaf and what came."""
    if isinstance(x, float):
        return np.asarray(x)
    x = adopt(x)
    if type(x) is not Traced and array_module(x) is None:
        raise TypeError(
            f"{name}: expected floating-point arrays to differentiate, got {type(x).__name__} in argument{path()}"
        )
    if x.dtype.kind != "f" and not is_bfloat16(x.dtype):
        hint = "; cast it with x.astype(float), or leave the argument out of argnums" if x.dtype.kind in "biu" else ""
        raise TypeError(
            f"{name}: expected floating-point arrays to differentiate, got {describe(x)} in argument{path()}{hint}"
        )
    return x


class Outputs:
    """The result of one traced call: concrete leaves, structure, and slots (None where it does not depend)."""

    def __init__(self, name: str, trace: Trace, y: Any) -> None:
        leaves, self.structure = tree.flatten(y)
        self.slots = [x.slot if type(x) is Traced and x.owner is trace else None for x in leaves]
        self.values = [x.value if s is not None else x for x, s in zip(leaves, self.slots, strict=True)]
        for x in self.values:
            if type(x) is not Traced and array_module(x) is None and not isinstance(x, (bool, int, float)):
                raise TypeError(f"{name}: expected the function to return arrays, got {type(x).__name__}")
            if hasattr(x, "dtype") and not is_real(x.dtype):
                raise TypeError(f"{name}: expected the function to return real numbers, got {describe(x)}")

    def rebuilt(self) -> Any:
        return tree.unflatten(self.structure, self.values)


def run(
    name: str, f: Callable[..., Any], primals: tuple, *, has_aux: bool = False, trace: Trace | None = None
) -> tuple[Primals, Outputs, Any]:
    """Call f on traced primals, once: (primals, outputs, auxiliary value or None). `trace`: the one to record on."""
    trace = Trace() if trace is None else trace
    inside = Primals(name, trace, primals)
    try:
        y, aux = f(*inside.rebuilt()), None
        if has_aux:
            if not isinstance(y, tuple) or len(y) != 2:
                raise TypeError(f"{name}: has_aux expects the function to return (value, aux), got {type(y).__name__}")
            y, aux = y[0], tree.map(lambda x: x.value if type(x) is Traced and x.owner is trace else x, y[1])
        return inside, Outputs(name, trace, y), aux
    except ValueError as error:
        raise_hidden(error, trace.lost)
        raise
    finally:
        trace.alive, trace.lost = False, None


def pick(f: Callable[..., Any], argnums: int | tuple[int, ...], args: tuple, kwargs: dict, name: str) -> tuple:
    """(function of the chosen arguments alone, those arguments)."""
    nums = argnums if isinstance(argnums, tuple) else (argnums,)
    for n in nums:
        if not isinstance(n, int) or not -len(args) <= n < len(args):
            raise ValueError(
                f"{name}: argnums {argnums} does not fit a call with {len(args)} positional arguments; "
                "expected an int or a tuple of ints"
            )
    nums = tuple(n % len(args) for n in nums)
    if len(set(nums)) != len(nums):
        raise ValueError(f"{name}: argnums {argnums} names an argument twice")

    def of_chosen(*chosen: Any) -> Any:
        full = list(args)
        for n, x in zip(nums, chosen, strict=True):
            full[n] = x
        return f(*full, **kwargs)

    return of_chosen, tuple(args[n] for n in nums)


def zeros(x: Any, v: int | None = None) -> Any:
    """Zeros like a leaf, or a stack of v of them."""
    return module_of(x).zeros(x.shape if v is None else (v, *x.shape), x.dtype)


def owned(stacks: list[Any], given: list[Any]) -> list[Any]:
    """Cotangents as arrays of their own: copies of what is read-only, shared, or the caller's memory."""
    seen = {id(_root(g)) for g in given}
    result = []
    for d in stacks:
        if type(d) is not Traced:
            root = _root(d)
            if id(root) in seen or not _sole(d):
                d = d.copy()
            seen.add(id(root))
        result.append(d)
    return result


def _root(x: Any) -> Any:
    base = getattr(x, "base", None)
    return x if base is None else base


def _sole(x: Any) -> bool:
    """Whether each entry has memory of its own; CuPy lets arrays that repeat one (stride 0) be written to."""
    if type(x) is np.ndarray:
        return x.flags.writeable
    return all(stride or n < 2 for stride, n in zip(getattr(x, "strides", ()), x.shape, strict=False))


def cotangents_of(name: str, outputs: Outputs, dy: Any) -> list[Any]:
    """Leaves of a cotangent tree, checked against the outputs; each with a stack axis of 1."""
    leaves, structure = tree.flatten(dy)
    if structure != outputs.structure:
        raise ValueError(f"{name}: expected a cotangent of structure {outputs.structure}, got {structure}")
    return [_stack_of_one(name, "cotangent", d, y) for d, y in zip(leaves, outputs.values, strict=True)]


def _stack_of_one(name: str, what: str, d: Any, like: Any) -> Any:
    """A cotangent or tangent of the value `like`, in its dtype, with a stack axis of 1; TypeError or ValueError."""
    if isinstance(d, (int, float)):
        d = np.asarray(d, dtype=getattr(like, "dtype", float))
    d = adopt(d)
    if type(d) is not Traced:
        if array_module(d) is None:
            raise TypeError(f"{name}: expected an array as {what}, got {type(d).__name__}")
        if not is_real(d.dtype):
            raise TypeError(f"{name}: expected an array of real numbers as {what}, got {describe(d)}")
    if d.shape != getattr(like, "shape", ()):
        raise ValueError(f"{name}: expected a {what} of shape {getattr(like, 'shape', ())}, got {describe(d)}")
    here, there = array_module(raw(d)), array_module(raw(like)) or np
    if here is not there:
        if d.shape:
            raise TypeError(f"{name}: the {what} lives on {here.__name__}, the value on {there.__name__}")
        d = there.asarray(d)  # a number
    dtype = getattr(like, "dtype", d.dtype)
    return (d if d.dtype == dtype else d.astype(dtype)).reshape((1, *d.shape))


_first = itemgetter(0)


def alone(d: Any) -> Any:
    """The one member of a stack [1, *x]. A capture records that as it is: nobody differentiates its values."""
    if type(d) is Traced and d.owner.unit is not None:
        return d.owner.call(_first, (d,), {})  # type: ignore[attr-defined]
    return d[0]


def pull(inside: Primals, outputs: Outputs, stacks: list[Any], release: bool = False) -> list[Any]:
    """Cotangent stacks of the outputs -> stacks [V, *x] of the primal leaves."""
    cotangents: list[Any] = [None] * len(inside.trace.outs)
    v = stacks[0].shape[0] if stacks else 1
    for slot, d in zip(outputs.slots, stacks, strict=True):
        if slot is not None and is_floating(inside.trace.outs[slot][1]):
            accumulate(inside.trace, cotangents, slot, d)
    found = sweep_back(inside.trace, cotangents, release)
    return [zeros(x, v) if (d := found[s]) is None else d for s, x in zip(inside.slots, inside.leaves, strict=True)]


def push(inside: Primals, outputs: Outputs, stacks: list[Any], release: bool = False) -> list[Any]:
    """Tangent stacks of the primal leaves -> stacks [V, *y] of the output leaves."""
    v = stacks[0].shape[0] if stacks else 1
    tangents = dict(zip(inside.slots, stacks, strict=True))
    found = sweep_forward(inside.trace, tangents, outputs.slots, release=release)
    result = []
    for slot, y in zip(outputs.slots, outputs.values, strict=True):
        d = None if slot is None else found.get(slot)
        result.append(zeros(y if hasattr(y, "shape") else np.asarray(y), v) if d is None else d)
    return result


def vjp(f: Callable[..., Any], *primals: Any, has_aux: bool = False) -> tuple:
    """Value of f and its pullback: `y, pullback = vjp(f, *primals)`; with `has_aux` also the auxiliary value.

    `pullback(dy)` takes a cotangent of y's structure and gives a tuple, one cotangent per primal. It can be called
    often. Raises TypeError for primals that are not floating point, ValueError for a cotangent that does not fit.

    >>> import gradlib as gl, numpy as np
    >>> y, pullback = gl.vjp(np.sin, np.zeros(3))
    >>> pullback(np.ones(3))[0]
    array([1., 1., 1.])
    """
    inside, outputs, aux = run("vjp", f, primals, has_aux=has_aux)

    def pullback(dy: Any) -> tuple:
        stacks = cotangents_of("pullback", outputs, dy)
        dx = owned(pull(inside, outputs, stacks), stacks)
        return tree.unflatten(inside.structure, [alone(d) for d in dx])

    return (outputs.rebuilt(), pullback, aux) if has_aux else (outputs.rebuilt(), pullback)


def linearize(f: Callable[..., Any], *primals: Any) -> tuple[Any, Callable[..., Any]]:
    """Value of f and its derivative at one point as a linear function: `y, pushforward = linearize(f, *primals)`.

    `pushforward(*tangents)` gives the tangent of y without running f again.

    >>> import gradlib as gl, numpy as np
    >>> y, pushforward = gl.linearize(np.exp, np.zeros(2))
    >>> pushforward(np.array([1.0, 2.0]))
    array([1., 2.])
    """
    inside, outputs, _ = run("linearize", f, primals)

    def pushforward(*tangents: Any) -> Any:
        return _pushed("pushforward", inside, outputs, tangents)

    return outputs.rebuilt(), pushforward


def _pushed(name: str, inside: Primals, outputs: Outputs, tangents: tuple, release: bool = False) -> Any:
    """The tangent of the result, by a tangent for each primal."""
    stacks = _tangents_of(name, inside, tangents)
    dy = owned(push(inside, outputs, stacks, release), stacks)
    return tree.unflatten(outputs.structure, [alone(d) for d in dy])


def _tangents_of(name: str, inside: Primals, tangents: tuple) -> list[Any]:
    leaves, structure = tree.flatten(tuple(tangents))
    if structure != inside.structure:
        raise ValueError(f"{name}: expected tangents of structure {inside.structure}, got {structure}")
    return [_stack_of_one(name, "tangent", d, x) for d, x in zip(leaves, inside.leaves, strict=True)]


def jvp(f: Callable[..., Any], primals: tuple, tangents: tuple) -> tuple[Any, Any]:
    """Value and directional derivative: `y, dy = jvp(f, primals, tangents)`, both tuples of equal structure.

    >>> import gradlib as gl, numpy as np
    >>> float(gl.jvp(np.square, (np.array(3.0),), (np.array(1.0),))[1])
    6.0
    """
    _check_tuples("jvp", primals, tangents)
    inside, outputs, _ = run("jvp", f, tuple(primals))
    return outputs.rebuilt(), _pushed("jvp", inside, outputs, tuple(tangents), release=True)


def _check_tuples(name: str, primals: Any, tangents: Any) -> None:
    if not isinstance(primals, (tuple, list)) or not isinstance(tangents, (tuple, list)):
        raise TypeError(f"{name}: expected a tuple of primals and a tuple of tangents")


def value_and_grad(
    f: Callable[..., Any], argnums: int | tuple[int, ...] = 0, has_aux: bool = False
) -> Callable[..., Any]:
    """Function that gives (f(...), gradient); with `has_aux`, f returns (value, aux) and so does the first part.

    The gradient has the structure of the argument `argnums` names, or is a tuple for several. f must return one
    0-d array; ValueError otherwise. TypeError for arguments that are not floating point.

    >>> import gradlib as gl, numpy as np
    >>> value, gradient = gl.value_and_grad(lambda x: np.sum(x**2))(np.array([1.0, 2.0]))
    >>> float(value), gradient
    (5.0, array([2., 4.]))
    """

    @wraps(f)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return _value_and_grad("value_and_grad", f, argnums, has_aux, args, kwargs)

    return wrapped


def _value_and_grad(name: str, f: Callable[..., Any], argnums: Any, has_aux: bool, args: tuple, kwargs: dict) -> Any:
    of_chosen, primals = pick(f, argnums, args, kwargs, name)
    inside, outputs, aux = run(name, of_chosen, primals, has_aux=has_aux)
    values = outputs.values
    if len(values) != 1 or getattr(values[0], "shape", ()) != ():
        got = ", ".join(map(describe, values)) or "nothing"
        raise ValueError(
            f"{name}: expected the function to return one 0-d array, got {got}; sum it, or take gl.jacobian"
        )
    y = values[0] if hasattr(values[0], "dtype") else np.asarray(values[0], dtype=float)
    seed = known_ones(module_of(y), (1,), y.dtype)
    dx = owned(pull(inside, outputs, [seed], release=True), [])
    gradient = tree.unflatten(inside.structure, [alone(d) for d in dx])
    return ((y, aux) if has_aux else y), (gradient if isinstance(argnums, tuple) else gradient[0])


def grad(f: Callable[..., Any], argnums: int | tuple[int, ...] = 0, has_aux: bool = False) -> Callable[..., Any]:
    """Function that gives the gradient of f; with `has_aux`, (gradient, aux). See `value_and_grad`.

    >>> import gradlib as gl, numpy as np
    >>> gl.grad(lambda x: np.sum(np.sin(x)))(np.zeros(2))
    array([1., 1.])
    """

    @wraps(f)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        value, gradient = _value_and_grad("grad", f, argnums, has_aux, args, kwargs)
        return (gradient, value[1]) if has_aux else gradient

    return wrapped


def hvp(f: Callable[..., Any], primals: tuple, tangents: tuple) -> Any:
    """Hessian-vector product of a scalar function, forward over reverse: ∂²f(primals) · tangents.

    Returns the structure of the one primal, or a tuple for several.

    >>> import gradlib as gl, numpy as np
    >>> gl.hvp(lambda x: np.sum(x**3), (np.array([1.0, 2.0]),), (np.array([1.0, 1.0]),))
    array([ 6., 12.])
    """
    _check_tuples("hvp", primals, tangents)
    every = tuple(range(len(primals)))
    inside, outputs, _ = run("hvp", grad(f, every), tuple(primals))
    product = _pushed("hvp", inside, outputs, tuple(tangents), release=True)
    return product if len(every) > 1 else product[0]


def stop_gradient(x: Any) -> Any:
    """x, through which no derivative passes; any pytree.

    >>> import gradlib as gl
    >>> float(gl.grad(lambda x: x * gl.stop_gradient(x))(3.0))
    3.0
    """
    return tree.map(lambda leaf: stopped(leaf) if type(leaf) is Traced else leaf, x)
