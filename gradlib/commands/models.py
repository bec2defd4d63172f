"""`gradlib fit`, `predict` and `explain`: a text classifier on files and in the shell."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

from ..text import TextClassifier
from ..text.store import check_target, is_model
from ..text.tables import read_columns, training_rows


def fit(arguments: Namespace) -> None:
    """Train on two columns of a CSV file and save the model; every check comes before the training."""
    out = Path(arguments.out)
    check_target(out)
    if is_model(out) and not arguments.force:
        raise FileExistsError(f"{out} holds a model already; --force replaces it")
    (texts, labels), lines = read_columns(
        arguments.file,
        [arguments.text, arguments.label],
        encoding=arguments.encoding,
        delimiter=_one_character(arguments.delimiter),
    )
    texts, labels, left_out = training_rows(texts, labels, lines, arguments.skip_empty)
    print(f"{len(texts)} texts, {len(set(labels))} classes" + (f", {left_out} rows left out" if left_out else ""))
    model = TextClassifier(
        min_df=arguments.min_df, max_iter=arguments.epochs, random_state=arguments.seed, verbose=not arguments.quiet
    ).fit(texts, labels)
    model.save(out)
    accuracy = f", accuracy {max(model.validation_curve_):.3f} on the held-out part" if model.validation_curve_ else ""
    print(f"epoch {model.best_iter_} of {model.n_iter_} kept{accuracy}")
    print(f'saved in {out}; try: gradlib explain {out} "a text of your own"')


def predict(arguments: Namespace) -> None:
    """Print the label and its probability for each text, tab-separated, or everything as JSON."""
    if bool(arguments.texts) == bool(arguments.file):
        raise ValueError("expected texts, or --file FILE.csv with --text COL")
    model = TextClassifier.load(arguments.model)
    texts = arguments.texts or _column(arguments)
    probabilities = model.predict_proba(texts)
    classes = [str(c) for c in model.classes_.tolist()]
    labels = [classes[i] for i in probabilities.argmax(axis=1)]
    if arguments.json:
        rows = [
            {"text": text, "label": label, "probabilities": dict(zip(classes, map(float, p), strict=True))}
            for text, label, p in zip(texts, labels, probabilities, strict=True)
        ]
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    for text, label, p in zip(texts, labels, probabilities.max(axis=1), strict=True):
        print(f"{label}\t{p:.3f}\t{' '.join(text.split())}")


def _column(arguments: Namespace) -> list[str]:
    if not arguments.text:
        raise ValueError("--file needs --text COL, the column of the texts")
    delimiter = _one_character(arguments.delimiter)
    return read_columns(arguments.file, [arguments.text], encoding=arguments.encoding, delimiter=delimiter)[0][0]


def _one_character(delimiter: str) -> str:
    found = {"\\t": "\t", "tab": "\t"}.get(delimiter, delimiter)
    if len(found) != 1:
        raise ValueError(f"expected one character (or tab) as --delimiter, got {delimiter!r}")
    return found


def explain(arguments: Namespace) -> None:
    """Print the partial derivatives of one text as a table or as JSON."""
    found = TextClassifier.load(arguments.model).explain(arguments.text, arguments.target)
    print(json.dumps(found.to_dict(), indent=1, ensure_ascii=False) if arguments.json else found)
