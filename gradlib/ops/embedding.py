"""embedding: rows of a table by index, and its transpose, the sum of rows by index.

    y[..., :] = table[ids[...], :]        dtable[k, :] = Σ dy[j, :] over the places j with ids[j] = k

As a matrix, y = S table with one 1 a row of S: the sparse products of `csr` are its derivatives, and each other's, at
any order. Rows of equal ids are added in the order of the ids, so results are bit-identical from run to run.

Ids are checked on the host only where the host has them: on a GPU it would have to wait for the device. There an id
that names no row gives a row of NaN, and takes no part in the table's gradient.
"""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Any

import numpy as np

from ..capture import effect
from ..device import adopt, array_module
from ..jacobian.blocks import ByRules
from ..jacobian.factors import Gathered, by_sample
from ..op import Op, describe, shape_of
from ..precision import is_floating, narrow, wide
from ..trace import WATCHER, Namespace, Traced
from .batching import Mixed, Tag
from .csr import stacked_transposed


def _forward(xp: Any, ids: Any, table: Any) -> tuple:
    if type(xp) is Namespace:  # traced: recorded one level down as itself
        return _embedding(ids, table), (ids, table)
    return table[ids] if xp is np else _picked(xp, table[None], ids)[0], (ids, table)


def _within(xp: Any, ids: Any, rows: int) -> tuple[Any, Any]:
    """(ids that all name a row, which of them named none before); None where they were checked, on the host."""
    if xp is np or getattr(xp, "module", None) is np:
        return ids, None
    ids = ids.astype("int64")
    outside = xp.logical_or(xp.less(ids, 0), xp.greater_equal(ids, rows))
    return xp.where(outside, 0, ids), xp.expand_dims(outside, -1)


def _picked(xp: Any, table: Any, ids: Any) -> Any:
    """table[:, ids] of a stack [V, K, D], with NaN for ids that name no row."""
    ids, outside = _within(xp, ids, table.shape[1])
    y = table[:, ids]
    return y if outside is None else narrow(xp.where(outside, np.nan, wide(y)), y.dtype)


def _counted(xp: Any, ids: Any, dy: Any, rows: int) -> tuple[Any, Any]:
    """(ids, dy) of which nothing is lost but what belongs to ids that name no row."""
    ids, outside = _within(xp, ids, rows)
    return ids, dy if outside is None else narrow(xp.where(outside, 0, wide(dy)), dy.dtype)


def _summed(xp: Any, ids: Any, dy: Any, rows: int) -> Any:
    """Rows of a stack dy [V, *ids, D] added up by id: [V, rows, D]; float16 and bfloat16 are added in float32."""
    dtype, dy = dy.dtype, wide(dy)
    n, width = ids.size, dy.shape[-1]
    ones, starts = xp.ones(n, dy.dtype), xp.arange(n + 1)
    d = xp.reshape(dy, (dy.shape[0], n, width))
    return narrow(stacked_transposed(xp, ones, ids.reshape(-1), starts, d, rows), dtype)


def _vjp(xp: Any, saved: tuple, dy: Any, need: tuple) -> tuple:
    ids, table = saved
    rows = table.shape[0]
    return None, _summed(xp, *_counted(xp, ids, dy, rows), rows) if need[1] else None


def _jvp(xp: Any, saved: tuple, dx: tuple) -> Any:
    return _picked(xp, dx[1], saved[0])


def _vjp_each(xp: Any, saved: tuple, dy: Any, need: tuple, axis: int) -> tuple:
    """Per-sample cotangents of the table: those of the rows that a sample picked, with their ids."""
    ids, table = saved
    ids, dy = _counted(xp, ids, dy, table.shape[0])
    ids, d = by_sample(ids, axis + 1, 0), by_sample(dy, axis, 1)
    (v, b), r = d.shape[:2], prod(ids.shape[1:])

    def add_up(tall: Any, rows: Any, count: int) -> Any:
        return _summed(xp, tall, rows, count)

    return None, Gathered(ids.reshape((b, r)), d.reshape((v, b, r, table.shape[1])), table.shape, add_up)


def _block(xp: Any, saved: tuple, i: int) -> Any:
    ids, table = saved
    if i == 0:
        return None
    shapes = table.shape, (*ids.shape, table.shape[1])
    return ByRules(
        table, shapes, lambda dy: _vjp(xp, saved, dy, (False, True))[1], lambda dx: _jvp(xp, saved, (None, dx))
    )


def _batch(tags: tuple, shapes: tuple, static: dict) -> Any:
    if tags[1]:
        return Mixed("embedding", "takes a table that differs between samples; index it with np.take_along_axis")
    return Tag(tags[0].axis - 1, tags[0].rows)


_embedding = Op("embedding", forward=_forward, vjp=_vjp, jvp=_jvp, vjp_each=_vjp_each, block=_block, batch=_batch)


def _check(ids: Any, table: Any) -> None:
    if not hasattr(ids, "dtype") or ids.dtype.kind not in "iu":
        raise TypeError(f"embedding: expected an integer array as ids, got {describe(ids)}")
    if not hasattr(table, "dtype") or not is_floating(table.dtype):
        raise TypeError(f"embedding: expected a floating-point table, got {describe(table)}")
    if len(shape_of(table)) != 2:
        raise ValueError(f"embedding: expected a table of shape (K, D), got {describe(table)}")
    while type(ids) is Traced and ids.owner.unit is None:  # a capture's trace stays: each replay checks its own ids
        ids = ids.value
    effect(partial(_check_range, rows=table.shape[0]), ids)


def _check_range(ids: Any, rows: int) -> None:
    """On a GPU only under `gl.detect_anomaly`, since it waits for the device, or where every id is wrong."""
    if not ids.size or (type(ids) is not np.ndarray and array_module(ids) is not np and rows and not WATCHER.get()):
        return
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= rows:
        raise IndexError(f"embedding: id {low if low < 0 else high} is out of range for a table of {rows} rows")


def embedding(ids: Any, table: Any) -> Any:
    """table[ids]: the rows of a table of K vectors at integer ids.

    ids: integers in [0, K), any shape (...). table: (K, D) floating point. Returns (..., D), of the table's dtype.
    Negative ids are errors, as in torch; the table's gradient is dense, (K, D).

    Raises TypeError for other dtypes, ValueError for a table that is no matrix, IndexError for ids out of range. Ids on
    a GPU are not waited for: there an id out of range gives a row of NaN and takes no part in the gradient;
    `gl.detect_anomaly` raises there too.

    >>> import gradlib as gl, numpy as np
    >>> table = np.array([[0.0, 1.0], [2.0, 3.0]])
    >>> gl.embedding(np.array([1, 1, 0]), table)
    array([[2., 3.],
           [2., 3.],
           [0., 1.]])
    >>> gl.grad(lambda table: np.sum(gl.embedding(np.array([1, 1, 0]), table)))(table)
    array([[1., 1.],
           [2., 2.]])
    """
    ids, table = adopt(ids), adopt(table)
    _check(ids, table)
    return _embedding(ids, table)
