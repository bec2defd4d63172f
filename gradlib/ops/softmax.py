"""softmax, log_softmax and logsumexp along one axis or several, safe for logits of any size and for -inf masks.

    y = exp(x - m) / Σ exp(x - m), m = max x      dx = y (dy - Σ dy y)          Jacobian: diag(y) - y yᵀ
    l = x - logsumexp(x)                          dx = dy - exp(l) Σ dy         Jacobian: I - 1 exp(l)ᵀ
    s = m + log Σ exp(x - m)                      dx = dy exp(x - s)

A row that is all -inf (everything masked) has softmax 0, log_softmax and logsumexp -inf; softmax and logsumexp have
derivative 0 there, log_softmax passes dy.

Masked and causal softmax is softmax over the entries that may be attended to, whatever the others hold, and 0 there:
y_i = 0 makes dx_i = 0 and leaves dy_i out of the sum, so derivative and Jacobian are those of softmax.
Source: Blanchard, Higham & Higham 2021, "Accurately computing the log-sum-exp and softmax functions".
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..device import adopt
from ..jacobian.blocks import DiagonalLowRank, RowGradient
from ..op import Op, describe, normalize_axes, normalize_axis, shape_of, total
from ..precision import is_floating, narrow, smallest, wide
from ..trace import Traced, module_of
from .arithmetic import add, multiply, subtract, where
from .batching import Mixed, elementwise_batch, reduction_batch, same_axes_batch
from .elementwise import exp, log
from .nondiff import equal, isfinite, stopped
from .reduce import max_, sum_
from .shape import broadcast_to, expand_dims, reshape, transpose

SHORT = 32  # entries of a row that NumPy reduces faster as columns


def _shifted(xp: Any, x: Any, axis: int) -> tuple[Any, Any]:
    """x - m and m = max x, at least the smallest finite number, so that x - m is never nan; in the working dtype."""
    x = _wide(x)
    m = xp.maximum(stopped(largest(xp, x, axis)), smallest(x.dtype))
    return x - m, m


def _wide(x: Any) -> Any:
    return wide(x) if x.dtype.itemsize == 2 else x


def largest(xp: Any, x: Any, axis: int) -> Any:
    """max x along `axis`, kept with size 1."""
    return _along(np.maximum, x, axis) if xp is np else xp.max(x, axis=axis, keepdims=True)


def summed(xp: Any, x: Any, axis: int) -> Any:
    """Σ x along `axis`, kept with size 1."""
    return _along(np.add, x, axis) if xp is np else xp.sum(x, axis=axis, keepdims=True)


def _along(ufunc: Any, x: Any, axis: int) -> Any:
    """A reduction by NumPy, which takes the columns of a matrix up to nine times faster than short rows."""
    if axis == x.ndim - 1 > 0 and 0 < x.shape[axis] <= SHORT and x.dtype.itemsize > 2:
        columns = np.ascontiguousarray(x.reshape(-1, x.shape[axis]).T)
        return ufunc.reduce(columns, 0).reshape((*x.shape[:-1], 1))
    return ufunc.reduce(x, axis, keepdims=True)


def _softmax_forward(xp: Any, x: Any, *, axis: int) -> tuple:
    e = xp.exp(_shifted(xp, x, axis)[0])
    s = summed(xp, e, axis)
    y = narrow(e / xp.where(xp.equal(s, 0), 1, s), x.dtype)
    return y, (y,)


def _softmax_vjp(xp: Any, saved: tuple, dy: Any, need: tuple, *, axis: int) -> tuple:
    y, d = _wide(saved[0]), _wide(dy)
    return (narrow(y * (d - summed(xp, d * y, axis + 1)), dy.dtype),)


def _softmax_jvp(xp: Any, saved: tuple, dx: tuple, *, axis: int) -> Any:
    return _softmax_vjp(xp, saved, dx[0], (True,), axis=axis)[0]  # the Jacobian is symmetric


def _softmax_block(xp: Any, saved: tuple, i: int, *, axis: int) -> Any:
    return DiagonalLowRank(saved[0], saved[:1], saved[:1], axis)


def attended(xp: Any, shape: tuple[int, ...], mask: Any, causal: bool) -> Any:
    """Bool array, broadcastable to x of `shape`, of what may be attended to; causal: j <= i + T_k - T_q."""
    if not causal:
        return True if mask is None else mask
    queries, keys = shape[-2:]
    past = xp.arange(keys) <= xp.expand_dims(xp.arange(keys - queries, keys), 1)
    return past if mask is None else xp.logical_and(mask, past)


def _masked_softmax_forward(xp: Any, x: Any, mask: Any = None, *, axis: int, causal: bool) -> tuple:
    y, _ = _softmax_forward(xp, xp.where(attended(xp, x.shape, mask, causal), _wide(x), -math.inf), axis=axis)
    y = narrow(y, x.dtype)
    return y, (y,)


def _masked_softmax_vjp(xp: Any, saved: tuple, dy: Any, need: tuple, *, axis: int, causal: bool) -> tuple:
    return (_softmax_vjp(xp, saved, dy, need, axis=axis)[0] if need[0] else None, None)[: len(need)]


def _masked_softmax_jvp(xp: Any, saved: tuple, dx: tuple, *, axis: int, causal: bool) -> Any:
    return _softmax_jvp(xp, saved, dx, axis=axis)


def _masked_softmax_block(xp: Any, saved: tuple, i: int, *, axis: int, causal: bool) -> Any:
    return _softmax_block(xp, saved, i, axis=axis) if i == 0 else None


def _masked_softmax_batch(tags: tuple, shapes: tuple, static: dict) -> Any:
    """The samples' axis of logits and mask must be the same one, and not `axis`."""
    tag = elementwise_batch(tags, shapes, static)
    if type(tag) is Mixed:
        return Mixed("softmax", tag.why)
    if tag is not None and tag.axis == static["axis"] - len(shapes[0]):
        return Mixed("softmax", "works along the batch axis")
    return tag


def _log_softmax_forward(xp: Any, x: Any, *, axis: int) -> tuple:
    shifted, _ = _shifted(xp, x, axis)
    s = summed(xp, xp.exp(shifted), axis)
    y = narrow(shifted - xp.log(xp.where(xp.equal(s, 0), 1, s)), x.dtype)
    return y, (y,)


def _log_softmax_vjp(xp: Any, saved: tuple, dy: Any, need: tuple, *, axis: int) -> tuple:
    d = _wide(dy)
    return (narrow(d - xp.exp(_wide(saved[0])) * summed(xp, d, axis + 1), dy.dtype),)


def _log_softmax_jvp(xp: Any, saved: tuple, dx: tuple, *, axis: int) -> Any:
    d = _wide(dx[0])
    return narrow(d - summed(xp, d * xp.exp(_wide(saved[0])), axis + 1), dx[0].dtype)


def _log_softmax_block(xp: Any, saved: tuple, i: int, *, axis: int) -> Any:
    one = xp.ones(saved[0].shape, saved[0].dtype)
    return DiagonalLowRank(one, (one,), (xp.exp(saved[0]),), axis)


def _logsumexp_forward(xp: Any, x: Any, *, axis: int, keepdims: bool) -> tuple:
    shifted, m = _shifted(xp, x, axis)
    s = summed(xp, xp.exp(shifted), axis)
    empty = xp.equal(s, 0)
    y = narrow(xp.where(empty, -math.inf, m + xp.log(xp.where(empty, 1, s))), x.dtype)
    y = y if keepdims else xp.squeeze(y, axis=axis)
    return y, (x, y)


def _probabilities(xp: Any, saved: tuple, axis: int, keepdims: bool) -> Any:
    """exp(x - s), normalised anew: the rounding of a large s (1e4 in float32) would cost 1e-3 of it. x narrow: in
    float32."""
    x, y = map(_wide, saved)
    y = y if keepdims else xp.expand_dims(y, axis)
    e = xp.exp(x - xp.where(xp.equal(y, -math.inf), 0, y))
    s = summed(xp, e, axis)
    return e / xp.where(xp.equal(s, 0), 1, s)


def _logsumexp_vjp(xp: Any, saved: tuple, dy: Any, need: tuple, *, axis: int, keepdims: bool) -> tuple:
    dy = dy if keepdims else xp.expand_dims(dy, axis + 1)
    return (narrow(_wide(dy) * _probabilities(xp, saved, axis, keepdims), dy.dtype),)


def _logsumexp_jvp(xp: Any, saved: tuple, dx: tuple, *, axis: int, keepdims: bool) -> Any:
    d = total(xp, _wide(dx[0]) * _probabilities(xp, saved, axis, keepdims), axis + 1, keepdims)
    return narrow(d, dx[0].dtype)


def _logsumexp_block(xp: Any, saved: tuple, i: int, *, axis: int, keepdims: bool) -> Any:
    return RowGradient(narrow(_probabilities(xp, saved, axis, keepdims), saved[0].dtype), (axis,), keepdims)


def _axis_batch(name: str) -> Any:
    return same_axes_batch(name, lambda static: static["axis"])


def _logsumexp_batch(tags: tuple, shapes: tuple, static: dict) -> Any:
    return reduction_batch("logsumexp")(tags, shapes, {**static, "axis": (static["axis"],)})


_softmax = Op(
    "softmax",
    forward=_softmax_forward,
    vjp=_softmax_vjp,
    jvp=_softmax_jvp,
    block=_softmax_block,
    batch=_axis_batch("softmax"),
)
_masked_softmax = Op(
    "masked_softmax",
    forward=_masked_softmax_forward,
    vjp=_masked_softmax_vjp,
    jvp=_masked_softmax_jvp,
    block=_masked_softmax_block,
    batch=_masked_softmax_batch,
)
_log_softmax = Op(
    "log_softmax",
    forward=_log_softmax_forward,
    vjp=_log_softmax_vjp,
    jvp=_log_softmax_jvp,
    block=_log_softmax_block,
    batch=_axis_batch("log_softmax"),
)
_logsumexp = Op(
    "logsumexp",
    forward=_logsumexp_forward,
    vjp=_logsumexp_vjp,
    jvp=_logsumexp_jvp,
    block=_logsumexp_block,
    batch=_logsumexp_batch,
)


def _axis(name: str, x: Any, axis: int) -> int:
    """The checked axis: floating-point x with at least one entry along it."""
    if not hasattr(x, "dtype") or not is_floating(x.dtype):
        raise TypeError(f"{name}: expected a floating-point array, got {describe(x)}")
    axis = normalize_axis(name, axis, len(shape_of(x)))
    if not x.shape[axis]:
        raise ValueError(f"{name}: expected at least one entry along axis {axis}, got {describe(x)}")
    return axis


def _check_mask(name: str, x: Any, axis: int, mask: Any, causal: bool) -> None:
    if not isinstance(causal, (bool, np.bool_)):
        raise TypeError(f"{name}: expected True or False as causal, got {describe(causal)}")
    if causal and axis != x.ndim - 1:
        raise ValueError(f"{name}: causal needs the last axis, got axis {axis} of {describe(x)}")
    if causal and x.ndim < 2:
        raise ValueError(f"{name}: causal needs two axes (T_q, T_k), got {describe(x)}")
    if mask is None:
        return
    if getattr(mask, "dtype", None) != np.bool_:
        raise TypeError(f"{name}: expected a mask of bools, True = attend, got {describe(mask)}")
    lead, sizes = x.ndim - mask.ndim, mask.shape
    if lead < 0 or any(m not in (1, n) for m, n in zip(sizes, x.shape[lead:], strict=True)):
        raise ValueError(f"{name}: the mask must broadcast to x: {describe(mask)} and {describe(x)}")


def _rows(name: str, x: Any, axis: Any) -> tuple[Any, tuple[int, ...], tuple[int, ...]]:
    """x with several axes (None: all) merged into its last one; these axes, and the order that brought them there."""
    if not hasattr(x, "dtype") or not is_floating(x.dtype):
        raise TypeError(f"{name}: expected a floating-point array, got {describe(x)}")
    axes = normalize_axes(name, axis, x.ndim)
    keep = [i for i in range(x.ndim) if i not in axes]
    count = math.prod([x.shape[i] for i in axes])
    if not count:
        raise ValueError(f"{name}: expected at least one entry along axis {axis}, got {describe(x)}")
    return reshape(transpose(x, (*keep, *axes)), (*[x.shape[i] for i in keep], count)), axes, (*keep, *axes)


def _along_many(name: str, f: Any, x: Any, axis: Any, mask: Any, causal: bool) -> Any:
    """f along the merged axes, whose result has the shape of x."""
    if mask is not None or causal is not False:
        raise ValueError(f"{name}: mask and causal need one axis, got {axis}")
    rows, _, order = _rows(name, x, axis)
    y = reshape(f(rows), tuple(x.shape[i] for i in order))
    return transpose(y, [order.index(i) for i in range(x.ndim)])


def softmax(x: Any, axis: Any = -1, *, mask: Any = None, causal: bool = False) -> Any:
    """exp(x) / Σ exp(x) along `axis`. x: (..., C) floating point; the result has its shape and dtype.

    axis: one, a tuple of several, or None for all entries.
    mask: bools that broadcast to x, True = attend; the sum is over those entries, the others are 0 and may hold any
    number, NaN too. causal: the last two axes are (T_q, T_k), and query i attends to keys j <= i + T_k - T_q, besides
    what the mask says. A row without any entry to attend to, or that is all -inf, gives 0 and has derivative 0.

    Raises TypeError for other dtypes, ValueError for an empty axis, a mask that does not broadcast to x, causal along
    another axis than the last, and both of them along several axes.

    >>> import gradlib as gl, numpy as np
    >>> gl.softmax(np.array([0.0, -np.inf, 0.0]))
    array([0.5, 0. , 0.5])
    >>> gl.softmax(np.zeros((2, 2)), causal=True)
    array([[1. , 0. ],
           [0.5, 0.5]])
    """
    x = adopt(x)
    if axis is None or type(axis) is tuple:
        return _along_many("softmax", softmax, x, axis, mask, causal)
    axis = _axis("softmax", x, axis)
    if mask is None and causal is False:
        return _softmax(x, axis=axis)
    mask = adopt(mask)
    _check_mask("softmax", x, axis, mask, causal)
    return _masked_softmax(x, *(() if mask is None else (mask,)), axis=axis, causal=bool(causal))


def log_softmax(x: Any, axis: Any = -1, *, mask: Any = None, causal: bool = False) -> Any:
    """x - log Σ exp(x) along `axis`. x: (..., C) floating point; the result has its shape and dtype.

    axis, mask, causal: as for `softmax`; what is not attended to gives -inf and has derivative 0. Raises as `softmax`
    does.

    >>> import gradlib as gl, numpy as np
    >>> gl.log_softmax(np.array([1e4, 0.0]))
    array([     0., -10000.])
    """
    x = adopt(x)
    if axis is None or type(axis) is tuple:
        return _along_many("log_softmax", log_softmax, x, axis, mask, causal)
    axis = _axis("log_softmax", x, axis)
    if mask is None and causal is False:
        return _log_softmax(x, axis=axis)
    mask = adopt(mask)
    _check_mask("log_softmax", x, axis, mask, causal)
    # the inner choice keeps masked entries out of the sum, the outer one their dy out of the derivative
    keep = attended(module_of(x), x.shape, mask, causal)
    y = where(keep, _log_softmax(where(keep, _wide(x), -math.inf), axis=axis), -math.inf)
    return narrow(y, x.dtype)


def logsumexp(x: Any, axis: Any = -1, keepdims: bool = False, *, b: Any = None) -> Any:
    """log Σ b exp(x) along `axis`, which goes unless `keepdims`. x: (..., C) floating point.

    axis: one, a tuple of several, or None for all entries. b: weights that broadcast with x, 1 if not given; NaN where
    Σ b exp(x) < 0. Raises TypeError for other dtypes, ValueError for an empty axis.

    >>> import gradlib as gl, numpy as np
    >>> float(gl.logsumexp(np.array([1e4, -np.inf])))
    10000.0
    """
    x = adopt(x)
    if b is not None:
        return _weighted(x, axis, bool(keepdims), b)
    if axis is None or type(axis) is tuple:
        rows, axes, _ = _rows("logsumexp", x, axis)
        y = _logsumexp(rows, axis=rows.ndim - 1, keepdims=False)
        return expand_dims(y, axes) if keepdims else y
    return _logsumexp(x, axis=_axis("logsumexp", x, axis), keepdims=bool(keepdims))


def _weighted(x: Any, axis: Any, keepdims: bool, b: Any) -> Any:
    """m + log Σ b exp(x - m) with m = max x; an x that a constant b of 0 leaves out may hold any number."""
    x = broadcast_to(x, np.broadcast_shapes(shape_of(x), shape_of(b)))
    if type(b) is not Traced:
        x = where(equal(b, 0), -math.inf, x)
    axes = normalize_axes("logsumexp", axis, x.ndim)
    m = stopped(max_(x, axes, keepdims=True))
    m = where(isfinite(m), m, 0.0)
    s = sum_(multiply(b, exp(subtract(x, m))), axes, keepdims=True)
    none = equal(s, 0)
    y = where(none, -math.inf, add(m, log(where(none, 1.0, s))))
    return y if keepdims else reshape(y, tuple(n for i, n in enumerate(x.shape) if i not in axes))
