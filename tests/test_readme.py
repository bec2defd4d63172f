"""The README's programs run as they stand, one after the other."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def names():
    """What the blocks so far have defined, and how many have run: in parallel, tests of a file are dealt out."""
    return {"blocks": 0}


@pytest.mark.parametrize("i", range(len(BLOCKS)), ids=lambda i: BLOCKS[i].strip().splitlines()[0][:40])
def test_block(i, names):
    for block in BLOCKS[names["blocks"] : i + 1]:
        exec(compile(block, "README.md", "exec"), names)
        names["blocks"] += 1


def test_the_article_trains(names):
    for block in [b for b in BLOCKS if "import numpy" in b or "Linear(100, 64)" in b]:
        exec(compile(block, "README.md", "exec"), names)
    assert float(names["value"]) < 2.2  # log 10 = 2.30 is where it starts
    np.testing.assert_allclose(
        names["G"][0]["w"].mean(0),
        names["gl"].grad(names["loss"])(names["params"], names["x"][:10], names["y"][:10])[0]["w"],
        rtol=1e-3,
        atol=1e-6,
    )


def test_the_two_commands_stand_alone_on_a_line():
    assert 'pip install -e ".[demo]" && gradlib demo' in README.splitlines()
    assert 'pip install -e ".[test]" && pytest -n auto' in README.splitlines()


def test_the_figures_are_those_of_the_recorded_runs(monkeypatch):
    bench = Path(__file__).parent.parent / "bench"
    monkeypatch.syspath_prepend(str(bench))
    spec = importlib.util.spec_from_file_location("bench_readme", bench / "readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.inserted(README) == README
    assert all(run["dirty"] is False for run in module.newest())
