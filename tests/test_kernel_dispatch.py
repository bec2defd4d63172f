"""The public functions on kernels against the same functions on NumPy: value, gradient, tangent, Jacobian."""

import numpy as np
import pytest
import scipy.sparse as sp

import gradlib as gl
from gradlib.kernels.launch import SIMULATED, Kernel, simulate
from gradlib.op import REGISTRY

if not SIMULATED:
    pytest.skip("compares NumPy arrays on both paths: needs the simulator", allow_module_level=True)

rng = np.random.default_rng(0)
X = rng.normal(size=(3, 6)).astype("float32")
W = rng.normal(size=(6, 5)).astype("float32")
B = rng.normal(size=5).astype("float32")
LABELS = np.array([1, 5, 0])
SPARSE = sp.random_array((3, 6), density=0.5, rng=rng, dtype=np.float32, format="csr")

CASES = {
    "softmax": lambda x, w: gl.softmax(x),
    "softmax over the first axis": lambda x, w: gl.softmax(x, axis=0),
    "masked softmax": lambda x, w: gl.softmax(x, mask=LABELS[:, None] > np.arange(6)),
    "causal softmax": lambda x, w: gl.softmax(x, causal=True),
    "log_softmax": lambda x, w: gl.log_softmax(x),
    "logsumexp": lambda x, w: gl.logsumexp(x),
    "cross_entropy": lambda x, w: gl.cross_entropy(x, LABELS, label_smoothing=0.1, ignore_index=5),
    "cross_entropy of rows": lambda x, w: gl.cross_entropy(x, LABELS, reduction="none"),
    "gelu": lambda x, w: gl.gelu(x) + gl.gelu(x, approximate=True),
    "numpy": lambda x, w: np.exp(np.tanh(x)) * np.sin(x) - np.sqrt(np.square(x) + 1),
    "linear": lambda x, w: gl.linear(x, w, B, activation="silu"),
    "linear, from the output": lambda x, w: gl.linear(gl.linear(x, w, B, activation="tanh"), w.T),
    "sparse": lambda x, w: gl.linear(SPARSE, w, B, activation="relu"),
    "bias, dropout and residual": lambda x, w: gl.bias_dropout_add(
        x @ w[:, :4], B[:4], x[:, :4], activation="gelu", rate=0.4, rng=gl.Generator(7)
    ),
    "dropout": lambda x, w: gl.dropout(x, 0.4, gl.Generator(7)),
}


def results(f):
    """Every derivative of f there is to compare."""
    y, pullback = gl.vjp(f, X, W)
    dy = np.cos(np.arange(y.size, dtype="float32")).reshape(y.shape)
    gradients = pullback(dy)
    _, tangent = gl.jvp(f, (X, W), (np.sin(X), np.cos(W)))
    return y, *gradients, tangent, np.asarray(gl.jacobian(f)(X, W))


@pytest.mark.parametrize("name", CASES)
def test_kernels_agree_with_the_rules(name):
    expected = results(CASES[name])
    with simulate():
        got = results(CASES[name])
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=5e-6)


@pytest.mark.parametrize("optimizer", [gl.optim.SGD, gl.optim.Adam, gl.optim.AdamW])
def test_optimisers_agree(optimizer):
    ends = []
    for context in (None, simulate):
        params = [X.copy(), B.copy()]
        opt = optimizer(params, lr=0.1)
        for step in (1, 2):
            grads = [np.sin(step * p) for p in (X, B)]
            if context is None:
                opt.step(grads)
            else:
                with context():
                    opt.step(grads)
        ends.append(params)
    for a, b in zip(*ends, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=5e-6)


def test_every_kernel_belongs_to_an_op():
    import importlib

    for file in ("elementwise", "softmax", "cross_entropy", "dropout", "bias_dropout_add", "linear", "csr"):
        module = importlib.import_module(f"gradlib.kernels.{file}")
        names = [name for name, value in vars(module).items() if isinstance(value, Kernel)]
        assert names and all(REGISTRY[name].module == file for name in names), f"{file}: {names}"
