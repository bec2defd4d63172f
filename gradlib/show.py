"""trace: the graph a function records, as a table to read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from . import tree
from .device import adopt
from .op import Op, describe
from .precision import is_floating
from .trace import Trace
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


class _Noted(Trace):
    """A trace that notes what each op was given: numbers as they are, arrays by dtype and shape."""

    __slots__ = ("given",)

    def __init__(self) -> None:
        super().__init__()
        self.given: list[list[str]] = []

    def record(self, op: Op, xp: Any, static: dict, saved: tuple, slots: list, vals: Sequence, y: Any) -> Any:
        self.given.append([str(v) if isinstance(v, (int, float)) else describe(v) for v in vals])
        return super().record(op, xp, static, saved, slots, vals, y)


def trace(f: Callable[..., Any], *args: Any, **kwargs: Any) -> Graph:
    """The graph that `f(*args, **kwargs)` records: ops, inputs, shapes and bytes, readable when printed.

    args: pytrees; their floating-point arrays and Python floats are the inputs of the graph. Anything else, and all
    keyword arguments, is passed to f as it is. Of what is not traced, numbers are shown as they are, arrays as their
    shapes.

    >>> import gradlib as gl, numpy as np
    >>> print(gl.trace(lambda x: np.sum(np.sin(x) * 2), np.zeros(3)))
    inputs: x0 float64[3]
    name  op        inputs  result      bytes
    y0    sin       x0      float64[3]     24
    y1    multiply  y0, 2   float64[3]     24
    y2    sum       y1      float64[]       8
    returns y2; 56 bytes
    """
    leaves, structure = tree.flatten(args)
    leaves = list(map(adopt, leaves))
    at = [i for i, x in enumerate(leaves) if type(x) is float or is_floating(getattr(x, "dtype", np.dtype(bool)))]

    def of_inputs(*inputs: Any) -> Any:
        full = list(leaves)
        for i, x in zip(at, inputs, strict=True):
            full[i] = x
        return f(*tree.unflatten(structure, full), **kwargs)

    graph = _Noted()
    inside, outputs, _ = run("trace", of_inputs, tuple(leaves[i] for i in at), trace=graph)
    names = {slot: f"x{slot}" for slot in inside.slots}
    first = len(names)
    rows = []
    for node, given in zip(graph.nodes, graph.given, strict=True):
        results = range(node.slot, node.slot + max(node.outputs, 1))
        names.update({slot: f"y{slot - first}" for slot in results})
        shapes = [graph.outs[slot] for slot in results]
        rows.append(
            {
                "name": ", ".join(names[s] for s in results),
                "op": node.op.name,
                "inputs": ", ".join(names[s] if s >= 0 else g for s, g in zip(node.parents, given, strict=True)),
                "result": ", ".join(_kind(*s) for s in shapes),
                "bytes": sum(prod(shape) * dtype.itemsize for shape, dtype in shapes),
            }
        )
    inputs = [f"{names[s]} {_kind(*graph.outs[s])}" for s in inside.slots]
    return Graph(rows, inputs, ["a constant" if s is None else names[s] for s in outputs.slots])
