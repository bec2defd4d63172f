"""Cases of Jacobians: of the article's network for each sample, and of ops on rows, where each is (width, width)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from case import Arrays, Case, spread
from steps import SIZES, network

EPS = 1e-5
NORMS = ("layer_norm", "rms_norm")


def gradlib_jacobian(captured: bool) -> Any:
    def build(a: dict[str, Any]) -> Callable[[], Any]:
        import gradlib as gl

        def logits(x: Any) -> Any:
            x = gl.linear(gl.linear(x, a["w0"], a["b0"], activation="relu"), a["w1"], a["b1"], activation="relu")
            return gl.linear(x, a["w2"], a["b2"])

        jacobian = gl.batch_jacobian(logits)
        f = gl.capture(jacobian) if captured else jacobian
        return lambda: f(a["x"])

    return build


def torch_jacobian(compiled: bool) -> Any:
    def build(a: dict[str, Any]) -> Callable[[], Any]:
        import torch

        def logits(x: Any) -> Any:
            x = torch.relu(torch.relu(x @ a["w0"] + a["b0"]) @ a["w1"] + a["b1"])
            return x @ a["w2"] + a["b2"]

        jacobian = torch.func.vmap(torch.func.jacrev(logits))
        jacobian = torch.compile(jacobian, mode="reduce-overhead", dynamic=False) if compiled else jacobian
        return lambda: jacobian(a["x"])

    return build


def jax_jacobian(a: dict[str, Any]) -> Callable[[], Any]:
    import jax

    def logits(x: Any) -> Any:
        x = jax.nn.relu(jax.nn.relu(x @ a["w0"] + a["b0"]) @ a["w1"] + a["b1"])
        return x @ a["w2"] + a["b2"]

    jacobian = jax.jit(jax.vmap(jax.jacrev(logits)))
    return lambda: jacobian(a["x"])


def jacobian_rows(a: Arrays, rows: np.ndarray) -> list[np.ndarray]:
    h1 = np.maximum(a["x"][rows] @ a["w0"] + a["b0"], 0)
    h2 = np.maximum(h1 @ a["w1"] + a["b1"], 0)
    d = (a["w2"].T * (h2 > 0)[:, None, :]) @ a["w1"].T
    return [(d * (h1 > 0)[:, None, :]) @ a["w0"].T]


# Ops on rows, whose Jacobian is written down and not multiplied: each (rows, width, width).
def gradlib_row_jacobian(name: str) -> Any:
    def build(a: dict[str, Any]) -> Callable[[], Any]:
        import gradlib as gl

        def f(x: Any) -> Any:
            return np.tanh(x) if name == "tanh" else getattr(gl, name)(x, **({"eps": EPS} if name in NORMS else {}))

        jacobian = gl.batch_jacobian(f)
        return lambda: jacobian(a["x"])

    return build


def torch_row_jacobian(name: str, compiled: bool) -> Any:
    def build(a: dict[str, Any]) -> Callable[[], Any]:
        import torch

        def f(row: Any) -> Any:
            if name in NORMS:
                return getattr(torch.nn.functional, name)(row, row.shape, eps=EPS)
            return torch.softmax(row, -1) if name == "softmax" else torch.tanh(row)

        jacobian = torch.func.vmap(torch.func.jacrev(f))
        jacobian = torch.compile(jacobian, dynamic=False) if compiled else jacobian
        return lambda: jacobian(a["x"])

    return build


def jax_row_jacobian(name: str) -> Any:
    def build(a: dict[str, Any]) -> Callable[[], Any]:
        import jax

        def f(row: Any) -> Any:
            if name in NORMS:
                row = row - row.mean() if name == "layer_norm" else row
                return row * jax.lax.rsqrt((row * row).mean() + EPS)
            return jax.nn.softmax(row) if name == "softmax" else jax.numpy.tanh(row)

        jacobian = jax.jit(jax.vmap(jax.jacrev(f)))
        return lambda: jacobian(a["x"])

    return build


def softmax_jacobians(a: Arrays, rows: np.ndarray) -> list[np.ndarray]:
    x = a["x"][rows]
    p = np.exp(x - x.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    return [p[:, :, None] * (np.eye(x.shape[1]) - p[:, None, :])]


def norm_jacobians(centred: bool) -> Callable[[Arrays, np.ndarray], list[np.ndarray]]:
    def reference(a: Arrays, rows: np.ndarray) -> list[np.ndarray]:
        x = a["x"][rows].astype(float)
        x -= x.mean(-1, keepdims=True) if centred else 0
        r = 1 / np.sqrt((x * x).mean(-1) + EPS)
        h, n = x * r[:, None], x.shape[1]
        return [r[:, None, None] * (np.eye(n) - (1 / n if centred else 0) - h[:, :, None] * h[:, None, :] / n)]

    return reference


def tanh_jacobians(a: Arrays, rows: np.ndarray) -> list[np.ndarray]:
    return [np.eye(a["x"].shape[1]) * (1 - np.tanh(a["x"][rows]) ** 2)[:, None, :]]


def logits_of(rng: np.random.Generator, rows: int, width: int) -> Arrays:
    return {"x": spread(rng, (rows, width))}


def row_jacobian_case(name: str, reference: Any) -> Case:
    contenders = {
        "gradlib": gradlib_row_jacobian(name),
        "torch": torch_row_jacobian(name, compiled=False),
        "torch compiled": torch_row_jacobian(name, compiled=True),
        "jax": jax_row_jacobian(name),
    }
    return Case(
        f"{name} Jacobian 256 x 512", "Jacobian", logits_of, contenders, reference, {"rows": 256, "width": 512},
        {"rows": 3, "width": 5}, moved=lambda a: 4 * a["x"].size * a["x"].shape[1],
        operations=lambda a: 2 * a["x"].size * a["x"].shape[1],
    )  # fmt: skip


def network_operations(a: Arrays) -> int:
    """Of the products: the network, then the last weight times the two before it."""
    (k, m, n, p) = SIZES
    return 2 * len(a["x"]) * (k * m + m * n + n * p + p * (m * n + k * m))


CASES = [
    Case("Jacobian of 100-64-32-10, B = 8192", "Jacobian", network,
         {"gradlib": gradlib_jacobian(False), "gradlib captured": gradlib_jacobian(True),
          "torch": torch_jacobian(False), "torch compiled": torch_jacobian(True), "jax": jax_jacobian},
         jacobian_rows, {"batch": 8192}, {"batch": 3}, moved=lambda a: 4 * len(a["x"]) * SIZES[0] * SIZES[-1],
         operations=network_operations),
    row_jacobian_case("softmax", softmax_jacobians),
    row_jacobian_case("layer_norm", norm_jacobians(centred=True)),
    row_jacobian_case("rms_norm", norm_jacobians(centred=False)),
    row_jacobian_case("tanh", tanh_jacobians),
]  # fmt: skip
