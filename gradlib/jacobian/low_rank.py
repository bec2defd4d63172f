"""Jacobians of rows, diag(d) - Σₖ uₖ vₖᵀ: written down, and applied to stacks.

d, and each of u and v, are (B, *rows, C): a sample's rows of C entries, N entries in all. A sample's matrix is (N, N),
zero between different rows. On a GPU one kernel does it (``gradlib.kernels.jacobian_rows``); the array functions here
are the rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from ..device import SIMULATING
from ..precision import narrow, wide
from ..trace import module_of

SLAB, GPU_SLAB = 1 << 14, 1 << 22  # entries of the matrices that array functions work on at a time


def on_gpu(x: Any) -> bool:
    """Whether kernels take arrays like x."""
    xp = module_of(x)
    return SIMULATING.get() if xp is np else xp.__name__ == "cupy"


class Factors(NamedTuple):
    """The parts of the matrices, (B, N) each, in the dtype that is computed in: d and the pairs (uₖ, vₖ). `width`: the
    entries of a row."""

    d: Any
    pairs: tuple[tuple[Any, Any], ...]
    width: int

    def write(self, out: Any, start: int = 0) -> None:
        """Write the rows from `start` on into out (B, rows, N), a slab at a time, so that little else is alive."""
        samples, rows, n = out.shape
        count = max(1, (GPU_SLAB if on_gpu(out) else SLAB) // max(1, samples * n))
        for first in range(0, rows, count):
            part = out[:, first : first + count]
            exact = part if part.dtype == self.d.dtype else module_of(out).empty(part.shape, self.d.dtype)
            self._write_slab(exact, start + first)
            if exact is not part:
                part[...] = exact

    def _write_slab(self, m: Any, start: int) -> None:
        xp, stop, steps = module_of(m), start + m.shape[1], module_of(m).arange(m.shape[1])
        if not self.pairs or self.width < m.shape[2]:
            m[...] = 0
        for first in range(start - start % self.width, stop if self.pairs else 0, self.width):
            i, j = slice(max(first, start), min(first + self.width, stop)), slice(first, first + self.width)
            block = m[:, i.start - start : i.stop - start, j]
            for k, (p, q) in enumerate(self.pairs):
                if k:
                    block -= p[:, i, None] * q[:, None, j]
                else:
                    xp.multiply(-p[:, i, None], q[:, None, j], out=block)
        diagonal = self.d[:, start:stop]
        m[:, steps, steps + start] = m[:, steps, steps + start] + diagonal if self.pairs else diagonal


def factors_of(d: Any, u: Sequence[Any], v: Sequence[Any]) -> Factors:
    """Elementwise ops have no u and v."""
    shape = (d.shape[0], prod(d.shape[1:]))
    pairs = [(wide(p).reshape(shape), wide(q).reshape(shape)) for p, q in zip(u, v, strict=True)]
    return Factors(wide(d).reshape(shape), tuple(pairs), d.shape[-1])


def write_rows(d: Any, u: Sequence[Any], v: Sequence[Any], out: Any) -> None:
    """Write the matrices into out (B, N, N), float16 and bfloat16 computed in float32 and rounded once."""
    if on_gpu(out):
        from ..kernels.jacobian_rows import write

        if write(module_of(out), d, u, v, out) is not NotImplemented:
            return
    if out.size:
        factors_of(d, u, v).write(out)


def apply_rows(m: Any, d: Any, left: Sequence[Any], right: Sequence[Any], axis: int, out: Any = None) -> Any:
    """m d - Σₖ leftₖ (m · rightₖ) for a stack m (B, V, N) of each sample; the rows lie along `axis` of d.

    float16 and bfloat16 are computed in float32 and rounded once.
    """
    if axis == d.ndim - 1 and on_gpu(m):
        from ..kernels.jacobian_rows import apply

        y = apply(module_of(m), m, d, left, right, out)
        if y is not NotImplemented:
            return y
    stack = wide(m).reshape((*m.shape[:2], *d.shape[1:]))
    y = stack * wide(d)[:, None]
    for p, q in zip(left, right, strict=True):
        y = y - wide(p)[:, None] * (stack * wide(q)[:, None]).sum(axis=axis + 1, keepdims=True)
    y = narrow(y.reshape(m.shape), m.dtype)
    if out is None:
        return y
    out[...] = y
    return out
