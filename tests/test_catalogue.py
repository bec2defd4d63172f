"""Compile a few kernels for every architecture, with no GPU, and hold their machine code to the rules of the house."""

import pytest

from gradlib.kernels import inspection

# One of each kind; `gradlib kernels` compiles them all.
SAMPLE = "|".join(
    [
        r"^elementwise\.pointwise_scale-float(32|64)-tanh$",
        r"^softmax_(rows\.held_rows-float32-softmax-32-16|streams\.streamed_rows-float32-softmax)$",
        r"^cross_entropy_rows\.held_loss-float32-32-4$",
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
        inspection._disassembler()
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
    "float_atomics": 0,
    "vector_promised": ["loads", "stores"],
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
        ({"vector_loads": 0}, "vector access"),
        ({"vector_stores": 0}, "vector access"),
        ({"float_atomics": 1}, "atomics"),
    ],
)
def test_gate_finds(change, rule):
    assert rule in inspection.RULES
    (fault,) = inspection.gate([GOOD, GOOD | change])
    assert fault.startswith(f"k sm_90: {rule}")
    assert inspection.gate([GOOD | change | {"excepted": [rule]}]) == []


def test_float64_kernels_may_calculate_in_float64():
    assert inspection.gate([GOOD | {"dtype": "float64", "float64_ops": 9, "calls": 2}]) == []


def test_what_is_only_read_need_not_be_written():
    assert inspection.gate([GOOD | {"vector_promised": ["loads"], "vector_stores": 0}]) == []
    assert inspection.gate([GOOD | {"vector_promised": ["stores"], "vector_loads": 0}]) == []
    assert inspection.gate([GOOD | {"vector_promised": [], "vector_loads": 0, "vector_stores": 0}]) == []


@pytest.mark.parametrize(
    ("name", "float_atomics"),
    [
        ("RED.E.ADD.F32.FTZ.RN.STRONG.GPU", 1),
        ("REDG.E.ADD.F32.FTZ.RN.STRONG.GPU", 1),
        ("ATOM.E.ADD.F64.RN.STRONG.GPU", 1),
        ("ATOMG.E.CAS.STRONG.GPU", 1),
        ("ATOMS.CAST.SPIN", 1),
        ("ATOMG.E.ADD.STRONG.GPU", 0),
        ("RED.E.MAX.S32.STRONG.GPU", 0),
        ("REDUX.SUM", 0),
    ],
)
def test_atomics_on_floats(name, float_atomics):
    assert inspection._figures({name: 1}, (0, 0, 0))["float_atomics"] == float_atomics


def test_a_missing_tool_says_what_to_install(monkeypatch):
    pathfinder = pytest.importorskip("cuda.pathfinder")
    monkeypatch.setattr(pathfinder, "find_nvidia_binary_utility", lambda name: None)
    with pytest.raises(RuntimeError, match=r'(nvdisasm|numba_cuda).*pip install "gradlib\[check\]"'):
        inspection._disassembler()


def test_unknown_architecture():
    with pytest.raises(ValueError, match="sm_90"):
        inspection._capability("90")


LISTING = """
        /*0000*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0010*/              @!P0 STL.64 [R1], R4 ;
        /*0020*/                   DADD R4, R4, R4 ;
        /*0030*/                   LD.E R0, [R2] ;
        /*0040*/                   CALL.REL.NOINC 0x0 ;
        /*0050*/                   RET.REL.NODEC R2 0x0 ;
        /*0060*/                   NOP ;
"""


def test_reading_a_listing(monkeypatch):
    monkeypatch.setattr(inspection, "_on_file", lambda data, *command: LISTING)
    code = bytes(7 * 16)
    figures = inspection._figures(inspection._count({code: "sm_90"}, "nvdisasm")[code], (24, 8, 128))
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
        "float_atomics": 0,
    }


def test_one_listing_of_several_kernels(monkeypatch):
    """All code of an architecture is read at once, and every instruction is counted where it belongs."""
    read = []

    def on_file(data, command, *options):
        read.append((data, options[-1]))
        return LISTING if options[-1] == "SM90" else LISTING[:60]

    monkeypatch.setattr(inspection, "_on_file", on_file)
    first, second, third = b"a" * 32, b"b" * 80, b"c" * 16
    counts = inspection._count({first: "sm_90", second: "sm_90", third: "sm_80"}, "nvdisasm")
    assert sorted(read) == [(first + second, "SM90"), (third, "SM80")]
    assert counts[first] == {"LDG.E.128": 1, "STL.64": 1}
    assert counts[second] == {"DADD": 1, "LD.E": 1, "CALL.REL.NOINC": 1, "RET.REL.NODEC": 1, "NOP": 1}
    assert counts[third] == {"LDG.E.128": 1}


def test_an_instruction_that_is_not_in_the_listing(monkeypatch):
    monkeypatch.setattr(inspection, "_on_file", lambda data, *command: LISTING)
    with pytest.raises(RuntimeError, match="every instruction"):
        inspection._count({bytes(8 * 16): "sm_90"}, "nvdisasm")
