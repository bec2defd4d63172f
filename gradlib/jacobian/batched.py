"""Jacobians sample by sample: batch_jacobian and per_sample_grad.

The function works on the whole batch and is called once. Where no samples mix, the cotangent e_v of every sample can
travel in one stack: V = outputs of one sample, not of the batch. How the Jacobian is made of the recorded call is in
``batched_work``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from .. import tree
from ..device import adopt, array_module
from ..op import describe, shape_of
from ..ops.batching import UNKNOWN, Tag
from ..storing import raise_hidden
from ..trace import Trace, Traced
from ..transforms import Outputs, check_float, pick
from .batched_work import BatchedWork
from .budget import budget
from .dense import check_mode
from .function import JacobianFunction
from .known import known, signature_of
from .tags import check_output, follow, probe


class Batched:
    """One traced call of a batched function: every array argument traced, batched ones tagged."""

    def __init__(self, name: str, f: Callable[..., Any], args: tuple, axes: tuple, wanted: tuple[int, ...], kw: dict):
        self.name = name
        flat = [tree.flatten(a) for a in args]
        leaves = [adopt(x) for part, _ in flat for x in part]
        owner = [i for i, (part, _) in enumerate(flat) for _ in part]
        self.samples = _batch_size(name, leaves, owner, axes, args)
        self.trace = Trace(self.samples)
        tags: dict[int, Any] = {}
        chosen: list[tuple] = []  # (place among the wanted, leaf, slot, shared)
        inputs: list[Any] = []
        for at, (x, i) in enumerate(zip(leaves, owner, strict=True)):
            if i in wanted:
                x = check_float(name, x, partial(_path, args, at))
            elif module_of_or_none(x) is None:
                inputs.append(x)
                continue
            traced = self.trace.wrap(x)
            inputs.append(traced)
            if axes[i] == 0:
                tags[traced.slot] = Tag(-len(x.shape), 1)
            if i in wanted:
                chosen.append((wanted.index(i), x, traced.slot, axes[i] is None))
        chosen.sort(key=lambda c: c[0])
        self.leaves, self.slots, self.shared = ([c[k] for c in chosen] for k in (1, 2, 3))
        try:
            self.outputs = Outputs(name, self.trace, f(*_unflatten([s for _, s in flat], inputs), **kw))
        except ValueError as error:
            raise_hidden(error, self.trace.lost)
            raise
        finally:
            self.trace.alive = False
        self.structures = [flat[i][1] for i in wanted]
        self.signature = signature_of(self, tags)
        self.known = known(self.signature)
        self.tags = follow(self.trace, tags) if self.known is None else self.known.tags
        if self.known is None:
            self._check()

    def _check(self) -> None:
        unknown: list[int] = []
        for slot, y in zip(self.outputs.slots, self.outputs.values, strict=True):
            tag = None if slot is None else self.tags[slot]
            check_output(self.name, tag, shape_of(y), self.samples)
            unknown += [slot] if slot is not None and tag == UNKNOWN else []
        batched = [(s, x) for s, x, shared in zip(self.slots, self.leaves, self.shared, strict=True) if not shared]
        if unknown:
            self.signature = None  # what is found by probing holds for these numbers alone
        if unknown and batched:
            slots, leaves = ([b[k] for b in batched] for k in (0, 1))
            probe(self.name, self.trace, self.tags, slots, leaves, unknown, self.samples)

    def rebuild(self, leaves: list[Any]) -> list[Any]:
        """Leaves of the wanted arguments as their trees."""
        return _unflatten(self.structures, leaves)


def _unflatten(structures: list[Any], leaves: list[Any]) -> list[Any]:
    """Leaves as trees of these structures, one after another."""
    rest = iter(leaves)
    return [tree.unflatten(s, [next(rest) for _ in range(s.num_leaves)]) for s in structures]


def module_of_or_none(x: Any) -> Any:
    """The array module of an argument leaf, None for what is not an array."""
    return x.module if type(x) is Traced else array_module(x)


def _path(args: tuple, at: int) -> str:
    return tree.paths(args)[at]


def _batch_size(name: str, leaves: list, owner: list, axes: tuple, args: tuple) -> int:
    """The common first axis of the batched arguments; ValueError naming the one that differs."""
    size, first = None, 0
    for at, (x, i) in enumerate(zip(leaves, owner, strict=True)):
        if axes[i] is None:
            continue
        if not shape_of(x):
            raise ValueError(
                f"{name}: expected a batch axis first in argument{tree.paths(args)[at]}, got {describe(x)}"
            )
        if size is None:
            size, first = x.shape[0], at
        elif x.shape[0] != size:
            one, other = tree.paths(args)[first], tree.paths(args)[at]
            raise ValueError(f"{name}: argument{one} has {size} samples, argument{other} has {x.shape[0]}")
    if size is None:
        raise ValueError(f"{name}: expected at least one argument with a batch axis (in_axes=0)")
    return size


def _axes(name: str, in_axes: Any, count: int) -> tuple:
    if type(in_axes) is int and in_axes == 0:
        return (0,) * count
    axes = in_axes if isinstance(in_axes, (tuple, list)) else (in_axes,) * count
    if len(axes) != count or any(a not in (0, None) for a in axes):
        raise ValueError(
            f"{name}: expected in_axes 0, None or one of them for each of {count} arguments, got {in_axes}"
        )
    return tuple(axes)


def _wanted(name: str, argnums: Any, args: tuple) -> tuple[int, ...]:
    if type(argnums) is int and 0 <= argnums < len(args):
        return (argnums,)
    pick(lambda *a: None, argnums, args, {}, name)
    return tuple(n % len(args) for n in (argnums if isinstance(argnums, tuple) else (argnums,)))


def batch_jacobian(
    f: Callable[..., Any],
    argnums: int | tuple[int, ...] = 0,
    *,
    in_axes: Any = 0,
    mode: str = "auto",
    chunk_size: int | None = None,
    max_bytes: int | str | None = None,
) -> JacobianFunction:
    """Function J that gives the Jacobian of every sample: (B, *in) -> (B, *out) becomes (B, *out, *in), C-contiguous.

    J(x) gives it, J.into(out, x) writes it into your array, J.chunks(x) iterates over (slice of the batch, piece), and
    J.plan(x) says what it will cost: `.mode`, `.flops`, `.bytes`, `.peak`; print(J.plan(x)) shows the alternatives.

    f works on the whole batch and is called once. `in_axes` says for each argument whether its first axis is the
    batch (0) or it is shared by all samples (None); a shared argument named by `argnums` gives (B, *out, *param).
    Where the graph is a chain (no value of an earlier layer is used again later), it is a product of structured
    blocks, multiplied in the cheapest order and in pieces of the batch. `mode`: "auto" and "mixed" choose the order,
    "rev" goes from the outputs to the inputs, "fwd" from the inputs to the outputs. On other graphs it is swept, in
    the cheaper of the two directions.

    Memory beyond the inputs, the result and what f itself records: `max_bytes` bounds it, an int or a text such as
    "1GB", "200 MB", "512KiB", or "auto" for a quarter of what is free; without it, it stays within 0.3 of the result
    and 8 MB. `chunk_size` bounds the rows (or columns) worked on at once. Work is cut into pieces of the batch and of
    the rows, down to a row of one sample; where an operation of f cannot be cut over the batch (`gl.checkpoint`, rules
    of your own), a row of all samples is the least. f is always called once, on the whole batch.

    Whether samples mix is told by the operations. Where one does not tell (a reshape that splits the batch axis,
    `gl.checkpoint`, rules of your own), f is probed with random derivatives, which proves it for these arguments alone.

    Raises ValueError when f mixes samples (a mean over the batch, say), naming the operation; when a result lacks the
    batch axis; when `in_axes` does not match; and when `max_bytes` is too small, saying how much is needed. TypeError
    for arguments that are not floating point.

    >>> import gradlib as gl, numpy as np
    >>> gl.batch_jacobian(np.square)(np.array([[1.0, 2.0], [3.0, 4.0]]))
    array([[[2., 0.],
            [0., 4.]],
    <BLANKLINE>
           [[6., 0.],
            [0., 8.]]])
    """
    check_mode("batch_jacobian", mode)
    allowed = budget("batch_jacobian", chunk_size, max_bytes)

    def record(args: tuple, kwargs: dict) -> BatchedWork:
        axes = _axes("batch_jacobian", in_axes, len(args))
        wanted = _wanted("batch_jacobian", argnums, args)
        if mode == "fwd" and any(axes[i] is None for i in wanted):
            raise ValueError("batch_jacobian: mode 'fwd' does not take shared arguments; use 'rev' or 'auto'")
        call = Batched("batch_jacobian", f, args, axes, wanted, kwargs)
        return BatchedWork(call, mode, allowed, isinstance(argnums, tuple))

    return JacobianFunction("batch_jacobian", f, record)


def losses(name: str, loss: Callable[..., Any], argnums: Any, in_axes: Any, args: tuple, kwargs: dict) -> Batched:
    """The traced call of a function that gives (B,), with the arguments `argnums` shared unless `in_axes` says more."""
    wanted = _wanted(name, argnums, args)
    default = tuple(None if i in wanted else 0 for i in range(len(args)))
    call = Batched(name, loss, args, _axes(name, default if in_axes is None else in_axes, len(args)), wanted, kwargs)
    values = call.outputs.values
    if len(values) != 1 or len(values[0].shape) != 1:
        raise ValueError(
            f"{name}: expected the function to return one loss a sample, shape ({call.samples},), "
            f"got {', '.join(map(describe, values)) or 'nothing'}"
        )
    return call


def per_sample_grad(
    loss: Callable[..., Any],
    argnums: int | tuple[int, ...] = 0,
    in_axes: Any = None,
    *,
    chunk_size: int | None = None,
    max_bytes: int | str | None = None,
) -> JacobianFunction:
    """Function G that gives the gradient of every sample's loss: each leaf (B, *param).

    `loss` works on the whole batch and returns (B,). By default the arguments `argnums` names are shared by all
    samples and the others batched; `in_axes` (0 or None for each argument) says otherwise.

    G is an object like that of `batch_jacobian`: G(params, x), G.into(out, params, x), G.chunks(params, x) for
    gradients larger than memory, G.plan(params, x); `chunk_size` and `max_bytes` bound the working memory as there.

    Raises ValueError when `loss` mixes samples or does not return (B,), when `in_axes` does not match the arguments,
    and when `max_bytes` is too small; TypeError for arguments that are not floating point.

    >>> import gradlib as gl, numpy as np
    >>> loss = lambda w, x: (x @ w) ** 2
    >>> gl.per_sample_grad(loss)(np.array([1.0, 1.0]), np.array([[1.0, 0.0], [0.0, 2.0]]))
    array([[2., 0.],
           [0., 8.]])
    """
    allowed = budget("per_sample_grad", chunk_size, max_bytes)

    def record(args: tuple, kwargs: dict) -> BatchedWork:
        call = losses("per_sample_grad", loss, argnums, in_axes, args, kwargs)
        return BatchedWork(call, "rev", allowed, isinstance(argnums, tuple))

    return JacobianFunction("per_sample_grad", loss, record)
