"""check_grads: derivatives against central differences, along random directions, to any order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import tree
from .transforms import jvp, vjp


def _randn_like(x: Any, rng: np.random.Generator) -> Any:
    x = np.asarray(x)
    return rng.standard_normal(x.shape).astype(x.dtype)


def _moved(args: tuple, tangents: tuple, step: float) -> tuple:
    return tree.map(lambda x, t: x + step * t, args, tangents)


def _dot(a: Any, b: Any) -> float:
    pairs = zip(tree.flatten(a)[0], tree.flatten(b)[0], strict=True)
    return float(sum(np.vdot(np.asarray(x, float), np.asarray(y, float)) for x, y in pairs))


def _compare(what: str, order: int, got: float, want: float, atol: float, rtol: float) -> None:
    if not abs(got - want) <= atol + rtol * abs(want):
        raise AssertionError(f"check_grads: {what} of order {order} gives {got:.10g}, central differences {want:.10g}")


def check_grads(
    f: Callable[..., Any],
    args: tuple,
    order: int = 2,
    modes: tuple[str, ...] = ("fwd", "rev"),
    *,
    eps: float = 1e-5,
    atol: float = 1e-6,
    rtol: float = 1e-5,
    seed: int = 0,
) -> None:
    """Raise AssertionError unless f's derivatives up to `order` agree with central differences.

    f takes and returns pytrees of float64 NumPy arrays; one random direction an order and mode. With t a random
    tangent and c a random cotangent, ⟨c, jvp(t)⟩ and ⟨vjp(c), t⟩ are compared with ⟨c, (f(x+εt) - f(x-εt)) / 2ε⟩.
    Raises ValueError for other modes, or an order below 1.

    >>> import gradlib as gl, numpy as np
    >>> gl.check_grads(np.sin, (np.linspace(0, 1, 5),))
    """
    if not modes or isinstance(modes, str) or not set(modes) <= {"fwd", "rev"}:
        raise ValueError(f'check_grads: expected modes of "fwd" and "rev", got {modes!r}')
    if order < 1:
        raise ValueError(f"check_grads: expected order >= 1, got {order}")
    _check(f, args, range(1, order + 1), modes, (eps, atol, rtol), seed)


def _check(f: Callable[..., Any], args: tuple, orders: range, modes: tuple[str, ...], limits: tuple, seed: int) -> None:
    """Compare the first derivatives of f, which are those of order orders[0] asked for, then go on to the next."""
    eps, atol, rtol = limits
    rng = np.random.default_rng(seed)
    args = tuple(tree.map(lambda x: np.asarray(x, np.float64), a) for a in args)
    tangents = tree.map(lambda x: _randn_like(x, rng), args)
    ahead, behind = (f(*_moved(args, tangents, step)) for step in (eps, -eps))
    y = f(*args)
    c = tree.map(lambda v: _randn_like(v, rng), y)
    want = _dot(c, tree.map(lambda a, b: (np.asarray(a) - np.asarray(b)) / (2 * eps), ahead, behind))
    if "fwd" in modes:
        _compare("jvp", orders[0], _dot(c, jvp(f, args, tangents)[1]), want, atol, rtol)
    if "rev" in modes:
        _compare("vjp", orders[0], _dot(vjp(f, *args)[1](c), tangents), want, atol, rtol)
    if len(orders) > 1:
        derivatives = {"fwd": lambda *x: jvp(f, x, tangents)[1], "rev": lambda *x: vjp(f, *x)[1](c)}
        for mode in modes:
            _check(derivatives[mode], args, orders[1:], modes, limits, seed + 1)
