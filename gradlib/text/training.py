"""Training a network on sparse rows: mini-batches, AdamW, early stopping on held-out rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm import tqdm

from .. import nn, tree
from ..ops.cross_entropy import cross_entropy
from ..ops.dropout import Generator
from ..optim import AdamW
from ..transforms import value_and_grad


@dataclass(frozen=True)
class Settings:
    """How to train: the parameters of the same names of TextClassifier."""

    learning_rate: float
    weight_decay: float
    label_smoothing: float
    batch_size: int
    max_iter: int
    validation_fraction: float
    n_iter_no_change: int


@dataclass
class Training:
    """What a training run leaves: parameters, and one entry an epoch in each curve (none held out: no accuracies)."""

    params: Any
    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    held_out_accuracies: list[float] = field(default_factory=list)
    best_epoch: int = 0


def split(labels: np.ndarray, fraction: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(rows to train on, rows held out): round(fraction · n) rows of each class with n rows, never a whole class."""
    held_out = []
    for c in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == c))
        held_out.append(rows[: min(round(fraction * len(rows)), len(rows) - 1)])
    out = np.sort(np.concatenate(held_out))
    return np.setdiff1d(np.arange(len(labels)), out), out


def logits_of(network: nn.Module, params: Any, x: Any, rows: int = 4096) -> np.ndarray:
    """Logits (N, C) of sparse rows (N, K), in evaluation mode, `rows` at a time."""
    return np.concatenate([network(params, x[at : at + rows]) for at in range(0, x.shape[0], rows)])


def train(network: nn.Module, x: Any, y: np.ndarray, settings: Settings, seed: int, verbose: bool) -> Training:
    """Fit the network to sparse rows x (N, K) and class indices y (N,).

    After each epoch the held-out rows are classified. Training ends when their accuracy has not risen for
    `n_iter_no_change` epochs, and the parameters of the best epoch are kept; with nothing held out, those of the last.
    Raises ValueError if the loss becomes infinite or NaN.
    """
    rng = np.random.default_rng(seed)
    rows, held_out = split(y, settings.validation_fraction, rng)
    run = Training(network.init(rng))
    params = tree.map(np.copy, run.params)
    step = _stepper(network, params, Generator(int(rng.integers(2**63))), settings)
    with tqdm(total=settings.max_iter * -(-len(rows) // settings.batch_size), disable=not verbose, unit="batch") as bar:
        for epoch in range(1, settings.max_iter + 1):
            batches = (batch for batch in _batches(rng.permutation(rows), settings.batch_size))
            loss, accuracy = _epoch(step, x, y, batches, bar)
            if not np.isfinite(loss):
                raise ValueError(f"TextClassifier: the loss is {loss} in epoch {epoch}; lower learning_rate")
            run.losses.append(loss)
            run.accuracies.append(accuracy)
            if len(held_out):
                right = logits_of(network, params, x[held_out]).argmax(axis=1) == y[held_out]
                run.held_out_accuracies.append(float(right.mean()))
            if _improved(run.held_out_accuracies):
                run.params, run.best_epoch = tree.map(np.copy, params), epoch
            bar.set_postfix_str(_status(run))
            if epoch - run.best_epoch >= settings.n_iter_no_change:
                break
    return run


def _stepper(network: nn.Module, params: Any, masks: Generator, settings: Settings) -> Callable[..., tuple[float, int]]:
    """Function of a batch (x, y) that updates the parameters in place and gives (loss, how many were right)."""
    optimizer = AdamW(params, settings.learning_rate, weight_decay=settings.weight_decay)

    def objective(params: Any, x: Any, y: np.ndarray) -> tuple[Any, Any]:
        logits = network(params, x, masks)
        return cross_entropy(logits, y, label_smoothing=settings.label_smoothing), logits

    gradient_of = value_and_grad(objective, has_aux=True)

    def step(x: Any, y: np.ndarray) -> tuple[float, int]:
        (loss, logits), gradient = gradient_of(params, x, y)
        optimizer.step(gradient)
        return float(loss), int((logits.argmax(axis=1) == y).sum())

    return step


def _batches(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (rows[at : at + size] for at in range(0, len(rows), size))


def _epoch(step: Callable[..., Any], x: Any, y: np.ndarray, batches: Iterator[np.ndarray], bar: Any) -> tuple:
    """One pass over the batches: mean (loss, accuracy) in training, dropout on."""
    total, right, count = 0.0, 0, 0
    for batch in batches:
        loss, hits = step(x[batch], y[batch])
        total, right, count = total + loss * len(batch), right + hits, count + len(batch)
        bar.update()
    return total / count, right / count


def _improved(accuracies: list[float]) -> bool:
    """Whether the last epoch is the best so far; always, when nothing is held out."""
    return not accuracies or accuracies[-1] > max(accuracies[:-1], default=-1.0)


def _status(run: Training) -> str:
    text = f"epoch {len(run.losses)}, loss {run.losses[-1]:.3f}, accuracy {run.accuracies[-1]:.3f}"
    return text + (f", held out {run.held_out_accuracies[-1]:.3f}" if run.held_out_accuracies else "")
