"""A TextClassifier as a folder: config.json, vocabulary.json and weights.safetensors. Nothing is ever unpickled.

A save goes to a new folder beside the old one, which is then swapped in by renaming: a save that fails leaves the
earlier model as it was.
"""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.numpy import save as to_bytes

from .checks import check_parameters

FORMAT, VERSION = "gradlib.text.TextClassifier", 1
CONFIG, VOCABULARY, WEIGHTS = "config.json", "vocabulary.json", "weights.safetensors"
CURVES = ("loss_curve_", "accuracy_curve_", "validation_loss_curve_", "validation_curve_", "n_iter_", "best_iter_")


def is_model(folder: Path) -> bool:
    """Whether a folder holds a saved model of ours."""
    try:
        return json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("format") == FORMAT
    except (OSError, ValueError, AttributeError):
        return False


def check_target(folder: Path) -> None:
    """FileExistsError unless a model may be written to the folder: it is new, empty, or holds a model."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file, not a folder to save a model in")
    if folder.is_dir() and any(folder.iterdir()) and not is_model(folder):
        raise FileExistsError(f"{folder} holds files that are not a gradlib model; save to another folder")


def save(model: Any, folder: Path) -> None:
    """Write the fitted model to the folder, all of it or nothing."""
    folder = folder.resolve()
    check_target(folder)
    config = _config(model)
    terms = sorted(model.vectorizer_.vocabulary_, key=model.vectorizer_.vocabulary_.__getitem__)
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = _sibling(folder, "new")
    new.mkdir()
    try:
        (new / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        (new / VOCABULARY).write_text(json.dumps(terms), encoding="utf-8")
        (new / WEIGHTS).write_bytes(to_bytes(_tensors(model)))
        _swap(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _sibling(folder: Path, what: str) -> Path:
    """A name beside the folder that nothing has yet."""
    return folder.with_name(f".{folder.name}-{what}-{uuid.uuid4().hex[:8]}")


def _swap(new: Path, folder: Path) -> None:
    """Put `new` in the place of `folder`; the old content goes last."""
    if not folder.exists():
        new.rename(folder)
        return
    old = _sibling(folder, "old")
    folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _config(model: Any) -> dict[str, Any]:
    params = model.get_params(deep=False)
    if not isinstance(params["random_state"], (int, np.integer, type(None))):
        params["random_state"] = None  # a generator's state is not kept
    classes = model.classes_
    if classes.dtype.kind not in "biufUO" or not all(isinstance(c, (str, int, float)) for c in classes.tolist()):
        raise TypeError(f"TextClassifier.save: cannot write labels of dtype {classes.dtype} to JSON")
    return {
        "format": FORMAT,
        "version": VERSION,
        "params": {name: _plain(value) for name, value in params.items()},
        "classes": classes.tolist(),
        "classes_dtype": "str" if classes.dtype.kind == "U" else classes.dtype.name,
        "training": {name: _plain(getattr(model, name)) for name in CURVES},
    }


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value


def _tensors(model: Any) -> dict[str, np.ndarray]:
    tensors = {"idf": model.vectorizer_.idf_}
    for i, layer in enumerate(model.params_):
        tensors |= {f"layers.{i}.{name}": p for name, p in layer.items()}
    return {name: np.ascontiguousarray(p) for name, p in tensors.items()}


def load(cls: type, folder: Path) -> Any:
    """The model saved in a folder; FileNotFoundError or ValueError that names what is missing or damaged."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no model folder at {folder}")
    config = _read_json(folder / CONFIG, dict)
    if config.get("format") != FORMAT:
        raise ValueError(f"{folder / CONFIG}: expected format {FORMAT!r}, got {config.get('format')!r}")
    if config.get("version") != VERSION:
        raise ValueError(f"{folder / CONFIG}: of version {config.get('version')!r}, this gradlib reads {VERSION}")
    terms = _read_json(folder / VOCABULARY, list)
    if len(set(map(str, terms))) != len(terms) or not all(isinstance(t, str) for t in terms):
        raise ValueError(f"{folder / VOCABULARY}: damaged, expected a list of different strings")
    tensors = _read_tensors(folder / WEIGHTS)
    try:
        model = _rebuild(cls, config)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{folder / CONFIG}: damaged, {type(error).__name__}: {error}") from error
    _fill(model, terms, tensors, folder)
    return model


def _read_json(file: Path, kind: type) -> Any:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"the model folder lacks {file.name}: {file}") from None
    except ValueError as error:
        raise ValueError(f"{file}: damaged, not valid JSON ({error})") from error
    if not isinstance(found, kind):
        raise ValueError(f"{file}: damaged, expected a JSON {kind.__name__}, got {type(found).__name__}")
    return found


def _read_tensors(file: Path) -> dict[str, np.ndarray]:
    if not file.is_file():
        raise FileNotFoundError(f"the model folder lacks {file.name}: {file}")
    try:
        return load_file(file)
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{file}: damaged, not valid safetensors ({error})") from error


def _rebuild(cls: type, config: dict[str, Any]) -> Any:
    """The estimator with its settings, classes and curves."""
    params = {k: tuple(v) if isinstance(v, list) else v for k, v in config["params"].items()}
    model = cls(**params)
    check_parameters(model.get_params(deep=False))
    model.classes_ = np.array(config["classes"], dtype=config["classes_dtype"])
    if model.classes_.ndim != 1 or len(model.classes_) < 2:
        raise ValueError(f"expected at least 2 classes, got {config['classes']!r}")
    for name in CURVES:
        setattr(model, name, config["training"][name])
    return model


def _fill(model: Any, terms: list[str], tensors: dict[str, np.ndarray], folder: Path) -> None:
    """Vocabulary, idf and parameters into the model, each of the shape and dtype the settings ask for."""
    network = model._make_network(max(len(terms), 1), len(model.classes_))
    expected: dict[str, tuple[int, ...]] = {"idf": (len(terms),)}
    for i, layer in enumerate(network.layers):
        if hasattr(layer, "in_features"):
            expected[f"layers.{i}.w"] = (layer.in_features, layer.out_features)
            expected[f"layers.{i}.b"] = (layer.out_features,)
    if set(tensors) != set(expected):
        wrong = sorted(set(tensors) ^ set(expected))
        raise ValueError(f"{folder / WEIGHTS}: damaged, tensors missing or not expected: {', '.join(wrong)}")
    for name, shape in expected.items():
        p = tensors[name]
        if p.shape != shape or p.dtype != np.float32:
            raise ValueError(
                f"{folder / WEIGHTS}: {name} is {p.dtype}{list(p.shape)}, expected float32{list(shape)} by {CONFIG} "
                f"and {VOCABULARY}"
            )
    vectorizer = model._make_vectorizer()
    vectorizer.vocabulary_ = {term: i for i, term in enumerate(terms)}
    vectorizer.idf_ = tensors["idf"]
    model.vectorizer_ = vectorizer
    model.params_ = [
        {name: tensors[f"layers.{i}.{name}"] for name in ("w", "b") if f"layers.{i}.{name}" in tensors}
        for i in range(len(network.layers))
    ]
