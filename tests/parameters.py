"""Functions of parameters shared by a batch, one for each way a parameter can be used: (p, x) -> (B, 4)."""

import contextlib

import numpy as np
from rulecheck import randn

import gradlib as gl
from gradlib.op import REGISTRY, Op

B, T = 5, 3
W, V, BIAS, SQUARE, TABLE = randn(3, 4), randn(4, 3), randn(4), randn(4, 4), randn(6, 4)
X, TOKENS, LONG = randn(B, 3), randn(B, T, 3), randn(B, 40, 3)
IDS = np.random.default_rng(0).integers(0, 6, (B, T))


def _by_columns(p, x):
    """The batch axis second on the way."""
    return np.sum(np.tanh(x.transpose(1, 0, 2) @ p["w"] + p["b"]), axis=0)


#: name -> (function, parameters, batch)
FUNCTIONS = {
    "linear": (lambda p, x: gl.linear(x, p["w"], p["b"], activation="tanh"), {"w": W, "b": BIAS}, X),
    "matmul": (lambda p, x: np.tanh(x @ p["w"]) + p["b"], {"w": W, "b": BIAS}, X),
    "two layers": (lambda p, x: np.tanh(x @ p["w"]) @ p["s"] * p["b"], {"w": W, "s": SQUARE, "b": BIAS}, X),
    "tokens": (lambda p, x: np.sum(gl.linear(x, p["w"], p["b"], activation="tanh"), 1), {"w": W, "b": BIAS}, TOKENS),
    "many tokens": (lambda p, x: np.sum(np.tanh(x @ p["w"]) * p["b"], axis=1), {"w": W, "b": BIAS}, LONG),
    "rows": (
        lambda p, x: np.tanh(x.reshape(-1, 3) @ p["w"] * p["b"]).reshape(-1, T, 4).sum(1),
        {"w": W, "b": BIAS},
        TOKENS,
    ),
    "by columns": (_by_columns, {"w": W, "b": BIAS}, TOKENS),
    "twice": (lambda p, x: np.tanh(np.tanh(np.tanh(x @ p["w"]) @ p["s"]) @ p["s"]), {"w": W, "s": SQUARE}, X),
    "twice with other rows": (
        lambda p, x: np.tanh(x[:, 0] @ p["w"]) * np.sum(np.sin(x @ p["w"]), axis=1),
        {"w": W},
        TOKENS,
    ),
    "tied": (lambda p, x: np.tanh(np.tanh(x @ p["w"]) @ p["w"].T) @ p["w"], {"w": W}, X),
    "transposed": (lambda p, x: np.tanh(x @ p["w"].T) * 2, {"w": W.T.copy()}, X),
    "reshaped": (lambda p, x: np.tanh(x @ p["w"].reshape(3, 4)), {"w": W.ravel()}, X),
    "squared": (lambda p, x: np.tanh(x @ (p["w"] * p["w"]) + np.exp(p["b"])), {"w": W, "b": BIAS}, X),
    "vector": (lambda p, x: np.tanh(x @ p["w"])[:, None] * p["b"], {"w": W[:, 0].copy(), "b": BIAS}, X),
    "scales": (
        lambda p, x: ((x[:, :1] * p["a"] + p["b"]) ** 2 + 1) ** p["c"],
        {"a": BIAS[None], "b": BIAS, "c": np.array(0.7)},
        X,
    ),
    "columns": (lambda p, x: np.sum(x * p["a"], axis=1) @ np.ones((3, 4)), {"a": randn(T, 1)}, TOKENS),
    "gather": (lambda p, x: np.sum(np.take(p["t"], x, axis=0), axis=1) * p["b"], {"t": TABLE, "b": BIAS}, IDS),
    "gather twice": (lambda p, x: np.sum(p["t"][x] * np.sin(p["t"][x[:, ::-1] - 6]), axis=1), {"t": TABLE}, IDS),
    "gather blocks": (lambda p, x: np.sum(p["t"][x] ** 2, axis=(1, 2)), {"t": randn(6, 2, 4)}, IDS),
    "gather numbers": (lambda p, x: p["t"][x[:, 0]][:, None] * p["b"], {"t": TABLE[:, 0].copy(), "b": BIAS}, IDS),
    "embedding": (
        lambda p, x: np.tanh(np.sum(gl.embedding(x, p["t"]), axis=1)) @ p["s"],
        {"t": TABLE, "s": SQUARE},
        IDS,
    ),
    "large table": (
        lambda p, x: np.sum(np.tanh(p["t"][x]), axis=1),
        {"t": randn(40, 4)},
        np.array([[7, 7, 30], [1, 2, 3], [30, 30, 30], [0, 39, 0], [5, 7, 5]]),
    ),
    "tied embedding": (lambda p, x: np.sin(np.sum(p["t"][x], axis=1) @ p["t"].T) @ np.ones((6, 4)), {"t": TABLE}, IDS),
    "many picks": (lambda p, x: np.sum(p["t"][np.tile(x, 9)] ** 3, axis=1), {"t": TABLE}, IDS),
    "einsum": (lambda p, x: np.einsum("bi,ij,j->bj", x, p["w"], p["b"]), {"w": W, "b": BIAS}, X),
    "from the left": (lambda p, x: np.sum(np.tanh(p["a"] @ (x @ p["w"])), 1), {"a": randn(2, T), "w": W}, TOKENS),
    "on columns": (lambda p, x: np.tanh(p["a"] @ x[:, :, None])[:, :, 0] * p["b"], {"a": V, "b": BIAS}, X),
    "several matrices": (
        lambda p, x: np.sum(np.tanh(x[:, None] @ p["h"]), axis=(1, 2)),
        {"h": randn(2, 3, 4)},
        TOKENS,
    ),
    "several matrices, repeated": (
        lambda p, x: np.sum(np.tanh(x[:, :, None, None, None] @ p["h"] * p["g"]), axis=(1, 2, 3, 4)),
        {"h": randn(2, 1, 3, 4), "g": randn(1, 2, 1, 4)},
        TOKENS,
    ),
    "several matrices from the left": (
        lambda p, x: np.sum(np.tanh(p["h"] @ np.swapaxes(x, 1, 2)[:, None]), axis=(1, 3)),
        {"h": randn(2, 4, 3)},
        TOKENS,
    ),
    "several matrices of two samples' rows": (
        lambda p, x: np.sum(np.tanh(x.reshape(-1, 1, 1, 3) @ p["h"]).reshape(len(x), -1, 4), axis=1),
        {"h": randn(2, 3, 4)},
        TOKENS,
    ),
    "not used": (lambda p, x: np.tanh(x @ p["w"]), {"w": W, "b": BIAS}, X),
    "none": (lambda p, x: np.sin(x) @ np.ones((3, 4)), {"b": BIAS}, X),
}


@contextlib.contextmanager
def unruled():
    """An op of two arguments, their product, that does not say where the batch axis goes."""
    op = Op(
        "unruled",
        forward=lambda xp, x, w: (xp.matmul(x, w), (x, w)),
        vjp=lambda xp, s, dy, need: (xp.matmul(dy, s[1].T), xp.matmul(s[0].T, dy)),
    )
    try:
        yield op
    finally:
        del REGISTRY["unruled"]


def jacobians(f, p, x):
    """Of every sample, by a call for each: {name: (B, 4, size)}."""
    found = [gl.jacobian(lambda p, b=b: f(p, x[b : b + 1])[0])(p) for b in range(len(x))]
    return {name: np.stack([j[name].reshape(4, -1) for j in found]) for name in p}
