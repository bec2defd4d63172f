"""What `explain` and `jacobian` of a TextClassifier return: derivatives by word, as arrays and as a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, repr=False)
class Explanation:
    """The partial derivatives of one text.

    words: the T words, in order of appearance. classes: the C labels. values (T, C): ∂(output of class c)/∂(weight of
    word t). target: "prob" or "logit", the output differentiated. outputs (C,): its values. text: as it was given.
    """

    text: str
    words: list[str]
    classes: np.ndarray
    values: np.ndarray
    target: str
    outputs: np.ndarray

    @property
    def predicted(self) -> Any:
        """The class of the largest output."""
        return self.classes[self.outputs.argmax()]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain lists, strings and numbers, as JSON takes them."""
        return {
            "text": self.text,
            "predicted": self.classes[self.outputs.argmax()].tolist(),
            "target": self.target,
            "classes": self.classes.tolist(),
            "outputs": self.outputs.tolist(),
            "words": list(self.words),
            "values": self.values.tolist(),
        }

    def __str__(self) -> str:
        head = ["word", *map(str, self.classes.tolist())]
        rows = [[word, *(f"{v:+.4f}" for v in row)] for word, row in zip(self.words, self.values, strict=True)]
        rows.append([self.target, *(f"{v:.4f}" for v in self.outputs)])
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = [f"{r[0]:<{widths[0]}}  " + "  ".join(f"{c:>{w}}" for c, w in zip(r[1:], widths[1:], strict=True))
                 for r in (head, *rows)]  # fmt: skip
        rule = "-" * len(lines[0])
        return "\n".join([f"predicted: {self.predicted}", lines[0], rule, *lines[1:-1], rule, lines[-1]])

    def __repr__(self) -> str:
        return f"<Explanation of {len(self.words)} words, {len(self.classes)} classes, target {self.target!r}>"


@dataclass(frozen=True, repr=False)
class WordJacobian:
    """The batched Jacobian of B texts with respect to their words.

    values (B, C, T): tweet × class × word, 0 in the padding. mask (B, T) bool: where a word stands. words: the words
    of each text in order of appearance. outputs (B, C): what was differentiated, "prob" or "logit" (target).
    """

    texts: list[str]
    words: list[list[str]]
    mask: np.ndarray
    classes: np.ndarray
    values: np.ndarray
    target: str
    outputs: np.ndarray

    def __getitem__(self, i: int) -> Explanation:
        """The view of one text."""
        values = self.values[i, :, : len(self.words[i])].T
        return Explanation(self.texts[i], self.words[i], self.classes, values, self.target, self.outputs[i])

    def __len__(self) -> int:
        return len(self.words)

    def __repr__(self) -> str:
        return f"<WordJacobian {'×'.join(map(str, self.values.shape))} (text × class × word), target {self.target!r}>"
