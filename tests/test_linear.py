"""Linear layers, dense and sparse: rules for every activation, per-sample rule, bad shapes."""

import numpy as np
import pytest
import scipy.sparse as sp
from rulecheck import Case, RuleCheck, close, randn

import gradlib as gl
from gradlib.op import REGISTRY
from gradlib.ops.activations import ACTIVATIONS

OP, SPARSE = REGISTRY["linear"], REGISTRY["csr_linear"]
W, BIAS = randn(3, 4), randn(4)
ROWS = sp.csr_array(np.array([[0.5, 0, -1.5], [0, 0, 0], [0, 2.0, 1.0]]))
PATTERN = (ROWS.indices, ROWS.indptr)


CASES = [Case(OP, (randn(2, 3), W, BIAS), activation=a) for a in (None, *ACTIVATIONS)]
CASES += [Case(OP, (randn(2, 3), W), activation=a) for a in (None, "tanh")]
CASES += [Case(OP, (randn(*s), randn(s[-1], n), randn(n)), activation="silu")
          for s, n in [((3,), 2), ((2, 2, 3), 2), ((1, 1), 1), ((0, 3), 2), ((2, 0), 3), ((2, 3), 0)]]  # fmt: skip
CASES += [Case(SPARSE, (ROWS.data, *PATTERN, W, BIAS), activation=a) for a in (None, "relu", "gelu", "tanh")]
CASES += [Case(SPARSE, (ROWS.data, *PATTERN, W), activation=None)]
ERRORS = [
    (lambda: gl.linear(np.ones((2, 3)), np.ones((4, 5))), ValueError,
     "linear: expected x (..., K) and w (K, N), got float64[2, 3] and float64[4, 5]"),
    (lambda: gl.linear(np.ones((2, 3)), np.ones(3)), ValueError, "linear: expected x (..., K) and w (K, N)"),
    (lambda: gl.linear(np.array(1.0), np.ones((1, 1))), ValueError, "linear: expected x (..., K)"),
    (lambda: gl.linear(np.ones((2, 3)), W, np.ones(3)), ValueError, "linear: expected b of shape (4,) … float64[3]"),
    (lambda: gl.linear(np.arange(3), W), TypeError, "linear: expected floating-point x, got int64[3]"),
    (lambda: gl.linear(np.ones(3), np.array([["a"]])), TypeError, "linear: expected floating-point w, got <U1[1, 1]"),
    (lambda: gl.linear("text", W), TypeError, "linear: expected floating-point x, got str"),
    (lambda: gl.linear(np.ones(3), W, activation="tan"), ValueError, "linear: expected activation … got 'tan'"),
    (lambda: gl.linear(ROWS.tocsc(), W), TypeError, "CSR: expected a sparse matrix in CSR format, got csc"),
    (lambda: gl.linear(ROWS, np.ones((2, 2))), ValueError, "linear: expected x (..., K) and w (K, N), got sparse"),
    (lambda: gl.linear(sp.csr_array(np.eye(3, dtype=int)), W), TypeError, "linear: expected floating-point x"),
]  # fmt: skip


class TestRules(RuleCheck):
    cases = CASES
    errors = ERRORS


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_it_is_the_composition(activation):
    name, how = ("gelu", {"approximate": True}) if activation == "gelu_tanh" else (activation, {})
    act = getattr(gl, name)
    x = randn(5, 3)
    fused = gl.linear(x, W, BIAS, activation=activation)
    np.testing.assert_array_equal(fused, act(x @ W + BIAS, **how))
    np.testing.assert_array_equal(gl.linear(ROWS, W, BIAS, activation=activation), act(ROWS @ W + BIAS, **how))
    np.testing.assert_array_equal(x, randn(5, 3))


def test_sparse_rows_are_the_dense_ones():
    dense = ROWS.toarray()
    for argnum in (1, 2):
        f = gl.grad(lambda *a: np.sum(np.sin(gl.linear(*a, activation="tanh"))), argnum)
        close(f(ROWS, W, BIAS), f(dense, W, BIAS), 1e-14)
        close(f(gl.CSR.from_scipy(ROWS), W, BIAS), f(dense, W, BIAS), 1e-14)
    by_entry = gl.grad(lambda x: np.sum(gl.linear(x, W, BIAS, activation="tanh")))(gl.CSR.from_scipy(ROWS))
    assert isinstance(by_entry, gl.CSR)
    whole = gl.grad(lambda x: np.sum(gl.linear(x, W, BIAS, activation="tanh")))(dense)
    close(by_entry.to_scipy().toarray(), whole * (dense != 0), 1e-14)


def test_sparse_float32_stays_float32():
    x, w = ROWS.astype(np.float32), W.astype(np.float32)
    y, pullback = gl.vjp(lambda w: gl.linear(x, w), w)
    assert y.dtype == pullback(y)[0].dtype == "float32"


@pytest.mark.parametrize(("shape", "v"), [((4, 3), 1), ((4, 3), 3), ((2, 5, 3), 2), ((0, 3), 2), ((1, 3), 0)])
def test_per_sample_rule_is_the_one_hot_stack(shape, v):
    case = Case(OP, (randn(*shape), W, BIAS), activation="tanh")
    y, saved = case.forward()
    _, dy = case.stacks(v, y)
    each = OP.vjp_each(np, saved, dy, (False, True, True), -y.ndim, activation="tanh")
    assert each[0] is None
    samples = shape[0]
    hot = np.zeros((v, samples, *y.shape))
    for b in range(samples):
        hot[:, b, b] = dy[:, b]
    want = case.vjp(saved, hot.reshape(v * samples, *y.shape))
    for factor, exact in zip(each[1:], want[1:], strict=True):
        close(factor.dense(), exact.reshape(v, samples, *exact.shape[1:]), 1e-13)
