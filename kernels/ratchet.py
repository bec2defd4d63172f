"""What every kernel's machine code costs, as recorded in ``figures.json``, and the rule that it gets no worse.

Recorded are, for one architecture: registers, shared memory, instructions, and the bytes that the code loads from and
stores to device memory in one pass; with the bytes of an element, that gives instructions per element. The counts are
static: a loop's body counts once. Another compiler may do a little better or worse, so its figures have more room.
"""

import json
from pathlib import Path

FILE = Path(__file__).with_name("figures.json")
ARCHITECTURE = "sm_90"
KEPT = ("registers", "shared_bytes", "instructions", "load_bytes", "store_bytes")
ROOM = {"registers": 2, "shared_bytes": 0, "instructions": 8, "load_bytes": 0, "store_bytes": 0}
OTHER_COMPILER = 1.15


def recorded() -> dict:
    """{"compiler": ..., "kernels": {name: {figure: number}}}; of no kernels where nothing was recorded."""
    return json.loads(FILE.read_text()) if FILE.exists() else {"compiler": "", "kernels": {}}


def record(rows, compiler) -> None:
    """Write the figures of rows of `inspect_all`."""
    kernels = {row["name"]: {k: row[k] for k in KEPT} for row in rows if row["arch"] == ARCHITECTURE}
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(kernels[name])}" for name in sorted(kernels))
    FILE.write_text(f'{{"compiler": {json.dumps(compiler)}, "kernels": {{\n{lines}\n}}}}\n')


def worse(rows, compiler, before=None) -> list[str]:
    """One line for each kernel that is not recorded, and each figure larger than recorded (`before`: in the file)."""
    before = recorded() if before is None else before
    factor = 1.0 if compiler == before["compiler"] else OTHER_COMPILER
    return [
        line
        for row in rows
        if row["arch"] == ARCHITECTURE
        for line in _compared(row, before["kernels"].get(row["name"]), factor)
    ]


def _compared(row, old, factor):
    if old is None:
        return [f"{row['name']} is not recorded: run gradlib kernels --record"]
    return [
        f"{row['name']}: {row[k]} {k.replace('_', ' ')}, recorded are {old[k]}"
        for k in KEPT
        if row[k] > (old[k] + ROOM[k]) * factor
    ]


def gone(rows, before=None) -> list[str]:
    """The recorded kernels of which there is no row."""
    names = (recorded() if before is None else before)["kernels"].keys() - {row["name"] for row in rows}
    return [f"{name} is recorded, but there is no such kernel" for name in sorted(names)]


def per_element(row) -> float:
    """Instructions for each element loaded or stored, of a row's dtype."""
    size = {"float64": 8, "float32": 4}.get(row["dtype"], 2)
    return row["instructions"] * size / max(row["load_bytes"] + row["store_bytes"], size)
