"""Batched Jacobian through a bottleneck, 256-256-16-256-256 with tanh: the best order is mixed."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import numpy as np
from harness import Case, check_in_process, compiled, done, torch_done


def inputs(rng: np.random.Generator, batch: int, widths: tuple[int, ...]) -> Any:
    """The matrices (in, out), and x (B, D)."""
    ws = [(rng.standard_normal((a, b)) / a**0.5).astype(np.float32) for a, b in itertools.pairwise(widths)]
    return ws, rng.standard_normal((batch, widths[0])).astype(np.float32)


def by_hand(ws: list[np.ndarray], x: np.ndarray) -> np.ndarray:
    """The halves left and right of the narrowest layer, each from its narrow side, then their product."""
    slopes, values = [], [x]
    for w in ws:
        values.append(np.tanh(values[-1] @ w))
        slopes.append(1 - values[-1] ** 2)
    cut = 1 + int(np.argmin([w.shape[1] for w in ws[:-1]]))
    narrow = ws[cut - 1].shape[1]
    right = ws[cut - 1].T * slopes[cut - 1][:, :, None]  # (B, narrow, ·), back to the inputs
    for w, d in zip(ws[cut - 2 :: -1] if cut > 1 else [], slopes[cut - 2 :: -1] if cut > 1 else [], strict=True):
        right = ((right * d[:, None, :]).reshape(-1, w.shape[1]) @ w.T).reshape(len(x), narrow, -1)
    left = ws[cut] * slopes[cut][:, None, :]  # (B, narrow, ·), ahead to the outputs
    for w, d in zip(ws[cut + 1 :], slopes[cut + 1 :], strict=True):
        left = (left.reshape(-1, w.shape[0]) @ w).reshape(len(x), narrow, -1) * d[:, None, :]
    return left.swapaxes(1, 2) @ right


def gradlib_jacobian(inputs: Any, device: str) -> Any:
    import gradlib as gl

    ws, x = gl.to_device(inputs, device)
    wait = done(device)

    def net(x: Any) -> Any:
        for w in ws:
            x = gl.linear(x, w, activation="tanh")
        return x

    jacobian = gl.batch_jacobian(net)

    def run() -> Any:
        result = jacobian(x)
        wait()
        return result

    return run, lambda: {"jacobian": run()}


def torch_jacobian(inputs: Any, device: str, compile_it: bool = False) -> Any:
    import torch

    ws, wait = [torch.from_numpy(w).to(device) for w in inputs[0]], torch_done(device)
    x = torch.from_numpy(inputs[1]).to(device)

    def net(row):
        for w in ws:
            row = torch.tanh(row @ w)
        return row

    jacobian = torch.func.vmap(torch.func.jacrev(net))
    jacobian = compiled(jacobian) if compile_it else jacobian

    def run() -> Any:
        result = jacobian(x)
        wait()
        return result

    return run, lambda: {"jacobian": run()}


def jax_jacobian(inputs: Any, device: str, direction: str = "jacrev") -> Any:
    import jax

    ws, x = jax.tree_util.tree_map(jax.numpy.asarray, inputs)

    def net(ws, row):
        for w in ws:
            row = jax.numpy.tanh(row @ w)
        return row

    jacobian = jax.jit(jax.vmap(getattr(jax, direction)(net, 1), (None, 0)))

    def run():
        return jax.block_until_ready(jacobian(ws, x))

    return run, lambda: {"jacobian": run()}


def numpy_jacobian(inputs: Any, device: str) -> Any:
    def run():
        return by_hand(*inputs)

    return run, lambda: {"jacobian": run()}


def reference(inputs: Any) -> dict[str, Any]:
    return {"jacobian": by_hand([w.astype(np.float64) for w in inputs[0]], inputs[1].astype(np.float64))}


bottleneck = Case(
    "bottleneck",
    "Jacobian through a bottleneck, 256-256-16-256-256 tanh, B=64, float32",
    inputs,
    reference,
    {
        "gradlib": gradlib_jacobian,
        "torch.func": torch_jacobian,
        "torch.func compiled": partial(torch_jacobian, compile_it=True),
        "jax": jax_jacobian,
        "jax forward": partial(jax_jacobian, direction="jacfwd"),
        "numpy": numpy_jacobian,
    },
    sizes={"batch": 64, "widths": (256, 256, 16, 256, 256)},
    tiny={"batch": 3, "widths": (6, 5, 2, 4, 7)},
)

CASES = [bottleneck]


def test_bottleneck(benchmark: Any) -> None:
    check_in_process(benchmark, CASES[0])
