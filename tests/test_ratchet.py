"""The recorded figures of the kernels, and the rule that they get no worse."""

import pytest

from gradlib.kernels import inspection, ratchet
from gradlib.kernels.launch import CATALOGUE

BEFORE = {"compiler": "c1", "kernels": {"k": dict.fromkeys(ratchet.KEPT, 100)}}


def row(**figures):
    return {"name": "k", "arch": ratchet.ARCHITECTURE, "dtype": "float32"} | dict.fromkeys(ratchet.KEPT, 100) | figures


def test_equal_and_better_figures_pass():
    assert ratchet.worse([row(), row(instructions=50, registers=20)], "c1", BEFORE) == []


@pytest.mark.parametrize("figure", ratchet.KEPT)
def test_a_worse_figure_fails(figure):
    room = ratchet.ROOM[figure]
    assert ratchet.worse([row(**{figure: 100 + room})], "c1", BEFORE) == []
    (line,) = ratchet.worse([row(**{figure: 101 + room})], "c1", BEFORE)
    assert line == f"k: {101 + room} {figure.replace('_', ' ')}, recorded are 100"


def test_another_compiler_has_more_room():
    assert ratchet.worse([row(instructions=115)], "c2", BEFORE) == []
    assert ratchet.worse([row(instructions=130)], "c2", BEFORE) != []


def test_kernels_come_and_go_with_their_record():
    assert ratchet.worse([row(name="new")], "c1", BEFORE) == ["new is not recorded: run gradlib kernels --record"]
    assert ratchet.gone([row(name="new")], BEFORE) == ["k is recorded, but there is no such kernel"]
    assert ratchet.gone([row()], BEFORE) == []


def test_a_record_reads_back(monkeypatch, tmp_path):
    monkeypatch.setattr(ratchet, "FILE", tmp_path / "figures.json")
    assert ratchet.recorded()["kernels"] == {}
    ratchet.record([row(), row(name="j", registers=7), row(arch="sm_80", registers=9)], "c1")
    assert ratchet.recorded() == {
        "compiler": "c1",
        "kernels": BEFORE["kernels"] | {"j": BEFORE["kernels"]["k"] | {"registers": 7}},
    }
    assert ratchet.worse([row(), row(name="j", registers=9)], "c1") == []


def test_the_repository_has_recorded_every_kernel():
    inspection.load_catalogue()
    names = {kernel.name_of(key) for kernel in CATALOGUE.values() for key in kernel.instances()}
    assert {name for name in ratchet.recorded()["kernels"] if not name.startswith("test_")} == names


def test_per_element():
    assert ratchet.per_element(row(instructions=30, load_bytes=8, store_bytes=4)) == 10
    assert ratchet.per_element(row(dtype="float64", instructions=30, load_bytes=16, store_bytes=8)) == 10
