"""rms_norm: rows divided by their root mean square, then scaled by entry.

    r = 1 / sqrt(mean x² + eps)    x̂ = x r    y = x̂ w
    dx = r (t - x̂ mean(t x̂)), t = dy w        dw = Σ dy x̂ over rows
    Jacobian of a row: diag(w r) - w r x̂ x̂ᵀ/D, a diagonal minus rank one

Saved is r, one number a row. Rows of any size that fits the dtype are normalised.
Source: Zhang & Sennrich 2019, "Root Mean Square Layer Normalization" (arXiv:1910.07467).
"""

from __future__ import annotations

from typing import Any

from ..device import adopt
from ..jacobian.blocks import DiagonalLowRank
from ..op import Op
from ..precision import narrow, wide
from .norm_rows import (
    batch_rule,
    check,
    loops,
    parameter_block,
    plain_rows,
    pulled,
    pulled_each,
    pushed,
    result_dtype,
    row_scale,
    scaled,
    statistics,
)


def _forward(xp: Any, x: Any, w: Any = None, *, eps: float) -> tuple:
    if (fast := loops(xp, x, w)) and (found := fast.forward(x, w, None, eps, False)):
        y, _, r = found
        return y, (x, r, w)
    d, _, r = statistics(xp, wide(x), eps, plain_rows)
    return narrow(scaled(d * r, w, None), result_dtype(x, w)), (x, r, w)


def _xhat(saved: tuple) -> Any:
    x, r, _ = saved
    return wide(x) * r


def _vjp(xp: Any, saved: tuple, dy: Any, need: tuple, *, eps: float) -> tuple:
    x, r, w = saved
    if fast := loops(xp, x, r, w, dy):
        return tuple(fast.cotangents(x, None, r, w, dy, need, False))
    return tuple(pulled(xp, _xhat(saved), r, w, dy, need, False))


def _jvp(xp: Any, saved: tuple, dx: tuple, *, eps: float) -> Any:
    x, r, w = saved
    return narrow(pushed(xp, _xhat(saved), r, w, dx, False), result_dtype(x, w))


def _vjp_each(xp: Any, saved: tuple, dy: Any, need: tuple, axis: int, *, eps: float) -> tuple:
    return pulled_each(xp, _xhat(saved), dy, need, axis)


def _block(xp: Any, saved: tuple, i: int, *, eps: float) -> Any:
    x, r, w = saved
    xhat = _xhat(saved)
    if i:
        return parameter_block(x, xhat, i)
    d = row_scale(xp, x, r, w)
    return DiagonalLowRank(d, (d * xhat,), (xhat / x.shape[-1],), x.ndim - 1)


_rms_norm = Op(
    "rms_norm", forward=_forward, vjp=_vjp, jvp=_jvp, vjp_each=_vjp_each, block=_block, batch=batch_rule("rms_norm")
)


def rms_norm(x: Any, weight: Any = None, *, eps: float = 1e-6) -> Any:
    """x / sqrt(mean x² + eps) · weight, the mean over the last axis.

    x: (..., D) floating point. weight: (D,) or None for 1. The result has the shape of x; float16 and bfloat16 are
    computed in float32. The semantics are those of `torch.nn.functional.rms_norm` over the last axis, with eps spelled
    out.

    Raises TypeError for other dtypes, ValueError for empty rows, shapes that do not fit, and eps that is not positive.

    >>> import gradlib as gl, numpy as np
    >>> gl.rms_norm(np.array([[3.0, 4.0, 0.0, 0.0]]), 0.5 * np.ones(4)).round(3)
    array([[0.6, 0.8, 0. , 0. ]])
    """
    x, weight = adopt(x), adopt(weight)
    eps = check("rms_norm", x, eps, weight=weight)
    return _rms_norm(x, eps=eps) if weight is None else _rms_norm(x, weight, eps=eps)
