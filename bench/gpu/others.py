"""Cases of other kernels: Adam, embedding, Jacobians, a training step, and what a launch costs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from case import Arrays, Case, some

SIZES = (100, 64, 32, 10)
LR, BETAS, EPS = 1e-3, (0.9, 0.999), 1e-8


# Adam: parameter, gradient and two means are read, all but the gradient written.
def parameters(rng: np.random.Generator, entries: int) -> Arrays:
    return {"p": rng.standard_normal(entries, np.float32), "g": rng.standard_normal(entries, np.float32)}


def gradlib_adam(a: dict[str, Any]) -> Callable[[], Any]:
    import gradlib as gl

    params = [a["p"].copy()]
    opt = gl.optim.Adam(params, lr=LR, betas=BETAS, eps=EPS)

    def run() -> Any:
        opt.step([a["g"]])
        return params[0]

    return run


def torch_adam(a: dict[str, Any]) -> Callable[[], Any]:
    import torch

    p = a["p"].clone().requires_grad_()
    p.grad = a["g"]
    opt = torch.optim.Adam([p], lr=LR, betas=BETAS, eps=EPS, fused=p.is_cuda)

    def run() -> Any:
        opt.step()
        return p

    return run


def adam_once(a: Arrays, rows: np.ndarray) -> list[np.ndarray]:
    g = some(a["g"], rows)
    return [some(a["p"], rows) - LR * g / (np.abs(g) + EPS)]


# Embedding: ids as frequent as words.
def words(rng: np.random.Generator, ids: int, vocabulary: int, width: int) -> Arrays:
    share = 1 / np.arange(1, vocabulary + 1)
    return {
        "ids": rng.choice(vocabulary, ids, p=share / share.sum()),
        "table": rng.standard_normal((vocabulary, width), np.float32),
        "dy": rng.standard_normal((ids, width), np.float32),
    }


def gradlib_gather(a: dict[str, Any]) -> Callable[[], Any]:
    import gradlib as gl

    return lambda: gl.embedding(a["ids"], a["table"])


def gradlib_scatter(a: dict[str, Any]) -> Callable[[], Any]:
    import gradlib as gl

    pullback = gl.vjp(lambda table: gl.embedding(a["ids"], table), a["table"])[1]
    return lambda: pullback(a["dy"])[0]


def torch_gather(a: dict[str, Any]) -> Callable[[], Any]:
    from torch.nn import functional

    return lambda: functional.embedding(a["ids"], a["table"])


def torch_scatter(a: dict[str, Any]) -> Callable[[], Any]:
    import torch
    from torch.nn import functional

    table = a["table"].requires_grad_()
    y = functional.embedding(a["ids"], table)
    return lambda: torch.autograd.grad(y, table, a["dy"], retain_graph=True)[0]


def jax_gather(a: dict[str, Any]) -> Callable[[], Any]:
    import jax

    take = jax.jit(lambda ids, table: table[ids])
    return lambda: take(a["ids"], a["table"])


def jax_scatter(a: dict[str, Any]) -> Callable[[], Any]:
    import jax

    add = jax.jit(lambda ids, table, dy: jax.numpy.zeros_like(table).at[ids].add(dy))
    return lambda: add(a["ids"], a["table"], a["dy"])


def scattered(a: Arrays, rows: np.ndarray) -> list[np.ndarray]:
    return [np.stack([a["dy"][a["ids"] == row].sum(0, dtype=float) for row in rows])]


# The article's network: Jacobians of each sample's logits, and a training step.
def network(rng: np.random.Generator, batch: int) -> Arrays:
    a: Arrays = {"x": rng.standard_normal((batch, SIZES[0]), np.float32), "labels": rng.integers(0, SIZES[-1], batch)}
    for i, (m, n) in enumerate(itertools.pairwise(SIZES)):
        a[f"w{i}"] = rng.standard_normal((m, n), np.float32) * np.float32((2 / m) ** 0.5)
        a[f"b{i}"] = np.float32(0.1) * rng.standard_normal(n, np.float32)
    return a


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

        f: Any = {"softmax": gl.softmax, "layer_norm": gl.layer_norm, "tanh": np.tanh}[name]
        jacobian = gl.batch_jacobian(f)
        return lambda: jacobian(a["x"])

    return build


def torch_row_jacobian(name: str) -> Any:
    def build(a: dict[str, Any]) -> Callable[[], Any]:
        import torch

        def layer_norm(row: Any) -> Any:
            return torch.nn.functional.layer_norm(row, row.shape)

        f: Any = {"softmax": lambda row: torch.softmax(row, -1), "layer_norm": layer_norm, "tanh": torch.tanh}[name]
        jacobian = torch.func.vmap(torch.func.jacrev(f))
        return lambda: jacobian(a["x"])

    return build


def jax_row_jacobian(name: str) -> Any:
    def build(a: dict[str, Any]) -> Callable[[], Any]:
        import jax

        def layer_norm(row: Any) -> Any:
            return (row - row.mean()) * jax.lax.rsqrt(row.var() + 1e-5)

        f: Any = {"softmax": jax.nn.softmax, "layer_norm": layer_norm, "tanh": jax.numpy.tanh}[name]
        jacobian = jax.jit(jax.vmap(jax.jacrev(f)))
        return lambda: jacobian(a["x"])

    return build


def softmax_jacobians(a: Arrays, rows: np.ndarray) -> list[np.ndarray]:
    x = a["x"][rows]
    p = np.exp(x - x.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    return [p[:, :, None] * (np.eye(x.shape[1]) - p[:, None, :])]


def layer_norm_jacobians(a: Arrays, rows: np.ndarray) -> list[np.ndarray]:
    x = a["x"][rows].astype(float)
    x -= x.mean(-1, keepdims=True)
    r = 1 / np.sqrt((x * x).mean(-1) + 1e-5)
    h, n = x * r[:, None], x.shape[1]
    return [r[:, None, None] * (np.eye(n) - 1 / n - h[:, :, None] * h[:, None, :] / n)]


def tanh_jacobians(a: Arrays, rows: np.ndarray) -> list[np.ndarray]:
    return [np.eye(a["x"].shape[1]) * (1 - np.tanh(a["x"][rows]) ** 2)[:, None, :]]


def row_jacobian_case(name: str, reference: Any) -> Case:
    contenders = {"gradlib": gradlib_row_jacobian, "torch": torch_row_jacobian, "jax": jax_row_jacobian}
    return Case(
        f"{name} Jacobian 256 x 512", "Jacobian", logits_of, {k: make(name) for k, make in contenders.items()},
        reference, {"rows": 256, "width": 512}, {"rows": 3, "width": 5}, lambda a: 4 * a["x"].size * a["x"].shape[1],
    )  # fmt: skip


def logits_of(rng: np.random.Generator, rows: int, width: int) -> Arrays:
    return {"x": rng.standard_normal((rows, width), np.float32)}


def gradlib_step(captured: bool) -> Any:
    """Value, gradients and Adam; what is checked is how the first step changes the first layer's weight."""

    def build(a: dict[str, Any]) -> Callable[[], Any]:
        import gradlib as gl

        net = gl.nn.Sequential(*[part for m, n in itertools.pairwise(SIZES)
                                 for part in (gl.nn.Linear(m, n), gl.nn.ReLU())][:-1])  # fmt: skip
        params = [part for i in range(3) for part in ({"w": a[f"w{i}"].copy(), "b": a[f"b{i}"].copy()}, {})][:-1]
        opt = gl.optim.Adam(params, lr=LR, betas=BETAS, eps=EPS)
        gradient = gl.grad(lambda params, x, y: gl.cross_entropy(net(params, x), y))

        def step(x: Any, y: Any) -> Any:
            opt.step(gradient(params, x, y))
            return params[0]["w"]

        f = gl.capture(step) if captured else step
        return lambda: f(a["x"], a["labels"])

    return build


def torch_step(graph: bool) -> Any:
    def build(a: dict[str, Any]) -> Callable[[], Any]:
        import torch
        from torch.nn import functional

        params = [a[f"{k}{i}"].clone().requires_grad_() for i in range(3) for k in "wb"]
        cuda = a["x"].is_cuda
        opt = torch.optim.Adam(params, lr=LR, betas=BETAS, eps=EPS, capturable=graph and cuda)

        def step() -> Any:
            h = torch.relu(torch.relu(a["x"] @ params[0] + params[1]) @ params[2] + params[3])
            loss = functional.cross_entropy(h @ params[4] + params[5], a["labels"])
            for p, g in zip(params, torch.autograd.grad(loss, params), strict=True):
                p.grad = g
            opt.step()
            return params[0]

        if not (graph and cuda):
            return step
        return _torch_graph(step, params, opt)

    return build


def _torch_graph(step: Callable[[], Any], params: list[Any], opt: Any) -> Callable[[], Any]:
    """The step recorded as a CUDA graph. Warming up has moved the parameters: they and the means are set back."""
    import torch

    before = [p.detach().clone() for p in params]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        step()
    with torch.no_grad():
        for p, old in zip(params, before, strict=True):
            p.copy_(old)
            for value in opt.state[p].values():
                value.zero_()

    def run() -> Any:
        recorded.replay()
        return params[0]

    return run


def first_step(a: Arrays, rows: np.ndarray) -> list[np.ndarray]:
    x, w = a["x"], [a[f"w{i}"] for i in range(3)]
    h1 = np.maximum(x @ w[0] + a["b0"], 0)
    h2 = np.maximum(h1 @ w[1] + a["b1"], 0)
    z = h2 @ w[2] + a["b2"]
    p = np.exp(z - z.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    p[np.arange(len(x)), a["labels"]] -= 1
    d = ((p / len(x)) @ w[2].T * (h2 > 0)) @ w[1].T * (h1 > 0)
    g = x.T @ d
    return [(w[0] - LR * g / (np.abs(g) + EPS))[rows]]


def gradlib_launch(launcher: str) -> Any:
    def build(a: dict[str, Any]) -> Callable[[], Any]:
        import gradlib as gl
        from gradlib.kernels import launchers

        def run() -> Any:
            before, launchers.LAUNCHER = launchers.LAUNCHER, launcher
            try:
                return gl.relu(a["x"])
            finally:
                launchers.LAUNCHER = before

        return run

    return build


def torch_launch(a: dict[str, Any]) -> Callable[[], Any]:
    import torch

    return lambda: torch.relu(a["x"])


CASES = [
    Case("Adam, 67 million parameters", "Adam", parameters, {"gradlib": gradlib_adam, "torch": torch_adam}, adam_once,
         {"entries": 1 << 26}, {"entries": 9}, lambda a: 7 * a["p"].nbytes, tolerance=2e-3, before="p"),
    Case("embedding gather, 262144 ids x 1024", "embedding gather", words,
         {"gradlib": gradlib_gather, "torch": torch_gather, "jax": jax_gather},
         lambda a, rows: [some(a["table"], a["ids"][rows])], {"ids": 1 << 18, "vocabulary": 50_000, "width": 1024},
         {"ids": 7, "vocabulary": 5, "width": 4}, lambda a: 2 * a["dy"].nbytes),
    Case("embedding scatter, 262144 ids x 1024", "embedding scatter", words,
         {"gradlib": gradlib_scatter, "torch": torch_scatter, "jax": jax_scatter}, scattered,
         {"ids": 1 << 18, "vocabulary": 50_000, "width": 1024}, {"ids": 7, "vocabulary": 5, "width": 4},
         lambda a: a["dy"].nbytes + a["table"].nbytes),
    row_jacobian_case("softmax", softmax_jacobians),
    row_jacobian_case("layer_norm", layer_norm_jacobians),
    row_jacobian_case("tanh", tanh_jacobians),
    Case("Jacobian of 100-64-32-10, B = 8192", "Jacobian", network,
         {"gradlib": gradlib_jacobian(False), "gradlib captured": gradlib_jacobian(True),
          "torch": torch_jacobian(False), "torch compiled": torch_jacobian(True), "jax": jax_jacobian},
         jacobian_rows, {"batch": 8192}, {"batch": 3}, lambda a: 4 * len(a["x"]) * 1000),
    Case("training step of 100-64-32-10, B = 100", "training step", network,
         {"gradlib": gradlib_step(False), "gradlib captured": gradlib_step(True), "torch": torch_step(False),
          "torch graph": torch_step(True)}, first_step, {"batch": 100}, {"batch": 5}, tolerance=2e-3, before="w0"),
    Case("launch: relu of 32 numbers", "launch", logits_of,
         {"gradlib": gradlib_launch("cupy"), "gradlib cuda.core": gradlib_launch("cuda.core"), "torch": torch_launch},
         lambda a, rows: [np.maximum(a["x"][rows], 0)], {"rows": 4, "width": 8}, {"rows": 4, "width": 8}),
]  # fmt: skip
