"""Compile a few kernels for every architecture, with no GPU, and hold their machine code to the rules of the house."""

import pytest

from gradlib.kernels import inspection

# One of each kind; `gradlib kernels` compiles them all.
SAMPLE = "|".join(
    [
        r"^elementwise\.pointwise_scale-float(32|64)-tanh$",
        r"^softmax_rows\.(held_rows-float32-softmax-32-16|streamed_rows-float32-softmax)$",
        r"^cross_entropy\.held_loss-float32-32-4$",
        r"^linear\.slope_sums-float32-silu-32$",
        r"^csr\.gather_rows-float32-8$",
        r"^dropout\.masked-float32$",
        r"^optim\.adam_chunks-float32$",
        r"^norm_rows\.held_forward-float32-layer_norm-32-16-wide$",
        r"^embedding\.run_sums-float32-32-wide$",
    ]
)


@pytest.fixture(scope="module")
def rows():
    try:
        inspection._tools()
    except RuntimeError as error:
        pytest.skip(str(error))
    return inspection.inspect_all(only=SAMPLE)


def test_sample_passes_the_gate(rows):
    assert {row["arch"] for row in rows} == set(inspection.ARCHITECTURES)
    assert len(rows) == 11 * len(inspection.ARCHITECTURES)
    assert inspection.gate(rows) == []


def test_rows_hold_the_figures(rows):
    row = next(r for r in rows if r["name"] == "elementwise.pointwise_scale-float32-tanh" and r["arch"] == "sm_90")
    assert 8 <= row["registers"] <= 64
    assert row["vector_loads"] == 2 and row["vector_stores"] == 1  # y and dy; x is not needed by tanh
    assert row["float64_ops"] == row["spill_bytes"] == row["shared_bytes"] == 0
    assert all(r["float64_ops"] > 0 for r in rows if r["dtype"] == "float64")


GOOD = {
    "name": "k",
    "arch": "sm_90",
    "dtype": "float32",
    "registers": 32,
    "stack_bytes": 0,
    "spill_bytes": 0,
    "shared_bytes": 0,
    "vector_loads": 1,
    "vector_stores": 1,
    "generic_accesses": 0,
    "calls": 0,
    "float64_ops": 0,
    "register_limit": 64,
    "vector_promised": True,
    "excepted": [],
}


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"registers": 65}, "registers"),
        ({"stack_bytes": 8}, "local memory"),
        ({"spill_bytes": 8}, "local memory"),
        ({"float64_ops": 1}, "float64"),
        ({"calls": 1}, "call"),
        ({"generic_accesses": 1}, "generic access"),
        ({"vector_loads": 0, "vector_stores": 0}, "vector access"),
    ],
)
def test_gate_finds(change, rule):
    assert rule in inspection.RULES
    (fault,) = inspection.gate([GOOD, GOOD | change])
    assert fault.startswith(f"k sm_90: {rule}")
    assert inspection.gate([GOOD | change | {"excepted": [rule]}]) == []


def test_float64_kernels_may_calculate_in_float64():
    assert inspection.gate([GOOD | {"dtype": "float64", "float64_ops": 9, "calls": 2}]) == []


def test_missing_tools_say_what_to_install(monkeypatch):
    pathfinder = pytest.importorskip("cuda.pathfinder")
    monkeypatch.setattr(pathfinder, "find_nvidia_binary_utility", lambda name: None)
    with pytest.raises(RuntimeError, match=r'(nvdisasm|numba_cuda).*pip install "gradlib\[check\]"'):
        inspection._tools()


def test_unknown_architecture():
    with pytest.raises(ValueError, match="sm_90"):
        inspection._capability("90")


def test_reading_a_listing():
    listing = """
        /*0000*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0010*/              @!P0 STL.64 [R1], R4 ;
        /*0020*/                   DADD R4, R4, R4 ;
        /*0030*/                   LD.E R0, [R2] ;
        /*0040*/                   CALL.REL.NOINC 0x0 ;
        /*0050*/                   RET.REL.NODEC R2 0x0 ;
        /*0060*/                   NOP ;
    """
    figures = inspection._figures(listing, "REG:24 STACK:8 SHARED:128")
    assert figures == {
        "registers": 24,
        "stack_bytes": 8,
        "shared_bytes": 128,
        "spill_bytes": 8,
        "instructions": 6,
        "load_bytes": 16,
        "store_bytes": 0,
        "vector_loads": 1,
        "vector_stores": 0,
        "generic_accesses": 1,
        "calls": 1,
        "float64_ops": 1,
    }
