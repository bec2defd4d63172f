"""Functions recorded as one op: checkpoint (recompute instead of keeping) and custom_rules.

The floating-point leaves of the arguments are the op's inputs; everything else is passed along. One level down, the
whole function is recorded again, so both hold under every transform and at every order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np

from . import tree
from .device import adopt
from .op import Op, describe, shape_of
from .ops.dropout import same_masks
from .trace import RECORDER, WATCHER, Namespace, Traced
from .transforms import pull, push, run, zeros


class _Leaves:
    """The leaves of a tree: some that an op takes or gives, in the places `at`, and others that are passed along."""

    at: list[int]

    def __init__(self, whole: Any) -> None:
        self.leaves, self.structure = tree.flatten(whole)

    def rebuilt(self, some: Any, others: Callable[[Any], Any] = lambda x: x) -> Any:
        """The tree with `some` in their places."""
        full = list(map(others, self.leaves))
        for i, x in zip(self.at, some, strict=True):
            full[i] = x
        return tree.unflatten(self.structure, full)


class _Arguments(_Leaves):
    """Those of a call; an op takes the floating-point ones."""

    def __init__(self, args: tuple) -> None:
        super().__init__(args)
        self.leaves = [np.asarray(x) if isinstance(x, float) else adopt(x) for x in self.leaves]
        self.at = [i for i, x in enumerate(self.leaves) if getattr(getattr(x, "dtype", None), "kind", "") == "f"]

    def floats(self) -> list[Any]:
        return [self.leaves[i] for i in self.at]


class _Result(_Leaves):
    """Those of a function's result; an op gives the arrays, which are not kept here."""

    def __init__(self, name: str, y: Any) -> None:
        super().__init__(y)
        self.at = [i for i, x in enumerate(self.leaves) if hasattr(x, "shape")]
        if not self.at:
            raise TypeError(f"{name}: expected the function to return at least one array, got {describe(y)}")

    def take(self) -> tuple:
        """The arrays, which are let go."""
        arrays = tuple([self.leaves[i] for i in self.at])
        for i in self.at:
            self.leaves[i] = None
        return arrays

    def rebuilt_alone(self, some: Any) -> Any:
        """The tree with `some` in their places, and None for the others."""
        return self.rebuilt(some, lambda x: None)


def _level(x: Any) -> int:
    return x.owner.level if type(x) is Traced else 0


def _as_one_op(
    name: str, f: Callable[..., Any], make_rules: Callable[..., dict[str, Any]], again: bool
) -> Callable[..., Any]:
    """f, recorded as one op; `make_rules(f, arguments, [_Result])` gives its vjp and jvp.

    again: whether the rules call f; the masks of dropout are then the same.
    """

    @wraps(f)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if any(type(x) is Traced for x in tree.flatten(kwargs)[0]):
            raise TypeError(f"{name}: pass arrays that are differentiated by position, not by keyword")
        if again and WATCHER.get() is not None:  # detect_anomaly looks at f's own ops
            return f(*args, **kwargs)
        arguments = _Arguments(args)
        top = max(map(_level, arguments.floats()), default=0)
        if not top:
            return f(*args, **kwargs)
        result: list[_Result] = []
        counters: list[Any] = []  # of the masks drawn

        def call(*args: Any, of: Callable[..., Any] = f) -> Any:
            with same_masks(counters):
                return of(*args, **kwargs)

        def forward(xp: Any, *floats: Any) -> tuple:
            counters.clear()  # a capture runs it at every replay
            # Below a function that runs again, a capture has to see the single ops, or it would freeze their masks
            whole = type(xp) is Namespace and not (again and RECORDER.get() is not None)
            y = call(*arguments.rebuilt(floats), of=wrapped if whole else f)
            found = _Result(name, y)
            arrays = found.take()
            if any(_level(x) >= top for x in arrays):
                raise TypeError(f"{name}: the function uses a traced array from outside; pass it as an argument")
            result.append(found)
            return arrays, (floats, arrays)

        op = Op(name, forward=forward, registered=False, **make_rules(call, arguments, result))
        y = op(*arguments.floats())
        return result[0].rebuilt(y)

    return wrapped


def checkpoint(f: Callable[..., Any]) -> Callable[..., Any]:
    """f, whose intermediate values are not kept for the backward pass but computed again there.

    A decorator, valid under every transform. Arguments and result are pytrees; leaves that are no arrays pass as they
    are, but for Python floats among the arguments, which are 0-d arrays. Memory falls to that of the arguments
    and results, for one more evaluation of f, in which dropout draws the same masks again. TypeError when f uses a
    traced array that is not a positional argument, or returns no array.

    >>> import gradlib as gl, numpy as np
    >>> gl.grad(lambda x: np.sum(gl.checkpoint(np.sin)(x)))(np.zeros(2))
    array([1., 1.])
    """

    def rules(call: Callable[..., Any], arguments: _Arguments, result: list) -> dict[str, Any]:
        def again(floats: Any) -> Any:
            def arrays(*x: Any) -> tuple:
                return _Result("checkpoint", call(*arguments.rebuilt(x))).take()

            return run("checkpoint", arrays, tuple(floats))

        def vjp(xp: Any, saved: tuple, dy: Any, need: tuple) -> tuple:
            inside, outputs, _ = again(saved[0])
            return tuple(d if n else None for d, n in zip(pull(inside, outputs, list(dy)), need, strict=True))

        def jvp(xp: Any, saved: tuple, dx: tuple) -> tuple:
            inside, outputs, _ = again(saved[0])
            return tuple(push(inside, outputs, _filled(saved[0], dx)))

        return {"vjp": vjp, "jvp": jvp}

    return _as_one_op("checkpoint", f, rules, again=True)


def _own(d: Any) -> Any:
    """A stack that a rule of the user's may write to: the sweep's own may be used again, or be known to be ones."""
    return d if type(d) is Traced else d.copy()


def _filled(floats: Any, dx: tuple) -> list[Any]:
    """Tangent stacks with zeros where there is none."""
    v = next(d.shape[0] for d in dx if d is not None)
    return [zeros(x, v) if d is None else d for x, d in zip(floats, dx, strict=True)]


def custom_rules(vjp: Callable[..., Any] | None = None, jvp: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """Decorator that gives a function derivative rules of its own, for stacks of V derivatives at once.

    `vjp(primals, y, dy)`: the tuple of arguments, the result, and a stack [V, *y] (a pytree of stacks for a pytree);
    it returns a tuple with one stack [V, *x] (or None for zero) per argument. `jvp(primals, y, dx)`: dx is a tuple of
    stacks [V, *x]; it returns [V, *y]. Rules are written with `np.*` and `gl.*`, and are differentiated in turn for
    higher orders. A mode whose rule is missing raises NotImplementedError.

    >>> import gradlib as gl, numpy as np
    >>> @gl.custom_rules(vjp=lambda primals, y, dy: (np.clip(dy, -1, 1),))
    ... def identity_with_clipped_gradient(x):
    ...     return x + 0.0
    >>> float(gl.grad(lambda x: 5 * identity_with_clipped_gradient(x))(2.0))
    1.0
    """

    def decorate(f: Callable[..., Any]) -> Callable[..., Any]:
        name = getattr(f, "__name__", "custom_rules")

        def rules(call: Callable[..., Any], arguments: _Arguments, result: list) -> dict[str, Any]:
            def pull_back(xp: Any, saved: tuple, dy: Any, need: tuple) -> tuple:
                if vjp is None:
                    raise NotImplementedError(f"{name}: custom_rules was given no vjp rule")
                floats, y = saved
                primals = arguments.rebuilt(floats)
                given = result[0].rebuilt_alone([_own(d) for d in dy])
                got = vjp(primals, result[0].rebuilt(y), given)
                return _stacks(f"{name}: its vjp rule", got, primals, arguments, dy[0].shape[0])

            def push_forward(xp: Any, saved: tuple, dx: tuple) -> tuple:
                if jvp is None:
                    raise NotImplementedError(f"{name}: custom_rules was given no jvp rule")
                floats, y = saved
                tangents = arguments.rebuilt([_own(d) for d in _filled(floats, dx)], others=lambda x: None)
                got = jvp(arguments.rebuilt(floats), result[0].rebuilt(y), tangents)
                leaves, structure = tree.flatten(got)
                wanted = tree.flatten(result[0].rebuilt_alone(y))[1]
                v = next(d.shape[0] for d in dx if d is not None)
                if structure != wanted or any(d.shape != (v, *a.shape) for d, a in zip(leaves, y, strict=True)):
                    raise ValueError(
                        f"{name}: its jvp rule should return stacks of shape {[(v, *a.shape) for a in y]}, got "
                        f"{', '.join(map(describe, leaves))}"
                    )
                return tuple(leaves)

            return {"vjp": pull_back, "jvp": push_forward}

        return _as_one_op(name, f, rules, again=False)

    return decorate


def _stacks(name: str, got: Any, primals: tuple, arguments: _Arguments, v: int) -> tuple:
    """The rule's result as one stack per floating-point leaf of the arguments."""
    if not isinstance(got, (tuple, list)) or len(got) != len(primals):
        raise ValueError(f"{name} should return a tuple of {len(primals)} cotangents, got {describe(got)}")
    stacks: list[Any] = []
    for d, x in zip(got, primals, strict=True):
        wanted = tree.flatten(x)[0]
        stacks += [None] * len(wanted) if d is None else _padded(tree.flatten(d)[0], wanted, name)
    chosen = [stacks[i] for i in arguments.at]
    for d, x in zip(chosen, arguments.floats(), strict=True):
        if d is not None and shape_of(d) != (v, *x.shape):
            raise ValueError(f"{name} should return a stack of shape {(v, *x.shape)}, got {describe(d)}")
    return tuple(chosen)


def _padded(given: list[Any], wanted: list[Any], name: str) -> list[Any]:
    if len(given) != len(wanted):
        raise ValueError(f"{name} should return {len(wanted)} stacks for an argument of {len(wanted)} leaves")
    return given
