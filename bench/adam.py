"""Adam as the peers without an optimiser of their own would write it: NumPy in place over one flat buffer, JAX by jit.

    m += (1 - β1) (g - m);  v += (1 - β2) (g² - v);  p -= lr (m / (1 - β1ᵗ)) / (√(v / (1 - β2ᵗ)) + ε)

Source: Kingma & Ba 2015 (arXiv:1412.6980), with the settings all libraries share.
"""

from __future__ import annotations

from typing import Any

import numpy as np

LR, BETA1, BETA2, EPS = 1e-3, 0.9, 0.999, 1e-8


class FlatAdam:
    """Adam over one flat NumPy array, updated in place; `views(shapes)` are the parameters inside it."""

    def __init__(self, arrays: list[np.ndarray]) -> None:
        self.p = np.concatenate([a.ravel() for a in arrays])
        self.g, self.m, self.v, self.a, self.b = (np.zeros_like(self.p) for _ in range(5))
        self.ends = np.cumsum([a.size for a in arrays])[:-1]
        self.shapes = [a.shape for a in arrays]
        self.t = 0

    def views(self) -> list[np.ndarray]:
        return [part.reshape(s) for part, s in zip(np.split(self.p, self.ends), self.shapes, strict=True)]

    def step(self, grads: list[np.ndarray]) -> None:
        p, g, m, v, a, b = self.p, self.g, self.m, self.v, self.a, self.b
        np.concatenate([x.ravel() for x in grads], out=g)
        self.t += 1
        np.subtract(g, m, out=a)
        a *= 1 - BETA1
        m += a
        np.multiply(g, g, out=b)
        b -= v
        b *= 1 - BETA2
        v += b
        np.divide(v, 1 - BETA2**self.t, out=b)
        np.sqrt(b, out=b)
        b += EPS
        np.divide(m, b, out=a)
        a *= LR / (1 - BETA1**self.t)
        p -= a


def jax_update(params: Any, grads: Any, state: Any) -> tuple[Any, Any]:
    """(new parameters, new state); the state is (m, v, t)."""
    import jax
    import jax.numpy as jnp

    m, v, t = state
    t = t + 1
    m = jax.tree_util.tree_map(lambda m, g: m + (1 - BETA1) * (g - m), m, grads)
    v = jax.tree_util.tree_map(lambda v, g: v + (1 - BETA2) * (g * g - v), v, grads)
    c1, c2 = 1 - BETA1**t, 1 - BETA2**t
    new = jax.tree_util.tree_map(lambda p, m, v: p - LR * (m / c1) / (jnp.sqrt(v / c2) + EPS), params, m, v)
    return new, (m, v, t)


def jax_state(params: Any) -> Any:
    import jax
    import jax.numpy as jnp

    def zeros():
        return jax.tree_util.tree_map(jnp.zeros_like, params)

    return zeros(), zeros(), jnp.zeros((), jnp.float32)


def torch_adam(params: Any, fused: bool) -> Any:
    """torch.optim.Adam: its default (the foreach form on tensors that take it) or the fused one."""
    import torch

    return torch.optim.Adam(params, lr=LR, **({"fused": True} if fused else {}))
