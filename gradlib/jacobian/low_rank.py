"""Jacobians of rows, diag(d) - Σₖ uₖ vₖᵀ: written down, and applied to stacks.

d, and each of u and v, are (B, *rows, C): a sample's rows of C entries, N entries in all. A sample's matrix is (N, N),
zero between different rows. On a GPU one kernel does it (``gradlib.kernels.jacobian_rows``); the array functions here
are the rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..device import SIMULATING
from ..precision import wide
from ..trace import module_of


def on_gpu(x: Any) -> bool:
    """Whether kernels take arrays like x."""
    xp = module_of(x)
    return SIMULATING.get() if xp is np else xp.__name__ == "cupy"


def write_rows(d: Any, u: Sequence[Any], v: Sequence[Any], out: Any) -> None:
    """Write the matrices into out (B, N, N). Elementwise ops have no u and v.

    float16 and bfloat16 are computed in float32 and rounded once.
    """
    if on_gpu(out):
        from ..kernels.jacobian_rows import write

        if write(module_of(out), d, u, v, out) is not NotImplemented:
            return
    xp, (samples, n, _), width = module_of(out), out.shape, d.shape[-1]
    exact = out if out.dtype.itemsize > 2 or not u else xp.empty(out.shape, np.float32)
    if not u or width < n:
        exact[...] = 0
    d, *factors = [wide(a).reshape(samples, n) for a in (d, *u, *v)]
    for start in range(0, n if u else 0, max(width, 1)):
        row = slice(start, start + width)
        part = exact[:, row, row]
        for k, (left, right) in enumerate(zip(factors[: len(u)], factors[len(u) :], strict=True)):
            left, right = left[:, row, None], right[:, None, row]
            if k:
                part -= left * right
            else:
                xp.multiply(-left, right, out=part)
    steps = xp.arange(n)
    exact[:, steps, steps] = exact[:, steps, steps] + d if u else d
    if exact is not out:
        out[...] = exact


def apply_rows(m: Any, d: Any, left: Sequence[Any], right: Sequence[Any], axis: int, out: Any = None) -> Any:
    """m d - Σₖ leftₖ (m · rightₖ) for a stack m (B, V, N) of each sample; the rows lie along `axis` of d."""
    if axis == d.ndim - 1 and on_gpu(m):
        from ..kernels.jacobian_rows import apply

        y = apply(module_of(m), m, d, left, right, out)
        if y is not NotImplemented:
            return y
    stack = m.reshape((*m.shape[:2], *d.shape[1:]))
    y = stack * d[:, None]
    for p, q in zip(left, right, strict=True):
        y = y - p[:, None] * (stack * q[:, None]).sum(axis=axis + 1, keepdims=True)
    y = y.reshape(m.shape)
    if out is None:
        return y
    out[...] = y
    return out
