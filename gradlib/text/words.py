"""tf-idf as a function of the words of a text, so that it has a derivative by word.

Give the t-th word of a text a weight w_t, 1 for a word as it stands, 0 for a word taken out of every feature it is
part of. An n-gram counts as much as the product of its words' weights, so that with features f, idf_f from training
and occurrences o of f

    tf_f(w) = Σ_o Π_{t in o} w_t        x_f(w) = tf_f(w) idf_f        u(w) = x(w) / ‖x(w)‖

At w = 1 this is what scikit-learn's TfidfVectorizer computes (smooth idf, l2 norm), to the last formula. A batch is
padded: B texts, T words, F features a text, R occurrences a feature, n words an occurrence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class PaddedTexts:
    """A batch of texts as arrays.

    words: the words of each text in order of appearance. mask (B, T) bool: where a word stands.
    factors (B, F, R, n): positions of the words multiplied; T stands for the number 1, T + 1 for 0.
    columns (B, F): column of each feature. idf (B, F): its inverse document frequency, 0 in the padding.
    """

    words: list[list[str]]
    mask: np.ndarray
    factors: np.ndarray
    columns: np.ndarray
    idf: np.ndarray


def pad_texts(texts: list[str], vectorizer: Any) -> PaddedTexts:
    """The words and features of texts, as the fitted TfidfVectorizer sees them, padded to common sizes."""
    return _pad(_found(texts, vectorizer), vectorizer)


def padded_batches(texts: list[str], vectorizer: Any, limit: int = 2**21) -> Iterator[PaddedTexts]:
    """Consecutive texts padded together while that takes no more than `limit` factors (or a single text)."""
    batch: list[tuple] = []
    f = r = 0
    for words, features in _found(texts, vectorizer):
        f, r = max(f, len(features)), max(r, *map(len, features.values()), 1)
        if batch and (len(batch) + 1) * f * r * vectorizer.ngram_range[1] > limit:
            yield _pad(batch, vectorizer)
            batch, f, r = [], len(features), max(map(len, features.values()), default=1)
        batch.append((words, features))
    yield _pad(batch, vectorizer)


def _found(texts: list[str], vectorizer: Any) -> list[tuple[list[str], dict[int, list]]]:
    """(words, where each feature occurs) of each text."""
    preprocess, tokenize = vectorizer.build_preprocessor(), vectorizer.build_tokenizer()
    words = [tokenize(preprocess(text)) for text in texts]
    return [(w, _occurrences(w, vectorizer.vocabulary_, vectorizer.ngram_range)) for w in words]


def _pad(found: list[tuple[list[str], dict[int, list]]], vectorizer: Any) -> PaddedTexts:
    words = [w for w, _ in found]
    t = max(map(len, words), default=0)
    f = max((len(features) for _, features in found), default=0)
    r = max((len(o) for _, features in found for o in features.values()), default=0)
    factors = np.full((len(found), f, r, vectorizer.ngram_range[1]), t + 1)
    columns, idf = np.zeros((len(found), f), int), np.zeros((len(found), f))
    for b, (_, features) in enumerate(found):
        columns[b, : len(features)] = list(features)
        idf[b, : len(features)] = vectorizer.idf_[list(features)]
        for i, occurrences in enumerate(features.values()):
            for j, (start, n) in enumerate(occurrences):
                factors[b, i, j] = t
                factors[b, i, j, :n] = range(start, start + n)
    mask = np.arange(t) < np.array([len(w) for w in words])[:, None]
    return PaddedTexts(words, mask, factors, columns, idf)


def _occurrences(words: list[str], vocabulary: dict[str, int], ngram_range: tuple[int, int]) -> dict[int, list]:
    """Column of each feature in a text -> where it occurs, as (first word, number of words)."""
    found: dict[int, list] = {}
    for n in range(ngram_range[0], ngram_range[1] + 1):
        for start in range(len(words) - n + 1):
            column = vocabulary.get(" ".join(words[start : start + n]))
            if column is not None:
                found.setdefault(column, []).append((start, n))
    return found


def tfidf(weights: Any, texts: PaddedTexts) -> Any:
    """u(w): features (B, F) of word weights (B, T), differentiable; a text without features gives zeros."""
    samples, _, _, n = texts.factors.shape
    constants = np.broadcast_to(np.array([1, 0], weights.dtype), (samples, 2))
    padded = np.concatenate([weights, constants], axis=1)
    taken = np.take_along_axis(padded, texts.factors.reshape(samples, -1), axis=1).reshape(texts.factors.shape)
    product = taken[..., 0]
    for k in range(1, n):
        product = product * taken[..., k]
    x = product.sum(axis=2) * texts.idf.astype(weights.dtype)
    square = (x * x).sum(axis=1, keepdims=True)
    return x / np.sqrt(np.where(square == 0, 1, square))


def first_layer(u: Any, columns: np.ndarray, w: np.ndarray, b: np.ndarray) -> Any:
    """u(w) @ W + b for features (B, F) that stand in the given columns (B, F) of W (K, H): (B, H)."""
    return np.einsum("bf,bfh->bh", u, w[columns]) + b
