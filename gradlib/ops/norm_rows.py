"""What layer_norm and rms_norm share: rows divided by their root mean square, and the derivatives of that.

    d = x - mean x, or x itself     r = 1 / sqrt(mean d² + eps)     x̂ = d r     y = x̂ w + b
    dx = r (t - mean t - x̂ mean(t x̂)), t = dy w      dw = Σ dy x̂ over rows      db = Σ dy over rows

The map t -> dx is symmetric, so that of tangents is the same with w behind it; without centring, mean t is left out.
float16 and bfloat16 are computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..jacobian.blocks import RepeatedDiagonal
from ..jacobian.factors import Rows
from ..op import describe, shape_of, total
from ..precision import is_floating, narrow, wide
from .batching import Mixed
from .nondiff import known, stopped

#: Entries of x from which a compiled loop is used for NumPy arrays, and of a row up to which its plain sums are good.
LEAST, LONGEST = 1 << 13, 1 << 14

#: A power of two that takes the squares of any finite numbers back into range.
SHRINK = {np.dtype("float32"): 2.0**-80, np.dtype("float64"): 2.0**-600}


def mean(xp: Any, t: Any) -> Any:
    """Over the last axis, kept with size 1."""
    return total(xp, t, -1, keepdims=True) / t.shape[-1]


def centred_rows(xp: Any, x: Any) -> tuple[Any, Any]:
    """(x - mean, mean). The mean is corrected by that of what is left, since it is first rounded at the size of x."""
    first = stopped(mean(xp, x))
    d = x - first
    left = mean(xp, d)
    return d - left, first + left


def plain_rows(xp: Any, x: Any) -> tuple[Any, None]:
    return x, None


def statistics(xp: Any, x: Any, eps: float, rows: Callable[..., Any]) -> tuple[Any, Any, Any]:
    """(d, mean, r) for `rows` one of the two above."""
    with np.errstate(over="ignore", invalid="ignore"):
        d, m = rows(xp, x)
        v = mean(xp, d * d)
        fits = xp.isfinite(v)
        if known(fits):
            return d, m, 1 / xp.sqrt(v + eps)
        return _shrunk_statistics(xp, x, eps, rows, fits)


def _shrunk_statistics(xp: Any, x: Any, eps: float, rows: Callable[..., Any], fits: Any) -> tuple[Any, Any, Any]:
    """The same, where squares or sums of some rows would overflow: those are first made smaller by a power of two."""
    k = xp.where(fits, 1.0, SHRINK[x.dtype]).astype(x.dtype)
    d, m = rows(xp, x * k)
    least = xp.maximum(k * k * eps, float(np.finfo(x.dtype).tiny))
    return d / k, None if m is None else m / k, k / xp.sqrt(mean(xp, d * d) + least)


def loops(xp: Any, x: Any, *others: Any) -> Any:
    """The module of compiled loops where it serves these arrays and pays, else None."""
    if xp is not np or x.size < LEAST or x.shape[-1] > LONGEST or x.dtype not in SHRINK:
        return None
    if any(a is not None and (type(a) is not np.ndarray or a.dtype != x.dtype) for a in (x, *others)):
        return None
    from ..kernels import norm_loops

    return norm_loops


def scaled(xhat: Any, w: Any, b: Any) -> Any:
    y = xhat if w is None else xhat * wide(w)
    return y if b is None else y + wide(b)


def result_dtype(*arrays: Any) -> Any:
    return np.result_type(*[a.dtype for a in arrays if a is not None])


def projected(xp: Any, xhat: Any, r: Any, t: Any, centred: bool) -> Any:
    """r (t - mean t - x̂ mean(t x̂)) for a stack t [V, *x]."""
    left = t - xhat * mean(xp, t * xhat)
    return r * (left - mean(xp, t) if centred else left)


def pulled(xp: Any, xhat: Any, r: Any, w: Any, dy: Any, need: tuple, centred: bool) -> list[Any]:
    """Cotangents [x, w, b] where needed, of a stack dy, in its dtype."""
    dtype, dy = dy.dtype, wide(dy)
    dx = projected(xp, xhat, r, scaled(dy, w, None), centred) if need[0] else None
    dw = _over_rows(xp, dy * xhat) if len(need) > 1 and need[1] else None
    db = _over_rows(xp, dy) if len(need) > 2 and need[2] else None
    return [d if d is None else narrow(d, dtype) for d in (dx, dw, db)[: len(need)]]


def _over_rows(xp: Any, d: Any) -> Any:
    return total(xp, d, tuple(range(1, d.ndim - 1))) if d.ndim > 2 else d


def pushed(xp: Any, xhat: Any, r: Any, w: Any, dx: tuple, centred: bool) -> Any:
    """The tangent of y for tangents (x, w, b), None where there is none."""
    v = next(d.shape[0] for d in dx if d is not None)
    parts = []
    if dx[0] is not None:
        parts.append(scaled(projected(xp, xhat, r, wide(dx[0]), centred), w, None))
    for i, d in enumerate(dx[1:]):
        if d is not None:
            d = xp.reshape(wide(d), (v, *(1,) * (xhat.ndim - 1), d.shape[1]))
            parts.append(xhat * d if i == 0 else xp.broadcast_to(d, (v, *xhat.shape)))
    return sum(parts[1:], parts[0])


def pulled_each(xp: Any, xhat: Any, dy: Any, need: tuple, axis: int) -> tuple:
    """Per-sample cotangents of w and b, [V, B, D]: sums over all axes but the batch's, `axis` from the right."""
    dtype, dy = dy.dtype, wide(dy)
    others = tuple(a for a in range(1, dy.ndim - 1) if a != dy.ndim + axis)

    def summed(d: Any) -> Rows:
        return Rows(narrow(total(xp, d, others) if others else d, dtype))

    dw = summed(dy * xhat) if need[1] else None
    db = summed(dy) if len(need) > 2 and need[2] else None
    return (None, dw, db)[: len(need)]


def row_scale(xp: Any, x: Any, r: Any, w: Any) -> Any:
    """r w for every entry of x, in the working dtype: the diagonal of the rows' Jacobians."""
    return xp.broadcast_to(r, x.shape) if w is None else r * wide(w)


def parameter_block(x: Any, xhat: Any, i: int) -> RepeatedDiagonal:
    """∂y_nj/∂w_k = x̂_nj δ_jk and ∂y_nj/∂b_k = δ_jk."""
    return RepeatedDiagonal(x, x.shape, xhat if i == 1 else None)


def batch_rule(name: str) -> Callable[..., Any]:
    def batch(tags: tuple, shapes: tuple, static: dict) -> Any:
        if any(tags[1:]):
            return Mixed(name, "takes weights that differ between samples; multiply and add them behind it")
        if tags[0] and tags[0].axis == -1:
            return Mixed(name, "works along the batch axis")
        return tags[0]

    return batch


def check(name: str, x: Any, eps: Any, **vectors: Any) -> float:
    """eps as a float, where x and the named vectors fit."""
    for label, a in (("x", x), *vectors.items()):
        if a is not None and (not hasattr(a, "dtype") or not is_floating(a.dtype)):
            raise TypeError(f"{name}: expected floating-point {label}, got {describe(a)}")
    if not shape_of(x) or not x.shape[-1]:
        raise ValueError(f"{name}: expected x (..., D) with at least one entry a row, got {describe(x)}")
    for label, a in vectors.items():
        if a is not None and shape_of(a) != x.shape[-1:]:
            raise ValueError(f"{name}: expected {label} of shape {x.shape[-1:]} for x {describe(x)}, got {describe(a)}")
    if isinstance(eps, bool) or not isinstance(eps, (int, float, np.number)):
        raise TypeError(f"{name}: expected a number as eps, got {type(eps).__name__}")
    if not 0 < eps < float("inf"):
        raise ValueError(f"{name}: expected a positive eps, got {eps}")
    return float(eps)
