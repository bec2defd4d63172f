"""Elementwise ops of several arguments: arithmetic, extrema, where, clip. Rules follow from the partials alone.

Conventions where a function has no derivative: ties of `maximum` and `minimum` share it equally; x**y at x = 0 has
∂/∂x = 0 for y = 0 and ∂/∂y = 0; `clip` passes it at both bounds.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..jacobian.blocks import Select
from ..op import Op, check_broadcast, lift, shape_of, unbroadcast
from ..trace import CREATORS, HANDLERS, Traced
from .batching import elementwise_batch
from .elementwise import square
from .pointwise import elementwise

add = elementwise("add", lambda xp, a, b: a + b, 1, 1, module="arithmetic")
subtract = elementwise("subtract", lambda xp, a, b: a - b, 1, -1, module="arithmetic")
multiply = elementwise(
    "multiply", lambda xp, a, b: a * b, lambda xp, a, b, y: b, lambda xp, a, b, y: a, module="arithmetic"
)
divide = elementwise(
    "divide",
    lambda xp, a, b: a / b,
    lambda xp, a, b, y: _inverse(b),
    lambda xp, a, b, y: -y / b,
    module="arithmetic",
)


def _inverse(b: Any) -> Any:
    """1 / b; infinite for a Python number 0, as for an array's."""
    return 1 / b if type(b) not in (int, float) or b else math.copysign(math.inf, b)


def _nonzero_or(xp: Any, test: Any, instead: float, x: Any) -> Any:
    """x, and `instead` where `test` is 0; a Python number stays one, so that it does not widen float32."""
    if isinstance(test, (int, float)):
        return x if test else instead
    return xp.where(xp.equal(test, 0), instead, x)


def _power_da(xp: Any, a: Any, b: Any, y: Any) -> Any:
    # b a^(b-1), and 0 where b = 0, also at a = 0
    return b * xp.power(a, _nonzero_or(xp, b, 1.0, b - 1))


def _power_db(xp: Any, a: Any, b: Any, y: Any) -> Any:
    # y log(a), and 0 where a = 0 (0^b stays 0 for b > 0)
    a = _nonzero_or(xp, a, 1.0, a)
    if isinstance(a, (int, float)):
        return y * (math.log(a) if a > 0 else math.nan)
    return y * xp.log(a)


_power = elementwise("power", lambda xp, a, b: xp.power(a, b), _power_da, _power_db, module="arithmetic")


def power(a: Any, b: Any) -> Any:
    """a**b; a constant exponent of 2 takes the cheaper square."""
    if type(b) in (int, float) and b == 2 and (type(b) is int or a.dtype.kind == "f"):
        return square(a)
    return _power(a, b)


def _share(xp: Any, a: Any, b: Any, y: Any) -> Any:
    """1 where a is the extremum, ½ where both are, 0 elsewhere."""
    if xp is np and not np.equal(a, b).any():
        return np.equal(a, y)  # without ties a mask says it all
    mine, other = xp.equal(a, y), xp.equal(b, y)
    return mine.astype(y.dtype) / xp.maximum(mine.astype(y.dtype) + other.astype(y.dtype), 1)


def _extremum(name: str) -> Op:
    return elementwise(
        name,
        lambda xp, a, b: getattr(xp, name)(a, b),
        lambda xp, a, b, y: _share(xp, a, b, y),
        lambda xp, a, b, y: _share(xp, b, a, y),
        module="arithmetic",
    )


maximum, minimum, fmax, fmin = map(_extremum, ("maximum", "minimum", "fmax", "fmin"))
hypot = elementwise(
    "hypot",
    lambda xp, a, b: xp.hypot(a, b),
    lambda xp, a, b, y: _unit(xp, a, y),
    lambda xp, a, b, y: _unit(xp, b, y),
    module="arithmetic",
)


def _unit(xp: Any, a: Any, length: Any) -> Any:
    """a / length, and 0 where that is 0, at any order."""
    zero = xp.equal(length, 0)
    return xp.where(zero, 0, a / xp.where(zero, 1, length))


# b / r² and -a / r² with r = hypot(a, b): a² + b² itself would overflow, or underflow
arctan2 = elementwise(
    "arctan2",
    lambda xp, a, b: xp.arctan2(a, b),
    lambda xp, a, b, y: _over_square(b, xp.hypot(a, b)),
    lambda xp, a, b, y: -_over_square(a, xp.hypot(a, b)),
    module="arithmetic",
)


def _over_square(a: Any, r: Any) -> Any:
    return a / r / r


# log(exp(a) + exp(b)): partials exp(a - y), exp(b - y)
logaddexp = elementwise(
    "logaddexp",
    lambda xp, a, b: xp.logaddexp(a, b),
    lambda xp, a, b, y: _exp_difference(xp, a, y),
    lambda xp, a, b, y: _exp_difference(xp, b, y),
    module="arithmetic",
)


def _exp_difference(xp: Any, a: Any, y: Any) -> Any:
    # at y = -inf (both arguments -inf) the difference is nan; no derivative passes there
    return xp.exp(xp.where(xp.equal(a, -np.inf), -np.inf, a - xp.where(xp.equal(y, -np.inf), 0.0, y)))


# where: the branch not taken passes exactly 0, even under an infinite cotangent (0 · inf would be nan).
def _where_forward(xp: Any, c: Any, a: Any, b: Any) -> tuple:
    y = xp.where(c, a, b)
    return y, (c, a, b, y)


def _where_vjp(xp: Any, saved: tuple, dy: Any, need: tuple) -> tuple:
    c, a, b, _ = saved
    da = unbroadcast(xp, xp.where(c, dy, 0), shape_of(a)) if need[1] else None
    db = unbroadcast(xp, xp.where(c, 0, dy), shape_of(b)) if need[2] else None
    return None, da, db


def _where_jvp(xp: Any, saved: tuple, dx: tuple) -> Any:
    c, _, _, y = saved
    v = next(d.shape[0] for d in dx if d is not None)
    da, db = [0 if d is None else lift(xp, d, y.ndim) for d in dx[1:]]
    return xp.broadcast_to(xp.where(c, da, db), (v, *y.shape))


def _where_block(xp: Any, saved: tuple, i: int) -> Any:
    c, y = saved[0], saved[-1]
    if not i or shape_of(saved[i]) != y.shape:
        return None
    passes = xp.not_equal(c, 0) if i == 1 else xp.equal(c, 0)
    return Select(xp.empty((), y.dtype), xp.broadcast_to(passes, y.shape))


_where = Op(
    "where",
    check=lambda c, a, b: check_broadcast("where", c, a, b),
    forward=_where_forward,
    vjp=_where_vjp,
    jvp=_where_jvp,
    block=_where_block,
    batch=elementwise_batch,
    reads=((), (0,), (0,)),
)


def where(condition: Any, *branches: Any) -> Any:
    if len(branches) != 2:
        raise NotImplementedError(
            "where: give both branches, np.where(condition, a, b); one argument has no derivative"
        )
    a, b = branches
    if type(condition) in _LISTS or type(a) in _LISTS or type(b) in _LISTS:
        like = next((x for x in (condition, a, b) if type(x) is Traced), None)
        condition, a, b = (CREATORS[np.asarray](like, x) if type(x) in _LISTS else x for x in (condition, a, b))
    return _where(condition, a, b)


_LISTS = frozenset({list, tuple})


def _clip_f(xp: Any, x: Any, *, low: float | None, high: float | None) -> Any:
    return xp.clip(x, low, high)


def _clip_df(xp: Any, x: Any, y: Any, *, low: float | None, high: float | None) -> Any:
    return xp.equal(x, y).astype(y.dtype)


_clip = elementwise("clip", _clip_f, _clip_df, module="arithmetic")


def clip(a: Any, a_min: Any = None, a_max: Any = None, out: Any = None, *, min: Any = None, max: Any = None) -> Any:
    """np.clip; array bounds are composed of `maximum` and `minimum`."""
    if out is not None:
        raise TypeError("clip: out= would lose the derivative of a traced array; use the result instead")
    low, high = a_min if a_min is not None else min, a_max if a_max is not None else max
    if all(b is None or type(b) in (int, float) for b in (low, high)):
        return _clip(a, low=low, high=high)
    a = a if low is None else maximum(a, low)
    return a if high is None else minimum(a, high)


HANDLERS.update(
    {
        np.add: add,
        np.subtract: subtract,
        np.multiply: multiply,
        np.divide: divide,
        np.power: power,
        np.maximum: maximum,
        np.minimum: minimum,
        np.fmax: fmax,
        np.fmin: fmin,
        np.hypot: hypot,
        np.arctan2: arctan2,
        np.logaddexp: logaddexp,
        np.where: where,
        np.clip: clip,
    }
)
