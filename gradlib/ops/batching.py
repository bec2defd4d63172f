"""Where an op's batch axis goes: the `batch` rules that several ops share.

A tag is None (the value is shared by all samples), `Tag(axis, rows)` (the batch axis, counted from the right: -1 is
the last; each sample owns `rows` consecutive entries of it), `Mixed(op, why)` (entries depend on several samples) or
UNKNOWN (an op without a rule was met). Rules see only None and Tag: the walk over the graph handles the rest.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Tag(NamedTuple):
    """The batch axis of a value, counted from the right, and the rows of it that each sample owns."""

    axis: int
    rows: int = 1


class Mixed(NamedTuple):
    """Entries of the value depend on several samples, since `op` did what `why` says."""

    op: str
    why: str


UNKNOWN = "unknown"


def agree(tags: tuple, op: str) -> Any:
    """The one tag of operands that line up from the right, or Mixed."""
    found = None
    for tag in tags:
        if tag is None or tag == found:
            continue
        if found is not None:
            return Mixed(op, "combines the batch axis of one argument with another axis")
        found = tag
    return found


def elementwise_batch(tags: tuple, shapes: tuple, static: dict) -> Any:
    """Broadcast operands line up from the right, so the axis stays where it is."""
    tag = agree(tags, "an elementwise function")
    if tag is None or type(tag) is Mixed:
        return tag
    sizes = {s[tag.axis] for t, s in zip(tags, shapes, strict=True) if t is None and len(s) >= -tag.axis}
    batch = next(s[tag.axis] for t, s in zip(tags, shapes, strict=True) if t is not None)
    if batch == 1 and sizes - {1}:
        return Mixed("an elementwise function", "repeats the one sample by broadcasting")
    return tag


def same_axes_batch(name: str, axis_of: Any) -> Any:
    """The rule of an op on one array whose result has its shape and that works along `axis_of(static)`."""

    def batch(tags: tuple, shapes: tuple, static: dict) -> Any:
        tag, axis = tags[0], axis_of(static)
        if tag is not None and axis - len(shapes[0]) == tag.axis:
            return Mixed(name, "works along the batch axis")
        return tag

    return batch


def reduction_batch(name: str) -> Any:
    """The rule of a reduction with statics `axis` (a sorted tuple) and `keepdims`."""

    def batch(tags: tuple, shapes: tuple, static: dict) -> Any:
        tag, ndim = tags[0], len(shapes[0])
        if tag is None:
            return None
        at = ndim + tag.axis
        if at in static["axis"]:
            return Mixed(name, "reduces over the batch axis")
        if static["keepdims"]:
            return tag
        return Tag(tag.axis + sum(a > at for a in static["axis"]), tag.rows)

    return batch
