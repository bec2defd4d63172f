"""Saving and loading a TextClassifier: the same model again, nothing lost, damage found and named."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")
from safetensors.numpy import load_file
from safetensors.numpy import save_file as save_tensors
from textcorpus import ODD, corpus, small

from gradlib.text import TextClassifier, store


@pytest.fixture(scope="module")
def model():
    return small().fit(*corpus())


def test_saved_and_loaded_model_is_the_same(model, tmp_path):
    folder = tmp_path / "deep" / "model"
    model.save(folder)
    loaded = TextClassifier.load(str(folder))
    np.testing.assert_array_equal(loaded.predict_proba(ODD), model.predict_proba(ODD))
    np.testing.assert_array_equal(loaded.jacobian(ODD).values, model.jacobian(ODD).values)
    assert loaded.get_params() == model.get_params()
    assert loaded.loss_curve_ == model.loss_curve_ and loaded.n_iter_ == model.n_iter_
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "vocabulary.json", "weights.safetensors"]
    assert loaded.fit(*corpus(30)).n_iter_  # still an estimator


def test_save_replaces_a_model_but_nothing_else(model, tmp_path):
    model.save(tmp_path / "m")
    small(max_iter=1, hidden_layer_sizes=(3,)).fit(*corpus(30)).save(tmp_path / "m")
    assert TextClassifier.load(tmp_path / "m").hidden_layer_sizes == (3,)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("x")
    for name in ("mine", "file"):
        with pytest.raises(FileExistsError, match=name):
            model.save(tmp_path / name)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "m", "mine"]  # no temporary folder stays


@pytest.mark.parametrize("place", ["_tensors", "_swap"])
def test_a_failed_save_loses_nothing(model, tmp_path, monkeypatch, place):
    model.save(tmp_path / "m")
    before = {p.name: p.read_bytes() for p in (tmp_path / "m").iterdir()}
    monkeypatch.setattr(store, place, lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        small(max_iter=1).fit(*corpus(30)).save(tmp_path / "m")
    assert {p.name: p.read_bytes() for p in (tmp_path / "m").iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_rename_that_fails_puts_the_old_model_back(model, tmp_path, monkeypatch):
    model.save(tmp_path / "m")
    rename = Path.rename

    def failing(self, target):
        if "-new-" in self.name:
            raise OSError("cannot rename")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="cannot rename"):
        model.save(tmp_path / "m")
    np.testing.assert_array_equal(TextClassifier.load(tmp_path / "m").predict_proba(ODD), model.predict_proba(ODD))


def edited_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def edited_tensors(folder, edit):
    tensors = load_file(folder / "weights.safetensors")
    edit(tensors)
    save_tensors(tensors, folder / "weights.safetensors")


def truncated(file, keep):
    file.write_bytes(file.read_bytes()[:keep])


DAMAGE = {
    "no config": (lambda f: (f / "config.json").unlink(), FileNotFoundError, "config.json"),
    "no vocabulary": (lambda f: (f / "vocabulary.json").unlink(), FileNotFoundError, "vocabulary.json"),
    "no weights": (lambda f: (f / "weights.safetensors").unlink(), FileNotFoundError, "weights.safetensors"),
    "cut weights": (lambda f: truncated(f / "weights.safetensors", 900), ValueError, "weights.safetensors: damaged"),
    "empty weights": (lambda f: truncated(f / "weights.safetensors", 0), ValueError, "weights.safetensors: damaged"),
    "cut config": (lambda f: truncated(f / "config.json", 50), ValueError, "config.json: damaged, not valid JSON"),
    "binary config": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe"), ValueError, "config.json: damaged"),
    "list config": (lambda f: (f / "config.json").write_text("[]"), ValueError, "expected a JSON dict"),
    "other format": (lambda f: edited_config(f, format="other"), ValueError, "expected format"),
    "other version": (lambda f: edited_config(f, version=99), ValueError, "version 99"),
    "no classes": (lambda f: edited_config(f, classes=[]), ValueError, "config.json: damaged.*classes"),
    "more classes": (lambda f: edited_config(f, classes=list("abcd")), ValueError, "layers.6.w is float32"),
    "unknown setting": (lambda f: edited_config(f, params={"colour": 1}), ValueError, "config.json: damaged.*colour"),
    "bad setting": (lambda f: edited_config(f, params={"dropout": 7}), ValueError, "config.json: damaged.*dropout"),
    "no curves": (lambda f: edited_config(f, training={}), ValueError, "config.json: damaged"),
    "short vocabulary": (lambda f: (f / "vocabulary.json").write_text('["a"]'), ValueError, "idf is float32"),
    "repeated word": (lambda f: (f / "vocabulary.json").write_text('["a", "a"]'), ValueError, "different strings"),
    "no bias": (lambda f: edited_tensors(f, lambda t: t.pop("layers.0.b")), ValueError, "layers.0.b"),
    "float64": (lambda f: edited_tensors(f, lambda t: t.update(idf=t["idf"].astype(float))), ValueError, "float64"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_folder(model, tmp_path, name):
    damage, error, message = DAMAGE[name]
    model.save(tmp_path / "m")
    damage(tmp_path / "m")
    with pytest.raises(error, match=message):
        TextClassifier.load(tmp_path / "m")


def test_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing-here"):
        TextClassifier.load(tmp_path / "nothing-here")
