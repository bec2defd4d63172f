"""Optimiser updates, in place, over lists of arrays: the rules in xp. Step count and learning rate are 0-d arrays.
Of float16 and bfloat16 parameters, state and arithmetic are float32, and p is rounded once a step.

    SGD     g += λ p;  v = μ v + g;  p -= lr (g + μ v if nesterov else v)
    Adam    m = β1 m + (1 - β1) g;  v = β2 v + (1 - β2) g²;  p -= lr m̂ / (√v̂ + ε),  m̂ = m / (1 - β1ᵗ), v̂ = v / (1 - β2ᵗ)
    AdamW   first p -= lr λ p, and no λ p in g

Sources: Sutskever et al. 2013 for momentum, in torch's form; Kingma & Ba 2015 (arXiv:1412.6980); Loshchilov & Hutter
2019 (arXiv:1711.05101).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..precision import wide


def sgd(
    params: list, grads: list, velocity: list, lr: Any, *, momentum: float, nesterov: bool, weight_decay: float
) -> None:
    """One SGD step; `velocity` is empty without momentum. lr: 0-d float64 array."""
    for i, (p, g) in enumerate(zip(params, grads, strict=True)):
        old, g = wide(p), wide(g)
        rate = lr.astype(old.dtype)
        if weight_decay:
            g = g + weight_decay * old
        if momentum:
            v = velocity[i]
            v *= momentum
            v += g
            g = g + momentum * v if nesterov else v
        p[...] = old - rate * g


def adam(
    params: list,
    grads: list,
    m: list,
    v: list,
    step: Any,
    lr: Any,
    *,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> None:
    """One Adam step; `step` (0-d int64) already counts it. lr: 0-d float64 array."""
    correct1, correct2 = 1 - beta1 ** step.astype(np.float64), 1 - beta2 ** step.astype(np.float64)
    for p, g, a, b in zip(params, grads, m, v, strict=True):
        rate, c1, c2 = (s.astype(a.dtype) for s in (lr, correct1, correct2))
        old, g = wide(p), wide(g)
        if weight_decay and decoupled:
            old = old - (rate * weight_decay) * old
        elif weight_decay:
            g = g + weight_decay * old
        a += (1 - beta1) * (g - a)
        b += (1 - beta2) * (g * g - b)
        p[...] = old - rate * (a / c1) / ((b / c2) ** 0.5 + eps)
