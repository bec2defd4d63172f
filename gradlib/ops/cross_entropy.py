"""Cross-entropy of logits against integer labels, loss and gradient in one pass over the logits.

    q = (1 - s) onehot(label) + s / C              the smoothed target, s = label_smoothing
    loss_n = Σ_c q_c (logsumexp(x_n) - x_nc)       g_n = softmax(x_n) - q_n = ∂loss_n/∂x_n
    dx = dy g / count                              count = number of rows not ignored for "mean", else 1

Sources: Szegedy et al. 2016 (arXiv:1512.00567) for label smoothing; the convention for `ignore_index` and for the
mean over rows that count is torch's. The logits are never normalised first: a softmax belongs after the loss.

Labels are checked on the host only where the host has them: on a GPU it would have to wait for the device. There a row
whose label is no class has a loss and a gradient of NaN.
"""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Any

import numpy as np

from ..capture import effect
from ..device import adopt, array_module
from ..jacobian.blocks import RowGradient
from ..op import Op, describe, shape_of, total
from ..precision import is_floating, narrow, smallest, wide
from ..trace import WATCHER, Namespace, Traced
from .arithmetic import multiply
from .batching import Mixed, Tag
from .softmax import SHORT, largest, log_softmax, softmax, summed

_UNSIGNED = {n: np.dtype(f"u{n}") for n in (1, 2, 4, 8)}


def _forward(
    xp: Any, logits: Any, labels: Any, *, reduction: str, ignore_index: int | None, label_smoothing: float
) -> tuple:
    if logits.dtype.itemsize == 2:  # float16, bfloat16: the loss and g are rounded once, the count stays float32
        static: dict[str, Any] = {
            "reduction": reduction,
            "ignore_index": ignore_index,
            "label_smoothing": label_smoothing,
        }
        y, (g, count) = _forward(xp, wide(logits), labels, **static)
        return narrow(y, logits.dtype), (narrow(g, logits.dtype), count)
    valid, one = None, logits.dtype.type(1) if xp is np else xp.ones((), logits.dtype)
    if ignore_index is not None:
        valid = xp.not_equal(labels, ignore_index)
        labels = xp.where(valid, labels, 0)
    checked = xp is np or getattr(xp, "module", None) is np  # on a GPU nobody has looked at the labels
    if not checked:
        wrong = xp.logical_or(xp.less(labels, 0), xp.greater_equal(labels, logits.shape[-1]))
        labels = xp.where(wrong, 0, labels)
    rows, g = (_traced_rows if type(xp) is Namespace else _one_pass)(xp, logits, labels, label_smoothing)
    if not checked:
        rows, g = xp.where(wrong, np.nan, rows), xp.where(xp.expand_dims(wrong, -1), np.nan, g)
    if valid is not None:
        rows = xp.where(valid, rows, 0)
        g = xp.where(xp.expand_dims(valid, -1), g, 0)
    if reduction == "none":
        return rows, (g, one)
    axes = tuple(range(rows.ndim))
    if reduction == "sum":
        return total(xp, rows, axes), (g, one)
    count = one * rows.size if valid is None else total(xp, valid.astype(rows.dtype), axes)
    mean = narrow(total(xp, rows, axes) / count, logits.dtype)
    return mean, (g, count if checked else xp.maximum(count, 1))  # where no row counts: NaN, with a gradient of 0


def _one_pass(xp: Any, x: Any, labels: Any, smoothing: float) -> tuple[Any, Any]:
    """Row losses (...) and gradients (..., C) from one exponential of the logits."""
    shape, classes = x.shape, x.shape[-1]
    x, labels = x.reshape((-1, classes)), labels.reshape(-1).astype(int)
    turned = xp is np and classes <= SHORT  # NumPy takes columns several times faster than short rows
    x, axis = xp.ascontiguousarray(x.T if turned else x), 0 if turned else 1
    at = xp.arange(len(labels))
    at = labels * len(labels) + at if turned else at * classes + labels  # where the labels' logits lie in memory
    shifted = x - xp.maximum(largest(xp, x, axis), smallest(x.dtype))
    g = xp.exp(shifted)
    sums = xp.maximum(summed(xp, g, axis), 1)  # exp(0) is in it, but where every logit is -inf
    logs = xp.log(sums).reshape(-1)
    rows = logs - shifted.reshape(-1)[at]
    g /= sums
    g.reshape(-1)[at] -= 1 - smoothing
    if smoothing:
        # Σ_c (logsumexp - x_c) / C; a masked class (-inf) makes it infinite, as it should
        rows = (1 - smoothing) * rows + smoothing * (logs - shifted.mean(axis=axis))
        g -= smoothing / classes
    return rows.reshape(shape[:-1]), xp.ascontiguousarray(g.T if turned else g).reshape(shape)


def _traced_rows(xp: Any, x: Any, labels: Any, smoothing: float) -> tuple[Any, Any]:
    """The same of differentiable ops, for second and higher order."""
    classes = x.shape[-1]
    onehot = xp.equal(xp.expand_dims(labels, -1), xp.arange(classes)).astype(x.dtype)
    target = onehot * (1 - smoothing) + smoothing / classes
    terms = xp.where(xp.equal(target, 0), 0, multiply(target, log_softmax(x)))
    return -xp.sum(terms, axis=-1), softmax(x) - target


def _scaled(saved: tuple, reduction: str) -> Any:
    g, count = saved
    return narrow(g / count, g.dtype) if reduction == "mean" else g


def _vjp(xp: Any, saved: tuple, dy: Any, need: tuple, *, reduction: str, **static: Any) -> tuple:
    if not need[0]:
        return None, None
    g, count = saved
    if g.dtype.itemsize == 2:
        dx, _ = _vjp(xp, (wide(g), count), wide(dy), need, reduction=reduction)
        return narrow(dx, g.dtype), None
    if reduction == "none":
        return xp.expand_dims(dy, -1) * g, None
    rows = dy / count if reduction == "mean" else dy
    return narrow(rows.reshape((dy.shape[0],) + (1,) * g.ndim) * g, g.dtype), None


def _jvp(xp: Any, saved: tuple, dx: tuple, *, reduction: str, **static: Any) -> Any:
    g, count = saved
    if g.dtype.itemsize == 2:
        return narrow(_jvp(xp, (wide(g), count), (wide(dx[0]), None), reduction=reduction), g.dtype)
    d = total(xp, dx[0] * _scaled(saved, reduction), -1)
    return d if reduction == "none" else total(xp, d, tuple(range(1, d.ndim)))


def _block(xp: Any, saved: tuple, i: int, *, reduction: str, **static: Any) -> Any:
    last = saved[0].ndim - 1
    axes = (last,) if reduction == "none" else tuple(range(last + 1))
    return RowGradient(_scaled(saved, reduction), axes) if i == 0 else None


def _batch(tags: tuple, shapes: tuple, static: dict) -> Any:
    x, labels = tags
    behind = labels and Tag(labels.axis - 1, labels.rows)
    tag = x or behind
    if tag is None:
        return None
    if static["reduction"] != "none":
        return Mixed("cross_entropy", f'sums over the batch axis: use reduction="none", not {static["reduction"]!r}')
    if tag.axis == -1 or (x and behind and x != behind):
        return Mixed("cross_entropy", "takes the batch axis for classes")
    return Tag(tag.axis + 1, tag.rows)


_cross_entropy = Op("cross_entropy", forward=_forward, vjp=_vjp, jvp=_jvp, block=_block, batch=_batch)


def _check(logits: Any, labels: Any, reduction: str, ignore_index: int | None, label_smoothing: float) -> None:
    if not hasattr(logits, "dtype") or not is_floating(logits.dtype) or not logits.ndim:
        raise TypeError(f"cross_entropy: expected floating-point logits (..., C), got {describe(logits)}")
    if not hasattr(labels, "dtype") or labels.dtype.kind not in "iu":
        raise TypeError(f"cross_entropy: expected integer labels, got {describe(labels)}")
    if shape_of(labels) != logits.shape[:-1]:
        raise ValueError(
            f"cross_entropy: expected labels of shape {logits.shape[:-1]} for logits {describe(logits)}, "
            f"got {describe(labels)}"
        )
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'cross_entropy: expected reduction "mean", "sum" or "none", got {reduction!r}')
    if ignore_index is not None and not isinstance(ignore_index, (int, np.integer)):
        raise TypeError(f"cross_entropy: expected an int or None as ignore_index, got {type(ignore_index).__name__}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"cross_entropy: expected 0 <= label_smoothing <= 1, got {label_smoothing}")
    classes = logits.shape[-1]
    if not classes:
        raise ValueError(f"cross_entropy: expected at least one class, got {describe(logits)}")
    if reduction == "mean" and not prod(shape_of(labels)):
        raise ValueError(f"cross_entropy: the mean over an empty batch is not defined (logits {describe(logits)})")
    effect(partial(_check_labels, classes=classes, ignore_index=ignore_index, reduction=reduction), _innermost(labels))


def _innermost(labels: Any) -> Any:
    """Labels without the transforms' traces; a capture's stays, so that each replay checks its own labels."""
    while type(labels) is Traced and labels.owner.unit is None:
        labels = labels.value
    return labels


def _check_labels(labels: Any, classes: int, ignore_index: int | None, reduction: str) -> None:
    """Labels in range; on a GPU only under `gl.detect_anomaly`, since it waits for the device."""
    if not labels.size or (type(labels) is not np.ndarray and array_module(labels) is not np and not WATCHER.get()):
        return
    if ignore_index is None and type(labels) is np.ndarray and _largest_unsigned(labels) < classes:
        return
    bad = (labels < 0) | (labels >= classes)
    if ignore_index is not None:
        bad &= labels != ignore_index
        if reduction == "mean" and bool((labels == ignore_index).all()):
            raise ValueError(f"cross_entropy: every label is ignore_index {ignore_index}: the mean is not defined")
    if bool(bad.any()):
        wrong = labels[bad].reshape(-1)[0]
        raise ValueError(f"cross_entropy: label {int(wrong)} is out of range for {classes} classes")


def _largest_unsigned(labels: np.ndarray) -> int:
    """The largest label, those below 0 being the largest of all."""
    return int(np.maximum.reduce(labels.view(_UNSIGNED[labels.dtype.itemsize]), None))


def cross_entropy(
    logits: Any,
    labels: Any,
    *,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
) -> Any:
    """Cross-entropy -log softmax(logits)[label], from logits (no softmax before it).

    logits: (..., C) floating point. labels: (...) integers in [0, C). Rows whose label is `ignore_index` count
    neither in the loss nor in its mean. `label_smoothing` s mixes the target with the uniform one. Returns a 0-d
    array, or (...) for reduction="none", in nats.

    Raises TypeError for other dtypes; ValueError for shapes that do not fit, labels out of range, a mean over
    nothing, unknown reductions. For labels on a GPU, which are not waited for, a row whose label is out of range has a
    loss and a gradient of NaN instead, and a mean over ignored rows alone is NaN; `gl.detect_anomaly` raises there too.

    >>> import gradlib as gl, numpy as np
    >>> round(float(gl.cross_entropy(np.zeros((1, 4)), np.array([2]))), 6)
    1.386294
    """
    logits, labels = adopt(logits), adopt(labels)
    _check(logits, labels, reduction, ignore_index, label_smoothing)
    return _cross_entropy(
        logits, labels, reduction=reduction, ignore_index=ignore_index, label_smoothing=float(label_smoothing)
    )
