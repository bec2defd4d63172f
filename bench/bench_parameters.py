"""By parameters: the Jacobian of the article's logits, (B, C, *param), and the gradient of every sample's loss."""

from __future__ import annotations

from functools import partial
from typing import Any

import article
import numpy as np
from harness import Case, check_in_process, done, torch_done


# Jacobian of the logits with respect to all parameters: (B, C, *param)
def parameter_jacobian(params: Any, x: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """By hand: d [B, C, width] from the logits back; ∂/∂w is the outer product of the layer's input and d."""
    outputs = article.forward(params, x)
    classes = params[-1][0].shape[1]
    d = np.broadcast_to(np.eye(classes, dtype=x.dtype), (len(x), classes, classes))
    result: list[Any] = [None] * len(params)
    for i in range(len(params) - 1, -1, -1):
        h = outputs[i]
        result[i] = h[:, None, :, None] * d[:, :, None, :], np.ascontiguousarray(d)
        if i:
            d = (d @ params[i][0].T) * (h > 0)[:, None, :]
    return result


def gradlib_parameters(inputs: Any, device: str) -> Any:
    import gradlib as gl

    net, params, (x,), _ = article.gradlib_network(inputs, device)
    jacobian, wait = gl.jacobian(lambda params: net(params, x)), done(device)

    def run() -> Any:
        result = jacobian(params)
        wait()
        return result

    return run, lambda: {"jacobian": article.gradlib_pairs(run())}


def gradlib_shared(inputs: Any, device: str) -> Any:
    """The same numbers sample by sample, the parameters shared: 10 rows are swept instead of 10 B."""
    import gradlib as gl

    net, params, (x,), _ = article.gradlib_network(inputs, device)
    jacobian, wait = gl.batch_jacobian(net, in_axes=(None, 0)), done(device)

    def run() -> Any:
        result = jacobian(params, x)
        wait()
        return result

    return run, lambda: {"jacobian": article.gradlib_pairs(run())}


def torch_parameters(inputs: Any, device: str) -> Any:
    """Sample by sample under vmap: the same numbers as jacrev over the whole batch, for much less work."""
    import torch

    net, (x,), _ = article.torch_network(inputs, device)
    params, wait = {k: v.detach() for k, v in net.named_parameters()}, torch_done(device)

    def logits(params, row):
        return torch.func.functional_call(net, params, (row,))

    jacobian = torch.func.vmap(torch.func.jacrev(logits), (None, 0))

    def run() -> Any:
        result = jacobian(params, x)
        wait()
        return result

    return run, lambda: {"jacobian": article.torch_pairs(run().values())}


def jax_parameters(inputs: Any, device: str) -> Any:
    import jax

    a = article.jax_arrays(inputs)
    jacobian = jax.jit(jax.vmap(jax.jacrev(article.jax_logits), (None, 0)))

    def run():
        return jax.block_until_ready(jacobian(a["params"], a["x"][0]))

    return run, lambda: {"jacobian": run()}


def numpy_parameters(inputs: Any, device: str) -> Any:
    def run():
        return parameter_jacobian(inputs["params"], inputs["x"][0])

    return run, lambda: {"jacobian": run()}


def parameter_reference(inputs: Any) -> dict[str, Any]:
    inputs = article.wide(inputs)
    return {"jacobian": parameter_jacobian(inputs["params"], inputs["x"][0])}


# Gradient of every sample's loss with respect to all parameters: (B, *param)
def sample_gradients(params: Any, x: np.ndarray, labels: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """By hand: backpropagation that keeps the samples apart."""
    outputs = article.forward(params, x)
    d = article.loss_and_logits_gradient(outputs[-1], labels)[1] * x.dtype.type(len(x))
    result: list[Any] = [None] * len(params)
    for i in range(len(params) - 1, -1, -1):
        h = outputs[i]
        result[i] = h[:, :, None] * d[:, None, :], d
        if i:
            d = d @ params[i][0].T
            d *= h > 0
    return result


def gradlib_samples(inputs: Any, device: str) -> Any:
    import gradlib as gl

    net, params, (x,), (y,) = article.gradlib_network(inputs, device)

    def loss(params, x, y):
        return gl.cross_entropy(net(params, x), y, reduction="none")

    gradients, wait = gl.per_sample_grad(loss), done(device)

    def run() -> Any:
        result = gradients(params, x, y)
        wait()
        return result

    return run, lambda: {"gradients": article.gradlib_pairs(run())}


def torch_samples(inputs: Any, device: str) -> Any:
    import torch

    net, (x,), (y,) = article.torch_network(inputs, device)
    params, wait = {k: v.detach() for k, v in net.named_parameters()}, torch_done(device)

    def loss(params: Any, row: Any, label: Any) -> Any:
        return torch.nn.functional.cross_entropy(torch.func.functional_call(net, params, (row,)), label)

    gradients = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))

    def run() -> Any:
        result = gradients(params, x, y)
        wait()
        return result

    return run, lambda: {"gradients": article.torch_pairs(run().values())}


def jax_samples(inputs: Any, device: str) -> Any:
    import jax

    a = article.jax_arrays(inputs)

    def loss(params, row, label):
        return article.jax_row_loss(article.jax_logits(params, row), label)

    gradients = jax.jit(jax.vmap(jax.grad(loss), (None, 0, 0)))

    def run():
        return jax.block_until_ready(gradients(a["params"], a["x"][0], a["labels"][0]))

    return run, lambda: {"gradients": run()}


def numpy_samples(inputs: Any, device: str) -> Any:
    def run():
        return sample_gradients(inputs["params"], inputs["x"][0], inputs["labels"][0])

    return run, lambda: {"gradients": run()}


def sample_reference(inputs: Any) -> dict[str, Any]:
    inputs = article.wide(inputs)
    return {"gradients": sample_gradients(inputs["params"], inputs["x"][0], inputs["labels"][0])}


_case = partial(Case, inputs=article.inputs, tiny={"batch": 7, "sizes": (5, 4, 3)})
_samples_case = partial(
    _case,
    reference=sample_reference,
    contenders={"gradlib": gradlib_samples, "torch.func": torch_samples, "jax": jax_samples, "numpy": numpy_samples},
)

CASES = [
    _case(
        "jacobian",
        about="Jacobian of the logits by all parameters, B=100, float32",
        reference=parameter_reference,
        contenders={
            "gradlib": gradlib_parameters,
            "gradlib batch_jacobian": gradlib_shared,
            "torch.func": torch_parameters,
            "jax": jax_parameters,
            "numpy": numpy_parameters,
        },
        sizes={"batch": 100},
    ),
    _samples_case(
        "per_sample_grad",
        about="gradient of each sample's loss by all parameters, B=1024, float32",
        sizes={"batch": 1024},
    ),
    _samples_case("per_sample_grad_8192", about="the same, B=8192", sizes={"batch": 8192}),
]


def test_jacobian(benchmark: Any) -> None:
    check_in_process(benchmark, CASES[0])


def test_per_sample_grad(benchmark: Any) -> None:
    check_in_process(benchmark, CASES[1])


def test_per_sample_grad_8192(benchmark: Any) -> None:
    check_in_process(benchmark, CASES[2])
