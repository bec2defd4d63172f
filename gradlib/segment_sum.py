"""Sums of the entries that go to the same place: the transpose of picking by an index that may repeat itself."""

from __future__ import annotations

from typing import Any


def segment_sum(xp: Any, d: Any, at: Any, out: Any) -> Any:
    """out[..., k] = the sum of d[..., i] over all at[i] = k; places `at` (n,), out: zeros of all places, written to.

    Without atomics: sorted by place, then each run summed, in the same order every time.
    """
    if not at.size or not d.size:
        return out
    order = xp.argsort(at, kind="stable")
    sorted_at = at[order]
    first = xp.concatenate([xp.ones(1, bool), sorted_at[1:] != sorted_at[:-1]])
    starts = xp.nonzero(first)[0]
    if starts.size == at.size:
        out[..., at] = d
    else:
        out[..., sorted_at[starts]] = xp.add.reduceat(d[..., order], starts, axis=-1)
    return out
