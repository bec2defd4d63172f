"""Cases of reductions and of functions entry by entry, dropout among them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from case import Arrays, some, spread
from libraries import Ours, all_of, jax_forward, torch_forward
from rows import draw, widths

RATE = 0.1


def positive(rng: np.random.Generator, rows: int, width: int) -> Arrays:
    """Numbers whose sums are not close to 0, where a relative error says nothing."""
    return {"x": np.abs(spread(rng, (rows, width)))}


def reduced(name: str, axis: int) -> dict[str, Any]:
    """A reduction of rows (axis 1) or columns (axis 0), in each library."""

    def gradlib_reduction(a: dict[str, Any]) -> Callable[[], Any]:
        import gradlib as gl

        f = (lambda x: np.linalg.norm(x, axis=axis)) if name == "norm" else lambda x: getattr(x, name)(axis)
        return lambda: gl.vjp(f, a["x"])[0]

    def torch_reduction(x: Any) -> Any:
        import torch

        if name == "norm":
            return torch.linalg.vector_norm(x, dim=axis)
        return x.amax(axis) if name == "max" else x.sum(axis)

    def jax_reduction(x: Any) -> Any:
        import jax.numpy as jnp

        return jnp.linalg.norm(x, axis=axis) if name == "norm" else getattr(x, name)(axis)

    return {
        "gradlib": gradlib_reduction,
        "torch": torch_forward(torch_reduction, "x"),
        "torch compiled": torch_forward(torch_reduction, "x", compiled=True),
        "jax": jax_forward(jax_reduction, "x"),
    }


def torch_gelu(x: Any) -> Any:
    from torch.nn import functional

    return functional.gelu(x)


def jax_gelu(x: Any) -> Any:
    import jax

    return jax.nn.gelu(x, approximate=False)


def bias_gelu(x: Any, b: Any) -> Any:
    return gl.bias_dropout_add(x, b, activation="gelu")


def torch_bias_gelu(x: Any, b: Any) -> Any:
    return torch_gelu(x + b)


def jax_bias_gelu(x: Any, b: Any) -> Any:
    return jax_gelu(x + b)


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.vectorize(math.erf)(x * 0.5**0.5))


# Dropout: every library draws its own mask, so the reference reads it off the result.
def gradlib_dropout(fused: bool) -> Any:
    def build(a: dict[str, Any]) -> Callable[[], Any]:
        import gradlib as gl

        x, rng = a["x"], gl.Generator(0, like=a["x"])
        if fused:
            return lambda: gl.bias_dropout_add(x, a["b"], x, activation="gelu", rate=RATE, rng=rng)
        return lambda: gl.dropout(x, RATE, rng)

    return build


def torch_dropout(fused: bool, compiled: bool) -> Any:
    def fused_dropout(x: Any, b: Any) -> Any:
        from torch.nn import functional

        return x + functional.dropout(functional.gelu(x + b), RATE)

    def plain(x: Any) -> Any:
        from torch.nn import functional

        return functional.dropout(x, RATE)

    return torch_forward(fused_dropout, "xb", compiled) if fused else torch_forward(plain, "x", compiled)


def jax_dropout(fused: bool) -> Any:
    def build(a: dict[str, Any]) -> Callable[[], Any]:
        import jax

        def masked(key: Any, y: Any) -> Any:
            return jax.numpy.where(jax.random.bernoulli(key, 1 - RATE, y.shape), y / (1 - RATE), 0)

        def step(key: Any, x: Any, b: Any) -> Any:
            key, now = jax.random.split(key)
            return key, x + masked(now, jax_gelu(x + b)) if fused else masked(now, x)

        run, state = jax.jit(step), [jax.random.key(0)]

        def timed() -> Any:
            state[0], y = run(state[0], a["x"], a["b"])
            return y

        return timed

    return build


def dropouts(fused: bool) -> dict[str, Any]:
    return {
        "gradlib": gradlib_dropout(fused),
        "torch": torch_dropout(fused, False),
        "torch compiled": torch_dropout(fused, True),
        "jax": jax_dropout(fused),
    }


def kept_or_not(got: np.ndarray, without: np.ndarray, value: np.ndarray) -> list[np.ndarray]:
    """without + value / (1 - RATE) or without alone, whichever is nearer; ValueError for another rate."""
    value = value / (1 - RATE)
    kept = np.abs(got - without) > np.abs(got - without - value)
    if abs(kept.mean() - (1 - RATE)) > 0.15:
        raise ValueError(f"expected {1 - RATE:.0%} of the entries to be kept, got {kept.mean():.0%}")
    return [without + kept * value]


def dropout_rows(a: Arrays, rows: np.ndarray, got: np.ndarray) -> list[np.ndarray]:
    x = some(a["x"], rows)
    return kept_or_not(got, np.zeros_like(x), x)


def fused_dropout_rows(a: Arrays, rows: np.ndarray, got: np.ndarray) -> list[np.ndarray]:
    x = some(a["x"], rows)
    return kept_or_not(got, x, gelu(x + a["b"]))


gl = Ours()
CASES = [
    *widths("sum of rows", "reductions", positive, reduced("sum", 1),
            lambda a, rows: [some(a["x"], rows).sum(1)], 1, 1, (256, 4096)),
    *widths("sum of columns", "reductions", positive, reduced("sum", 0),
            lambda a, rows: [a["x"][:, rows].sum(0, dtype=float)], 1, 1, (4096,)),
    *widths("max of rows", "reductions", positive, reduced("max", 1),
            lambda a, rows: [some(a["x"], rows).max(1)], 1, 1, (4096,)),
    *widths("norm of rows", "reductions", positive, reduced("norm", 1),
            lambda a, rows: [np.linalg.norm(some(a["x"], rows), axis=1)], 1, 2, (4096,)),
    *widths("gelu", "elementwise", draw, all_of(gl.gelu, torch_gelu, jax_gelu, "x"),
            lambda a, rows: [gelu(some(a["x"], rows))], 2, 5, (4096,)),
    *widths("bias + gelu", "elementwise", draw, all_of(bias_gelu, torch_bias_gelu, jax_bias_gelu, "xb"),
            lambda a, rows: [gelu(some(a["x"], rows) + a["b"])], 2, 6, (4096,)),
    *widths("dropout", "elementwise", draw, dropouts(False), dropout_rows, 2, 2, (4096,), drawn=True),
    *widths("x + dropout(gelu(x + bias))", "elementwise", draw, dropouts(True), fused_dropout_rows, 2, 9, (4096,),
            drawn=True),
]  # fmt: skip
