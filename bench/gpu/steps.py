"""Cases of whole steps: training the article's network, and launching one kernel."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from case import CALLS, Arrays, Case
from updates import BETAS, EPS, LR, jax_adam_of

SIZES = (100, 64, 32, 10)


def network(rng: np.random.Generator, batch: int) -> Arrays:
    a: Arrays = {"x": rng.standard_normal((batch, SIZES[0]), np.float32), "labels": rng.integers(0, SIZES[-1], batch)}
    for i, (m, n) in enumerate(itertools.pairwise(SIZES)):
        a[f"w{i}"] = rng.standard_normal((m, n), np.float32) * np.float32((2 / m) ** 0.5)
        a[f"b{i}"] = np.float32(0.1) * rng.standard_normal(n, np.float32)
    return a


def gradlib_step(captured: bool) -> Any:
    """Gradients and Adam; what is checked is how CALLS steps change the first layer's weight."""

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


def torch_step(how: str = "") -> Any:
    """how: "" as written, "compiled" both the gradients and the update, "graph" as a CUDA graph (on a GPU)."""

    def build(a: dict[str, Any]) -> Callable[[], Any]:
        import torch
        from torch.nn import functional

        params = [a[f"{k}{i}"].clone().requires_grad_() for i in range(3) for k in "wb"]
        cuda = a["x"].is_cuda
        opt = torch.optim.Adam(params, lr=LR, betas=BETAS, eps=EPS, foreach=True, capturable=bool(how) and cuda)

        def loss(x: Any, labels: Any, *params: Any) -> Any:
            h = torch.relu(torch.relu(x @ params[0] + params[1]) @ params[2] + params[3])
            return functional.cross_entropy(h @ params[4] + params[5], labels)

        f, update = (torch.compile(g, dynamic=False) if how == "compiled" else g for g in (loss, opt.step))

        def step() -> Any:
            gradients = torch.autograd.grad(f(a["x"], a["labels"], *params), params)
            for p, g in zip(params, gradients, strict=True):
                p.grad = g
            update()
            return params[0]

        return _torch_graph(step, params, opt) if how == "graph" and cuda else step

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


def jax_step(a: dict[str, Any]) -> Callable[[], Any]:
    import jax
    import jax.numpy as jnp

    def loss(params: Any, x: Any, labels: Any) -> Any:
        (w0, b0), (w1, b1), (w2, b2) = params
        z = jax.nn.relu(jax.nn.relu(x @ w0 + b0) @ w1 + b1) @ w2 + b2
        return -jnp.take_along_axis(jax.nn.log_softmax(z), labels[:, None], 1).mean()

    def update(params: Any, means: Any, t: Any, x: Any, labels: Any) -> Any:
        leaves, structure = jax.tree.flatten(params)
        gradients = jax.tree.leaves(jax.grad(loss)(params, x, labels))
        new = [jax_adam_of(p, *m, g, t) for p, m, g in zip(leaves, means, gradients, strict=True)]
        return jax.tree.unflatten(structure, [p for p, _, _ in new]), [m for _, *m in new], t + 1

    step = jax.jit(update, donate_argnums=(0, 1, 2))
    params = [(jnp.array(a[f"w{i}"]), jnp.array(a[f"b{i}"])) for i in range(3)]
    state = [params, [[jnp.zeros_like(p), jnp.zeros_like(p)] for p in jax.tree.leaves(params)], jnp.ones(())]

    def run() -> Any:
        state[:] = step(*state, a["x"], a["labels"])
        return state[0][0][0]

    return run


# The reference: CALLS steps in float64.
def trained(a: Arrays, rows: np.ndarray) -> list[np.ndarray]:
    params = [a[f"{k}{i}"].astype(float) for i in range(3) for k in "wb"]
    means = [(np.zeros_like(p), np.zeros_like(p)) for p in params]
    for t in range(1, CALLS + 1):
        new = [
            jax_adam_of(p, *m, g, t)
            for p, m, g in zip(params, means, gradients_of(params, a["x"], a["labels"]), strict=True)
        ]
        params, means = [p for p, _, _ in new], [(m, v) for _, m, v in new]
    return [params[0][rows]]


def gradients_of(params: list[np.ndarray], x: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """Of the mean cross-entropy, backward by hand."""
    w, b = params[::2], params[1::2]
    h = [x]
    for i in range(2):
        h.append(np.maximum(h[-1] @ w[i] + b[i], 0))
    z = h[2] @ w[2] + b[2]
    d = np.exp(z - z.max(-1, keepdims=True))
    d /= d.sum(-1, keepdims=True)
    d[np.arange(len(x)), labels] -= 1
    d /= len(x)
    found: list[np.ndarray] = []
    for i in (2, 1, 0):
        found = [h[i].T @ d, d.sum(0), *found]
        d = d @ w[i].T * (h[i] > 0) if i else d
    return found


# A launch: one kernel of ours by each launcher and one of CuPy's compiler, with the same arguments; then whole calls.
RELU = """extern "C" __global__ void relu(const float* x, float* y, long long n, int wide, float a) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i < n) y[i] = fmaxf(x[i], 0.0f);
}"""


def numbers(rng: np.random.Generator, rows: int, width: int) -> Arrays:
    return {"x": rng.standard_normal((rows, width), np.float32)}


def gradlib_launch(launcher: str) -> Any:
    def build(a: dict[str, Any]) -> Callable[[], Any]:
        from gradlib.kernels import launchers
        from gradlib.kernels.elementwise import pointwise

        kernel, x, y = pointwise["float32", "relu"], a["x"], a["x"].copy()

        def run() -> Any:
            before, launchers.LAUNCHER = launchers.LAUNCHER, launcher
            kernel(1, 32, x, y, x.size, 1, 0.0)
            launchers.LAUNCHER = before
            return y

        return run

    return build


def cupy_launch(a: dict[str, Any]) -> Callable[[], Any]:
    if isinstance(a["x"], np.ndarray):
        raise ModuleNotFoundError("a RawKernel needs a GPU")
    import cupy

    kernel, x, y = cupy.RawKernel(RELU, "relu"), a["x"], cupy.empty_like(a["x"])

    def run() -> Any:
        kernel((1,), (32,), (x, y, np.int64(x.size), np.int32(1), np.float32(0)))
        return y

    return run


def gradlib_call(a: dict[str, Any]) -> Callable[[], Any]:
    import gradlib as gl

    return lambda: gl.relu(a["x"])


def torch_call(a: dict[str, Any]) -> Callable[[], Any]:
    import torch

    return lambda: torch.relu(a["x"])


def relu_rows(a: Arrays, rows: np.ndarray) -> list[np.ndarray]:
    return [np.maximum(a["x"][rows], 0)]


SMALL = {"rows": 4, "width": 8}
CASES = [
    Case("training step of 100-64-32-10, B = 100", "training step", network,
         {"gradlib": gradlib_step(False), "gradlib captured": gradlib_step(True), "torch": torch_step(),
          "torch compiled": torch_step("compiled"), "torch graph": torch_step("graph"), "jax": jax_step},
         trained, {"batch": 100}, {"batch": 5}, tolerance=2e-3, before="w0"),
    Case("launch of one kernel, 32 numbers", "launch", numbers,
         {"gradlib": gradlib_launch("cupy"), "gradlib cuda.core": gradlib_launch("cuda.core"),
          "cupy RawKernel": cupy_launch}, relu_rows, SMALL, SMALL),
    Case("a call of relu, 32 numbers", "launch", numbers, {"gradlib": gradlib_call, "torch": torch_call},
         relu_rows, SMALL, SMALL),
]  # fmt: skip
