"""Cases of row-wise kernels: softmax, the norms, cross-entropy, gelu. Two arrays move forward, three back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from case import Arrays, Case, some

EPS = 1e-5
ENTRIES = 1 << 26  # of each array: 268 MB, several times the L2 cache
TINY = {"rows": 5, "width": 12}


def draw(rng: np.random.Generator, rows: int, width: int) -> Arrays:
    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    return {"x": normal(rows, width), "dy": normal(rows, width), "w": normal(width), "b": normal(width)}


def with_labels(rng: np.random.Generator, rows: int, width: int) -> Arrays:
    return {"x": rng.standard_normal((rows, width), np.float32), "labels": rng.integers(0, width, rows)}


def positive(rng: np.random.Generator, rows: int, width: int) -> Arrays:
    """Numbers whose sums are not close to 0, where a relative error says nothing."""
    return {"x": rng.random((rows, width), np.float32)}


# What each library does: `of` names the arguments that are differentiated.
def gradlib_forward(f: Callable[..., Any], of: str) -> Any:
    def build(a: dict[str, Any]) -> Callable[[], Any]:
        return lambda: f(*[a[k] for k in of])

    return build


def gradlib_backward(f: Callable[..., Any], of: str) -> Any:
    def build(a: dict[str, Any]) -> Callable[[], Any]:
        import gradlib as gl

        pullback = gl.vjp(f, *[a[k] for k in of])[1]
        return lambda: pullback(a["dy"])

    return build


def torch_forward(f: Callable[..., Any], of: str, compiled: bool = False) -> Any:
    def build(a: dict[str, Any]) -> Callable[[], Any]:
        import torch

        g, args = torch.compile(f, dynamic=False) if compiled else f, [a[k] for k in of]

        def run() -> Any:
            with torch.no_grad():
                return g(*args)

        return run

    return build


def torch_backward(f: Callable[..., Any], of: str, compiled: bool = False) -> Any:
    def build(a: dict[str, Any]) -> Callable[[], Any]:
        import torch

        args = [a[k].requires_grad_() for k in of]
        y = (torch.compile(f, dynamic=False) if compiled else f)(*args)
        return lambda: torch.autograd.grad(y, args, a["dy"], retain_graph=True)

    return build


def jax_forward(f: Callable[..., Any], of: str) -> Any:
    def build(a: dict[str, Any]) -> Callable[[], Any]:
        import jax

        g, args = jax.jit(f), [a[k] for k in of]
        return lambda: g(*args)

    return build


def jax_backward(f: Callable[..., Any], of: str) -> Any:
    def build(a: dict[str, Any]) -> Callable[[], Any]:
        import jax

        g, args = jax.jit(lambda dy, *args: jax.vjp(f, *args)[1](dy)), [a[k] for k in of]
        return lambda: g(a["dy"], *args)

    return build


class Ours:
    """The functions of gradlib, imported when they are called."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            import gradlib as gl

            return getattr(gl, name)(*args, **kwargs)

        return call


def torch_function(name: str) -> Callable[..., Any]:
    def call(x: Any, *args: Any) -> Any:
        from torch.nn import functional

        if name in ("layer_norm", "rms_norm"):
            return getattr(functional, name)(x, x.shape[-1:], *args, eps=EPS)
        return functional.softmax(x, -1) if name == "softmax" else getattr(functional, name)(x, *args)

    return call


def jax_softmax(x: Any) -> Any:
    import jax

    return jax.nn.softmax(x)


def jax_gelu(x: Any) -> Any:
    import jax

    return jax.nn.gelu(x, approximate=False)


def bias_gelu(x: Any, b: Any) -> Any:
    return gl.bias_dropout_add(x, b, activation="gelu")


def torch_bias_gelu(x: Any, b: Any) -> Any:
    return torch_function("gelu")(x + b)


def jax_bias_gelu(x: Any, b: Any) -> Any:
    return jax_gelu(x + b)


def jax_layer_norm(x: Any, w: Any, b: Any) -> Any:
    import jax.numpy as jnp

    d = x - x.mean(-1, keepdims=True)
    return d / jnp.sqrt((d * d).mean(-1, keepdims=True) + EPS) * w + b


def jax_rms_norm(x: Any, w: Any) -> Any:
    import jax.numpy as jnp

    return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + EPS) * w


# References in float64, of some rows; a sum over all rows is not checked here but in the tests.
def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def softmax_back(a: Arrays, rows: np.ndarray) -> list[np.ndarray]:
    p, dy = softmax(some(a["x"], rows)), some(a["dy"], rows)
    return [p * (dy - (dy * p).sum(-1, keepdims=True))]


def normalised(a: Arrays, rows: np.ndarray, centred: bool) -> tuple[np.ndarray, np.ndarray]:
    """(x̂, 1 / its divisor)."""
    d = some(a["x"], rows)
    d = d - d.mean(-1, keepdims=True) if centred else d
    r = 1 / np.sqrt((d * d).mean(-1, keepdims=True) + EPS)
    return d * r, r


def norm_back(a: Arrays, rows: np.ndarray, centred: bool) -> list[np.ndarray]:
    """dx alone; dw and db are compared among the libraries by their own tests."""
    h, r = normalised(a, rows, centred)
    t = some(a["dy"], rows) * a["w"]
    left = t - h * (t * h).mean(-1, keepdims=True)
    return [r * (left - t.mean(-1, keepdims=True) if centred else left)]


def gelu(x: np.ndarray) -> np.ndarray:
    from math import erf

    return 0.5 * x * (1 + np.vectorize(erf)(x * 0.5**0.5))


def loss_rows(a: Arrays, rows: np.ndarray) -> list[np.ndarray]:
    """The gradient of the mean loss."""
    g = softmax(some(a["x"], rows))
    g[np.arange(len(rows)), a["labels"][rows]] -= 1
    return [g / len(a["x"])]


def widths(name: str, family: str, make: Any, contenders: dict[str, Any], reference: Any, arrays: int,
           of: tuple[int, ...]) -> list[Case]:  # fmt: skip
    """The same case for rows of several widths; `arrays` of their size move."""
    return [
        Case(f"{name} {ENTRIES // width} x {width}", family, make, contenders, reference,
             {"rows": ENTRIES // width, "width": width}, TINY, lambda a: arrays * a["x"].nbytes)
        for width in of
    ]  # fmt: skip


def first(build: Any) -> Any:
    """Of several gradients the first, to be checked; all are computed."""

    def built(a: dict[str, Any]) -> Callable[[], Any]:
        run = build(a)
        return lambda: run()[0]

    return built


def all_of(ours: Any, theirs: Any, jax_function: Any, of: str, back: bool) -> dict[str, Any]:
    if back:
        return {
            "gradlib": first(gradlib_backward(ours, of)),
            "torch": first(torch_backward(theirs, of)),
            "torch compiled": first(torch_backward(theirs, of, compiled=True)),
            "jax": first(jax_backward(jax_function, of)),
        }
    return {
        "gradlib": gradlib_forward(ours, of),
        "torch": torch_forward(theirs, of),
        "torch compiled": torch_forward(theirs, of, compiled=True),
        "jax": jax_forward(jax_function, of),
    }


def gradlib_loss(a: dict[str, Any]) -> Callable[[], Any]:
    import gradlib as gl

    gradient = gl.grad(gl.cross_entropy)
    return lambda: gradient(a["x"], a["labels"])


def torch_loss(compiled: bool) -> Any:
    def build(a: dict[str, Any]) -> Callable[[], Any]:
        import torch
        from torch.nn import functional

        x = a["x"].requires_grad_()

        def loss(x: Any) -> Any:
            return functional.cross_entropy(x, a["labels"])

        f = torch.compile(loss, dynamic=False) if compiled else loss
        return lambda: torch.autograd.grad(f(x), x)[0]

    return build


def jax_loss(a: dict[str, Any]) -> Callable[[], Any]:
    import jax
    import jax.numpy as jnp

    def loss(x: Any, labels: Any) -> Any:
        return -jnp.take_along_axis(jax.nn.log_softmax(x), labels[:, None], 1).mean()

    gradient = jax.jit(jax.grad(loss))
    return lambda: gradient(a["x"], a["labels"])


def summed(axis: int) -> dict[str, Any]:
    """The sum over rows (axis 1) or columns (axis 0), in each library."""

    def gradlib_sum(a: dict[str, Any]) -> Callable[[], Any]:
        import gradlib as gl

        return lambda: gl.vjp(sums, a["x"])[0]

    def sums(x: Any) -> Any:
        return x.sum(axis)

    return {
        "gradlib": gradlib_sum,
        "torch": torch_forward(sums, "x"),
        "torch compiled": torch_forward(sums, "x", compiled=True),
        "jax": jax_forward(sums, "x"),
    }


gl = Ours()
CASES = [
    *widths("softmax", "softmax", draw, all_of(gl.softmax, torch_function("softmax"), jax_softmax, "x", False),
            lambda a, rows: [softmax(some(a["x"], rows))], 2, (256, 1024, 4096, 16384, 32768)),
    *widths("softmax backward", "softmax backward", draw,
            all_of(gl.softmax, torch_function("softmax"), jax_softmax, "x", True), softmax_back, 3, (1024, 4096)),
    *widths("layer_norm", "norms", draw,
            all_of(gl.layer_norm, torch_function("layer_norm"), jax_layer_norm, "xwb", False),
            lambda a, rows: [normalised(a, rows, True)[0] * a["w"] + a["b"]], 2, (256, 1024, 4096, 16384)),
    *widths("layer_norm backward", "norms backward", draw,
            all_of(gl.layer_norm, torch_function("layer_norm"), jax_layer_norm, "xwb", True),
            lambda a, rows: norm_back(a, rows, True), 3, (1024, 4096)),
    *widths("rms_norm", "norms", draw, all_of(gl.rms_norm, torch_function("rms_norm"), jax_rms_norm, "xw", False),
            lambda a, rows: [normalised(a, rows, False)[0] * a["w"]], 2, (4096,)),
    *widths("rms_norm backward", "norms backward", draw,
            all_of(gl.rms_norm, torch_function("rms_norm"), jax_rms_norm, "xw", True),
            lambda a, rows: norm_back(a, rows, False), 3, (4096,)),
    *widths("cross_entropy, loss and gradient", "cross_entropy", with_labels,
            {"gradlib": gradlib_loss, "torch": torch_loss(False), "torch compiled": torch_loss(True), "jax": jax_loss},
            loss_rows, 2, (1024, 32768)),
    *widths("sum of rows", "reductions", positive, summed(1),
            lambda a, rows: [some(a["x"], rows).sum(1)], 1, (256, 4096)),
    *widths("sum of columns", "reductions", positive, summed(0),
            lambda a, rows: [a["x"][:, rows].sum(0, dtype=float)], 1, (4096,)),
    *widths("gelu", "elementwise", draw, all_of(gl.gelu, torch_function("gelu"), jax_gelu, "x", False),
            lambda a, rows: [gelu(some(a["x"], rows))], 2, (4096,)),
    *widths("bias + gelu", "elementwise", draw, all_of(bias_gelu, torch_bias_gelu, jax_bias_gelu, "xb", False),
            lambda a, rows: [gelu(some(a["x"], rows) + a["b"])], 2, (4096,)),
]  # fmt: skip
