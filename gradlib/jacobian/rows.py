"""The Jacobian by parameters of a function that holds a batch as a constant: `gl.jacobian(lambda p: net(p, x))(p)`.

Row b of the result depends on the parameters and on row b of x alone, though x is no argument. So constants whose
first axis is as long as the result's are taken for batched, and the axis is followed through the graph. If it arrives
as the first axis of every result with no samples mixed, then row b of them is a function of shared values and of row b
of those constants, whatever they were meant to be; one cotangent an output of one sample, kept apart for each sample,
gives the whole Jacobian (B, *out, *param) = (*out, *in) with B times fewer rows. If not, it is swept as any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any

from ..op import Op, shape_of
from ..ops.batching import Tag
from ..trace import Trace
from ..transforms import Outputs, Primals, run
from .apart import separable
from .batched_work import BatchedWork
from .dense_work import DenseWork
from .tags import follow

SMALL = 1e5  # entries of a sweep: one with fewer takes no longer than finding out how to make it smaller


class ShapedTrace(Trace):
    """A trace that keeps the shapes of all inputs, as one of samples does."""

    __slots__ = ()

    def record(self, op: Op, xp: Any, static: dict, saved: tuple, slots: list, vals: Sequence, y: Any) -> Any:
        result = super().record(op, xp, static, saved, slots, vals, y)
        self.nodes[-1] = self.nodes[-1]._replace(shapes=tuple([shape_of(v) for v in vals]))
        return result


def run_shaped(name: str, f: Callable[..., Any], primals: tuple) -> tuple[Primals, Outputs]:
    """Call f on traced primals, once."""
    return run(name, f, primals, trace=ShapedTrace())[:2]


class RowsCall:
    """A recorded call with every primal shared by the rows of its results (see ``apart.Call``)."""

    def __init__(self, inside: Primals, outputs: Outputs, samples: int, tags: list[Any]) -> None:
        self.trace, self.outputs, self.samples, self.tags = inside.trace, outputs, samples, tags
        self.leaves, self.slots = inside.leaves, list(inside.slots)
        self.shared = [True] * len(self.leaves)
        self.signature = self.known = None


class RowsWork(BatchedWork):
    """The Jacobian, its rows sample by sample; pieces are rows of the flattened results as of any `jacobian`."""

    def __init__(self, call: RowsCall, dense: DenseWork) -> None:
        given: Any = call  # all that is asked of a `Batched` but `rebuild`
        super().__init__(given, "rev", dense.budget, dense.several)
        self.dense = dense

    def rebuild(self, leaves: list[Any]) -> Any:
        return self.dense.rebuild(leaves)

    def pieces(self) -> Iterator[tuple[slice, Any]]:
        return self.dense.pieces()


def by_rows(dense: DenseWork) -> DenseWork | RowsWork:
    """The cheaper way to make a Jacobian whose call was recorded by `run_shaped`: row by row where it can be."""
    swept = min(sum(dense.n_outs), sum(dense.n_ins)) * sum([prod(shape) for shape, _ in dense.inside.trace.outs])
    call = rows_call(dense.inside, dense.outputs) if swept >= SMALL else None
    if call is None:
        return dense
    work = RowsWork(call, dense)
    least = [c.seconds(n) for way, (n, c) in dense.costs().items() if dense.mode in (way, "auto", "mixed")]
    chain = dense.scheduled(dense.limit())
    if chain is not None:
        least.append(chain.step.cost)
    count, cost = work.costs()["rev"]
    fits = cost.peak + cost.sample <= work.limit()
    return work if fits and cost.seconds(count) < min(least) else dense


def rows_call(inside: Primals, outputs: Outputs) -> RowsCall | None:
    """The call with the batch axis of its constants followed, None where the results do not have it first."""
    shapes = [shape_of(y) for y in outputs.values]
    samples = shapes[0][0] if shapes and shapes[0] else 0
    if samples < 2 or any(s[:1] != (samples,) for s in shapes):
        return None

    def constant(shape: tuple[int, ...]) -> Tag | None:
        return Tag(-len(shape)) if shape[:1] == (samples,) else None

    tags = follow(inside.trace, {}, constant)
    for slot, shape in zip(outputs.slots, shapes, strict=True):
        if slot is not None and tags[slot] != Tag(-len(shape)):
            return None
    call = RowsCall(inside, outputs, samples, tags)
    return call if separable(call) else None
