"""The article's network, 100-64-32-10 with ReLU, in every contender's own words.

Inputs are a dict: `params`, a list of (w (in, out), b (out,)); `x` [(B, D) a batch]; `labels` [(B,) a batch].
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

SIZES = (100, 64, 32, 10)


def inputs(rng: np.random.Generator, batch: int, sizes: tuple = SIZES, batches: int = 1, dtype: str = "float32") -> Any:
    """Parameters, and `batches` batches of random inputs and labels."""
    params = [
        ((rng.standard_normal((i, o)) * (2 / i) ** 0.5).astype(dtype), (0.1 * rng.standard_normal(o)).astype(dtype))
        for i, o in itertools.pairwise(sizes)
    ]
    x = [rng.standard_normal((batch, sizes[0])).astype(dtype) for _ in range(batches)]
    labels = [rng.integers(0, sizes[-1], batch) for _ in range(batches)]
    return {"params": params, "x": x, "labels": labels}


# NumPy, by hand.
def forward(params: Any, x: Any) -> list[np.ndarray]:
    """[x, each hidden layer's output, logits]."""
    outputs = [x]
    for i, (w, b) in enumerate(params):
        z = outputs[-1] @ w
        z += b
        if i < len(params) - 1:
            np.maximum(z, 0, out=z)
        outputs.append(z)
    return outputs


def loss_and_logits_gradient(logits: np.ndarray, labels: np.ndarray) -> tuple[Any, np.ndarray]:
    """(mean cross-entropy, its gradient with respect to the logits)."""
    rows = np.arange(len(labels))
    e = logits - logits.max(axis=1, keepdims=True)
    picked = e[rows, labels]
    np.exp(e, out=e)
    total = e.sum(axis=1)
    loss = (np.log(total) - picked).mean()
    e /= total[:, None]
    e[rows, labels] -= 1
    e /= len(labels)
    return loss, e


def value_and_grad(params: Any, x: Any, labels: Any) -> tuple[Any, list[tuple[np.ndarray, np.ndarray]]]:
    """(loss, gradients as params), backpropagation written out."""
    outputs = forward(params, x)
    loss, d = loss_and_logits_gradient(outputs[-1], labels)
    grads: list[Any] = [None] * len(params)
    for i in range(len(params) - 1, -1, -1):
        h = outputs[i]
        grads[i] = h.T @ d, d.sum(axis=0)
        if i:
            d = d @ params[i][0].T
            d *= h > 0
    return loss, grads


def wide(inputs: Any) -> Any:
    """The inputs in float64, for references."""
    return {
        "params": [(w.astype(np.float64), b.astype(np.float64)) for w, b in inputs["params"]],
        "x": [x.astype(np.float64) for x in inputs["x"]],
        "labels": inputs["labels"],
    }


# gradlib
def gradlib_network(inputs: Any, device: str) -> tuple[Any, Any, Any, Any]:
    """(net, params, batches of x, of labels)."""
    import gradlib as gl

    sizes = [w.shape for w, _ in inputs["params"]]
    layers = [part for i, o in sizes for part in (gl.nn.Linear(i, o), gl.nn.ReLU())][:-1]
    params = [part for w, b in inputs["params"] for part in ({"w": w.copy(), "b": b.copy()}, {})][:-1]
    return gl.nn.Sequential(*layers), *(gl.to_device(t, device) for t in (params, inputs["x"], inputs["labels"]))


def gradlib_pairs(tree: Any) -> list[tuple[Any, Any]]:
    """gradlib's tree of parameters (or gradients, or Jacobians) as [(w, b)]."""
    return [(layer["w"], layer["b"]) for layer in tree if layer]


# torch
def torch_network(inputs: Any, device: str) -> tuple[Any, Any, Any]:
    """(nn.Sequential, batches of x, of labels)."""
    import torch
    from torch import nn

    layers: list[Any] = []
    for w, b in inputs["params"]:
        layer = nn.Linear(*w.shape, dtype=getattr(torch, w.dtype.name))
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(w.T.copy()))
            layer.bias.copy_(torch.from_numpy(b))
        layers += [layer, nn.ReLU()]

    def move(arrays):
        return [torch.from_numpy(a).to(device) for a in arrays]

    return nn.Sequential(*layers[:-1]).to(device), move(inputs["x"]), move(inputs["labels"])


def torch_pairs(tensors: Any) -> list[tuple[Any, Any]]:
    """torch's [weight (out, in), bias, weight, bias, …] as [(w (in, out), b)]; leading axes of Jacobians stay."""
    tensors = list(tensors)
    return [(w.swapaxes(-1, -2), b) for w, b in zip(tensors[::2], tensors[1::2], strict=True)]


# JAX
def jax_logits(params: Any, x: Any) -> Any:
    import jax

    for w, b in params[:-1]:
        x = jax.nn.relu(x @ w + b)
    return x @ params[-1][0] + params[-1][1]


def jax_row_loss(logits: Any, labels: Any) -> Any:
    """Cross-entropy of every row."""
    import jax
    import jax.numpy as jnp

    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1)[..., 0]


def jax_arrays(inputs: Any) -> Any:
    """The inputs as JAX arrays; float64 stays float64."""
    import jax

    if inputs["x"][0].dtype == np.float64:
        jax.config.update("jax_enable_x64", True)
    return jax.tree_util.tree_map(jax.numpy.asarray, inputs)
