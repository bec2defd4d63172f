"""layer_norm: rows with mean 0 and variance 1, then scaled and shifted by entry.

    μ = mean x    r = 1 / sqrt(mean (x - μ)² + eps)    x̂ = (x - μ) r    y = x̂ w + b
    dx = r (t - mean t - x̂ mean(t x̂)), t = dy w        dw = Σ dy x̂      db = Σ dy over rows
    Jacobian of a row: diag(w r) - w r 1ᵀ/D - w r x̂ x̂ᵀ/D, a diagonal minus rank two

Saved are μ and r, two numbers a row. The variance is a mean of squared deviations (two passes), and μ is corrected
once, so rows of one repeated number give exactly b, and rows of any size that fits the dtype are normalised.
Source: Ba, Kiros & Hinton 2016, "Layer Normalization" (arXiv:1607.06450).
"""

from __future__ import annotations

from typing import Any

from ..device import adopt
from ..jacobian.blocks import DiagonalLowRank
from ..op import Op
from ..precision import narrow, wide
from .norm_rows import (
    batch_rule,
    centred_rows,
    check,
    loops,
    parameter_block,
    pulled,
    pulled_each,
    pushed,
    result_dtype,
    row_scale,
    scaled,
    statistics,
)


def _forward(xp: Any, x: Any, w: Any = None, b: Any = None, *, eps: float) -> tuple:
    if (fast := loops(xp, x, w, b)) and (found := fast.forward(x, w, b, eps, True)):
        y, m, r = found
        return y, (x, m, r, w)
    d, m, r = statistics(xp, wide(x), eps, centred_rows)
    return narrow(scaled(d * r, w, b), result_dtype(x, w, b)), (x, m, r, w)


def _xhat(saved: tuple) -> Any:
    x, m, r, _ = saved
    return (wide(x) - m) * r


def _vjp(xp: Any, saved: tuple, dy: Any, need: tuple, *, eps: float) -> tuple:
    x, m, r, w = saved
    if fast := loops(xp, x, m, r, w, dy):
        return tuple(fast.cotangents(x, m, r, w, dy, need, True))
    return tuple(pulled(xp, _xhat(saved), r, w, dy, need, True))


def _jvp(xp: Any, saved: tuple, dx: tuple, *, eps: float) -> Any:
    x, _, r, w = saved
    return narrow(pushed(xp, _xhat(saved), r, w, dx, True), result_dtype(x, w))


def _vjp_each(xp: Any, saved: tuple, dy: Any, need: tuple, axis: int, *, eps: float) -> tuple:
    return pulled_each(xp, _xhat(saved), dy, need, axis)


def _block(xp: Any, saved: tuple, i: int, *, eps: float) -> Any:
    x, _, r, w = saved
    xhat = _xhat(saved)
    if i:
        return parameter_block(x, xhat, i)
    d, each = row_scale(xp, x, r, w), row_scale(xp, x, r / x.shape[-1], w)
    ones = xp.broadcast_to(xp.ones(1, d.dtype), x.shape)
    return DiagonalLowRank(d, (each, each * xhat), (ones, xhat), x.ndim - 1)


_layer_norm = Op(
    "layer_norm",
    forward=_forward,
    vjp=_vjp,
    jvp=_jvp,
    vjp_each=_vjp_each,
    block=_block,
    batch=batch_rule("layer_norm"),
)


def layer_norm(x: Any, weight: Any = None, bias: Any = None, *, eps: float = 1e-5) -> Any:
    """(x - mean) / sqrt(variance + eps) · weight + bias, mean and variance over the last axis.

    x: (..., D) floating point. weight, bias: (D,) or None for 1 and 0. The variance is that of D entries (not D - 1).
    The result has the shape of x; float16 and bfloat16 are computed in float32. The semantics are torch's
    (`torch.nn.functional.layer_norm` over the last axis); for more axes reshape x.

    Raises TypeError for other dtypes, ValueError for empty rows, shapes that do not fit, and eps that is not positive.

    >>> import gradlib as gl, numpy as np
    >>> gl.layer_norm(np.array([[1.0, 3.0], [1e6, 1e6]]), bias=np.ones(2)).round(4)
    array([[0., 2.],
           [1., 1.]])
    """
    x, weight, bias = adopt(x), adopt(weight), adopt(bias)
    eps = check("layer_norm", x, eps, weight=weight, bias=bias)
    if bias is not None:
        return _layer_norm(x, weight, bias, eps=eps)
    return _layer_norm(x, eps=eps) if weight is None else _layer_norm(x, weight, eps=eps)
