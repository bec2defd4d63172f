"""Pictures of the demo: the learning curve, and the Jacobian of one text as a map of class by word."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from .classifier import TextClassifier
from .explanation import Explanation

BLUE, ORANGE, GREY = "#2166ac", "#d6604d", "#777777"


def learning_curve(model: TextClassifier, baseline: float, accuracy: float, file: Path) -> None:
    """Loss and accuracy in training and on the held-out part; accuracy of both classifiers on the test part."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    epochs = range(1, model.n_iter_ + 1)
    left.plot(epochs, model.loss_curve_, "o-", color=BLUE, markersize=4, label="training, dropout on")
    if model.validation_loss_curve_:
        left.plot(epochs, model.validation_loss_curve_, "o-", color=ORANGE, markersize=4, label="held out")
    left.legend(loc="upper right", frameon=False, fontsize=9)
    _label(left, "Loss", "cross-entropy, nats")
    right.plot(epochs, model.accuracy_curve_, "o-", color=BLUE, markersize=4, label="training, dropout on")
    if model.validation_curve_:
        right.plot(epochs, model.validation_curve_, "o-", color=ORANGE, markersize=4, label="held out")
    right.axhline(baseline, color=GREY, linestyle=":", label=f"test, logistic regression: {baseline:.3f}")
    right.axhline(accuracy, color="black", linestyle="--", linewidth=1, label=f"test, gradlib: {accuracy:.3f}")
    _label(right, "Accuracy", "fraction of the tweets")
    for axes in (left, right):
        axes.axvline(model.best_iter_, color=GREY, linewidth=6, alpha=0.15)
    right.legend(loc="lower right", frameon=False, fontsize=9)
    _save(figure, file)


def _label(axes: Axes, title: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel("epoch (shaded: the one kept)")
    axes.set_ylabel(y)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def jacobian_map(found: Explanation, file: Path) -> None:
    """Heat map, class by word: red words raise the class's output, blue words lower it."""
    values = found.values.T
    words = len(found.words)
    figure, axes = plt.subplots(figsize=(max(6.0, 2.2 + 0.62 * words), 3.4), layout="constrained")
    limit = abs(values).max() or 1.0
    image = axes.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    axes.set_xticks(range(words), found.words, rotation=45, ha="right", rotation_mode="anchor")
    labels = [f"{c}  ({p:.2f})" for c, p in zip(found.classes.tolist(), found.outputs, strict=True)]
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(length=0)
    for c in range(values.shape[0]):
        for t in range(words):
            shade = "white" if abs(values[c, t]) > 0.6 * limit else "black"
            axes.text(t, c, f"{values[c, t]:+.2f}", ha="center", va="center", fontsize=8, color=shade)
    what = "probability" if found.target == "prob" else "logit"
    axes.set_title(f"∂ {what} of the class / ∂ weight of the word", loc="left", fontsize=11)
    figure.colorbar(image, ax=axes, pad=0.01)
    axes.spines[:].set_visible(False)
    _save(figure, file)


def _save(figure: plt.Figure, file: Path) -> None:
    figure.savefig(file, dpi=150)
    plt.close(figure)
