"""How each library is called: builders of what is timed, forward or backward, from a function of arrays.

`of` names the arguments, which backward are differentiated too. Everything is imported where it is called: a process
knows one library.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def gradlib_forward(f: Callable[..., Any], of: Sequence[str]) -> Any:
    def build(a: dict[str, Any]) -> Callable[[], Any]:
        return lambda: f(*[a[k] for k in of])

    return build


def gradlib_backward(f: Callable[..., Any], of: Sequence[str]) -> Any:
    def build(a: dict[str, Any]) -> Callable[[], Any]:
        import gradlib as gl

        pullback = gl.vjp(f, *[a[k] for k in of])[1]
        return lambda: pullback(a["dy"])

    return build


def torch_forward(f: Callable[..., Any], of: Sequence[str], compiled: bool = False) -> Any:
    def build(a: dict[str, Any]) -> Callable[[], Any]:
        import torch

        g, args = torch.compile(f, dynamic=False) if compiled else f, [a[k] for k in of]

        def run() -> Any:
            with torch.no_grad():
                return g(*args)

        return run

    return build


def torch_backward(f: Callable[..., Any], of: Sequence[str], compiled: bool = False) -> Any:
    def build(a: dict[str, Any]) -> Callable[[], Any]:
        import torch

        args = [a[k].requires_grad_() for k in of]
        y = (torch.compile(f, dynamic=False) if compiled else f)(*args)
        return lambda: torch.autograd.grad(y, args, a["dy"], retain_graph=True)

    return build


def jax_forward(f: Callable[..., Any], of: Sequence[str]) -> Any:
    def build(a: dict[str, Any]) -> Callable[[], Any]:
        import jax

        g, args = jax.jit(f), [a[k] for k in of]
        return lambda: g(*args)

    return build


def jax_backward(f: Callable[..., Any], of: Sequence[str]) -> Any:
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


def first(build: Any) -> Any:
    """Of several gradients the first, to be checked; all are computed."""

    def built(a: dict[str, Any]) -> Callable[[], Any]:
        run = build(a)
        return lambda: run()[0]

    return built


def all_of(ours: Any, theirs: Any, jax_function: Any, of: Sequence[str]) -> dict[str, Any]:
    """The function in each library."""
    return {
        "gradlib": gradlib_forward(ours, of),
        "torch": torch_forward(theirs, of),
        "torch compiled": torch_forward(theirs, of, compiled=True),
        "jax": jax_forward(jax_function, of),
    }


def backward_of(ours: Any, theirs: Any, jax_function: Any, of: Sequence[str]) -> dict[str, Any]:
    """The derivative by each of the arguments in each library."""
    return {
        "gradlib": first(gradlib_backward(ours, of)),
        "torch": first(torch_backward(theirs, of)),
        "torch compiled": first(torch_backward(theirs, of, compiled=True)),
        "jax": first(jax_backward(jax_function, of)),
    }


def tangents_of(ours: Any, theirs: Any, jax_function: Any, of: str) -> dict[str, Any]:
    """The value and the derivative along dy of a function of one array, in each library."""

    def gradlib_jvp(x: Any, dx: Any) -> Any:
        import gradlib as gl

        return gl.jvp(ours, (x,), (dx,))

    def torch_jvp(x: Any, dx: Any) -> Any:
        import torch

        return torch.func.jvp(theirs, (x,), (dx,))

    def jax_jvp(x: Any, dx: Any) -> Any:
        import jax

        return jax.jvp(jax_function, (x,), (dx,))

    return all_of(gradlib_jvp, torch_jvp, jax_jvp, (of, "dy"))
