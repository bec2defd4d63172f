"""Jacobians sample by sample: batch_jacobian and per_sample_grad.

The function works on the whole batch and is called once. Where no samples mix, the cotangent e_v of every sample can
travel in one stack: V = outputs of one sample, not of the batch. Where a value shared by all samples (a parameter)
meets a batched one, its cotangent keeps the samples: (V, B) merge into the stack and the rules below run unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from math import prod
from typing import Any

from .. import tree
from ..op import describe, shape_of
from ..ops.batching import UNKNOWN, Tag
from ..trace import Trace, Traced, module_of
from ..transforms import Outputs, check_float, owned, pick
from .chain import plain_chain
from .dense import check_mode, in_chunks
from .execute import structured
from .samples import pull_samples, push_samples, sample_units
from .tags import check_output, follow, probe


class Batched:
    """One traced call of a batched function: every array argument traced, batched ones tagged."""

    def __init__(self, name: str, f: Callable[..., Any], args: tuple, axes: tuple, wanted: tuple[int, ...], kw: dict):
        self.name = name
        leaves, structure = tree.flatten(args)
        owner = [i for i, a in enumerate(args) for _ in tree.flatten(a)[0]]
        paths = tree.paths(args)
        self.samples = _batch_size(name, leaves, owner, axes, paths)
        self.trace = Trace(self.samples)
        tags: dict[int, Any] = {}
        chosen: list[tuple] = []  # (place among the wanted, leaf, slot, shared)
        inputs: list[Any] = []
        for x, i, path in zip(leaves, owner, paths, strict=True):
            if i in wanted:
                x = check_float(name, x, path.__str__)
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
            self.outputs = Outputs(name, self.trace, f(*tree.unflatten(structure, inputs), **kw))
        finally:
            self.trace.alive = False
        self.structures = [tree.flatten(args[i])[1] for i in wanted]
        self.tags = follow(self.trace, tags)
        self._check()

    def _check(self) -> None:
        unknown: list[int] = []
        for slot, y in zip(self.outputs.slots, self.outputs.values, strict=True):
            tag = None if slot is None else self.tags[slot]
            check_output(self.name, tag, shape_of(y), self.samples)
            unknown += [slot] if slot is not None and tag == UNKNOWN else []
        batched = [(s, x) for s, x, shared in zip(self.slots, self.leaves, self.shared, strict=True) if not shared]
        if unknown and batched:
            probe(self.name, self.trace, [s for s, _ in batched], [x for _, x in batched], unknown, self.samples)

    def rebuild(self, leaves: list[Any]) -> list[Any]:
        """Leaves of the wanted arguments as their trees."""
        trees, at = [], 0
        for structure in self.structures:
            n = structure.num_leaves
            trees.append(tree.unflatten(structure, leaves[at : at + n]))
            at += n
        return trees


def module_of_or_none(x: Any) -> Any:
    """The array module of an argument leaf, None for what is not an array."""
    from ..device import array_module

    return x.module if type(x) is Traced else array_module(x)


def _batch_size(name: str, leaves: list, owner: list, axes: tuple, paths: list[str]) -> int:
    """The common first axis of the batched arguments; ValueError naming the one that differs."""
    size = None
    for x, i, path in zip(leaves, owner, paths, strict=True):
        if axes[i] is None:
            continue
        if not shape_of(x):
            raise ValueError(f"{name}: expected a batch axis first in argument{path}, got {describe(x)}")
        if size is None:
            size, first = x.shape[0], path
        elif x.shape[0] != size:
            raise ValueError(f"{name}: argument{first} has {size} samples, argument{path} has {x.shape[0]}")
    if size is None:
        raise ValueError(f"{name}: expected at least one argument with a batch axis (in_axes=0)")
    return size


def _batch_first(d: Any, stack_shape: tuple[int, ...], xp: Any) -> Any:
    """[V, B, *x] with V = prod(stack_shape) -> (B, *stack_shape, *x), C-contiguous."""
    moved = xp.ascontiguousarray(xp.moveaxis(d, 0, 1))
    return moved.reshape(moved.shape[0], *stack_shape, *moved.shape[2:])


def _reverse(call: Batched, chunk_size: int | None) -> list[list[Any]]:
    values = call.outputs.values
    sizes = [prod(y.shape[1:]) for y in values]
    stacks = in_chunks(
        sum(sizes), chunk_size, lambda a, b: pull_samples(call, sample_units(call.outputs, a, b, call.samples))
    )
    rows, at = [], 0
    for y, n in zip(values, sizes, strict=True):
        rows.append([_batch_first(d[at : at + n], y.shape[1:], module_of(y)) for d in stacks])
        at += n
    return rows


def _forward(call: Batched, chunk_size: int | None) -> list[list[Any]]:
    sizes = [prod(x.shape[1:]) for x in call.leaves]
    stacks = in_chunks(sum(sizes), chunk_size, lambda a, b: push_samples(call, a, b))
    rows = []
    for d in stacks:
        xp, at, row = module_of(d), 0, []
        for x, n in zip(call.leaves, sizes, strict=True):
            part = xp.ascontiguousarray(xp.moveaxis(d[at : at + n], 0, -1))
            row.append(part.reshape((*part.shape[:-1], *x.shape[1:])))
            at += n
        rows.append(row)
    return rows


def _axes(name: str, in_axes: Any, count: int) -> tuple:
    axes = in_axes if isinstance(in_axes, (tuple, list)) else (in_axes,) * count
    if len(axes) != count or any(a not in (0, None) for a in axes):
        raise ValueError(
            f"{name}: expected in_axes 0, None or one of them for each of {count} arguments, got {in_axes}"
        )
    return tuple(axes)


def _wanted(name: str, argnums: Any, args: tuple) -> tuple[int, ...]:
    pick(lambda *a: None, argnums, args, {}, name)
    return tuple(n % len(args) for n in (argnums if isinstance(argnums, tuple) else (argnums,)))


def batch_jacobian(
    f: Callable[..., Any],
    argnums: int | tuple[int, ...] = 0,
    *,
    in_axes: Any = 0,
    mode: str = "auto",
    chunk_size: int | None = None,
) -> Callable[..., Any]:
    """Function that gives the Jacobian of every sample: (B, *in) -> (B, *out) becomes (B, *out, *in), C-contiguous.

    f works on the whole batch and is called once. `in_axes` says for each argument whether its first axis is the
    batch (0) or it is shared by all samples (None); a shared argument named by `argnums` gives (B, *out, *param).
    Where the graph is a chain (no value of an earlier layer is used again later), it is a product of structured
    blocks, multiplied in the cheapest order and in pieces of the batch. `mode`: "auto" and "mixed" choose the order,
    "rev" goes from the outputs to the inputs, "fwd" from the inputs to the outputs. `chunk_size` bounds the rows (or
    columns) swept at once.

    Raises ValueError when f mixes samples (a mean over the batch, say), naming the operation, and when a result
    lacks the batch axis.

    >>> import gradlib as gl, numpy as np
    >>> gl.batch_jacobian(np.square)(np.array([[1.0, 2.0], [3.0, 4.0]]))
    array([[[2., 0.],
            [0., 4.]],
    <BLANKLINE>
           [[6., 0.],
            [0., 8.]]])
    """
    check_mode("batch_jacobian", mode, chunk_size)

    @wraps(f)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        axes = _axes("batch_jacobian", in_axes, len(args))
        wanted = _wanted("batch_jacobian", argnums, args)
        call = Batched("batch_jacobian", f, args, axes, wanted, kwargs)
        entries_in = sum(prod(x.shape[1:]) for x in call.leaves)
        entries_out = sum(prod(y.shape[1:]) for y in call.outputs.values)
        forward = mode == "fwd" or (mode == "auto" and entries_in < entries_out)
        segments = None if chunk_size is not None else plain_chain(call)
        if segments is not None:
            j = structured(segments, call.leaves[0], call.outputs.values[0], mode)
            return tree.unflatten(call.outputs.structure, [call.rebuild([j])[0]])
        if any(call.shared) or not call.samples:
            if mode == "fwd" and any(call.shared):
                raise ValueError("batch_jacobian: mode 'fwd' does not take shared arguments; use 'rev' or 'auto'")
            forward = False
        rows = (_forward if forward else _reverse)(call, chunk_size)
        trees = [call.rebuild(row) for row in rows]
        leaves = [tuple(t) if isinstance(argnums, tuple) else t[0] for t in trees]
        return tree.unflatten(call.outputs.structure, leaves)

    return wrapped


def per_sample_grad(loss: Callable[..., Any], argnums: int | tuple[int, ...] = 0, in_axes: Any = None) -> Any:
    """Function that gives the gradient of every sample's loss: each leaf (B, *param).

    `loss` works on the whole batch and returns (B,). By default the arguments `argnums` names are shared by all
    samples and the others batched; `in_axes` (0 or None for each argument) says otherwise.

    >>> import gradlib as gl, numpy as np
    >>> loss = lambda w, x: (x @ w) ** 2
    >>> gl.per_sample_grad(loss)(np.array([1.0, 1.0]), np.array([[1.0, 0.0], [0.0, 2.0]]))
    array([[2., 0.],
           [0., 8.]])
    """

    @wraps(loss)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        wanted = _wanted("per_sample_grad", argnums, args)
        default = tuple(None if i in wanted else 0 for i in range(len(args)))
        axes = _axes("per_sample_grad", default if in_axes is None else in_axes, len(args))
        call = Batched("per_sample_grad", loss, args, axes, wanted, kwargs)
        for y in call.outputs.values:
            if len(y.shape) != 1 or len(call.outputs.values) != 1:
                raise ValueError(
                    f"per_sample_grad: expected the function to return one loss a sample, shape ({call.samples},), "
                    f"got {', '.join(map(describe, call.outputs.values))}"
                )
        ones = [module_of(y).ones((1, *y.shape), y.dtype) for y in call.outputs.values]
        trees = call.rebuild([d[0] for d in owned(pull_samples(call, ones), [])])
        return tuple(trees) if isinstance(argnums, tuple) else trees[0]

    return wrapped
