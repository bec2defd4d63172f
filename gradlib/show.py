"""trace: the graph a function records, as a table to read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .device import array_module
from .kept import Form
from .transforms import run


class Graph:
    """The recorded ops of one call, one row each; `print` shows it. `rows` holds the cells."""

    def __init__(self, rows: list[dict[str, Any]], inputs: list[str], outputs: list[str]) -> None:
        self.rows, self.inputs, self.outputs = rows, inputs, outputs

    @property
    def nbytes(self) -> int:
        """Bytes of all results."""
        return sum(r["bytes"] for r in self.rows)

    def __str__(self) -> str:
        head = {"name": "name", "op": "op", "inputs": "inputs", "result": "result", "bytes": "bytes"}
        cells = [{k: f"{r[k]:,}" if k == "bytes" else str(r[k]) for k in head} for r in self.rows]
        width = {k: max(len(c[k]) for c in [head, *cells]) for k in head}
        lines = [
            "  ".join(c[k].rjust(width[k]) if k == "bytes" else c[k].ljust(width[k]) for k in head).rstrip()
            for c in [head, *cells]
        ]
        return "\n".join(
            [f"inputs: {', '.join(self.inputs)}", *lines, f"returns {', '.join(self.outputs)}; {self.nbytes:,} bytes"]
        )

    __repr__ = __str__


def _kind(shape: tuple, dtype: Any) -> str:
    return f"{dtype}[{', '.join(map(str, shape))}]"


def trace(f: Callable[..., Any], *args: Any) -> Graph:
    """The graph that `f(*args)` records: ops, inputs, shapes and bytes, readable when printed.

    args: pytrees of floating-point arrays.

    >>> import gradlib as gl, numpy as np
    >>> print(gl.trace(lambda x: np.sum(np.sin(x) * 2), np.zeros(3)))
    inputs: x0 float64[3]
    name  op        inputs  result      bytes
    y0    sin       x0      float64[3]     24
    y1    multiply  y0, 2   float64[3]     24
    y2    sum       y1      float64[]       8
    returns y2; 56 bytes
    """
    inside, outputs, _ = run("trace", f, args)
    graph = inside.trace
    names = {slot: f"x{slot}" for slot in inside.slots}
    first = len(names)
    rows = []
    for node in graph.nodes:
        results = range(node.slot, node.slot + max(node.outputs, 1))
        names.update({slot: f"y{slot - first}" for slot in results})
        shapes = [graph.outs[slot] for slot in results]
        rows.append(
            {
                "name": ", ".join(names[s] for s in results),
                "op": node.op.name,
                "inputs": ", ".join(_input(names, node, i, slot) for i, slot in enumerate(node.parents)),
                "result": ", ".join(_kind(*s) for s in shapes),
                "bytes": sum(_bytes(*s) for s in shapes),
            }
        )
    inputs = [f"{names[s]} {_kind(*graph.outs[s])}" for s in inside.slots]
    return Graph(rows, inputs, ["a constant" if s is None else names[s] for s in outputs.slots])


def _bytes(shape: tuple, dtype: Any) -> int:
    n = dtype.itemsize
    for size in shape:
        n *= size
    return n


def _input(names: dict[int, str], node: Any, i: int, slot: int) -> str:
    """The name of a traced input; a number as it is, a constant array by its shape."""
    if slot >= 0:
        return names[slot]
    value: Any = node.saved[i] if node.op.partials else None  # an elementwise op saves its arguments
    if isinstance(value, (int, float)):
        return str(value)
    return "a constant" if array_module(value) is None and type(value) is not Form else _kind(value.shape, value.dtype)
