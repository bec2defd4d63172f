"""Initialisers of weights: functions (rng, shape, dtype) -> array, for a weight of shape (fan_in, fan_out).

Sources: Glorot & Bengio 2010; He et al. 2015 (arXiv:1502.01852); LeCun et al. 1998, "Efficient BackProp";
Saxe et al. 2014 (arXiv:1312.6120).
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import Any

import numpy as np

Initializer = Callable[[np.random.Generator, tuple[int, ...], Any], np.ndarray]


def zeros(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """All 0."""
    return np.zeros(shape, dtype)


def _uniform(limit: Callable[[int, int], float]) -> Initializer:
    def init(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        a = limit(shape[0], shape[-1])
        return rng.uniform(-a, a, shape).astype(dtype)

    return init


def _normal(deviation: Callable[[int, int], float]) -> Initializer:
    def init(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return (rng.standard_normal(shape) * deviation(shape[0], shape[-1])).astype(dtype)

    return init


def orthogonal(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """A random matrix with orthonormal rows or columns, whichever are fewer."""
    n, m = shape
    q, r = np.linalg.qr(rng.standard_normal((max(n, m), min(n, m))))
    q = q * np.sign(np.diag(r))
    return (q if n >= m else q.T).astype(dtype)


#: By name, as the layers take them: Var w in terms of fan-in and fan-out.
INITIALIZERS: dict[str, Initializer] = {
    "zeros": zeros,
    "glorot_uniform": _uniform(lambda i, o: sqrt(6 / max(i + o, 1))),
    "glorot_normal": _normal(lambda i, o: sqrt(2 / max(i + o, 1))),
    "he_uniform": _uniform(lambda i, o: sqrt(6 / max(i, 1))),
    "he_normal": _normal(lambda i, o: sqrt(2 / max(i, 1))),
    "lecun_uniform": _uniform(lambda i, o: sqrt(3 / max(i, 1))),
    "lecun_normal": _normal(lambda i, o: sqrt(1 / max(i, 1))),
    "orthogonal": orthogonal,
}


def initializer(name: str | Initializer) -> Initializer:
    """An initialiser by name, or a function as it is; ValueError for an unknown name."""
    if callable(name):
        return name
    if name not in INITIALIZERS:
        raise ValueError(f"expected an initialiser of {', '.join(INITIALIZERS)}, got {name!r}")
    return INITIALIZERS[name]
