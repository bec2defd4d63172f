"""per_sample_grad: the loop over the samples, and an object as batch_jacobian gives it."""

import numpy as np
import pytest
from rulecheck import close
from test_batched import LABELS, PARAMETERS, B, W, X, model

import gradlib as gl


@pytest.mark.parametrize(
    "loss",
    [
        lambda p, x, t: gl.cross_entropy(model(p, x) * 3, t, reduction="none"),
        lambda p, x, t: np.sum((np.tanh(x @ p["w"]) * p["b"]) ** 2, axis=1) * t,
        lambda p, x, t: np.einsum("bi,ij,j->b", x, p["w"], p["b"]),
        lambda p, x, t: np.sum(x * p["w"][t, :3], axis=1) + p["b"][t],
        lambda p, x, t: np.sum(np.concatenate([x, np.broadcast_to(p["b"], (len(x), 4))], axis=1) ** 3, axis=1),
    ],
)
@pytest.mark.parametrize("size", [0, 1, 2, B])
def test_per_sample_grad_is_the_loop(loss, size):
    x, t = X[:size], LABELS[:size]
    got = gl.per_sample_grad(loss)(PARAMETERS, x, t)
    for name, p in PARAMETERS.items():
        assert got[name].shape == (size, *p.shape)
    for b in range(size):
        want = gl.grad(lambda p, b=b: np.sum(loss(p, x[b : b + 1], t[b : b + 1])))(PARAMETERS)
        for name, w in want.items():
            close(got[name][b], w, 1e-13)


def test_per_sample_grad_of_batched_arguments_and_tuples():
    def loss(w, x):
        return np.sum(np.tanh(x @ w), axis=1)

    gw, gx = gl.per_sample_grad(loss, (0, 1), in_axes=(None, 0))(W, X)
    close(gw.sum(0), gl.grad(lambda w: np.sum(loss(w, X)))(W), 1e-13)
    close(gx, gl.grad(lambda x: np.sum(loss(W, x)))(X), 1e-13)


def test_per_sample_grad_wants_one_loss_a_sample():
    for loss in (lambda w, x: np.sum(x @ w), lambda w, x: x @ w):
        with pytest.raises(ValueError, match=r"per_sample_grad: .*(one loss a sample|batch axis)|mixes samples"):
            gl.per_sample_grad(loss)(W, X)


def test_per_sample_grad_is_an_object():
    def loss(p, x):
        return np.sum(np.tanh(x @ p["w"]), axis=1)

    params = {"w": W}
    g = gl.per_sample_grad(loss, chunk_size=2)
    out = {"w": np.full((B, *W.shape), np.nan)}
    assert g.into(out, params, X) is out
    close(out["w"], g(params, X)["w"], 1e-13)
    for at, piece in g.chunks(params, X):
        close(piece["w"], out["w"][at], 1e-13)
    assert g.plan(params, X).mode == "rev" and repr(g).startswith("<per_sample_grad of ")
    with pytest.raises(ValueError, match=r"per_sample_grad: max_bytes=9 is too small: one row .*needs"):
        gl.per_sample_grad(loss, max_bytes=9)(params, X)
    with pytest.raises(ValueError, match="per_sample_grad: expected a positive int or None as chunk_size, got 0"):
        gl.per_sample_grad(loss, chunk_size=0)
