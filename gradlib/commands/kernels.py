"""`gradlib kernels`: compile every CUDA kernel without a GPU; hold it to the rules and to what is recorded."""

from __future__ import annotations

import json
import re
import sys
from argparse import Namespace

COLUMNS = (
    "name",
    "arch",
    "registers",
    "spill_bytes",
    "shared_bytes",
    "instructions",
    "per_element",
    "load_bytes",
    "store_bytes",
    "vector_loads",
    "float64_ops",
)


def kernels(arguments: Namespace) -> int:
    """Print one row a kernel and architecture; status 1 if any breaks a rule or got worse, the reasons on stderr."""
    from ..kernels import ratchet
    from ..kernels.compiler import versions
    from ..kernels.inspection import ARCHITECTURES, gate, inspect_all

    try:
        re.compile(arguments.only)
    except re.error as error:
        raise ValueError(f"--only {arguments.only!r} is not a regular expression: {error}") from None
    if arguments.record and (arguments.only or arguments.arch):
        raise ValueError("--record takes all kernels on all architectures: leave out --only and --arch")
    rows = inspect_all(tuple(arguments.arch or ARCHITECTURES), only=arguments.only)
    rows = [row | {"per_element": round(ratchet.per_element(row), 1)} for row in rows]
    if not rows:
        raise ValueError(f"no kernel matches {arguments.only!r}")
    print(json.dumps(rows, indent=1) if arguments.json else _table(rows))
    faults = gate(rows)
    if arguments.record:
        ratchet.record(rows, versions())
    else:
        faults += ratchet.worse(rows, versions())
        faults += [] if arguments.only or arguments.arch else ratchet.gone(rows)
    for fault in faults:
        print(f"gradlib kernels: {fault}", file=sys.stderr)
    return 1 if faults else 0


def _table(rows: list[dict]) -> str:
    cells = [list(COLUMNS), *([str(row[c]) for c in COLUMNS] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(r, widths, strict=True)))
        for r in cells
    )
