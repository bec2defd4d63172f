"""Batched Jacobians of the article's network, logits by inputs: (B, C, D)."""

from __future__ import annotations

from functools import partial
from typing import Any

import article
import numpy as np
from harness import Case, check_in_process, compiled, done, torch_done


# Jacobian of every sample's logits with respect to its input: (B, C, D)
def input_jacobian(params: Any, x: np.ndarray) -> np.ndarray:
    """By hand: wᵀ … diag(h > 0) wᵀ, from the logits back."""
    outputs = article.forward(params, x)
    d = np.broadcast_to(params[-1][0].T, (len(x), *params[-1][0].T.shape))
    for (w, _), h in zip(params[-2::-1], outputs[-2:0:-1], strict=True):
        d = (d * (h > 0)[:, None, :]) @ w.T
    return d


def gradlib_input(inputs: Any, device: str, captured: bool = False) -> Any:
    import gradlib as gl

    net, params, (x,), _ = article.gradlib_network(inputs, device)
    jacobian, wait = gl.batch_jacobian(lambda x: net(params, x)), done(device)
    jacobian = gl.capture(jacobian) if captured else jacobian

    def run() -> Any:
        result = jacobian(x)
        wait()
        return result

    return run, lambda: {"jacobian": run()}


def torch_input(inputs: Any, device: str, compile_it: bool = False) -> Any:
    import torch

    net, (x,), _ = article.torch_network(inputs, device)
    net.requires_grad_(False)
    jacobian, wait = torch.func.vmap(torch.func.jacrev(net)), torch_done(device)
    jacobian = compiled(jacobian) if compile_it else jacobian

    def run() -> Any:
        result = jacobian(x)
        wait()
        return result

    return run, lambda: {"jacobian": run()}


def jax_input(inputs: Any, device: str) -> Any:
    import jax

    a = article.jax_arrays(inputs)
    jacobian = jax.jit(jax.vmap(jax.jacrev(article.jax_logits, 1), (None, 0)))

    def run():
        return jax.block_until_ready(jacobian(a["params"], a["x"][0]))

    return run, lambda: {"jacobian": run()}


def numpy_input(inputs: Any, device: str) -> Any:
    def run():
        return input_jacobian(inputs["params"], inputs["x"][0])

    return run, lambda: {"jacobian": run()}


def input_reference(inputs: Any) -> dict[str, Any]:
    inputs = article.wide(inputs)
    return {"jacobian": input_jacobian(inputs["params"], inputs["x"][0])}


_case = partial(
    Case,
    inputs=article.inputs,
    reference=input_reference,
    contenders={
        "gradlib": gradlib_input,
        "gradlib captured": partial(gradlib_input, captured=True),
        "torch.func": torch_input,
        "torch.func compiled": partial(torch_input, compile_it=True),
        "jax": jax_input,
        "numpy": numpy_input,
    },
    tiny={"batch": 7, "sizes": (5, 4, 3)},
)

CASES = [
    _case(
        "batch_jacobian", about="Jacobian of each sample's logits by its input, B=100, float32", sizes={"batch": 100}
    ),
    _case("batch_jacobian_1024", about="the same, B=1024", sizes={"batch": 1024}),
    _case("batch_jacobian_8192", about="the same, B=8192", sizes={"batch": 8192}),
]


def test_batch_jacobian(benchmark: Any) -> None:
    check_in_process(benchmark, CASES[0])


def test_batch_jacobian_1024(benchmark: Any) -> None:
    check_in_process(benchmark, CASES[1])


def test_batch_jacobian_8192(benchmark: Any) -> None:
    check_in_process(benchmark, CASES[2])
