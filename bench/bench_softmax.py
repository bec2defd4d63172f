"""The batched Jacobian of softmax: J = diag(y) - y yᵀ for every row, (B, C, C), 4 B C² bytes of output."""

from __future__ import annotations

from typing import Any

import numpy as np
from harness import Case, check_in_process, done, torch_done


def inputs(rng: np.random.Generator, rows: int, classes: int) -> np.ndarray:
    return rng.standard_normal((rows, classes)).astype(np.float32)


def by_hand(x: np.ndarray) -> np.ndarray:
    """diag(y) - y yᵀ, in one array."""
    y = np.exp(x - x.max(axis=1, keepdims=True))
    y /= y.sum(axis=1, keepdims=True)
    jacobian = y[:, :, None] * -y[:, None, :]
    at = np.arange(x.shape[1])
    jacobian[:, at, at] += y
    return jacobian


def gradlib_jacobian(x: np.ndarray, device: str) -> Any:
    import gradlib as gl

    x, wait = gl.to_device(x, device), done(device)
    jacobian = gl.batch_jacobian(gl.softmax)

    def run() -> Any:
        result = jacobian(x)
        wait()
        return result

    return run, lambda: {"jacobian": run()}


def torch_func_jacobian(x: np.ndarray, device: str) -> Any:
    import torch

    tensor, wait = torch.from_numpy(x).to(device), torch_done(device)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda row: torch.softmax(row, -1)))

    def run() -> Any:
        result = jacobian(tensor)
        wait()
        return result

    return run, lambda: {"jacobian": run()}


def torch_by_hand(x: np.ndarray, device: str) -> Any:
    import torch

    tensor, wait = torch.from_numpy(x).to(device), torch_done(device)

    def run() -> Any:
        y = torch.softmax(tensor, -1)
        jacobian = y[:, :, None] * -y[:, None, :]
        jacobian.diagonal(dim1=1, dim2=2).add_(y)
        wait()
        return jacobian

    return run, lambda: {"jacobian": run()}


def jax_jacobian(x: np.ndarray, device: str) -> Any:
    import jax

    array, jacobian = jax.numpy.asarray(x), jax.jit(jax.vmap(jax.jacrev(jax.nn.softmax)))

    def run():
        return jax.block_until_ready(jacobian(array))

    return run, lambda: {"jacobian": run()}


softmax_jacobian = Case(
    "softmax_jacobian",
    "batched Jacobian of softmax, 256 rows of 512 classes, float32",
    inputs,
    lambda x: {"jacobian": by_hand(x.astype(np.float64))},
    {
        "gradlib": gradlib_jacobian,
        "torch.func": torch_func_jacobian,
        "torch by hand": torch_by_hand,
        "jax": jax_jacobian,
        "numpy": lambda x, device: (lambda: by_hand(x), lambda: {"jacobian": by_hand(x)}),
    },
    sizes={"rows": 256, "classes": 512},
    tiny={"rows": 3, "classes": 5},
)

CASES = [softmax_jacobian]


def test_softmax_jacobian(benchmark: Any) -> None:
    check_in_process(benchmark, softmax_jacobian)
