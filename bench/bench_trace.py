"""What tracing costs: plain NumPy functions, beside HIPS autograd, which has a NumPy of its own.

The same text of each function runs on both: `np` is NumPy for gradlib and ``autograd.numpy`` for autograd.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from harness import Case, check_in_process

LINKS = 250  # four elementwise ops each


def chain(np: Any, x: Any) -> Any:
    for _ in range(LINKS):
        x = np.exp(-np.sin(x) * 1.01) + 0.5
    return x


def layer(np: Any, a: Any, x: Any) -> Any:
    return np.tanh(np.dot(a, np.tanh(x)))


def chain_inputs(rng: Any, **sizes: Any) -> dict[str, Any]:
    return {"x": float(rng.uniform(0.1, 1.0))}


def chain_reference(inputs: Any) -> dict[str, Any]:
    """Value and derivative carried forward together, link by link."""
    x, d = inputs["x"], 1.0
    for _ in range(LINKS):
        y = np.exp(-np.sin(x) * 1.01)
        x, d = y + 0.5, -1.01 * np.cos(x) * y * d
    return {"gradient": np.float64(d)}


def layer_inputs(rng: Any, n: int) -> dict[str, Any]:
    return {"a": rng.standard_normal((n, n)) / n**0.5, "x": rng.standard_normal(n)}


def layer_reference(inputs: Any) -> dict[str, Any]:
    a, x = inputs["a"], inputs["x"]
    h = np.tanh(x)
    return {"jacobian": (1 - np.tanh(a @ h) ** 2)[:, None] * a * (1 - h**2)}


def build(name: str, function: Callable[..., Any], library: str, inputs: Any, device: str) -> Any:
    """A contender: the derivative `name` of `function` by one of the two libraries."""
    arguments = [inputs[k] for k in sorted(inputs)]
    if library == "gradlib":
        import gradlib as gl

        derivative = {"gradient": gl.grad, "jacobian": gl.jacobian}[name]
        f = derivative(partial(function, np), len(arguments) - 1)
    else:
        import autograd
        import autograd.numpy as anp

        derivative = {"gradient": autograd.grad, "jacobian": autograd.jacobian}[name]
        f = derivative(partial(function, anp), len(arguments) - 1)
    return lambda: f(*arguments), lambda: {name: f(*arguments)}


def contenders(name: str, function: Callable[..., Any]) -> dict[str, Any]:
    return {library: partial(build, name, function, library) for library in ("gradlib", "autograd")}


elementwise_chain = Case(
    "elementwise_chain",
    "gradient of a scalar chain of 1,000 elementwise ops",
    chain_inputs,
    chain_reference,
    contenders("gradient", chain),
    sizes={},
    tiny={},
    tolerance=1e-9,
)
plain_jacobian = Case(
    "plain_jacobian",
    "Jacobian of tanh(A tanh(x)), 100 -> 100, float64",
    layer_inputs,
    layer_reference,
    contenders("jacobian", layer),
    sizes={"n": 100},
    tiny={"n": 5},
    tolerance=1e-9,
)

CASES = [elementwise_chain, plain_jacobian]


def test_elementwise_chain(benchmark: Any) -> None:
    check_in_process(benchmark, elementwise_chain)


def test_plain_jacobian(benchmark: Any) -> None:
    check_in_process(benchmark, plain_jacobian)
