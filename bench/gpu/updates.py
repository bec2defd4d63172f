"""Cases of updates of parameters: Adam, SGD, clipping by the global norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from case import CALLS, Arrays, Case, some, spread

LR, BETAS, EPS = 1e-3, (0.9, 0.999), 1e-8
SGD_LR, MOMENTUM = 0.1, 0.9
NORM = 1.0
SIZES, TINY = {"rows": 1 << 14, "width": 4096}, {"rows": 3, "width": 5}


def parameters(rng: np.random.Generator, rows: int, width: int) -> Arrays:
    return {"p": spread(rng, (rows, width)), "g": spread(rng, (rows + 1, width))[1:]}


def gradlib_update(make: Callable[[Any, Any], Any]) -> Any:
    def build(a: dict[str, Any]) -> Callable[[], Any]:
        import gradlib as gl

        params = [a["p"].copy()]
        opt = make(gl.optim, params)

        def run() -> Any:
            opt.step([a["g"]])
            return params[0]

        return run

    return build


def torch_update(make: Callable[[Any, Any, bool], Any], compiled: bool = False) -> Any:
    """The fused form of torch's optimiser, or the one over lists that torch.compile takes."""

    def build(a: dict[str, Any]) -> Callable[[], Any]:
        import torch

        p = a["p"].clone().requires_grad_()
        p.grad = a["g"]
        opt = make(torch.optim, [p], compiled)
        step = torch.compile(opt.step) if compiled else opt.step

        def run() -> Any:
            step()
            return p

        return run

    return build


def gradlib_adam(optim: Any, params: Any) -> Any:
    return optim.Adam(params, lr=LR, betas=BETAS, eps=EPS)


def torch_adam(optim: Any, params: Any, compiled: bool) -> Any:
    cuda = params[0].is_cuda
    how = {"foreach": True, "capturable": cuda} if compiled else {"fused": cuda}
    return optim.Adam(params, lr=LR, betas=BETAS, eps=EPS, **how)


def gradlib_sgd(optim: Any, params: Any) -> Any:
    return optim.SGD(params, lr=SGD_LR, momentum=MOMENTUM)


def torch_sgd(optim: Any, params: Any, compiled: bool) -> Any:
    how = {"foreach": True} if compiled else {"fused": params[0].is_cuda}
    return optim.SGD(params, lr=SGD_LR, momentum=MOMENTUM, **how)


def jax_adam_of(p: Any, m: Any, v: Any, g: Any, t: Any) -> tuple[Any, Any, Any]:
    """One step of Adam for one array; t counts from 1."""
    m = BETAS[0] * m + (1 - BETAS[0]) * g
    v = BETAS[1] * v + (1 - BETAS[1]) * g * g
    scale = (1 - BETAS[1] ** t) ** 0.5
    return p - LR * scale / (1 - BETAS[0] ** t) * m / (v**0.5 + EPS * scale), m, v


def jax_update(update: Callable[..., Any], means: int) -> Any:
    """update(p, *means, g, t), whose arrays are changed in place."""

    def build(a: dict[str, Any]) -> Callable[[], Any]:
        import jax
        import jax.numpy as jnp

        def counted(t: Any, g: Any, *state: Any) -> Any:
            return t + 1, update(*state, g, t)

        step = jax.jit(counted, donate_argnums=(0, *range(2, means + 3)))
        state = [jnp.ones(()), [jnp.array(a["p"]), *(jnp.zeros_like(a["p"]) for _ in range(means))]]

        def run() -> Any:
            state[:] = step(state[0], a["g"], *state[1])
            return state[1][0]

        return run

    return build


def jax_sgd_of(p: Any, v: Any, g: Any, t: Any) -> tuple[Any, Any]:
    v = MOMENTUM * v + g
    return p - SGD_LR * v, v


def gradlib_clip(a: dict[str, Any]) -> Callable[[], Any]:
    import gradlib as gl

    return lambda: gl.optim.clip_by_global_norm([a["g"]], NORM)[0][0]


def torch_clip(a: dict[str, Any]) -> Callable[[], Any]:
    """In place: from the second call on the norm is the largest allowed, and as much work."""
    import torch

    p = torch.empty_like(a["g"]).requires_grad_()
    p.grad = a["g"]

    def run() -> Any:
        torch.nn.utils.clip_grad_norm_([p], NORM)
        return p.grad

    return run


def jax_clip(a: dict[str, Any]) -> Callable[[], Any]:
    import jax
    import jax.numpy as jnp

    def clip(g: Any) -> Any:
        return g * jnp.minimum(1, NORM / jnp.sqrt((g * g).sum()))

    run = jax.jit(clip)
    return lambda: run(a["g"])


# References after CALLS steps with the same gradient: Adam's means, corrected, are g and g² all along.
def adam_rows(a: Arrays, rows: np.ndarray) -> list[np.ndarray]:
    g = some(a["g"], rows)
    return [some(a["p"], rows) - CALLS * LR * g / (np.abs(g) + EPS)]


def sgd_rows(a: Arrays, rows: np.ndarray) -> list[np.ndarray]:
    velocity = moved = 0.0
    for _ in range(CALLS):
        velocity = MOMENTUM * velocity + 1
        moved += SGD_LR * velocity
    return [some(a["p"], rows) - moved * some(a["g"], rows)]


def clipped_rows(a: Arrays, rows: np.ndarray) -> list[np.ndarray]:
    return [some(a["g"], rows) * min(1, NORM / (a["g"] ** 2).sum(dtype=float) ** 0.5)]


def update_case(name: str, contenders: dict[str, Any], reference: Any, arrays: int, operations: int,
                **more: Any) -> Case:  # fmt: skip
    return Case(f"{name}, 67 million parameters", "updates", parameters, contenders, reference, SIZES, TINY,
                moved=lambda a: arrays * a["p"].nbytes, operations=lambda a: operations * a["p"].size,
                **more)  # fmt: skip


CASES = [
    update_case("Adam", {"gradlib": gradlib_update(gradlib_adam), "torch": torch_update(torch_adam),
                         "torch compiled": torch_update(torch_adam, compiled=True), "jax": jax_update(jax_adam_of, 2)},
                adam_rows, 7, 12, tolerance=2e-3, before="p"),
    update_case("SGD with momentum", {"gradlib": gradlib_update(gradlib_sgd), "torch": torch_update(torch_sgd),
                                      "torch compiled": torch_update(torch_sgd, compiled=True),
                                      "jax": jax_update(jax_sgd_of, 1)}, sgd_rows, 5, 4, before="p"),
    update_case("clipping by the global norm", {"gradlib": gradlib_clip, "torch": torch_clip, "jax": jax_clip},
                clipped_rows, 3, 3),
]  # fmt: skip
