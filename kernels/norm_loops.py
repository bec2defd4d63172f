"""Loops of layer_norm and rms_norm for the CPU, compiled by numba: a row stays in the cache, where NumPy would pass
over all of memory a dozen times. Loaded when first used; the rules of ``gradlib.ops`` remain the specification.

Sums of a row may be taken in any order (it lets them be vectors), the same at every call; those of the parameters'
gradients are taken in float64, row after row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

_loop = njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract"})


@_loop
def _forward(x, w, b, eps, inverse, centred, y, mean, r):
    """Fills y, mean and r; whether every variance is finite."""
    rows, n = x.shape
    one, fits = inverse / inverse, True
    for i in range(rows):
        m, v = inverse - inverse, inverse - inverse
        if centred:
            s, left = v, v
            for j in range(n):
                s += x[i, j]
            m = s * inverse
            for j in range(n):
                left += x[i, j] - m
            m += left * inverse
            mean[i] = m
        for j in range(n):
            d = x[i, j] - m
            v += d * d
        v *= inverse
        fits &= np.isfinite(v)
        scale = one / np.sqrt(v + eps)
        r[i] = scale
        for j in range(n):
            y[i, j] = (x[i, j] - m) * scale * w[j] + b[j]
    return fits


@_loop
def _backward(x, mean, r, w, dy, inverse, centred, dx, dw, db):
    """Fills dx (V, rows, n), where it is not of length 0, and adds to dw and db (V, n), likewise."""
    rows, n = x.shape
    for v in range(dy.shape[0]):
        for i in range(rows):
            zero = inverse - inverse
            m, scale = mean[i] if centred else zero, r[i]
            if dx.shape[0]:
                s, q = zero, zero
                for j in range(n):
                    t = dy[v, i, j] * w[j]
                    s += t
                    q += t * (x[i, j] - m) * scale
                s, q = s * inverse if centred else zero, q * inverse
                for j in range(n):
                    dx[v, i, j] = scale * (dy[v, i, j] * w[j] - s - (x[i, j] - m) * scale * q)
            if dw.shape[0]:
                for j in range(n):
                    dw[v, j] += dy[v, i, j] * ((x[i, j] - m) * scale)
            if db.shape[0]:
                for j in range(n):
                    db[v, j] += dy[v, i, j]


def _flat(x: Any) -> Any:
    """The rows of x, contiguous."""
    return np.ascontiguousarray(x).reshape(-1, x.shape[-1])


def forward(x: Any, w: Any, b: Any, eps: float, centred: bool) -> tuple[Any, Any, Any] | None:
    """(y, mean or None, r) of NumPy arrays of one dtype; None where the rule has to shrink rows first."""
    kind, n = x.dtype.type, x.shape[-1]
    w, b = (np.full(n, fill, x.dtype) if a is None else np.ascontiguousarray(a) for a, fill in ((w, 1), (b, 0)))
    y, r = np.empty(x.shape, x.dtype), np.empty((*x.shape[:-1], 1), x.dtype)
    mean = np.empty_like(r) if centred else r
    fits = _forward(_flat(x), w, b, kind(eps), kind(1 / n), centred, _flat(y), mean.reshape(-1), r.reshape(-1))
    return (y, mean if centred else None, r) if fits else None


def cotangents(x: Any, mean: Any, r: Any, w: Any, dy: Any, need: tuple, centred: bool) -> list[Any]:
    """[dx, dw, db], as far as `need` goes and where it is true, of a stack dy."""
    v, n, kind = dy.shape[0], x.shape[-1], x.dtype.type
    wants = (*need, False, False)[:3]
    dx = np.empty(dy.shape if wants[0] else (0, *x.shape), x.dtype)
    dw, db = (np.zeros((v if wanted else 0, n)) for wanted in wants[1:])
    w = np.ones(n, x.dtype) if w is None else np.ascontiguousarray(w)
    mean, r = (np.ascontiguousarray(a).reshape(-1) for a in (mean if centred else r, r))
    dys = np.ascontiguousarray(dy).reshape(v, r.size, n)
    _backward(_flat(x), mean, r, w, dys, kind(1 / n), centred, dx.reshape(-1, r.size, n), dw, db)
    found = [dx, dw.astype(x.dtype, copy=False), db.astype(x.dtype, copy=False)]
    return [d if wanted else None for d, wanted in zip(found, need, strict=False)]
