"""Bad input of a text classifier, found before any work is done."""

from __future__ import annotations

import re
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.utils.multiclass import check_classification_targets

OP = "TextClassifier"


def check_texts(texts: Any) -> list[str]:
    """A list, tuple, 1-D array or Series of strings as a list; TypeError or ValueError for anything else."""
    if isinstance(texts, (str, bytes)):
        raise TypeError(f"{OP}: expected a list of texts, got a single {type(texts).__name__}; write [text]")
    if getattr(texts, "ndim", 1) != 1:
        raise ValueError(f"{OP}: expected a one-dimensional list of texts, got shape {tuple(texts.shape)}")
    if isinstance(texts, dict) or not isinstance(texts, Iterable):
        raise TypeError(f"{OP}: expected a list, array or Series of str, got {type(texts).__name__}")
    found = list(texts)
    if not found:
        raise ValueError(f"{OP}: expected at least one text, got none")
    for i, text in enumerate(found):
        if not isinstance(text, str):
            what = "a missing value" if _missing(text) else f"{type(text).__name__}"
            raise TypeError(f"{OP}: expected every text to be a str, got {what} ({text!r}) at position {i}")
    return found


def check_labels(labels: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(classes (C,) sorted, index of each text's class (count,)); TypeError or ValueError for labels that do not do."""
    if labels is None:
        raise ValueError(f"{OP}: requires y to be passed, but the target y is None")
    if isinstance(labels, (str, bytes)) or not isinstance(labels, Iterable):
        raise TypeError(f"{OP}: expected a list of labels, got a single {type(labels).__name__}")
    given = list(labels)
    y = np.asarray(labels if hasattr(labels, "dtype") else given)
    if y.ndim != 1:
        raise ValueError(f"{OP}: expected one label a text, shape ({count},), got labels of shape {y.shape}")
    if len(y) != count:
        raise ValueError(f"{OP}: expected one label a text, got {count} texts and {len(y)} labels")
    for i, label in enumerate(given):
        if _missing(label):
            raise ValueError(f"{OP}: the label at position {i} is missing ({label!r})")
    kinds = sorted({_kind(label) for label in given})
    if len(kinds) > 1:
        raise TypeError(f"{OP}: expected labels of one kind, got {' and '.join(kinds)}")
    if y.dtype.kind not in "OU" and kinds != ["bool"]:
        check_classification_targets(y)
    classes, index = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"{OP}: expected at least 2 classes, got only one class, {classes[0]!r}")
    return classes, index.astype(np.int64)


def _missing(value: Any) -> bool:
    return (
        value is None or type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, Real) and value != value)
    )


def _kind(label: Any) -> str:
    if isinstance(label, str):
        return "str"
    if isinstance(label, (bool, np.bool_)):
        return "bool"
    return "numbers" if isinstance(label, Real) else type(label).__name__


def check_parameters(params: dict[str, Any]) -> None:
    """The settings of a TextClassifier, as get_params gives them; ValueError or TypeError naming the first bad one."""
    sizes = params["hidden_layer_sizes"]
    if not isinstance(sizes, (tuple, list)) or any(not _whole(n) or n < 1 for n in sizes):
        raise ValueError(f"{OP}: expected hidden_layer_sizes to be a tuple of positive ints, got {sizes!r}")
    ngrams = params["ngram_range"]
    if not isinstance(ngrams, (tuple, list)) or len(ngrams) != 2 or not all(map(_whole, ngrams)):
        raise ValueError(f"{OP}: expected ngram_range to be a pair of ints, got {ngrams!r}")
    if not 1 <= ngrams[0] <= ngrams[1]:
        raise ValueError(f"{OP}: expected 1 <= ngram_range[0] <= ngram_range[1], got {ngrams!r}")
    try:
        re.compile(params["token_pattern"])
    except (TypeError, re.error) as error:
        raise ValueError(
            f"{OP}: expected token_pattern to be a regular expression, got {params['token_pattern']!r} ({error})"
        ) from error
    for name in ("batch_size", "max_iter", "n_iter_no_change"):
        if name == "batch_size" and params[name] == "auto":
            continue
        if not _whole(params[name]) or params[name] < 1:
            raise ValueError(f"{OP}: expected {name} to be a positive int, got {params[name]!r}")
    for name in ("dropout", "label_smoothing", "validation_fraction"):
        _in_range(name, params[name], 0, 1)
    for name in ("learning_rate", "epsilon", "weight_decay"):
        _in_range(name, params[name], 0, np.inf)


def _whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _in_range(name: str, value: Any, low: float, high: float) -> None:
    if not isinstance(value, Real) or not low <= float(value) < high:
        raise ValueError(f"{OP}: expected {low} <= {name} < {high}, got {value!r}")
