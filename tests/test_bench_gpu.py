"""The GPU benchmark, rehearsed without a GPU: ours in the simulator, peers where they are installed. No times."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

GPU = Path(__file__).resolve().parent.parent / "bench" / "gpu"
if not GPU.is_dir():
    pytest.skip("there is no bench/ here", allow_module_level=True)


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    """What a rehearsal of some cases wrote."""
    out = tmp_path_factory.mktemp("gpu")
    chosen = [
        "softmax 16384",
        "softmax backward 65536",
        "bias",
        "embedding",
        "Adam",
        "Jacobian of",
        "training step",
        "launch",
    ]
    quick = ["--rehearse", "--no-tests", "--rounds", "1", "--seconds", "0.001", "--out", str(out)]
    done = subprocess.run([sys.executable, str(GPU / "run.py"), *chosen, *quick], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_our_values_are_right_and_timed(rehearsal):
    result = json.loads((rehearsal / "gpu.json").read_text())
    assert result["rehearsal"] is True and result["ceilings"] == {}
    assert len(result["cases"]) == 9
    for case in result["cases"]:
        ours = case["contenders"][0]
        assert ours["name"] == "gradlib" and ours["status"] == "timed", ours
        assert ours["us"] > 0 and len(ours["rounds"]) == 1
        assert {row["status"] for row in case["contenders"]} <= {"timed", "missing"}, case


def test_the_table_says_that_it_is_a_rehearsal(rehearsal):
    table = (rehearsal / "gpu.md").read_text()
    assert table.startswith("A rehearsal of tiny sizes, no measurement: ")
    assert sum(line.startswith("| softmax 16384 x 4096") for line in table.splitlines()) == 1
    assert "| not measured |" in table  # no goal is met or missed by it


def test_the_plot(rehearsal):
    pytest.importorskip("matplotlib")
    assert (rehearsal / "roofline.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def modules():
    """Imports a module of the benchmark by its name."""
    before, loaded = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(GPU))
    yield importlib.import_module
    sys.path[:] = before
    for name in set(sys.modules) - loaded:
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent == GPU:
            del sys.modules[name]


@pytest.fixture(scope="module")
def case(modules):
    return modules("case")


@pytest.fixture(scope="module")
def goals(modules):
    return modules("goals")


def test_every_goal_has_cases_and_a_kernel(goals, modules):
    figures = json.loads(goals.FIGURES.read_text())["kernels"]
    names = modules("worker").all_cases()
    for goal in goals.GOALS:
        assert any(re.search(goal.cases, name) for name in names), goal
        assert not goal.kernel or goal.kernel in figures, goal
    assert goals.table(None).count(goals.NOT_MEASURED) == len(goals.GOALS)


def test_a_goal_is_met_or_missed_by_its_worst_case(goals):
    def run(**us):
        rows = [{"name": name.replace("_", " "), "us": t} for name, t in us.items()]
        return {"case": f"softmax {len(us)} x 4096", "moved": 8e6, "contenders": rows}

    rate = goals.Goal("", r"^softmax \d+ x 4096$", "", rate=3.8)
    assert goals.reached(rate, {"cases": [run(gradlib=2.0)]}) == "4.00 TB/s: met"
    assert goals.reached(rate, {"cases": [run(gradlib=2.0), run(gradlib=4.0)]}) == "2.00 TB/s: missed"
    assert goals.reached(rate, {"cases": [run(gradlib=None)]}) == "not measured"
    ratio = goals.Goal("", "softmax", "", ratios={"torch": 0.5, "torch compiled": 1})
    assert goals.reached(ratio, {"cases": [run(gradlib=2, torch=5, torch_compiled=2)]}).endswith("compiled: met")
    assert goals.reached(ratio, {"cases": [run(gradlib=2, torch=3, torch_compiled=2)]}).endswith("compiled: missed")
    assert goals.reached(ratio, {"cases": [run(gradlib=2, torch=5)]}).endswith("torch compiled not measured: missed")


def test_a_wrong_result_shows(case):
    rows, want = np.array([0, 2]), [np.array([[1.0, 2.0], [3.0, 4.0]])]
    right = np.array([[1, 2], [9, 9], [3, 4]], np.float32)
    assert case.deviation([right], want, rows) == 0
    assert case.deviation([1.01 * right], want, rows) == pytest.approx(0.01, rel=1e-3)
    assert case.deviation([np.where(right == 2, np.nan, right)], want, rows) == float("inf")
    small = right * [[1], [1], [1 + 1e-2]] * [[1e-6], [1], [1]]  # the last row is 1% off, the first is small
    assert case.deviation([small], [want[0] * [[1e-6], [1]]], rows) == pytest.approx(0.01, rel=1e-3)
    before = np.full((2, 2), 100.0)
    assert case.deviation([right + 100], [want[0] + 100], rows, before) == 0
    assert case.deviation([1.01 * right + 100], [want[0] + 100], rows, before) == pytest.approx(0.01, rel=1e-3)
    with pytest.raises(ValueError, match="expected shape"):
        case.deviation([right[:, :1]], want, rows)


def test_rows_are_taken_from_both_ends(case):
    rows = case.some_rows(1000)
    assert {0, 7, 992, 999} <= set(rows.tolist()) and len(rows) > 32
    assert case.some_rows(3).tolist() == [0, 1, 2]
