"""Choosing a sweep, its direction and how many rows of the stack it takes at once, within a budget."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from .budget import Budget
from .cost import Cost
from .explain import Option


class Sweep(NamedTuple):
    """A direction, the rows and samples at a time and the bytes they take, and all directions that were compared."""

    mode: str
    rows: int
    samples: int
    peak: int
    options: tuple[Option, ...]


def choose(
    mode: str,
    costs: dict[str, tuple[int, Cost]],
    budget: Budget,
    limits: tuple[int, int],
    result_bytes: int,
    samples: int = 1,
) -> Sweep:
    """The cheaper direction of those that `mode` allows. costs: direction -> (rows of the stack, what one takes).

    `limits`: bytes of working memory in all, and those that rows are added up to (what the cache holds).

    Raises ValueError where one row needs more than the caller's limit in any of them.
    """
    limit, cache = limits
    options = [_option(way, total, cost, limit, result_bytes) for way, (total, cost) in costs.items()]
    allowed = [o for o in options if mode in ("auto", "mixed", o.mode)] or options
    fitting = [o for o in allowed if o.fits] or [min(allowed, key=lambda o: _least(costs[o.mode][1]))]
    best = min(fitting, key=lambda o: o.seconds)
    total, cost = costs[best.mode]
    least = _least(cost)
    budget.check(limit, least, f"one row of {samples} samples" if samples > 1 else "one row (or column)")
    all_samples = max(1, int(cost.peak + samples * cost.sample))
    rows = max(1, min(total, budget.chunk_size or total, min(limit, cache) // all_samples))
    if cost.sample and rows * all_samples > limit:
        samples = max(1, min(samples, int((limit - cost.peak) // cost.sample)))
    return Sweep(best.mode, rows, samples, int(rows * (cost.peak + samples * cost.sample)), tuple(options))


def _least(cost: Cost) -> int:
    return int(cost.peak + cost.sample)


def _option(way: str, total: int, cost: Cost, limit: int, result_bytes: int) -> Option:
    """All rows of one direction; the result is written once, ahead in another order than that of its memory."""
    name = "back from every output" if way == "rev" else "ahead from every input"
    written = result_bytes * (1 if way == "rev" else 2)
    how = f"{name}, a stack of {total} in all"
    return Option(way, how, total * cost.flops, total * cost.bytes + written, _least(cost) <= limit)


def chunks(total: int, rows: int) -> Iterator[tuple[int, int]]:
    """0..total in ranges of at most `rows`."""
    for start in range(0, total, rows):
        yield start, min(start + rows, total)


def parts(start: int, stop: int, sizes: Iterable[int]) -> Iterator[tuple[int, slice, slice]]:
    """Where start..stop falls among leaves of these sizes: (leaf, slice of start..stop, slice of the leaf)."""
    at = 0
    for i, n in enumerate(sizes):
        first, last = max(start, at), min(stop, at + n)
        if first < last:
            yield i, slice(first - start, last - start), slice(first - at, last - at)
        at += n


def spans(sizes: Iterable[int]) -> Iterator[tuple[int, slice]]:
    """Every leaf with its slice of all entries."""
    at = 0
    for i, n in enumerate(sizes):
        yield i, slice(at, at + n)
        at += n
