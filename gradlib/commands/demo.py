"""`gradlib demo`: a network trained on real tweets beside a scikit-learn baseline, and its Jacobians, checked."""

from __future__ import annotations

import importlib.util
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .. import tree
from ..jacobian.dense import jacobian
from ..text import Explanation, TextClassifier, WordJacobian
from ..text.tables import tweets

BATCH = 256  # tweets in the batched Jacobian

HELD_OUT = 0.05  # of the training tweets, to stop early; fewer than by default, since there are many


def demo(arguments: Namespace) -> None:
    """Train, compare, differentiate, check, draw; everything is printed, the pictures go to `arguments.out`."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ModuleNotFoundError('the demo needs matplotlib, which is not installed: pip install "gradlib[demo]"')
    begin = time.perf_counter()
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    train, test = load(arguments.limit, arguments.seed)
    baseline = fit_baseline(*train).score(*test)
    model = TextClassifier(validation_fraction=HELD_OUT, random_state=arguments.seed, verbose=True)
    seconds = timed(lambda: model.fit(*train))[1]
    accuracy = model.score(*test)
    print(f"\nAccuracy on the same {len(test[0])} test tweets")
    print(f"  scikit-learn: TF-IDF of its default words + logistic regression   {baseline:.4f}")
    sizes = "-".join(map(str, (len(model.vectorizer_.vocabulary_), *model.hidden_layer_sizes, len(model.classes_))))
    print(f"  gradlib: TF-IDF with don't, I, ! and ? as words + network {sizes}   {accuracy:.4f}")
    print(f"  trained for {model.n_iter_} epochs in {seconds:.1f} s, epoch {model.best_iter_} kept")
    found = show_word_jacobian(model, test[0][:BATCH])
    show_parameter_jacobian(model, test[0][0])
    chosen = choose(found, test[1][:BATCH])
    show_words(chosen)
    draw(model, baseline, accuracy, chosen[-1], out)
    print(f"\n{time.perf_counter() - begin:.0f} s in all")


def timed(f: Callable[[], Any]) -> tuple[Any, float]:
    """(what f returns, seconds it took)."""
    begin = time.perf_counter()
    result = f()
    return result, time.perf_counter() - begin


def load(limit: int | None, seed: int) -> tuple[tuple, tuple]:
    """((texts, labels) to train on, those to test on): one stratified 80/20 split, exact repeats removed before."""
    from sklearn.model_selection import train_test_split

    texts, labels, rows = tweets()
    counts = ", ".join(f"{n} {label}" for label, n in sorted(Counter(labels).items()))
    print(f"{rows} labelled tweets, {len(texts)} without exact repeats: {counts}")
    if limit and limit < len(texts):
        texts, _, labels, _ = train_test_split(texts, labels, train_size=limit, stratify=labels, random_state=seed)
        print(f"limited to {limit} of them")
    a, b, y, z = train_test_split(texts, labels, test_size=0.2, stratify=labels, random_state=seed)
    return (a, y), (b, z)


def fit_baseline(texts: list[str], labels: list[str]) -> Any:
    """Logistic regression on words and bigrams that are in at least two tweets, as scikit-learn cuts them."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    baseline = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), min_df=2), LogisticRegression(max_iter=1000))
    _, seconds = timed(lambda: baseline.fit(texts, labels))
    print(f"baseline: TF-IDF + logistic regression, fitted in {seconds:.1f} s")
    return baseline


def show_word_jacobian(model: TextClassifier, texts: list[str]) -> WordJacobian:
    """The batched Jacobian of the class probabilities by word, against central differences in float64."""
    model.jacobian(texts[:2])
    found, seconds = timed(lambda: model.jacobian(texts))
    f, weights = model.word_function(texts, dtype=np.float64)
    step, error = 1e-5, 0.0
    for t in range(weights.shape[1]):
        moved = np.zeros_like(weights)
        moved[:, t] = step
        difference = (f(weights + moved) - f(weights - moved)) / (2 * step)
        error = max(error, abs((difference - found.values[:, :, t]) * found.mask[:, t, None]).max())
    print("\nBatched Jacobian of the class probabilities by word, tweet × class × word")
    print(f"  shape {found.values.shape}, {found.values.dtype}, {1e3 * seconds:.1f} ms, largest entry", end=" ")
    print(f"{abs(found.values).max():.3f}; largest error against central differences {error:.1e}")
    return found


def show_parameter_jacobian(model: TextClassifier, text: str, directions: int = 4) -> None:
    """The Jacobian of one tweet's logits by all trainable variables, against differences along random directions."""
    row, network = model.vectorizer_.transform([text]), model.network_
    rows, seconds = timed(lambda: jacobian(lambda p: network(p, row)[0])(model.params_))
    leaves = tree.flatten(rows)[0]
    print("\nJacobian of one tweet's logits by all trainable variables")
    print(f"  shapes {', '.join(str(d.shape) for d in leaves)}: {sum(d.size for d in leaves)} numbers", end=" ")
    print(f"in {1e3 * seconds:.1f} ms")
    rng, step, error = np.random.default_rng(0), 1e-5, 0.0
    row, params = row.astype(float), tree.map(lambda p: p.astype(float), model.params_)
    for _ in range(directions):
        d = tree.map(lambda p: rng.standard_normal(p.shape), params)
        ahead, behind = (network(tree.map(lambda p, e, s=s: p + s * e, params, d), row)[0] for s in (step, -step))
        product = sum(np.tensordot(j, e, e.ndim) for j, e in zip(leaves, tree.flatten(d)[0], strict=True))
        difference = (ahead - behind) / (2 * step)
        error = max(error, abs(product - difference).max() / abs(difference).max())
    print(f"  along {directions} random directions, largest relative error against central differences {error:.1e}")


def choose(found: WordJacobian, labels: list[str]) -> list[Explanation]:
    """For each class the first tweet of 7 to 14 words that is put into it rightly."""
    chosen = []
    for c in found.classes.tolist():
        fits = [
            i
            for i, label in enumerate(labels)
            if label == c == found.classes[found.outputs[i].argmax()] and 7 <= len(found.words[i]) <= 14
        ]
        if fits:
            chosen.append(found[fits[0]])
    return chosen or [found[0]]


def show_words(chosen: list[Explanation]) -> None:
    """Three tweets, and for each class the words that move its probability most, up and down."""
    print("\nWords that move each class (∂ probability / ∂ weight of the word)")
    for e in chosen:
        print(f"  {' '.join(e.text.split())!r}")
        for c, label in enumerate(e.classes.tolist()):
            order = np.argsort(e.values[:, c])
            up = [f"{e.words[i]} {e.values[i, c]:+.3f}" for i in order[::-1][:3] if e.values[i, c] > 0]
            down = [f"{e.words[i]} {e.values[i, c]:+.3f}" for i in order[:3] if e.values[i, c] < 0]
            print(f"    {label:<9} {e.outputs[c]:.2f}   up: {', '.join(up) or '-'}   down: {', '.join(down) or '-'}")


def draw(model: TextClassifier, baseline: float, accuracy: float, example: Explanation, out: Path) -> None:
    """The pictures, as PNG files."""
    from ..text import figures

    figures.learning_curve(model, baseline, accuracy, out / "learning_curve.png")
    figures.jacobian_map(example, out / "jacobian_map.png")
    print(f"\nPictures: {out / 'learning_curve.png'}, {out / 'jacobian_map.png'}")
