"""A recorded call cut over the batch: the call of some samples, by slices of what its ops saved for all of them.

Nothing is run again and nothing is copied: where the batch axis of an op's result is known, and the op is one of those
listed here, it is known of all that the op saved, and a slice of it is a view. Calls with other ops (of a checkpoint,
of rules of your own) are not cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from math import prod
from typing import TYPE_CHECKING, Any

from ..device import array_module
from ..kept import FORMS, Form
from ..op import shape_of
from ..ops.batching import Tag, elementwise_batch
from ..ops.index import ARRAY
from ..trace import Node

if TYPE_CHECKING:
    from .batched import Batched

#: Saved are arrays that line up with the result from the right, of size 1 or without an axis where all samples share.
ALIGNED = frozenset({"softmax", "masked_softmax", "log_softmax", "layer_norm", "rms_norm", "concatenate", "solve"})
#: Saved are arrays that line up so with the argument.
REDUCING = frozenset(
    {"sum", "mean", "max", "min", "prod", "p_norm", "sort", "cumsum", "cumprod", "transpose", "flip", "roll", "astype"}
    | {"tril", "triu"}
)
#: The same, and the static `shape` is that of the result.
SHAPING = frozenset({"reshape", "broadcast_to"})
#: Saved are arrays with the leading axes of the argument, an array of matrices: its own axes number 0 to 2.
MATRICES = frozenset({"cholesky", "eigh", "qr", "svd", "inv", "det", "slogdet", "pinv", "complement"})
#: Saved are, last, (seed, counter, like) of a random mask, and before them arrays that line up with the result.
DRAWING = frozenset({"dropout", "bias_dropout_add"})

NONE = Tag(-100, 1)  # an axis that no array has


def part(call: Batched, first: int, last: int) -> Batched:
    """The call of the samples first..last alone, of a call that is `cuttable`."""
    found = copy(call)
    found.samples, found.known, found.signature = last - first, None, None
    found.trace, found.outputs = copy(call.trace), copy(call.outputs)
    found.trace.outs = [
        FORMS[_size(shape, tag, found.samples), dtype]
        for (shape, dtype), tag in zip(call.trace.outs, call.tags, strict=True)
    ]
    found.trace.nodes = [_cut(node, call, first, last) for node in call.trace.nodes]
    found.outputs.values = [y[first:last] for y in call.outputs.values]
    found.leaves = [x if shared else x[first:last] for x, shared in zip(call.leaves, call.shared, strict=True)]
    return found


def cuttable(call: Batched) -> bool:
    """Whether a call can be cut: each result has the batch first, and each op is one that is listed here."""
    for slot in call.outputs.slots:
        if slot is not None and call.tags[slot] != Tag(-len(call.trace.outs[slot][0]), 1):
            return False
    return call.samples > 1 and call.trace.watcher is None and all([_cuts(n, call) for n in call.trace.nodes])


def _cuts(node: Node, call: Batched) -> bool:
    """Whether it is known where the batch axis is in all that a node saved; of any that no sweep goes through."""
    tag = call.tags[node.slot]
    if tag is None or node.op.vjp is None:
        return True
    places = _axes(node, tag, call) if type(tag) is Tag else None
    if places is None or any(array_module(x) is not None for x in node.static.values()):
        return False
    return all([_fits(node, k, call, place) for k, place in enumerate(places)])


def _fits(node: Node, k: int, call: Batched, place: Tag) -> bool:
    """Whether place k of `saved` has no batch axis there or that of all samples, and then is no value that they share:
    of one that has a row for each sample, the derivative has all rows."""
    x, size = node.saved[k], place.rows * call.samples
    shape = shape_of(x)
    if type(x) in (tuple, list) or (len(shape) >= -place.axis and shape[place.axis] not in (1, size)):
        return False
    shared = k < len(node.inputs) and node.inputs[k] >= 0 and call.tags[node.inputs[k]] is None
    return not (shared and shape == node.shapes[k] and len(shape) >= -place.axis and shape[place.axis] == size)


def _axes(node: Node, tag: Tag, call: Batched) -> Sequence[Tag] | None:
    """The batch axis of each saved array, where it has one of the size of the whole batch; None if that is untold."""
    name, count = node.op.name, len(node.saved)
    if node.outputs and name not in MATRICES:
        return None
    if node.op.batch is elementwise_batch or name in ALIGNED:
        return [tag] * count
    if name in DRAWING:  # a mask counts its entries in C order: those of some samples follow each other
        first = node.saved[-3] is None or tag.axis == -len(call.trace.outs[node.slot][0])
        return [*[tag] * (count - 3), NONE, NONE, tag] if first else None
    if name == "embedding":  # (ids, table)
        return [Tag(tag.axis + 1, tag.rows), NONE]
    if name == "linear":  # (x, w, b, z, y)
        return [tag, NONE, NONE, tag, tag]
    if name == "matmul":  # leading axes line up; rows are those of a, columns those of b
        return [NONE if tag.axis == -1 else tag, NONE if tag.axis == -2 else tag]
    if name == "einsum":
        letter, terms = node.static["out"][tag.axis], node.static["terms"]
        return [Tag(t.index(letter) - len(t), tag.rows) if letter in t else NONE for t in terms]
    if name == "cross_entropy":  # gradients of the rows, and 1
        return [Tag(tag.axis - 1, tag.rows), NONE]
    given, *others = [call.tags[i] if i >= 0 else None for i in node.inputs] or [None]
    if name == "getitem":
        return _picked(node, given, next((t for t in others if t is not None), NONE))
    if type(given) is not Tag:
        return None
    if name == "logsumexp":  # (x, y)
        return [given, tag]
    if name in REDUCING or name in SHAPING:
        return [given] * count
    if name in MATRICES:
        at = len(node.shapes[0]) + given.axis
        return [Tag(at - len(shape_of(x)), given.rows) for x in node.saved]
    return None


def _picked(node: Node, given: Tag | None, line: Tag) -> list[Tag]:
    """Of x[index], saved (x, *arrays), by the batch axes of x and of the arrays, which line up among themselves."""
    _, *arrays = node.saved
    if given is None:  # rows of a table, picked for each sample
        return [NONE, *[line] * len(arrays)]
    if not _counting(node, given):  # all samples alike
        return [given, *[NONE] * len(arrays)]
    return [given, *[Tag(-max([len(a.shape) for a in arrays]), 1)] * len(arrays)]


def _counting(node: Node, given: Tag | None) -> int:
    """The place in `saved` of the index array that counts the samples, 0, 1, 2, …; 0 where there is none."""
    if node.op.name != "getitem" or given is None:
        return 0
    entries = [e for e in node.static["template"] if e is not None]
    at = len(node.shapes[0]) + given.axis
    return 1 + entries[:at].count(ARRAY) if entries[at] is ARRAY else 0


def _cut(node: Node, call: Batched, first: int, last: int) -> Node:
    """The node of the samples first..last."""
    tag, name, static = call.tags[node.slot], node.op.name, node.static
    if type(tag) is not Tag or node.op.vjp is None:
        return node
    places: Any = _axes(node, tag, call)
    saved = [_slice(x, t, call.samples, first, last) for x, t in zip(node.saved, places, strict=True)]
    counting = _counting(node, call.tags[node.inputs[0]] if node.inputs[0] >= 0 else None)
    if counting:  # each part counts its samples from 0
        saved[counting] = node.saved[counting][: last - first]
    if name in SHAPING:
        static = {**static, "shape": _size(static["shape"], tag, last - first)}
    elif name in DRAWING and saved[-3] is not None:
        skipped = first * tag.rows * prod(call.trace.outs[node.slot][0][1:])  # beside those of a larger call's part
        static = {**static, "first": static.get("first", 0) + skipped}
    return node._replace(saved=tuple(saved), static=static)


def _slice(x: Any, tag: Tag, samples: int, first: int, last: int) -> Any:
    """The rows of the samples first..last of an array or a form, where it has the batch axis."""
    axis, rows = tag
    shape = shape_of(x)
    if len(shape) < -axis or shape[axis] != samples * rows:
        return x
    if type(x) is Form:
        return FORMS[_size(shape, tag, last - first), x.dtype]
    return x[(..., slice(first * rows, last * rows), *(slice(None),) * (-axis - 1))]


def _size(shape: tuple[int, ...], tag: Any, samples: int) -> tuple[int, ...]:
    """The shape of a value with that batch axis for so many samples."""
    if type(tag) is not Tag:
        return shape
    at = len(shape) + tag.axis
    return (*shape[:at], samples * tag.rows, *shape[at + 1 :])
