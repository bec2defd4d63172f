"""The optimiser's step alone: Adam over a million parameters in six arrays."""

from __future__ import annotations

from functools import partial
from typing import Any

import adam
import numpy as np
from harness import Case, check_in_process, done, torch_done

#: The gradient is scaled by these in the validated steps: with equal gradients Adam's step is their sign alone.
SCALES = (1.0, -0.5, 2.0)


def inputs(rng: np.random.Generator, shapes: tuple) -> Any:
    def draw():
        return [rng.standard_normal(s).astype(np.float32) for s in shapes]

    return {"params": draw(), "grads": draw()}


def reference(inputs: Any) -> dict[str, Any]:
    """The definition, not folded together as the contenders do it: running means, corrected, then the step."""
    updates = []
    for grad in inputs["grads"]:
        m = v = total = np.zeros(grad.shape)
        for t, scale in enumerate(SCALES, 1):
            g = scale * grad.astype(np.float64)
            m = adam.BETA1 * m + (1 - adam.BETA1) * g
            v = adam.BETA2 * v + (1 - adam.BETA2) * g**2
            total = total - adam.LR * (m / (1 - adam.BETA1**t)) / (np.sqrt(v / (1 - adam.BETA2**t)) + adam.EPS)
        updates.append(total)
    return {"update": updates}


def _update(after: list, inputs: Any) -> dict[str, Any]:
    return {"update": [np.asarray(a) - b for a, b in zip(after, inputs["params"], strict=True)]}


def gradlib_adam(inputs: Any, device: str) -> Any:
    import gradlib as gl

    params = gl.to_device([p.copy() for p in inputs["params"]], device)
    grads, wait = gl.to_device(inputs["grads"], device), done(device)
    opt = gl.optim.Adam(params, lr=adam.LR)

    def run() -> None:
        opt.step(grads)
        wait()

    def values() -> dict[str, Any]:
        for scale in SCALES:
            opt.step([g * g.dtype.type(scale) for g in grads])
        return _update(gl.to_device(params, "cpu"), inputs)

    return run, values


def torch_adam(inputs: Any, device: str, fused: bool = False) -> Any:
    import torch

    params = [torch.from_numpy(p.copy()).to(device).requires_grad_() for p in inputs["params"]]
    grads, wait = [torch.from_numpy(g).to(device) for g in inputs["grads"]], torch_done(device)
    opt = adam.torch_adam(params, fused)

    def give(scale: float) -> None:
        for p, g in zip(params, grads, strict=True):
            p.grad = scale * g

    def run() -> None:
        opt.step()
        wait()

    def values() -> dict[str, Any]:
        for scale in SCALES:
            give(scale)
            opt.step()
        give(1.0)
        return _update([p.detach().cpu() for p in params], inputs)

    return run, values


def jax_adam(inputs: Any, device: str) -> Any:
    import jax

    arrays = jax.tree_util.tree_map(jax.numpy.asarray, inputs)
    now = [arrays["params"], adam.jax_state(arrays["params"])]
    step = jax.jit(lambda params, state, grads: adam.jax_update(params, grads, state), donate_argnums=(0, 1))

    def run(grads: Any = arrays["grads"]) -> None:
        now[:] = jax.block_until_ready(step(*now, grads))

    def values() -> dict[str, Any]:
        for scale in SCALES:
            run([scale * g for g in arrays["grads"]])
        return _update(now[0], inputs)

    return run, values


def numpy_adam(inputs: Any, device: str) -> Any:
    opt = adam.FlatAdam(inputs["params"])

    def values() -> dict[str, Any]:
        for scale in SCALES:
            opt.step([np.float32(scale) * g for g in inputs["grads"]])
        return _update(opt.views(), inputs)

    return lambda: opt.step(inputs["grads"]), values


adam_step = Case(
    "adam_step",
    "Adam's step alone on 1.0 million parameters in six arrays, float32",
    inputs,
    reference,
    {
        "gradlib": gradlib_adam,
        "torch": torch_adam,
        "torch fused": partial(torch_adam, fused=True),
        "jax": jax_adam,
        "numpy": numpy_adam,
    },
    sizes={"shapes": ((1000, 640), (640,), (640, 512), (512,), (512, 64), (64,))},
    tiny={"shapes": ((3, 4), (4,))},
)

CASES = [adam_step]


def test_adam_step(benchmark: Any) -> None:
    check_in_process(benchmark, adam_step)
