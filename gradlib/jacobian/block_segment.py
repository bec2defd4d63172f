"""The part of a chain that any block can be: applied to stacks of the whole batch by the block's own methods."""

from __future__ import annotations

from copy import copy
from typing import Any

from .blocks import Block
from .segments import Segment, replaced


class BlockSegment(Segment):
    """A block from samples to samples: the first axis of x and y is the batch, and y_b is made of x_b.

    Its arrays are whatever the block holds as attributes, alone or in tuples.
    """

    whole_batch = True

    def __init__(self, block: Block) -> None:
        super().__init__(block.x_shape[1:], block.y_shape[1:])
        self.block, self.kind = block, type(block).__name__

    def back(self, m: Any, at: slice, out: Any = None) -> Any:
        return _sample_first(self.block.vjp(_stack_first(m, self.y)), self.n_in)

    def ahead(self, m: Any, at: slice, out: Any = None) -> Any:
        return _sample_first(self.block.jvp(_stack_first(m, self.x)), self.n_out)

    def arrays(self) -> tuple:
        return tuple(vars(self.block).values())

    def with_arrays(self, arrays: tuple) -> Segment:
        block = copy(self.block)
        vars(block).update(zip(vars(self.block), arrays, strict=True))
        return replaced(self, block=block)

    def all_arrays(self) -> list[Any]:
        """The arrays alone, in one list."""
        values = [v for held in self.arrays() for v in (held if isinstance(held, (tuple, list)) else (held,))]
        return [v for v in values if getattr(v, "ndim", 0) > 0]

    def flops(self) -> float:
        return self.block.flops() / max(self.block.x_shape[0], 1)


def has_segment(block: Block) -> bool:
    """Whether a block goes from samples to samples, and all it holds is seen: no functions, no other blocks."""
    held = vars(block).values()
    lasting = not any(callable(v) or isinstance(v, Block) for v in held)
    return lasting and len(block.x_shape) > 0 and block.x_shape[:1] == block.y_shape[:1]


def _stack_first(m: Any, shape: tuple[int, ...]) -> Any:
    """(B, V, n) -> (V, B, *shape)."""
    return m.swapaxes(0, 1).reshape((m.shape[1], m.shape[0], *shape))


def _sample_first(d: Any, n: int) -> Any:
    """(V, B, ...) -> (B, V, n)."""
    return d.reshape((*d.shape[:2], n)).swapaxes(0, 1)
