"""The GPU benchmark, rehearsed without a GPU: ours in the simulator, peers where they are installed. No times."""

import contextlib
import importlib
import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

GPU = Path(__file__).resolve().parent.parent / "bench" / "gpu"
if not GPU.is_dir():
    pytest.skip("there is no bench/ here", allow_module_level=True)


QUICK = ["--rehearse", "--no-tests", "--rounds", "1", "--seconds", "0.001"]


def run(*arguments, **env):
    command = [sys.executable, str(GPU / "run.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | env)


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    """What a rehearsal of some cases wrote."""
    out = tmp_path_factory.mktemp("gpu")
    chosen = ["softmax 16384", "embedding gather", "Adam", "training step", "launch"]
    done = run(*chosen, *QUICK, "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_our_values_are_right_and_timed(rehearsal):
    result = json.loads((rehearsal / "gpu.json").read_text())
    assert result["rehearsal"] is True and result["ceilings"] == {}
    assert result["versions"]["gradlib"] and result["versions"]["numba"] == version("numba")
    assert len(result["cases"]) == 7
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


def test_the_pictures(rehearsal, modules, tmp_path):
    pytest.importorskip("matplotlib")
    for name in ("roofline.png", "rates.png"):
        assert (rehearsal / name).read_bytes().startswith(b"\x89PNG")
    result = json.loads((rehearsal / "gpu.json").read_text())
    result["ceilings"] = {"copy_bytes_per_second": 4e12, "sgemm_flops_per_second": 5e13}
    for draw in (modules("pictures").roofline, modules("pictures").rates):
        draw(result, tmp_path / "picture.png")


def test_the_sanitizer_runs_the_tests(tmp_path):
    """A stand-in that runs what it is given under memcheck, and finds a fault by racecheck."""
    tool = tmp_path / "compute-sanitizer"
    tool.write_text("""#!/bin/sh
[ "$2" = racecheck ] && exit 9
shift 6
exec "$@"
""")
    tool.chmod(0o755)
    done = run("--sanitize", "--rehearse", PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert done.returncode == 9, done.stdout + done.stderr
    assert "memcheck: clean" in done.stdout and "racecheck: status 9" in done.stdout
    assert re.match(r"\.+s", done.stdout)  # arrays that are not small are skipped


@pytest.fixture(scope="module")
def modules():
    """Imports a module of the benchmark by its name, whatever else has that name."""
    names = [file.stem for file in GPU.glob("*.py")]
    path, others = list(sys.path), {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.path.insert(0, str(GPU))
    yield importlib.import_module
    sys.path[:] = path
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(others)


@pytest.fixture(scope="module")
def case(modules):
    return modules("case")


@pytest.fixture(scope="module")
def goals(modules):
    return modules("goals")


def test_every_case_of_ours_is_right_from_call_to_call(modules):
    """What the rehearsal does not run: the quick ones, each called several times."""
    slow = ("Jacobian of", "training step", "layer_norm 32768", "layer_norm 8192", "sparse")
    worker = modules("worker").Worker("gradlib", "rehearsal")
    worker._warm_up = lambda: None
    checked = [name for name in worker.cases if not name.startswith(slow)]
    for name in checked:
        with worker.place.inside():
            answer = worker.build(name, "gradlib")
        assert answer["error"] <= answer["tolerance"], (name, answer)
    assert len(checked) > 40


def test_a_replay_that_is_wrong_shows(modules):
    """The first call is right, as while gl.capture records; what is compared is a later one."""
    case, worker = modules("case"), modules("worker").Worker("gradlib", "rehearsal")
    calls = []

    def build(a):
        return lambda: (calls.append(1), a["x"] + (len(calls) > 2))[1]

    worker.cases = {"c": case.Case("c", "", lambda rng, n: {"x": np.ones(n)}, {"gradlib": build},
                                   lambda a, rows: [a["x"][rows]], {"n": 3}, {"n": 3})}  # fmt: skip
    assert worker.build("c", "gradlib")["error"] == 1


def test_a_peer_without_the_gpu_is_missing(modules, monkeypatch):
    torch = SimpleNamespace(__version__="2", cuda=SimpleNamespace(is_available=lambda: False))
    jax = SimpleNamespace(__version__="1", devices=lambda: [SimpleNamespace(platform="cpu")])
    for name, module in (("torch", torch), ("jax", jax)):
        monkeypatch.setitem(sys.modules, name, module)
        with pytest.raises(ModuleNotFoundError, match=f"{name} . sees no GPU"):
            modules("worker").place_of(name, "cuda")


def test_kernels_are_compiled_beforehand(modules, tmp_path, monkeypatch):
    pytest.importorskip("numba_cuda")
    pytest.importorskip("cuda.pathfinder")
    monkeypatch.setenv("GRADLIB_CACHE_DIR", str(tmp_path))
    compile_all = modules("checks").compile_all
    assert compile_all((9, 0), 300, only="pointwise-float32-relu")["failed"] == []
    assert len(list(tmp_path.glob("*.cubin"))) == 1
    assert set(compile_all((9, 0), 0)["failed"]) == {"ended before it was done"}


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


def test_cases_that_come_too_late_are_skipped(modules, monkeypatch, capsys):
    """Those that goals are set for come first; in the result all are in their own order."""
    harness, clock = modules("run"), iter(range(10))
    monkeypatch.setattr(harness, "Library", lambda name, where: contextlib.nullcontext(SimpleNamespace(state={})))
    monkeypatch.setattr(harness, "measure", lambda case, *_: {"case": case.name, "moved": None, "contenders": []})
    monkeypatch.setattr(harness, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    options = harness.parse(["gelu", "Adam", "log_softmax", "--rehearse"])
    done = harness.measured(options, "rehearsal", deadline=2.5)["cases"]
    late = [case["case"] for case in done if {row["status"] for row in case["contenders"]} == {"skipped"}]
    assert [name.split()[0] for name in late] == ["gelu", "x"]
    assert [c["case"].split()[0] for c in done] == ["log_softmax", "gelu", "bias", "x", "Adam,"]
    assert "skipped: after the 8 minutes of --minutes" in capsys.readouterr().out


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
