"""Every rule of the gate finds a kernel that was broken on purpose, in its compiled code; so does the ratchet."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gradlib.kernels import inspection, ratchet

COMPILE = """
import json, broken_kernels
from gradlib.kernels import inspection
from gradlib.kernels.intrinsics import device, float32, float64, tile_access

def times(a):
    return device(lambda x: x * a)

print(json.dumps({
    "rows": inspection.inspect_catalogue(0, 1, r"^broken_kernels\\.", "sm_90"),
    "same": [times(2.0) is times(2.0), tile_access(float32, 4) == tile_access(float32, 4)],
    "different": [times(a) is times(b) for a, b in [(1, 1.0), (1, True), (0.0, -0.0), (1.0, 2.0)]]
    + [tile_access(float32, 2) == tile_access(float64, 2)],
}))
"""


@pytest.fixture(scope="module")
def compiled():
    """What COMPILE prints, in a process without the simulator."""
    try:
        inspection._disassembler()
    except RuntimeError as error:
        pytest.skip(str(error))
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "0", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def rows(compiled):
    return {row["name"].split(".")[1].removesuffix("-float32"): row for row in compiled["rows"]}


def test_the_gate_asks_for_loads_and_stores(rows):
    assert rows["narrow_stores"]["vector_loads"] == 1
    (fault,) = inspection.gate([rows["narrow_stores"]])
    assert fault.endswith("vector access: no 16-byte stores, though promised")


@pytest.mark.parametrize("rule", inspection.RULES)
def test_the_gate_finds_a_kernel_that_breaks(rule, rows):
    broken = rows[rule.replace(" ", "_")]
    (fault,) = inspection.gate([broken])
    assert fault.startswith(f"{broken['name']} sm_90: {rule}")


def test_local_memory_shows_as_stack_and_as_accesses(rows):
    assert rows["local_memory"]["stack_bytes"] >= 64 and rows["local_memory"]["spill_bytes"] > 0


def test_the_ratchet_finds_a_kernel_that_grew(rows):
    """The kernel of few registers, replaced by one that needs many."""
    small, large = rows["vector_access"], rows["registers"]
    before = {"compiler": "c", "kernels": {small["name"]: {k: small[k] for k in ratchet.KEPT}}}
    assert ratchet.worse([small], "c", before) == []
    found = ratchet.worse([large | {"name": small["name"]}], "c", before)
    assert {word for line in found for word in ("registers", "instructions", "load bytes") if word in line} == {
        "registers",
        "instructions",
        "load bytes",
    }


def test_kernels_share_device_functions_that_are_alike(compiled):
    assert all(compiled["same"])
    assert not any(compiled["different"])
