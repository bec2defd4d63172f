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
    epsilon: float
    weight_decay: float
    label_smoothing: float
    batch_size: int | str
    max_iter: int
    n_iter_no_change: int


@dataclass
class Training:
    """What a training run leaves: parameters, and one entry an epoch in each curve, none where nothing is held out."""

    params: Any
    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    held_out_losses: list[float] = field(default_factory=list)
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


def train(
    network: nn.Module, data: tuple, held_out: tuple | None, settings: Settings, rng: np.random.Generator, verbose: bool
) -> Training:
    """Fit the network to data = (sparse rows (N, K), class indices (N,)).

    After each epoch the held-out rows, given in the same form, are classified. Training ends when their loss (which a
    few rows measure better than accuracy) has not fallen for `n_iter_no_change` epochs, and the parameters of the best
    epoch are kept; with nothing held out, those of the last. Raises ValueError if the loss becomes infinite or NaN.
    """
    x, y = data
    count = len(y)
    run = Training(network.init(rng))
    params = tree.map(np.copy, run.params)
    step = _stepper(network, params, Generator(int(rng.integers(2**63))), settings)
    size = batch_size_for(count) if settings.batch_size == "auto" else int(settings.batch_size)
    with tqdm(total=settings.max_iter * -(-count // size), disable=not verbose, unit="batch") as bar:
        for epoch in range(1, settings.max_iter + 1):
            loss, accuracy = _epoch(step, x, y, _batches(rng.permutation(count), size), bar)
            if not np.isfinite(loss):
                raise ValueError(f"TextClassifier: the loss is {loss} in epoch {epoch}; lower learning_rate")
            run.losses.append(loss)
            run.accuracies.append(accuracy)
            if held_out is not None:
                _validate(run, logits_of(network, params, held_out[0]), held_out[1])
            if held_out is None or run.held_out_losses[-1] <= min(run.held_out_losses):
                run.params, run.best_epoch = tree.map(np.copy, params), epoch
            bar.set_postfix_str(_status(run))
            if epoch - run.best_epoch >= settings.n_iter_no_change:
                break
    return run


def batch_size_for(rows: int) -> int:
    """The size "auto" stands for: about 100 batches an epoch, of 8 to 256 rows."""
    return min(max(rows // 100, 8), 256)


def _validate(run: Training, logits: np.ndarray, y: np.ndarray) -> None:
    run.held_out_losses.append(float(cross_entropy(logits, y)))
    run.held_out_accuracies.append(float((logits.argmax(axis=1) == y).mean()))


def _stepper(network: nn.Module, params: Any, masks: Generator, settings: Settings) -> Callable[..., tuple[float, int]]:
    """Function of a batch (x, y) that updates the parameters in place and gives (loss, how many were right)."""
    optimizer = AdamW(params, settings.learning_rate, eps=settings.epsilon, weight_decay=settings.weight_decay)

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


def _status(run: Training) -> str:
    text = f"epoch {len(run.losses)}, loss {run.losses[-1]:.3f}, accuracy {run.accuracies[-1]:.3f}"
    return text + (f", held out {run.held_out_accuracies[-1]:.3f}" if run.held_out_accuracies else "")
