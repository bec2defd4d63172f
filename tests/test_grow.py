"""bench/grow.py, rehearsed with tiny sizes: figures of every point, and a picture of them. No times."""

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parent.parent / "bench"
if not BENCH.is_dir():
    pytest.skip("there is no bench/ here", allow_module_level=True)
pytest.importorskip("matplotlib")


@pytest.fixture
def grow():
    """bench/grow.py as a module, its folder on the path meanwhile."""
    before = list(sys.path)
    sys.path.insert(0, str(BENCH))
    spec = importlib.util.spec_from_file_location("bench_grow", BENCH / "grow.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = before


def test_figures_and_picture(grow, tmp_path):
    figures, picture = tmp_path / "growth.json", tmp_path / "growth.png"
    options = ["--json", str(figures), "--picture", str(picture)]
    assert grow.main(["--tiny", "--peer", "numpy", *options]) == 0
    run = json.loads(figures.read_text())
    assert {"cpu", "cores", "date", "commit", "tiny", "points"} <= set(run)
    seen = [(p["contender"], p["axis"], p["value"]) for p in run["points"]]
    assert seen == [(c, a, v) for c in ("gradlib", "numpy") for a in grow.AXES for v in (1, 2)]
    assert all(p["seconds"] > 0 and p["bytes"] is None for p in run["points"])  # the results are too small
    assert picture.read_bytes().startswith(b"\x89PNG")
    picture.unlink()
    assert grow.main(["--draw", str(figures), "--picture", str(picture)]) == 0
    assert picture.exists()


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux alone tells the peak")
def test_memory_of_a_call(grow):
    code = "import grow; print(grow.memory_of(lambda: b'1' * 64_000_000 + b'2'))"  # two of that size at the widest
    done = subprocess.run([sys.executable, "-c", code], cwd=BENCH, capture_output=True, text=True, check=True)
    added = ast.literal_eval(done.stdout)  # of a process of its own: this one may have room to spare
    assert added is None or 1.9 * 64e6 < added < 2.3 * 64e6


def test_a_contender_that_does_not_start(grow, monkeypatch, capsys):
    monkeypatch.setenv("GRADLIB_BENCH_JAX", "/no/such/python")
    assert grow.collect("jax", True) == []
    assert "jax: skipped, /no/such/python does not start" in capsys.readouterr().out
