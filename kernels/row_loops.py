"""The loops, compiled for the CPU, of Jacobians of rows: diag(d) - Σₖ uₖ vₖᵀ (softmax, the norms), R rows a sample.

d: (B, R, C), u and v: (B, K, R, C). All arrays are C-contiguous and of one dtype. The GIL is free meanwhile. The
compiler may take sums in another order, so that it can use vectors; it is the same order in every run.
"""

import numpy as np
from numba import njit

loop = njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract"})


@loop
def write(d: np.ndarray, u: np.ndarray, v: np.ndarray, out: np.ndarray) -> None:
    """The Jacobians themselves into out (B, R, C, R, C), a row at a time, which stays in the cache."""
    samples, rows, n = d.shape
    for b in range(samples):
        if rows > 1:
            out[b] = 0
        for r in range(rows):
            for i in range(n):
                x = -u[b, 0, r, i]
                for j in range(n):
                    out[b, r, i, r, j] = x * v[b, 0, r, j]
                for k in range(1, u.shape[1]):
                    x = u[b, k, r, i]
                    for j in range(n):
                        out[b, r, i, r, j] -= x * v[b, k, r, j]
            for i in range(n):
                x = d[b, r, i]
                for k in range(u.shape[1]):
                    x -= u[b, k, r, i] * v[b, k, r, i]
                out[b, r, i, r, i] = x


@loop
def apply(m: np.ndarray, d: np.ndarray, left: np.ndarray, right: np.ndarray, out: np.ndarray) -> None:
    """m d - Σₖ leftₖ (m · rightₖ) for every row of m (B, V, R, C), into out."""
    zero = d.dtype.type(0)
    for b in range(m.shape[0]):
        for s in range(m.shape[1]):
            for r in range(m.shape[2]):
                x, y = m[b, s, r], out[b, s, r]
                for j in range(x.size):
                    y[j] = x[j] * d[b, r, j]
                for k in range(left.shape[1]):
                    dot, p, q = zero, left[b, k, r], right[b, k, r]
                    for j in range(x.size):
                        dot += x[j] * q[j]
                    for j in range(x.size):
                        y[j] -= p[j] * dot
