"""What follows the products of a transformer's block, as one op: bias, activation, dropout, residual.

    y = residual + act(x + b) m,   m = mask / (1 - rate)      s = act'(x + b) m
    dx = dy s     db = Σ dy s over all leading axes     dresidual = dy

Saved are x and b, what they add up to is calculated again; the mask is drawn again from seed and counter, as in
`dropout`, whose mask it is.
"""

from __future__ import annotations

from typing import Any

from ..device import adopt
from ..jacobian.blocks import Diagonal, Identity, RepeatedDiagonal
from ..jacobian.factors import Rows, rows_by_sample
from ..op import Op, describe, lift, shape_of, total
from ..precision import is_floating, narrow, wide, working
from .activations import ACTIVATIONS, slope
from .batching import elementwise_batch
from .dropout import Generator, check_rate, drawn, mask_scale


def _forward(
    xp: Any, x: Any, b: Any, residual: Any, seed: Any, counter: Any, *, activation: str | None, rate: float
) -> tuple:
    dtype = xp.result_type(*[a.dtype for a in (x, b, residual) if a is not None])
    y = _activated(xp, wide(x) if b is None else wide(x) + wide(b), activation)
    like = xp.broadcast_to(xp.zeros((), x.dtype), x.shape)  # only for its shape
    saved = (None if activation is None else x, b, seed, counter, like)
    if seed is not None:
        y = y * mask_scale(xp, like, seed, counter, rate, 0)
    y = y if residual is None else wide(residual) + y
    return (y + 0 if y is x else narrow(y, dtype)), saved  # never the input itself


def _activated(xp: Any, z: Any, activation: str | None) -> Any:
    if activation is None:
        return z
    a = ACTIVATIONS[activation]
    return a.op.forward(xp, z, **a.static)[0]


def _slope(xp: Any, saved: tuple, activation: str | None, rate: float, first: int) -> Any:
    """act'(x + b) m, or None for 1."""
    *summands, seed, counter, like = saved
    (x, b), s = map(wide, summands), None
    if activation is not None:
        z = x if b is None else x + b
        y = _activated(xp, z, activation) if ACTIVATIONS[activation].from_output else z  # else only its dtype counts
        s = slope(xp, activation, z, y)
        s = narrow(s, working(like.dtype))
    if seed is not None:
        m = mask_scale(xp, like, seed, counter, rate, first)
        s = m if s is None else s * m
    return s


def _vjp(xp: Any, saved: tuple, dy: Any, need: tuple, *, activation: str | None, rate: float, first: int = 0) -> tuple:
    dz = None
    if need[0] or need[1]:
        s = _slope(xp, saved, activation, rate, first)
        dz = dy if s is None else narrow(wide(dy) * s, dy.dtype)
    db = total(xp, dz, tuple(range(1, dy.ndim - 1))) if need[1] else None
    return dz if need[0] else None, db, dy if need[2] else None, None, None


def _jvp(xp: Any, saved: tuple, dx: tuple, *, activation: str | None, rate: float, first: int = 0) -> Any:
    shape = saved[-1].shape
    parts = [lift(xp, wide(d), len(shape)) for d in dx[:2] if d is not None]
    dy: Any = None
    if parts:
        s = _slope(xp, saved, activation, rate, first)
        dz = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        dy = dz if s is None else dz * s
    if dx[2] is not None:
        dy = dx[2] if dy is None else dy + wide(dx[2])
    dy = narrow(dy, xp.result_type(*[d.dtype for d in dx if d is not None]))
    return dy if dy.shape[1:] == shape else xp.broadcast_to(dy, (dy.shape[0], *shape))


def _vjp_each(
    xp: Any, saved: tuple, dy: Any, need: tuple, axis: int, *, activation: str | None, rate: float, first: int = 0
) -> tuple:
    """Of a bias that all samples share."""
    s = _slope(xp, saved, activation, rate, first)
    rows = rows_by_sample(dy if s is None else narrow(wide(dy) * s, dy.dtype), axis, 1)
    return None, Rows(total(xp, rows, 2)), None, None, None


def _block(xp: Any, saved: tuple, i: int, *, activation: str | None, rate: float, first: int = 0) -> Any:
    like = saved[-1]
    if i > 2:
        return None
    s = None if i == 2 else _slope(xp, saved, activation, rate, first)
    s = None if s is None else narrow(s, like.dtype)
    if i == 1:
        return RepeatedDiagonal(like, like.shape, s)
    return Identity(like, like.shape) if s is None else Diagonal(s)


_bias_dropout_add = Op(
    "bias_dropout_add",
    forward=_forward,
    vjp=_vjp,
    jvp=_jvp,
    vjp_each=_vjp_each,
    each_takes=lambda shapes, need, axis, static: not (need[0] or need[2] or axis == -1),
    block=_block,
    batch=lambda tags, shapes, static: elementwise_batch(tags[:3], shapes[:3], static),
)


def bias_dropout_add(
    x: Any,
    b: Any = None,
    residual: Any = None,
    *,
    activation: str | None = None,
    rate: float = 0.0,
    rng: Generator | None = None,
) -> Any:
    """residual + dropout(act(x + b)), in one pass over memory on a GPU. x: (..., D) floating point, at least 1-D.

    b: (D,), or None for no bias. residual: the shape of x, or None for none. activation: None or one of those of
    `gl.linear`. rng: a `gl.Generator`, which counts one call on if rate > 0; None for evaluation, without dropout. The
    mask is that of `gl.dropout`: equal seeds and counters give what the functions give one after the other.

    Raises TypeError for other dtypes and another rng, ValueError for shapes that do not fit, an unknown activation and
    a rate outside [0, 1).

    >>> import gradlib as gl, numpy as np
    >>> gl.bias_dropout_add(np.array([[-3.0, 1.0]]), np.ones(2), np.full((1, 2), 10.0), activation="relu")
    array([[10., 12.]])
    """
    x, b, residual = adopt(x), adopt(b), adopt(residual)
    _check(x, b, residual, activation, rate, rng)
    seed = counter = None
    if rng is not None and rate:
        seed, counter = rng.seed, drawn(rng)
    return _bias_dropout_add(x, b, residual, seed, counter, activation=activation, rate=float(rate))


def _check(x: Any, b: Any, residual: Any, activation: Any, rate: Any, rng: Any) -> None:
    for name, a in (("x", x), ("b", b), ("residual", residual)):
        if (a is not None or name == "x") and (not hasattr(a, "dtype") or not is_floating(a.dtype)):
            raise TypeError(f"bias_dropout_add: expected floating-point {name}, got {describe(a)}")
    if not shape_of(x):
        raise ValueError(f"bias_dropout_add: expected x (..., D), got {describe(x)}")
    if b is not None and shape_of(b) != x.shape[-1:]:
        raise ValueError(f"bias_dropout_add: expected b of shape {x.shape[-1:]} for x {describe(x)}, got {describe(b)}")
    if residual is not None and residual.shape != x.shape:
        raise ValueError(
            f"bias_dropout_add: expected residual of the shape of x {describe(x)}, got {describe(residual)}"
        )
    if activation is not None and activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ValueError(f"bias_dropout_add: expected activation None or one of {known}, got {activation!r}")
    check_rate("bias_dropout_add", rate)
    if rng is not None and not isinstance(rng, Generator):
        raise TypeError(f"bias_dropout_add: expected a gl.Generator or None as rng, got {type(rng).__name__}")
