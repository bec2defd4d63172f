"""Outer products of rows on the CPU, compiled by numba: out_vb = x_b ⊗ d_vb, each entry written once and in the order
of memory, where einsum starts anew for every one of the short rows. Loaded when first used; all cores share the
samples, and the GIL is free meanwhile.
"""

import numpy as np
from numba import carray, njit

from ..threads import cores, share
from .small_tiles import pointer_to

SHARED = 1 << 18  # entries of the result from which other threads are asked to help


@njit(nogil=True, cache=True, error_model="numpy")
def _write(x, d, target, sample, member, start, stop):
    """x_b ⊗ d_vb for the samples start..stop; target: the address of out, sample and member: bytes to the next one."""
    columns, rows = d.shape[2], x.shape[1]
    for b in range(start, stop):
        for v in range(d.shape[0]):
            out = carray(pointer_to(target + b * sample + v * member, d), (rows, columns))
            for k in range(rows):
                scale = x[b, k]
                for n in range(columns):
                    out[k, n] = scale * d[v, b, n]


def write(x: np.ndarray, d: np.ndarray, out: np.ndarray) -> None:
    """Fill out (V, B, K, N), each out[v, b] of which is C-contiguous, with x (B, K) ⊗ d (V, B, N), C-contiguous too.

    All of one dtype, float32 or float64.
    """
    (member, sample), samples = out.strides[:2], len(x)
    address = out.ctypes.data
    pieces = 4 * cores() if out.size >= SHARED else 1
    size = max(1, -(-samples // pieces))

    def some(start: int) -> None:
        _write(x, d, address, sample, member, start, min(start + size, samples))

    share(some, range(0, samples, size))
