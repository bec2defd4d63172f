"""Cases of softmax and what belongs to it, the norms and cross-entropy: two arrays move forward, three back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from case import Arrays, Case, some, spread
from libraries import Ours, all_of, backward_of, tangents_of

EPS = 1e-5
ENTRIES = 1 << 26  # of each array: 268 MB, several times the L2 cache
TINY = {"rows": 5, "width": 12}
BYTES = {"float16": 2, "bfloat16": 2, "float64": 8}
TOLERANCE = {"float16": 2e-3, "bfloat16": 8e-3, "float64": 1e-12}  # twice the rounding of a half's result


def draw(rng: np.random.Generator, rows: int, width: int, dtype: str = "float32") -> Arrays:
    a = {"x": spread(rng, (rows, width)), "w": spread(rng, (width,)), "b": spread(rng, (width,))}
    if dtype == "bfloat16":
        import ml_dtypes  # noqa: F401  (NumPy knows the name then)
    return {k: v.astype(dtype, copy=False) for k, v in a.items()}


def draw_back(rng: np.random.Generator, rows: int, width: int) -> Arrays:
    """With a cotangent, or a tangent, dy."""
    return {**draw(rng, rows, width), "dy": spread(rng, (rows, width))}


def with_labels(rng: np.random.Generator, rows: int, width: int) -> Arrays:
    return {"x": spread(rng, (rows, width)), "labels": rng.integers(0, width, rows)}


def with_mask(rng: np.random.Generator, rows: int, width: int) -> Arrays:
    """The mask leaves out about a third; the first entry of a row is always in."""
    mask = spread(rng, (rows, width)) < 0.4
    mask[:, 0] = True
    return {"x": spread(rng, (rows, width)), "mask": mask}


def scores(rng: np.random.Generator, rows: int, width: int) -> Arrays:
    """Attention scores: squares of width x width."""
    return {"x": spread(rng, (max(rows // width, 2), width, width))}


def torch_function(name: str) -> Callable[..., Any]:
    def call(x: Any, *args: Any) -> Any:
        from torch.nn import functional

        if name in ("layer_norm", "rms_norm"):
            return getattr(functional, name)(x, x.shape[-1:], *args, eps=EPS)
        return getattr(functional, name)(x, -1)

    return call


def torch_logsumexp(x: Any) -> Any:
    import torch

    return torch.logsumexp(x, -1)


def torch_masked(x: Any, mask: Any) -> Any:
    import torch

    return torch.softmax(x.masked_fill(~mask, float("-inf")), -1)


def torch_causal(x: Any) -> Any:
    import torch

    n = x.shape[-1]
    return torch.softmax(x.masked_fill(torch.ones(n, n, dtype=torch.bool, device=x.device).triu(1), float("-inf")), -1)


def jax_function(name: str) -> Callable[..., Any]:
    def call(x: Any) -> Any:
        import jax

        return getattr(jax.nn, name)(x, axis=-1)

    return call


def jax_masked(x: Any, mask: Any) -> Any:
    import jax
    import jax.numpy as jnp

    return jax.nn.softmax(jnp.where(mask, x, -jnp.inf))


def jax_causal(x: Any) -> Any:
    import jax.numpy as jnp

    return jax_masked(x, jnp.tri(x.shape[-1], dtype=bool))


def jax_layer_norm(x: Any, w: Any, b: Any) -> Any:
    import jax.numpy as jnp

    z = x.astype(jnp.float32)
    d = z - z.mean(-1, keepdims=True)
    return (d / jnp.sqrt((d * d).mean(-1, keepdims=True) + EPS) * w + b).astype(x.dtype)


def jax_rms_norm(x: Any, w: Any) -> Any:
    import jax.numpy as jnp

    return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + EPS) * w


# References in float64, of some rows; a sum over all rows is not checked here but in the tests.
def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - logsumexp(x)[..., None]


def logsumexp(x: np.ndarray) -> np.ndarray:
    largest = x.max(-1)
    return largest + np.log(np.exp(x - largest[..., None]).sum(-1))


def softmax_back(a: Arrays, rows: np.ndarray) -> list[np.ndarray]:
    p, dy = softmax(some(a["x"], rows)), some(a["dy"], rows)
    return [p * (dy - (dy * p).sum(-1, keepdims=True))]


def softmax_within(x: np.ndarray, mask: np.ndarray) -> list[np.ndarray]:
    return [softmax(np.where(mask, x, -np.inf))]


def normalised(a: Arrays, rows: np.ndarray, centred: bool) -> tuple[np.ndarray, np.ndarray]:
    """(x̂, 1 / its divisor)."""
    d = some(a["x"], rows)
    d = d - d.mean(-1, keepdims=True) if centred else d
    r = 1 / np.sqrt((d * d).mean(-1, keepdims=True) + EPS)
    return d * r, r


def layer_norm(a: Arrays, rows: np.ndarray) -> list[np.ndarray]:
    return [normalised(a, rows, True)[0] * a["w"].astype(float) + a["b"].astype(float)]


def norm_back(a: Arrays, rows: np.ndarray, centred: bool) -> list[np.ndarray]:
    """dx alone; dw and db are compared among the libraries by their own tests."""
    h, r = normalised(a, rows, centred)
    t = some(a["dy"], rows) * a["w"]
    left = t - h * (t * h).mean(-1, keepdims=True)
    return [r * (left - t.mean(-1, keepdims=True) if centred else left)]


def loss_rows(a: Arrays, rows: np.ndarray) -> list[np.ndarray]:
    """The gradient of the mean loss."""
    g = softmax(some(a["x"], rows))
    g[np.arange(len(rows)), a["labels"][rows]] -= 1
    return [g / len(a["x"])]


def widths(name: str, family: str, make: Any, contenders: dict[str, Any], reference: Any, arrays: float,
           operations: float, of: tuple[int, ...], **more: Any) -> list[Case]:  # fmt: skip
    """The same case for rows of several widths; `arrays` of the size of x move.

    operations: for each entry of x, any of + - × ÷, a comparison and a function such as exp counted as one.
    """
    return [
        Case(f"{name} {ENTRIES // width} x {width}", family, make, contenders, reference,
             {"rows": ENTRIES // width, "width": width}, TINY, moved=lambda a: int(arrays * a["x"].nbytes),
             operations=lambda a: int(operations * a["x"].size), **more)
        for width in of
    ]  # fmt: skip


def stored(name: str, family: str, contenders: dict[str, Any], reference: Any, operations: float,
           of: tuple[str, ...], width: int = 4096) -> list[Case]:  # fmt: skip
    """Forward, stored in other dtypes; as many bytes move as in float32. JAX has float64 for a whole process or not."""
    without = {name: build for name, build in contenders.items() if name != "jax"}
    return [
        Case(f"{name} {rows} x {width} {dtype}", family, draw, without if dtype == "float64" else contenders, reference,
             {"rows": rows, "width": width, "dtype": dtype}, {**TINY, "dtype": dtype},
             moved=lambda a: 2 * a["x"].nbytes, operations=lambda a: int(operations * a["x"].size),
             tolerance=TOLERANCE[dtype])
        for dtype in of
        for rows in [4 * ENTRIES // BYTES[dtype] // width]
    ]  # fmt: skip


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


def masked(x: Any, mask: Any) -> Any:
    return gl.softmax(x, mask=mask)


def causal(x: Any) -> Any:
    return gl.softmax(x, causal=True)


def rms_norm(x: Any, w: Any) -> Any:
    return gl.rms_norm(x, w, eps=EPS)


gl = Ours()
SOFTMAX = gl.softmax, torch_function("softmax"), jax_function("softmax")
LAYER_NORM = gl.layer_norm, torch_function("layer_norm"), jax_layer_norm
RMS_NORM = rms_norm, torch_function("rms_norm"), jax_rms_norm
CASES = [
    *widths("softmax", "softmax", draw, all_of(*SOFTMAX, "x"),
            lambda a, rows: [softmax(some(a["x"], rows))], 2, 5, (256, 1024, 4096, 16384, 32768)),
    *stored("softmax", "softmax", all_of(*SOFTMAX, "x"), lambda a, rows: [softmax(some(a["x"], rows))], 5,
            ("float16", "bfloat16", "float64")),
    *widths("softmax jvp", "softmax", draw_back, tangents_of(*SOFTMAX, "x"),
            lambda a, rows: [softmax(some(a["x"], rows)), *softmax_back(a, rows)], 4, 9, (4096,)),
    *widths("softmax backward", "softmax backward", draw_back, backward_of(*SOFTMAX, "x"), softmax_back, 3, 4,
            (1024, 4096)),
    *widths("log_softmax", "softmax", draw,
            all_of(gl.log_softmax, torch_function("log_softmax"), jax_function("log_softmax"), "x"),
            lambda a, rows: [log_softmax(some(a["x"], rows))], 2, 5, (4096,)),
    *widths("logsumexp", "softmax", draw, all_of(gl.logsumexp, torch_logsumexp, jax_function("logsumexp"), "x"),
            lambda a, rows: [logsumexp(some(a["x"], rows))], 1, 4, (4096,)),
    *widths("masked softmax", "softmax", with_mask, all_of(masked, torch_masked, jax_masked, ("x", "mask")),
            lambda a, rows: softmax_within(some(a["x"], rows), a["mask"][rows]), 2.25, 5, (4096,)),
    *widths("causal softmax", "softmax", scores, all_of(causal, torch_causal, jax_causal, "x"),
            lambda a, rows: softmax_within(some(a["x"], rows), np.tri(a["x"].shape[-1], dtype=bool)), 1.5, 2.5,
            (1024,)),
    *widths("layer_norm", "norms", draw, all_of(*LAYER_NORM, "xwb"), layer_norm, 2, 7, (256, 1024, 4096, 16384)),
    *stored("layer_norm", "norms", all_of(*LAYER_NORM, "xwb"), layer_norm, 7, ("float16", "bfloat16", "float64")),
    *widths("layer_norm backward", "norms backward", draw_back, backward_of(*LAYER_NORM, "xwb"),
            lambda a, rows: norm_back(a, rows, True), 3, 13, (1024, 4096)),
    *widths("rms_norm", "norms", draw, all_of(*RMS_NORM, "xw"),
            lambda a, rows: [normalised(a, rows, False)[0] * a["w"]], 2, 4, (4096,)),
    *widths("rms_norm backward", "norms backward", draw_back, backward_of(*RMS_NORM, "xw"),
            lambda a, rows: norm_back(a, rows, False), 3, 9, (4096,)),
    *widths("cross_entropy, loss and gradient", "cross_entropy", with_labels,
            {"gradlib": gradlib_loss, "torch": torch_loss(False), "torch compiled": torch_loss(True), "jax": jax_loss},
            loss_rows, 2, 6, (1024, 32768)),
]  # fmt: skip
