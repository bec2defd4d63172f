"""A linear layer on sparse rows (bags of words): value, and gradients of weights and bias, which are dense."""

from __future__ import annotations

from typing import Any

import numpy as np
from harness import Case, check_in_process, done, torch_done


def inputs(rng: np.random.Generator, rows: int, columns: int, per_row: int, width: int) -> Any:
    """CSR rows with `per_row` entries each, weights, bias, and the cotangent of the output."""

    def draw(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    picks = [np.sort(rng.choice(columns, per_row, replace=False)) for _ in range(rows)]
    return {
        "data": draw(rows * per_row),
        "indices": np.concatenate(picks).astype(np.int32),
        "indptr": np.arange(0, rows * per_row + 1, per_row, dtype=np.int32),
        "w": draw(columns, width),
        "b": draw(width),
        "dy": draw(rows, width),
    }


def reference(inputs: Any) -> dict[str, Any]:
    """From the densified matrix, in float64."""
    rows = np.repeat(np.arange(len(inputs["indptr"]) - 1), np.diff(inputs["indptr"]))
    x = np.zeros((len(inputs["indptr"]) - 1, len(inputs["w"])))
    x[rows, inputs["indices"]] = inputs["data"]
    dy = inputs["dy"].astype(np.float64)
    return {"y": x @ inputs["w"] + inputs["b"], "dw": x.T @ dy, "db": dy.sum(axis=0)}


def _named(run: Any) -> Any:
    return run, lambda: dict(zip(("y", "dw", "db"), run(), strict=True))


def gradlib_layer(inputs: Any, device: str) -> Any:
    import gradlib as gl
    from gradlib.ops.csr import Pattern

    a, wait = gl.to_device(inputs, device), done(device)
    x = gl.CSR(a["data"], Pattern(a["indices"], a["indptr"], (len(a["indptr"]) - 1, len(a["w"]))))

    def run() -> Any:
        y, pullback = gl.vjp(lambda w, b: gl.linear(x, w, b), a["w"], a["b"])
        result = y, *pullback(a["dy"])
        wait()
        return result

    return _named(run)


def _torch_layer(inputs: Any, device: str, product: Any) -> Any:
    """Value and gradients where `product(tensors)` makes the function w -> x @ w."""
    import torch

    a, wait = {k: torch.from_numpy(v).to(device) for k, v in inputs.items()}, torch_done(device)
    w, b, times = a["w"].requires_grad_(), a["b"].requires_grad_(), product(a)

    def run() -> Any:
        y = times(w) + b
        result = y, *torch.autograd.grad(y, (w, b), a["dy"])
        wait()
        return result

    return _named(run)


def torch_csr(inputs: Any, device: str) -> Any:
    import torch

    def product(a: Any) -> Any:
        shape = (len(a["indptr"]) - 1, len(a["w"]))
        x = torch.sparse_csr_tensor(a["indptr"], a["indices"], a["data"], shape)
        return lambda w: torch.sparse.mm(x, w)

    return _torch_layer(inputs, device, product)


def torch_embedding_bag(inputs: Any, device: str) -> Any:
    import torch

    def product(a: Any) -> Any:
        offsets, bag = a["indptr"][:-1].contiguous(), torch.nn.functional.embedding_bag
        return lambda w: bag(a["indices"], w, offsets, mode="sum", per_sample_weights=a["data"])

    return _torch_layer(inputs, device, product)


def jax_layer(inputs: Any, device: str) -> Any:
    import jax

    count = len(inputs["indptr"]) - 1
    rows = jax.numpy.asarray(np.repeat(np.arange(count), np.diff(inputs["indptr"])))
    a = jax.tree_util.tree_map(jax.numpy.asarray, inputs)

    def layer(w: Any, b: Any) -> Any:
        terms = a["data"][:, None] * w[a["indices"]]
        return jax.ops.segment_sum(terms, rows, count, indices_are_sorted=True) + b

    @jax.jit
    def step(w: Any, b: Any, dy: Any) -> Any:
        y, pullback = jax.vjp(layer, w, b)
        return y, *pullback(dy)

    return _named(lambda: jax.block_until_ready(step(a["w"], a["b"], a["dy"])))


def scipy_layer(inputs: Any, device: str) -> Any:
    from scipy.sparse import csr_array

    shape = (len(inputs["indptr"]) - 1, len(inputs["w"]))
    x = csr_array((inputs["data"], inputs["indices"], inputs["indptr"]), shape=shape)

    def run() -> Any:
        y = x @ inputs["w"]
        y += inputs["b"]
        return y, x.T @ inputs["dy"], inputs["dy"].sum(axis=0)

    return _named(run)


sparse_linear = Case(
    "sparse_linear",
    "linear layer on CSR rows 256 x 30000, 20 entries a row, 64 wide: value and gradients, float32",
    inputs,
    reference,
    {
        "gradlib": gradlib_layer,
        "torch csr": torch_csr,
        "torch embedding_bag": torch_embedding_bag,
        "jax": jax_layer,
        "numpy": scipy_layer,
    },
    sizes={"rows": 256, "columns": 30000, "per_row": 20, "width": 64},
    tiny={"rows": 4, "columns": 9, "per_row": 2, "width": 3},
)

CASES = [sparse_linear]


def test_sparse_linear(benchmark: Any) -> None:
    check_in_process(benchmark, sparse_linear)
