"""SUPPORTED.md, made from the registry: `python -m gradlib.ops.table` writes it anew."""

from __future__ import annotations

import importlib
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from ..op import Op
from ..trace import ALTERNATIVES, HANDLERS
from .conventions import CONVENTIONS

FILE = pathlib.Path(__file__).parent / "SUPPORTED.md"
#: Files whose functions give plain values, and single functions that do.
_PLAIN_FILES = {"nondiff", "questions"}
_PLAIN = {"np.shape", "np.ndim", "np.size", "np.argsort"}
_FOR_RULES = {"np.ascontiguousarray"}  # does not dispatch
_SCIPY = {"psi": "digamma", "_zeta": "zeta"}  # the names of ufuncs that users call by another one


def name_of(key: Any) -> str:
    """How users write the function that a key of HANDLERS stands for."""
    if isinstance(key, tuple):
        first, second = key
        return f"{name_of(first)}.{second}" if isinstance(first, np.ufunc) else f"{first}.{_SCIPY.get(second, second)}"
    if isinstance(key, np.ufunc):
        return f"np.{key.__name__}"
    return f"{key.__module__}.{key.__name__}".replace("numpy", "np", 1)


def file_of(handler: Callable[..., Any]) -> str:
    """The file of this folder that holds a handler."""
    return handler.module if isinstance(handler, Op) else handler.__module__.rpartition(".")[2]


def supported() -> dict[str, str]:
    """Function -> file, for all that pass derivatives."""
    found = {name_of(key): file_of(handler) for key, handler in HANDLERS.items()}
    left_out = _PLAIN | _FOR_RULES
    return {name: file for name, file in sorted(found.items()) if file not in _PLAIN_FILES and name not in left_out}


def plain() -> list[str]:
    """Functions that work on traced arrays and pass no derivative."""
    return sorted({*map(name_of, HANDLERS)} - {*supported()} - _FOR_RULES)


def _summary(file: str) -> str:
    """What a file holds: the first sentence of its docstring."""
    text = (importlib.import_module(f"gradlib.ops.{file}").__doc__ or "").partition("\n\n")[0].replace("\n", " ")
    return text.partition(". ")[0].rstrip(".")


def _listed(names: Any) -> str:
    return ", ".join(f"`{n}`" for n in names)


def render() -> str:
    """The text of SUPPORTED.md."""
    files: dict[str, list[str]] = {}
    for name, file in supported().items():
        files.setdefault(file, []).append(name)
    rows = [f"| [{f}]({f}.py) | {_summary(f)} | {_listed(names)} |" for f, names in sorted(files.items())]
    points = [f"| `{code}` | `{at}` | `{value}` | {words} |" for code, at, value, words in CONVENTIONS]
    others = [
        f"| `{name if '.special' in name else 'np.' + name}` | {instead} |"
        for name, instead in sorted(ALTERNATIVES.items())
    ]
    return f"""# What gradlib differentiates

Written by `python -m gradlib.ops.table`; a test keeps it up to date. Each function works on NumPy and CuPy data, with
vjp and jvp, at any order, in the argument forms of NumPy. Operators and methods of arrays follow the functions, and so
do other names of the same function (`np.abs`, `np.concat`, `np.acos`, `np.permute_dims`).

## Functions with derivatives

| file | what it holds | functions |
|---|---|---|
{chr(10).join(rows)}

## Functions with plain results

No derivative passes; their results are plain numbers and arrays, to compute with, to index with, or for `if`.

{_listed(plain())}

## Where there is no derivative

| expression | at x = | derivative | |
|---|---|---|---|
{chr(10).join(points)}

## Not supported, and what to write instead

| function | instead |
|---|---|
{chr(10).join(others)}
"""


if __name__ == "__main__":
    import gradlib  # noqa: F401  (fills the registry)

    FILE.write_text(render(), encoding="utf-8")
