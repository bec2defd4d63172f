"""What a GPU benchmark case is: arrays, what each library does with them, how the result is checked, what it moves."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

CALLS = 3  # before the values are compared: gl.capture and torch record in the first, what is replayed comes later
PERIOD = 1_000_003  # random numbers that are drawn; a prime, so that no two rows near each other are the same

Arrays = dict[str, np.ndarray]
Build = Callable[[dict[str, Any]], Callable[[], Any]]  # arrays where they are wanted -> what is timed


@dataclass(frozen=True)
class Case:
    """One operation at one size.

    contenders: "gradlib" and peers, each builds what is timed from arrays on its device; the first word of a name is
    the library whose process it runs in. reference: of the arrays (large ones in float32: see `some`) and the numbers
    of some rows, what the result should be in those rows, in float64. moved: bytes that have to be read and written at
    least; None where bytes are not what limits it. operations: of floating point, for the roofline. before: the name of
    the array that the result is a small change of; each call changes it further, and the reference is of CALLS calls.
    drawn: the result depends on random numbers of the library; the reference takes the result in those rows, too.
    """

    name: str
    family: str
    make: Callable[..., Arrays]
    contenders: dict[str, Build]
    reference: Callable[..., list[np.ndarray]]
    sizes: dict[str, Any]
    tiny: dict[str, Any]
    moved: Callable[[Arrays], int] | None = None
    operations: Callable[[Arrays], int] | None = None
    tolerance: float = 1e-4
    before: str | None = None
    drawn: bool = False

    def arrays(self, tiny: bool) -> Arrays:
        """The inputs, the same in every process."""
        return self.make(np.random.default_rng(0), **(self.tiny if tiny else self.sizes))


def spread(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Normal float32 numbers, drawn once and repeated where there are many: all of them would take seconds."""
    drawn = rng.standard_normal(min(math.prod(shape), PERIOD), np.float32)
    return np.resize(drawn, shape)


def some(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Some rows in float64."""
    return x[rows].astype(float)


def some_rows(count: int) -> np.ndarray:
    """Row numbers to check: the ends and a sample between."""
    inner = np.random.default_rng(1).integers(0, count, min(count, 32))
    return np.unique(np.concatenate([np.arange(min(count, 8)), np.arange(max(count - 8, 0), count), inner]))


def deviation(got: list[Any], want: list[np.ndarray], rows: np.ndarray, before: np.ndarray | None = None) -> float:
    """Largest error of a row, max|a - b| / max|b|, over the arrays; inf for nan. Rows of zeros count by themselves.

    Arrays with more rows than `want` are reduced to `rows`. `before`: what the results were changed from, in those
    rows; the changes are compared then.
    """
    worst = 0.0
    for a, b in zip(got, want, strict=True):
        a = on_host(a[rows] if a.shape != b.shape else a).astype(np.float64)
        if a.shape != b.shape:
            raise ValueError(f"expected shape {b.shape}, got {a.shape}")
        if before is not None:
            a, b = a - before, b - before
        axes = tuple(range(1, b.ndim))
        scale, error = np.abs(b).max(axes, initial=0), np.abs(a - b).max(axes, initial=0)
        errors = error / np.where(scale == 0, 1, scale)
        worst = max(worst, float(errors.max(initial=0))) if np.isfinite(errors).all() else float("inf")
    return worst


def on_host(x: Any) -> np.ndarray:
    """An array of any of the libraries as NumPy's."""
    if hasattr(x, "detach"):
        x = x.detach().cpu()
        x = x.float() if "bfloat16" in str(x.dtype) else x
    elif hasattr(x, "get"):
        x = x.get()
    return np.asarray(x)


def listed(result: Any) -> list[Any]:
    """The arrays of a result: of an array, or of nested lists, tuples and dicts of them, in order."""
    if isinstance(result, dict):
        result = [result[k] for k in sorted(result)]
    if isinstance(result, (list, tuple)):
        return [x for part in result for x in listed(part)]
    return [result]
