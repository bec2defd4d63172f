"""One training step of the article's network, and its gradient alone.

`train_step` cycles through batches with random labels: on one batch the loss would go to 0, the gradients with it,
and arithmetic on denormal numbers would be timed.
"""

from __future__ import annotations

from functools import partial
from itertools import cycle
from typing import Any

import adam
import article
import numpy as np
from harness import Case, check_in_process, done, torch_done


def step_reference(inputs: Any) -> dict[str, Any]:
    inputs = article.wide(inputs)
    loss, grads = article.value_and_grad(inputs["params"], inputs["x"][0], inputs["labels"][0])
    flat = [g for pair in grads for g in pair]
    return {"loss": loss, "grads": grads, "update": [-adam.LR * g / (abs(g) + adam.EPS) for g in flat]}


def gradlib_step(inputs: Any, device: str) -> Any:
    import gradlib as gl

    net, params, xs, ys = article.gradlib_network(inputs, device)
    batches, wait = cycle(zip(xs, ys, strict=True)), done(device)
    step = gl.value_and_grad(lambda params, x, y: gl.cross_entropy(net(params, x), y))
    opt = gl.optim.Adam(params, lr=adam.LR)

    def run() -> Any:
        loss, grads = step(params, *next(batches))
        opt.step(grads)
        wait()
        return loss, grads

    def values() -> dict[str, Any]:
        loss, grads = run()
        after = [p for pair in article.gradlib_pairs(params) for p in pair]
        before = [p for pair in inputs["params"] for p in pair]
        update = [(a.get() if hasattr(a, "get") else a) - b for a, b in zip(after, before, strict=True)]
        return {"loss": loss, "grads": article.gradlib_pairs(grads), "update": update}

    return run, values


def torch_step(inputs: Any, device: str, fused: bool = False) -> Any:
    from torch.nn import functional

    net, xs, ys = article.torch_network(inputs, device)
    batches, wait = cycle(zip(xs, ys, strict=True)), torch_done(device)
    opt = adam.torch_adam(net.parameters(), fused)

    def run() -> Any:
        x, y = next(batches)
        opt.zero_grad()
        loss = functional.cross_entropy(net(x), y)
        loss.backward()
        opt.step()
        wait()
        return loss

    def values() -> dict[str, Any]:
        loss = run()
        params = [
            (w.detach().cpu().numpy(), b.detach().cpu().numpy()) for w, b in article.torch_pairs(net.parameters())
        ]
        update = [
            a - b for new, old in zip(params, inputs["params"], strict=True) for a, b in zip(new, old, strict=True)
        ]
        return {"loss": loss, "grads": article.torch_pairs(p.grad for p in net.parameters()), "update": update}

    return run, values


def jax_step(inputs: Any, device: str) -> Any:
    import jax

    arrays = article.jax_arrays(inputs)
    batches = cycle(zip(arrays["x"], arrays["labels"], strict=True))

    def loss(params, x, y):
        return article.jax_row_loss(article.jax_logits(params, x), y).mean()

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, x: Any, y: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(params, x, y)
        return value, *adam.jax_update(params, grads, state)

    now = [arrays["params"], adam.jax_state(arrays["params"])]

    def run() -> Any:
        value, *now[:] = jax.block_until_ready(step(*now, *next(batches)))
        return value

    def values() -> dict[str, Any]:
        grads = jax.jit(jax.grad(loss))(now[0], arrays["x"][0], arrays["labels"][0])
        value = run()
        old, new = (jax.tree_util.tree_leaves(p) for p in (inputs["params"], now[0]))
        update = [np.asarray(a) - b for a, b in zip(new, old, strict=True)]
        return {"loss": value, "grads": grads, "update": update}

    return run, values


def numpy_step(inputs: Any, device: str) -> Any:
    opt = adam.FlatAdam([p for pair in inputs["params"] for p in pair])
    flat = opt.views()
    params = list(zip(flat[::2], flat[1::2], strict=True))
    batches = cycle(zip(inputs["x"], inputs["labels"], strict=True))

    def run() -> Any:
        loss, grads = article.value_and_grad(params, *next(batches))
        opt.step([g for pair in grads for g in pair])
        return loss, grads

    def values() -> dict[str, Any]:
        before = [p.copy() for p in flat]
        loss, grads = run()
        return {"loss": loss, "grads": grads, "update": [a - b for a, b in zip(flat, before, strict=True)]}

    return run, values


def gradient_reference(inputs: Any) -> dict[str, Any]:
    loss, grads = article.value_and_grad(inputs["params"], inputs["x"][0], inputs["labels"][0])
    return {"loss": loss, "grads": grads}


def gradlib_gradient(inputs: Any, device: str, captured: bool = False) -> Any:
    import gradlib as gl

    net, params, (x,), (y,) = article.gradlib_network(inputs, device)
    step, wait = gl.value_and_grad(lambda params, x, y: gl.cross_entropy(net(params, x), y)), done(device)
    step = gl.capture(step) if captured else step

    def run() -> Any:
        result = step(params, x, y)
        wait()
        return result

    def values() -> dict[str, Any]:
        loss, grads = run()
        return {"loss": loss, "grads": article.gradlib_pairs(grads)}

    return run, values


def numpy_gradient(inputs: Any, device: str) -> Any:
    def run():
        return article.value_and_grad(inputs["params"], inputs["x"][0], inputs["labels"][0])

    return run, lambda: dict(zip(("loss", "grads"), run(), strict=True))


def autograd_gradient(inputs: Any, device: str) -> Any:
    import autograd
    import autograd.numpy as anp

    x, labels = inputs["x"][0], inputs["labels"][0]
    rows = np.arange(len(labels))

    def loss(params: Any) -> Any:
        h = x
        for w, b in params[:-1]:
            h = anp.maximum(h @ w + b, 0)
        logits = h @ params[-1][0] + params[-1][1]
        top = anp.max(logits, axis=1, keepdims=True)
        total = anp.log(anp.sum(anp.exp(logits - top), axis=1)) + top[:, 0]
        return anp.mean(total - logits[rows, labels])

    step = autograd.value_and_grad(loss)
    return lambda: step(inputs["params"]), lambda: dict(zip(("loss", "grads"), step(inputs["params"]), strict=True))


def torch_gradient(inputs: Any, device: str) -> Any:
    import torch
    from torch.nn import functional

    net, (x,), (y,) = article.torch_network(inputs, device)
    params, wait = list(net.parameters()), torch_done(device)

    def run() -> Any:
        loss = functional.cross_entropy(net(x), y)
        grads = torch.autograd.grad(loss, params)
        wait()
        return loss, grads

    def values() -> dict[str, Any]:
        loss, grads = run()
        return {"loss": loss, "grads": article.torch_pairs(grads)}

    return run, values


def jax_gradient(inputs: Any, device: str) -> Any:
    import jax

    a = article.jax_arrays(inputs)
    step = jax.jit(
        jax.value_and_grad(lambda params, x, y: article.jax_row_loss(article.jax_logits(params, x), y).mean())
    )

    def run():
        return jax.block_until_ready(step(a["params"], a["x"][0], a["labels"][0]))

    return run, lambda: dict(zip(("loss", "grads"), run(), strict=True))


train_step = Case(
    "train_step",
    "value, gradients and Adam step of the 100-64-32-10 ReLU network, B=100, float32",
    article.inputs,
    step_reference,
    {
        "gradlib": gradlib_step,
        "torch": torch_step,
        "torch fused": partial(torch_step, fused=True),
        "jax": jax_step,
        "numpy": numpy_step,
    },
    sizes={"batch": 100, "batches": 32},
    tiny={"batch": 7, "batches": 2, "sizes": (5, 4, 3)},
)

gradient = Case(
    "gradient",
    "value and gradients of the same network, B=100, float64",
    article.inputs,
    gradient_reference,
    {
        "gradlib": gradlib_gradient,
        "gradlib captured": partial(gradlib_gradient, captured=True),
        "torch": torch_gradient,
        "jax": jax_gradient,
        "autograd": autograd_gradient,
        "numpy": numpy_gradient,
    },
    sizes={"batch": 100, "dtype": "float64"},
    tiny={"batch": 7, "sizes": (5, 4, 3), "dtype": "float64"},
    tolerance=1e-9,
)

CASES = [train_step, gradient]


def test_train_step(benchmark: Any) -> None:
    check_in_process(benchmark, train_step)


def test_gradient(benchmark: Any) -> None:
    check_in_process(benchmark, gradient)
