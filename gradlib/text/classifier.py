"""TextClassifier: tf-idf of words and bigrams, a small network trained by our own backpropagation, and its partials."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from .. import nn, tree
from ..jacobian.batched import batch_jacobian
from ..ops.softmax import softmax
from . import store
from .checks import check_labels, check_parameters, check_texts
from .explanation import Explanation, WordJacobian
from .training import Settings, logits_of, split, train
from .words import PaddedTexts, first_layer, pad_texts, padded_batches, tfidf

TARGETS = ("prob", "logit")

#: Words of one letter and more, contractions whole ("don't"), and the marks ! and ?, which carry mood.
TOKENS = r"(?u)\w+(?:'\w+)*|[!?]"


class TextClassifier(ClassifierMixin, BaseEstimator):
    """Classifier of texts by scikit-learn's conventions: TF-IDF features, hidden ReLU layers, softmax.

    X is always a list, 1-D array or Series of str; y one label a text (str, int or bool).

    hidden_layer_sizes: units of each hidden layer. ngram_range, min_df, max_features, lowercase, token_pattern: as
    TfidfVectorizer takes them; by default "don't", "I" and "!" are words too. dropout: of each hidden layer.
    label_smoothing: of the cross-entropy. learning_rate, epsilon, weight_decay: of AdamW; a large epsilon keeps the
    weights of rare words, whose gradients are small, from moving as fast as those of common ones. batch_size: texts,
    or "auto" for about 100 batches an epoch of 8 to 256 texts. max_iter: epochs at most. validation_fraction: the part
    of each class that is held out to stop early, once its loss has not fallen for n_iter_no_change epochs (0, or too
    few texts to hold any out: all epochs run).
    random_state: int, RandomState or None. verbose: whether to show a progress bar.

    After fit: classes_ (C,), vectorizer_, params_ (the best epoch's), n_iter_ (epochs run), best_iter_, loss_curve_,
    accuracy_curve_ (in training, with dropout), validation_loss_curve_, validation_curve_ (accuracy on the held-out
    part; empty without one).

    >>> import gradlib as gl
    >>> model = gl.text.TextClassifier((8,), min_df=1, learning_rate=0.01, validation_fraction=0, random_state=0)
    >>> model.fit(["good", "so good", "bad", "so bad"], ["+", "+", "-", "-"]).predict(["really good"]).tolist()
    ['+']
    """

    def __init__(
        self,
        hidden_layer_sizes: tuple[int, ...] = (64, 32),
        *,
        ngram_range: tuple[int, int] = (1, 2),
        min_df: int | float = 2,
        max_features: int | None = None,
        lowercase: bool = True,
        token_pattern: str = TOKENS,
        dropout: float = 0.5,
        label_smoothing: float = 0.1,
        learning_rate: float = 3e-3,
        epsilon: float = 1e-3,
        weight_decay: float = 0.01,
        batch_size: int | str = "auto",
        max_iter: int = 100,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 3,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.ngram_range = ngram_range
        self.min_df = min_df
        self.max_features = max_features
        self.lowercase = lowercase
        self.token_pattern = token_pattern
        self.dropout = dropout
        self.label_smoothing = label_smoothing
        self.learning_rate = learning_rate
        self.epsilon = epsilon
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any) -> TextClassifier:
        """Train on texts X and labels y; returns self.

        Raises TypeError or ValueError, before any work, for texts or labels that are missing, of other types or of
        different number, for a single class, for texts without any vocabulary, and for settings out of range.
        """
        check_parameters(self.get_params(deep=False))
        texts = check_texts(X)
        classes, labels = check_labels(y, len(texts))
        rng = np.random.default_rng(check_random_state(self.random_state).randint(2**31 - 1))
        # The held-out texts do not help to choose the vocabulary, or they would look easier than new ones.
        rows, held_out = split(labels, self.validation_fraction, rng)
        vectorizer = self._make_vectorizer()
        features = _fit_features(vectorizer, [texts[i] for i in rows]), labels[rows]
        validation = (vectorizer.transform([texts[i] for i in held_out]), labels[held_out]) if len(held_out) else None
        settings = Settings(**{name: getattr(self, name) for name in Settings.__dataclass_fields__})
        network = self._make_network(len(vectorizer.vocabulary_), len(classes))
        run = train(network, features, validation, settings, rng, self.verbose)
        self.classes_, self.vectorizer_, self.params_ = classes, vectorizer, run.params
        self.loss_curve_, self.accuracy_curve_ = run.losses, run.accuracies
        self.validation_loss_curve_, self.validation_curve_ = run.held_out_losses, run.held_out_accuracies
        self.n_iter_, self.best_iter_ = len(run.losses), run.best_epoch
        return self

    def _make_vectorizer(self) -> TfidfVectorizer:
        names = ("ngram_range", "min_df", "max_features", "lowercase", "token_pattern")
        return TfidfVectorizer(dtype=np.float32, **{name: getattr(self, name) for name in names})

    def _make_network(self, features: int, classes: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for size in self.hidden_layer_sizes:
            layers += [nn.Linear(features, int(size), init="he_uniform"), nn.ReLU(), nn.Dropout(self.dropout)]
            features = int(size)
        return nn.Sequential(*layers, nn.Linear(features, classes))

    @property
    def network_(self) -> nn.Sequential:
        """The network as a function of its parameters: `model.network_(model.params_, features)` gives logits."""
        check_is_fitted(self, "params_")
        return self._make_network(len(self.vectorizer_.vocabulary_), len(self.classes_))

    def _logits(self, X: Any) -> np.ndarray:
        check_is_fitted(self, "params_")
        return logits_of(self.network_, self.params_, self.vectorizer_.transform(check_texts(X)))

    def decision_function(self, X: Any) -> np.ndarray:
        """Logits (N, C); with two classes, scikit-learn's convention: the second's minus the first's, (N,)."""
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probability of each class, (N, C), in the order of `classes_`."""
        return softmax(self._logits(X))

    def predict(self, X: Any) -> np.ndarray:
        """The most probable label of each text, (N,)."""
        logits = self._logits(X)
        return self.classes_[logits.argmax(axis=1)]

    def explain(self, text: str, target: str = "prob") -> Explanation:
        """Partial derivative of every class's output with respect to each word of one text; see `jacobian`.

        >>> import gradlib as gl
        >>> model = gl.text.TextClassifier((8,), min_df=1, learning_rate=0.01, validation_fraction=0, random_state=0)
        >>> model = model.fit(["good", "so good", "bad", "so bad"], ["+", "+", "-", "-"])
        >>> model.explain("so good").words
        ['so', 'good']
        """
        if not isinstance(text, str):
            raise TypeError(f"TextClassifier.explain: expected one text (str), got {type(text).__name__}")
        return self.jacobian([text], target)[0]

    def jacobian(self, X: Any, target: str = "prob") -> WordJacobian:
        """The batched Jacobian (text, class, word) of the class probabilities, or the logits, by word.

        Word t has a weight w_t, 1 as the text stands; it scales every feature that contains the word:
        tf(n-gram) = Σ over its occurrences of the product of its words' weights. The derivative at w = 1 goes through
        tf-idf, its l2 norm and the network. Words that the vocabulary lacks have derivative 0.

        target: "prob" or "logit". Texts are padded to the longest, and one call of `gl.batch_jacobian` takes as many
        as fit in moderate memory: thousands of tweets.
        """
        check_is_fitted(self, "params_")
        if target not in TARGETS:
            raise ValueError(f"TextClassifier: expected target 'prob' or 'logit', got {target!r}")
        texts = check_texts(X)
        parts = []
        for padded in padded_batches(texts, self.vectorizer_):
            output, weights = self._word_function(padded, target, np.float32)
            parts.append((padded, batch_jacobian(output, mode="rev")(weights), output(weights)))
        words = [w for padded, _, _ in parts for w in padded.words]
        mask = _joined([padded.mask for padded, _, _ in parts])
        values, outputs = _joined([d for _, d, _ in parts]), _joined([y for _, _, y in parts])
        return WordJacobian(texts, words, mask, self.classes_, values, target, outputs)

    def word_function(self, X: Any, target: str = "prob", dtype: Any = np.float32) -> tuple:
        """What `jacobian` differentiates, for all texts at once: (function, weights (B, T): 1 for each word).

        The function takes weights (B, T) and gives the probabilities or logits (B, C), both in `dtype`.
        """
        check_is_fitted(self, "params_")
        return self._word_function(pad_texts(check_texts(X), self.vectorizer_), target, dtype)

    def _word_function(self, padded: PaddedTexts, target: str, dtype: Any) -> tuple:
        params = tree.map(lambda p: p.astype(dtype, copy=False), self.params_)
        rest = nn.Sequential(*self.network_.layers[1:])

        def output(weights: Any) -> Any:
            z = first_layer(tfidf(weights, padded), padded.columns, params[0]["w"], params[0]["b"])
            logits = rest(params[1:], z)
            return softmax(logits) if target == "prob" else logits

        return output, padded.mask.astype(dtype)

    def save(self, folder: str | Path) -> None:
        """Write the model into a folder: safetensors and JSON. An earlier model there is replaced, whole or not at all.

        Raises FileExistsError if the folder holds anything else.
        """
        check_is_fitted(self, "params_")
        store.save(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path) -> TextClassifier:
        """A saved model, ready to predict. FileNotFoundError or ValueError that names the missing or damaged file."""
        return store.load(cls, Path(folder))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.two_d_array, tags.input_tags.one_d_array = True, False, True
        return tags


def _fit_features(vectorizer: TfidfVectorizer, texts: list[str]) -> Any:
    """tf-idf rows (N, K); ValueError where the texts hold no vocabulary."""
    try:
        return vectorizer.fit_transform(texts)
    except ValueError as error:
        if "empty vocabulary" in str(error):
            raise ValueError("TextClassifier: no vocabulary to learn from: the texts hold no words") from error
        if "no terms remain" in str(error):
            raise ValueError(
                f"TextClassifier: no vocabulary to learn from: no word is in min_df={vectorizer.min_df} texts"
            ) from error
        raise


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """Arrays joined along the texts, the shorter ones padded at the end of the last axis."""
    longest = max(p.shape[-1] for p in parts)
    wide = [p if p.shape[-1] == longest else _padded(p, longest) for p in parts]
    return wide[0] if len(wide) == 1 else np.concatenate(wide)


def _padded(a: np.ndarray, length: int) -> np.ndarray:
    return np.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, length - a.shape[-1])])
