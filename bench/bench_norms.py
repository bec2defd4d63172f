"""layer_norm and rms_norm, value and gradients; the batched Jacobian of layer_norm; embedding, value and gradient.

The norms move, at best, 2 arrays forward and 3 backward; the Jacobian writes 4 B D² bytes; embedding reads and writes
each row of y once, and its gradient reads dy once and writes the table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from harness import Case, check_in_process, done, torch_done

EPS = 1e-5
Arrays = dict[str, np.ndarray]


def norm_inputs(rng: np.random.Generator, rows: int, width: int) -> Arrays:
    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    return {"x": draw(rows, width) + 1, "w": draw(width), "b": draw(width), "dy": draw(rows, width)}


def embedding_inputs(rng: np.random.Generator, texts: int, words: int, vocabulary: int, width: int) -> Arrays:
    """Ids as frequent as words: the n-th has 1/n of the first one's share."""
    share = 1 / np.arange(1, vocabulary + 1)
    ids = rng.choice(vocabulary, (texts, words), p=share / share.sum())
    table, dy = rng.standard_normal((vocabulary, width)), rng.standard_normal((texts, words, width))
    return {"ids": ids, "table": table.astype(np.float32), "dy": dy.astype(np.float32)}


def layer_norm_by_hand(a: Arrays) -> dict[str, Any]:
    x, w, dy = a["x"], a["w"], a["dy"]
    d = x - x.mean(1, keepdims=True)
    r = 1 / np.sqrt((d * d).mean(1, keepdims=True) + EPS)
    h, t = d * r, dy * w
    dx = r * (t - t.mean(1, keepdims=True) - h * (t * h).mean(1, keepdims=True))
    return {"y": h * w + a["b"], "dx": dx, "dw": (dy * h).sum(0), "db": dy.sum(0)}


def rms_norm_by_hand(a: Arrays) -> dict[str, Any]:
    x, w, dy = a["x"], a["w"], a["dy"]
    r = 1 / np.sqrt((x * x).mean(1, keepdims=True) + EPS)
    h, t = x * r, dy * w
    return {"y": h * w, "dx": r * (t - h * (t * h).mean(1, keepdims=True)), "dw": (dy * h).sum(0)}


def jacobian_by_hand(a: Arrays) -> dict[str, Any]:
    """diag(w r) - w r 1ᵀ/D - w r x̂ x̂ᵀ/D, in one array."""
    x, n = a["x"], a["x"].shape[1]
    d = x - x.mean(1, keepdims=True)
    r = 1 / np.sqrt((d * d).mean(1, keepdims=True) + EPS)
    h, scale = d * r, r * a["w"]
    jacobian = (scale * h / -n)[:, :, None] * h[:, None, :]
    jacobian -= (scale / n)[:, :, None]
    at = np.arange(n)
    jacobian[:, at, at] += scale
    return {"jacobian": jacobian}


def embedding_by_hand(a: Arrays) -> dict[str, Any]:
    gradient = np.zeros_like(a["table"])
    np.add.at(gradient, a["ids"], a["dy"])
    return {"y": a["table"][a["ids"]], "dtable": gradient}


def exact(by_hand: Callable[[Arrays], dict[str, Any]]) -> Callable[[Arrays], dict[str, Any]]:
    return lambda a: by_hand({k: v if v.dtype.kind == "i" else v.astype(np.float64) for k, v in a.items()})


def hand(by_hand: Callable[[Arrays], dict[str, Any]]) -> Any:
    return lambda a, device: (lambda: by_hand(a), lambda: by_hand(a))


# Value and gradients: `of` names the arguments of the function, in order, `names` the results.
def gradlib_gradients(make: Callable[[Any, Any], Any], of: str, names: tuple[str, ...]) -> Any:
    def build(inputs: Arrays, device: str) -> Any:
        import gradlib as gl

        a, wait = gl.to_device(inputs, device), done(device)
        f, primals = make(gl, a), [a[k] for k in of.split()]

        def run() -> Any:
            y, pullback = gl.vjp(f, *primals)
            result = y, *pullback(a["dy"])
            wait()
            return result

        return run, lambda: dict(zip(names, run(), strict=True))

    return build


def torch_gradients(make: Callable[[Any, Any], Any], of: str, names: tuple[str, ...]) -> Any:
    def build(inputs: Arrays, device: str) -> Any:
        import torch

        a, wait = {k: torch.from_numpy(v).to(device) for k, v in inputs.items()}, torch_done(device)
        f, primals = make(torch.nn.functional, a), [a[k].requires_grad_() for k in of.split()]

        def run() -> Any:
            y = f(*primals)
            result = y, *torch.autograd.grad(y, primals, a["dy"])
            wait()
            return result

        return run, lambda: dict(zip(names, run(), strict=True))

    return build


def jax_gradients(make: Callable[[Any, Any], Any], of: str, names: tuple[str, ...]) -> Any:
    def build(inputs: Arrays, device: str) -> Any:
        import jax

        a = {k: jax.numpy.asarray(v) for k, v in inputs.items()}
        f, primals = make(jax, a), [a[k] for k in of.split()]

        @jax.jit
        def step(dy: Any, *primals: Any) -> Any:
            y, pullback = jax.vjp(f, *primals)
            return y, *pullback(dy)

        def run() -> Any:
            return jax.block_until_ready(step(a["dy"], *primals))

        return run, lambda: dict(zip(names, run(), strict=True))

    return build


def jax_rms_norm(jax: Any, a: Any) -> Any:
    return lambda x, w: x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + EPS) * w


def gradlib_jacobian(inputs: Arrays, device: str) -> Any:
    import gradlib as gl

    a, wait = gl.to_device(inputs, device), done(device)
    jacobian = gl.batch_jacobian(lambda x: gl.layer_norm(x, a["w"], a["b"]))

    def run() -> Any:
        result = jacobian(a["x"])
        wait()
        return result

    return run, lambda: {"jacobian": run()}


def torch_jacobian(inputs: Arrays, device: str) -> Any:
    import torch

    a, wait = {k: torch.from_numpy(v).to(device) for k, v in inputs.items()}, torch_done(device)
    norm, shape = torch.nn.functional.layer_norm, a["w"].shape
    jacobian = torch.func.vmap(torch.func.jacrev(lambda row: norm(row, shape, a["w"], a["b"], EPS)))

    def run() -> Any:
        result = jacobian(a["x"])
        wait()
        return result

    return run, lambda: {"jacobian": run()}


def jax_jacobian(inputs: Arrays, device: str) -> Any:
    import jax

    a = {k: jax.numpy.asarray(v) for k, v in inputs.items()}
    jacobian = jax.jit(jax.vmap(jax.jacrev(lambda row: jax.nn.standardize(row, epsilon=EPS) * a["w"] + a["b"])))

    def run() -> Any:
        return jax.block_until_ready(jacobian(a["x"]))

    return run, lambda: {"jacobian": run()}


LAYER, RMS, TABLE = ("y", "dx", "dw", "db"), ("y", "dx", "dw"), ("y", "dtable")
NORM_SIZES = {"sizes": {"rows": 1024, "width": 768}, "tiny": {"rows": 5, "width": 6}}
layer_norm = Case(
    "layer_norm",
    "layer_norm of 1024 rows of 768 entries: value, gradients of x, weight and bias, float32",
    norm_inputs,
    exact(layer_norm_by_hand),
    {
        "gradlib": gradlib_gradients(lambda gl, a: gl.layer_norm, "x w b", LAYER),
        "torch": torch_gradients(lambda f, a: lambda x, w, b: f.layer_norm(x, w.shape, w, b, EPS), "x w b", LAYER),
        "jax": jax_gradients(lambda jax, a: lambda x, w, b: jax.nn.standardize(x, epsilon=EPS) * w + b, "x w b", LAYER),
        "numpy": hand(layer_norm_by_hand),
    },
    **NORM_SIZES,
)
rms_norm = Case(
    "rms_norm",
    "rms_norm of 1024 rows of 768 entries: value, gradients of x and weight, float32",
    norm_inputs,
    exact(rms_norm_by_hand),
    {
        "gradlib": gradlib_gradients(lambda gl, a: lambda x, w: gl.rms_norm(x, w, eps=EPS), "x w", RMS),
        "torch": torch_gradients(lambda f, a: lambda x, w: f.rms_norm(x, w.shape, w, EPS), "x w", RMS),
        "jax": jax_gradients(jax_rms_norm, "x w", RMS),
        "numpy": hand(rms_norm_by_hand),
    },
    **NORM_SIZES,
)
layer_norm_jacobian = Case(
    "layer_norm_jacobian",
    "batched Jacobian of layer_norm, 256 rows of 256 entries, float32",
    norm_inputs,
    exact(jacobian_by_hand),
    {"gradlib": gradlib_jacobian, "torch.func": torch_jacobian, "jax": jax_jacobian, "numpy": hand(jacobian_by_hand)},
    sizes={"rows": 256, "width": 256},
    tiny={"rows": 3, "width": 5},
)
embedding = Case(
    "embedding",
    "embedding of 64 texts of 128 words, 30000 vectors of 128: value and the table's gradient, float32",
    embedding_inputs,
    exact(embedding_by_hand),
    {
        "gradlib": gradlib_gradients(lambda gl, a: lambda table: gl.embedding(a["ids"], table), "table", TABLE),
        "torch": torch_gradients(lambda f, a: lambda table: f.embedding(a["ids"], table), "table", TABLE),
        "jax": jax_gradients(lambda jax, a: lambda table: table[a["ids"]], "table", TABLE),
        "numpy": hand(embedding_by_hand),
    },
    sizes={"texts": 64, "words": 128, "vocabulary": 30000, "width": 128},
    tiny={"texts": 2, "words": 5, "vocabulary": 7, "width": 3},
)

CASES = [layer_norm, rms_norm, layer_norm_jacobian, embedding]


def test_layer_norm(benchmark: Any) -> None:
    check_in_process(benchmark, layer_norm)


def test_rms_norm(benchmark: Any) -> None:
    check_in_process(benchmark, rms_norm)


def test_layer_norm_jacobian(benchmark: Any) -> None:
    check_in_process(benchmark, layer_norm_jacobian)


def test_embedding(benchmark: Any) -> None:
    check_in_process(benchmark, embedding)
