"""The protocol of the benchmark, rehearsed with tiny sizes: validation, rounds, JSON, missing peers. No times."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

BENCH = Path(__file__).resolve().parent.parent / "bench"
if not BENCH.is_dir():
    pytest.skip("there is no bench/ here", allow_module_level=True)


@pytest.fixture(scope="module")
def run():
    """bench/run.py as a module, its folder on the path for as long as these tests run."""
    before = list(sys.path)
    spec = importlib.util.spec_from_file_location("bench_run", BENCH / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = before


REHEARSAL = ["--rounds", "2", "--rest", "0", "--seconds", "0.01", "--tiny"]

MADE_UP = """
import os
import numpy as np
from harness import Case

def contender(factor):
    return lambda x, device: (lambda: None, lambda: {"square": (factor * x**2).astype(np.float32)})

def missing(x, device):
    import a_library_that_nobody_has

def wrong_shape(x, device):
    return lambda: None, lambda: {"square": x[:-1] ** 2}

def nan(x, device):
    return lambda: None, lambda: {"square": np.where(x == x[0], np.nan, x**2)}

def dies(x, device):
    return lambda: os._exit(7), lambda: {"square": x**2}

def chatty(x, device):
    print("a library says hello")
    return lambda: print("again"), lambda: {"square": x**2}

def case(name, **contenders):
    peers = {k.replace("_", " "): v for k, v in contenders.items()}
    draw, square = lambda rng, n: rng.standard_normal(n), lambda x: {"square": x**2}
    return Case(name, "made up", draw, square, peers, {"n": 9}, {"n": 4})

CASES = [
    case("wrong", gradlib=contender(1.0), torch=contender(1.01), jax=contender(1.0005)),
    case("broken", gradlib=chatty, torch=missing, torch_shape=wrong_shape, torch_nan=nan, jax=dies),
    case("ours_missing", gradlib=missing),
]
"""


@pytest.fixture
def made_up(run, tmp_path, monkeypatch):
    """Run a made-up case: (exit code, its rows by contender)."""
    for peer in ("TORCH", "JAX"):
        monkeypatch.delenv(f"GRADLIB_BENCH_{peer}", raising=False)
    (tmp_path / "bench_made_up.py").write_text(MADE_UP)

    def measure(name):
        code = run.main([name, *REHEARSAL, "--json", str(tmp_path / "out.json")], folder=tmp_path)
        result = json.loads((tmp_path / "out.json").read_text())
        return code, {row["name"]: row for row in result["cases"][0]["contenders"]}

    return measure


def test_protocol_with_ours_and_numpy(run, tmp_path, capsys):
    target = tmp_path / "folder" / "out.json"
    assert run.main(["train_step", "gradient", "--peer", "numpy", *REHEARSAL, "--json", str(target)]) == 0
    result = json.loads(target.read_text())
    assert {"device", "cpu", "cores", "threads", "system", "python", "date", "commit", "dirty"} <= set(result)
    assert {"load_before", "load_after", "settings", "cases"} <= set(result)
    assert [case["case"] for case in result["cases"]] == ["train_step", "gradient"]
    for case in result["cases"]:
        rows = case["contenders"]
        ours, numpy_ = rows[0], rows[-1]
        assert (ours["name"], numpy_["name"]) == ("gradlib", "numpy")
        assert all(row["name"].startswith("gradlib") for row in rows[:-1])
        for row in rows:
            assert row["status"] == "timed" and row["error"] <= row["tolerance"] <= 1e-3
            assert len(row["rounds"]) == 2 and all(r["calls"] >= 3 for r in row["rounds"])
            assert 0 < row["min_us"] <= row["median_us"]
            assert row["versions"]["numpy"] == np.__version__
        assert ours["ratio"] == 1 and numpy_["ratio"] == ours["median_us"] / numpy_["median_us"]
    printed = capsys.readouterr().out
    assert "train_step" in printed and "ratio" in printed and str(target) in printed


def test_a_contender_one_percent_off_is_not_timed(made_up):
    code, rows = made_up("wrong")
    assert code == 1
    assert rows["torch"]["status"] == "wrong" and rows["torch"]["rounds"] == []
    assert rows["torch"]["error"] == pytest.approx(0.01, rel=1e-3)
    assert rows["torch"]["ratio"] is None and "off by 1.0e-02" in rows["torch"]["message"]
    assert rows["gradlib"]["status"] == rows["jax"]["status"] == "timed"


def test_contenders_that_break_do_not_stop_the_others(made_up, capsys):
    code, rows = made_up("broken")
    assert code == 1 and rows["gradlib"]["status"] == "timed"
    assert rows["torch"]["status"] == "skipped"
    assert 'pip install "gradlib[bench]"' in rows["torch"]["message"]
    assert "GRADLIB_BENCH_TORCH" in rows["torch"]["message"]
    assert rows["torch shape"]["status"] == "failed" and "expected shapes [(4,)]" in rows["torch shape"]["message"]
    assert rows["torch nan"]["status"] == "wrong"
    assert rows["jax"]["status"] == "failed" and "ended with code 7" in rows["jax"]["message"]
    assert "a_library_that_nobody_has" in capsys.readouterr().out


def test_ours_may_not_be_skipped(made_up):
    code, rows = made_up("ours_missing")
    assert code == 1 and rows["gradlib"]["status"] == "failed"


def test_an_interpreter_that_is_not_there_is_a_missing_peer(run, monkeypatch, capsys):
    monkeypatch.setenv("GRADLIB_BENCH_AUTOGRAD", "/no/such/python")
    assert run.main(["gradient", "--peer", "autograd", *REHEARSAL]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "autograd" in line)
    assert "skipped: /no/such/python does not start" in line and 'pip install "gradlib[bench]"' in line


@pytest.mark.parametrize(
    "argv",
    [
        ["no_such_case"],
        ["--rounds", "0"],
        ["--rest", "-1"],
        ["--peer", "nobody"],
        ["--all", "--tiny"],
        ["--all", "softmax"],
        ["--all", "--device", "cuda"],
    ],
)
def test_bad_arguments(run, argv, capsys):
    with pytest.raises(SystemExit) as stop:
        run.main(argv)
    assert stop.value.code == 2 and "error: " in capsys.readouterr().err


def test_all_makes_table_and_plot(run, tmp_path, monkeypatch):
    """One command: all cases, how cost grows, and the README. What each does is tested by itself."""
    import grow
    import readme

    done = []
    monkeypatch.setattr(run, "HERE", tmp_path)
    monkeypatch.setattr(run, "measure", lambda case, file, options: done.append(case.name) or {"contenders": []})
    monkeypatch.setattr(run, "table", str)
    monkeypatch.setattr(grow, "main", lambda argv: done.append("grow") or 0)
    monkeypatch.setattr(readme, "main", lambda: done.append("readme"))
    assert run.main(["--all"]) == 0
    assert done == [*run.load(BENCH), "grow", "readme"]
    assert len(list((tmp_path / "results").glob("*.json"))) == 1


def test_every_case_of_ours_and_by_hand_is_right(run):
    """In this process, tiny: what the workers would validate."""
    cases = run.load()
    assert {"train_step", "gradient", "batch_jacobian", "jacobian", "per_sample_grad"} <= set(cases)
    assert {"softmax_jacobian", "adam_step", "sparse_linear"} <= set(cases)
    from harness import deviation

    for case, _ in cases.values():
        assert case.tolerance <= 1e-3
        for name in (n for n in case.contenders if n.startswith(("gradlib", "numpy"))):
            inputs = case.make(tiny=True)
            call, values = case.contenders[name](inputs, "cpu")
            assert deviation(values(), case.reference(inputs)) <= case.tolerance, (case.name, name)
            call()


@pytest.mark.parametrize("us, text", [(0.5, "0.500 µs"), (12.34, "12.3 µs"), (999.7, "1.00 ms"), (2.5e6, "2.50 s")])
def test_durations(run, us, text):
    assert run.duration(us) == text


@pytest.mark.parametrize(
    ("info", "name"),
    [
        ("model name\t: AMD EPYC\nflags\t\t: fma avx2\nmodel name\t: AMD EPYC\n", "AMD EPYC (AVX2)"),
        ("model name\t: AMD EPYC\nflags\t\t: avx2 avx512f\n", "AMD EPYC (AVX-512)"),
        ("model name\t: old\nflags\t\t: sse2\n", "old"),
    ],
)
def test_a_processor_is_named_with_its_vectors(run, info, name, tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text(info)
    assert run.machine.cpu_name(file) == name
    assert run.machine.cpu_name(tmp_path / "none")  # another system's
