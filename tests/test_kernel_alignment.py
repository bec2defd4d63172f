"""Arrays that do not start at a multiple of 16 bytes: every host function gives what it gives of arrays that do.

Rows of whole 16-byte tiles, so that nothing but the address keeps a kernel from moving 16 bytes at a time.
"""

import os

import numpy as np
import pytest
from kernel_device import call

from gradlib.kernels import (
    bias_dropout_add,
    cross_entropy,
    csr,
    dropout,
    elementwise,
    embedding,
    linear,
    reduce_axes,
    softmax,
)
from gradlib.kernels.launch import aligned
from gradlib.kernels.rms_norm import rms_norm

pytestmark = pytest.mark.skipif("GRADLIB_SIM_SCHEDULE" in os.environ, reason="one order of the threads is enough")
ROWS, N = 2, 8


def normal(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype("float32")


X, D, B, W = normal(ROWS, N), normal(3, ROWS, N), normal(N), normal(4, N)
E, R = normal(3, ROWS), normal(ROWS, 1) ** 2 + 1
LONG, STACK = normal(ROWS, 36), normal(2, ROWS, 36)  # more than a number a lane
Q = np.exp(LONG) / np.exp(LONG).sum(1, keepdims=True)
P = np.exp(X) / np.exp(X).sum(1, keepdims=True)
LABELS, IDS = np.array([1, 5]), np.array([3, 0])
SPARSE = normal(3), np.array([1, 3, 0]), np.array([0, 2, 3])  # two rows of four columns
DRAWN = np.array(5, np.uint64), np.array(7, np.uint64)
LOSS = {"reduction": "none", "ignore_index": None, "label_smoothing": 0.1}
FUSED = {"activation": "gelu", "rate": 0.5}
# name -> (host function, arguments, what is fixed)
CASES = {
    "softmax": (softmax.softmax.forward, (LONG,), {"axis": 1}),
    "softmax vjp": (softmax.softmax.vjp, ((Q,), STACK, (True,)), {"axis": 1}),
    "logsumexp jvp": (softmax.logsumexp.jvp, ((LONG, LONG.max(1)), (STACK,)), {"axis": 1, "keepdims": False}),
    "masked softmax": (softmax.masked_softmax.forward, (X,), {"axis": 1, "causal": True}),
    "masked softmax vjp": (softmax.masked_softmax.vjp, ((P,), D, (True,)), {"axis": 1, "causal": True}),
    "cross entropy": (cross_entropy.cross_entropy.forward, (LONG, LABELS), LOSS),
    "cross entropy vjp": (cross_entropy.cross_entropy.vjp, ((P, np.float32(1)), E, (True,)), LOSS),
    "cross entropy jvp": (cross_entropy.cross_entropy.jvp, ((P, np.float32(1)), (D, None)), LOSS),
    "sparse product": (csr.product, (*SPARSE, W[None]), {}),
    "sparse dots": (csr.dots, (D, W, *SPARSE[1:]), {}),
    "dropout": (dropout.dropout.forward, (X, *DRAWN), {"rate": 0.5}),
    "dropout vjp": (dropout.dropout.vjp, ((*DRAWN, X), D, (True,)), {"rate": 0.5}),
    "bias, dropout, add": (bias_dropout_add.bias_dropout_add.forward, (X, B, X + 1, *DRAWN), FUSED),
    "bias, dropout, add vjp": (bias_dropout_add.bias_dropout_add.vjp, ((X, B, *DRAWN, X), D, (True,) * 5), FUSED),
    "linear": (linear.linear.forward, (X[:, :4], W, B), {"activation": "gelu"}),
    "slopes and sums": (linear.slope_and_sums, (X, D, "gelu"), {}),
    "tanh": (elementwise.run_forward, ("tanh", X), {}),
    "tanh vjp": (elementwise.run_scale, ("tanh", X, X, D), {}),
    "embedding": (embedding.gathered, (IDS, W[None]), {}),
    "embedding sums": (embedding.summed, (IDS, D, 4), {}),
    "max vjp": (reduce_axes.slopes, ("max", "vjp", (X, X.max(1, keepdims=True)), E[..., None], (1,), D.shape), {}),
    "max jvp": (reduce_axes.slopes, ("max", "jvp", (X, X.max(1, keepdims=True)), D, (1,), (3, ROWS, 1)), {}),
    "rms_norm jvp": (rms_norm.jvp, ((X, R, B), (D, D[:, 0])), {"eps": 1e-5}),
}


def leaves(tree):
    if isinstance(tree, tuple):
        return [leaf for branch in tree for leaf in leaves(branch)]
    return [tree]


def shifted(tree, which):
    """The tree with its array `which` in memory four bytes further on."""
    if isinstance(tree, tuple):
        return tuple(shifted(branch, which) for branch in tree)
    if tree is not which:
        return tree
    memory = np.empty(which.size + 4, "float32")
    start = -memory.ctypes.data % 16 // 4 + 1
    moved = memory[start : start + which.size].reshape(which.shape)
    moved[...] = which
    assert not aligned(moved)
    return moved


@pytest.mark.parametrize("name", CASES)
def test_a_moved_array_changes_nothing(name):
    rule, arguments, static = CASES[name]
    want = leaves(call(rule, *arguments, **static))
    assert any(isinstance(a, np.ndarray) for a in want)
    for array in {id(a): a for a in leaves(arguments) if getattr(a, "dtype", None) == "float32" and a.ndim}.values():
        got = leaves(call(rule, *shifted(arguments, array), **static))
        for a, b in zip(got, want, strict=True):
            if isinstance(a, np.ndarray):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
