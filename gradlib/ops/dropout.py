"""Dropout on a counter-based generator: the same mask on every device, recomputed in the backward pass, never stored.

    u = Philox4x32-10(counter = (e // 4, call), key = seed)[e % 4]    for the e-th element in C order
    y = x · (u ≥ rate · 2³²) / (1 - rate)

Sources: Srivastava et al. 2014, "Dropout"; Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from math import prod
from typing import Any

import numpy as np

from ..capture import copied, effect, recorded
from ..device import adopt
from ..jacobian.blocks import Diagonal
from ..op import Op, describe
from ..precision import is_floating, narrow, wide, working
from ..trace import Namespace, module_of

# Multipliers of the two products, and the Weyl increments of the two key words.
_M = (0xD2511F53, 0xCD9E8D57)
_W = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF
PIECE = 1 << 11  # counters to work on at a time on the CPU: what its cache holds


def philox(xp: Any, counter: tuple[Any, Any, Any, Any], key: tuple[Any, Any]) -> tuple[Any, Any, Any, Any]:
    """Philox4x32-10 on uint64 arrays that hold 32-bit words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    low, shift = np.uint64(_LOW), np.uint64(32)
    for _ in range(10):
        p0, p1 = c0 * np.uint64(_M[0]), c2 * np.uint64(_M[1])
        c0, c1, c2, c3 = (p1 >> shift) ^ c1 ^ k0, p1 & low, (p0 >> shift) ^ c3 ^ k1, p0 & low
        k0, k1 = (k0 + np.uint64(_W[0])) & low, (k1 + np.uint64(_W[1])) & low
    return c0, c1, c2, c3


def threshold(rate: float) -> int:
    """A random word below it drops its element."""
    return min(round(rate * 2**32), _LOW)


def keep_mask(xp: Any, shape: tuple[int, ...], seed: Any, counter: Any, rate: float, first: int = 0) -> Any:
    """Bool array of `shape`: True where the element stays. seed, counter: 0-d uint64 arrays; first: the number of the
    first element, where these are some of those of a larger array."""
    n, skipped = prod(shape), first % 4
    start, stop = first // 4, (first + n + 3) // 4
    kept = xp.empty((stop - start, 4), bool)
    step = PIECE if xp is np else max(stop - start, 1)
    for at in range(start, stop, step):
        words = _words(xp, at, min(at + step, stop), seed, counter)
        for k, word in enumerate(words):
            kept[at - start : at - start + step, k] = word >= np.uint64(threshold(rate))
    return kept.reshape(-1)[skipped : skipped + n].reshape(shape)


def _words(xp: Any, start: int, stop: int, seed: Any, counter: Any) -> tuple[Any, Any, Any, Any]:
    """The words of the counters start..stop of one call."""
    block = xp.arange(start, stop, dtype=np.uint64)
    low, shift, one = np.uint64(_LOW), np.uint64(32), xp.ones_like(block)
    counters = (block & low, block >> shift, one * (counter & low), one * (counter >> shift))
    return philox(xp, counters, (seed & low, seed >> shift))


def _scaled_mask(
    xp: Any, seed: Any, counter: Any, *, shape: tuple[int, ...], dtype: Any, rate: float, first: int
) -> Any:
    """mask / (1 - rate)."""
    kept = keep_mask(xp, shape, seed, counter, rate, first)
    return xp.multiply(kept, 1 / (1 - rate), dtype=working(dtype))


# An op without derivative, so that a capture makes the mask anew at every replay, at any order.
_mask = Op("dropout_mask", forward=lambda xp, *x, **static: (_scaled_mask(xp, *x, **static), ()), registered=False)


def mask_scale(xp: Any, like: Any, seed: Any, counter: Any, rate: float, first: int) -> Any:
    """mask / (1 - rate) for an array like `like`, in its working dtype."""
    make: Any = _mask if isinstance(xp, Namespace) else partial(_scaled_mask, xp)
    return make(seed, counter, shape=like.shape, dtype=like.dtype, rate=rate, first=first)


class _Shaped:
    """The shape and dtype of one member of a stack."""

    def __init__(self, d: Any) -> None:
        self.shape, self.dtype = d.shape[1:], d.dtype


def _forward(xp: Any, x: Any, seed: Any, counter: Any, *, rate: float) -> tuple:
    saved = (seed, counter, xp.broadcast_to(xp.zeros((), x.dtype), x.shape))  # the last one only for its shape
    return narrow(wide(x) * mask_scale(xp, x, seed, counter, rate, 0), x.dtype), saved


def _vjp(xp: Any, saved: tuple, dy: Any, need: tuple, *, rate: float, first: int = 0) -> tuple:
    return narrow(wide(dy) * mask_scale(xp, _Shaped(dy), saved[0], saved[1], rate, first), dy.dtype), None, None


def _jvp(xp: Any, saved: tuple, dx: tuple, *, rate: float, first: int = 0) -> Any:
    return narrow(wide(dx[0]) * mask_scale(xp, _Shaped(dx[0]), saved[0], saved[1], rate, first), dx[0].dtype)


def _block(xp: Any, saved: tuple, i: int, *, rate: float, first: int = 0) -> Any:
    seed, counter, like = saved
    return Diagonal(narrow(mask_scale(xp, like, seed, counter, rate, first), like.dtype)) if i == 0 else None


_dropout = Op(
    "dropout",
    forward=_forward,
    vjp=_vjp,
    jvp=_jvp,
    block=_block,
    batch=lambda tags, shapes, static: tags[0],
)


class Generator:
    """A counter-based source of dropout masks: `seed` and `counter`, 0-d uint64 arrays on the device of `like`.

    Each call of `gl.dropout` uses one value of the counter, so equal seeds and counters give equal masks everywhere.

    >>> import gradlib as gl
    >>> rng = gl.Generator(0)
    >>> int(rng.counter)
    0
    """

    def __init__(self, seed: int, like: Any = None) -> None:
        if not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**64:
            raise ValueError(f"Generator: expected a seed in [0, 2**64), got {seed!r}")
        xp = np if like is None else module_of(like)
        self.seed = xp.asarray(np.uint64(seed))
        self.counter = xp.zeros((), np.uint64)

    def __repr__(self) -> str:
        return f"Generator(seed={int(self.seed)}, counter={int(self.counter)})"


def dropout(x: Any, rate: float, rng: Generator) -> Any:
    """x with each entry zeroed with probability `rate` and the others divided by 1 - rate.

    x: any shape, floating point. `rng` counts one call on. Raises TypeError or ValueError for another `rng`, dtype or
    a rate outside [0, 1).

    >>> import gradlib as gl, numpy as np
    >>> y = gl.dropout(np.ones(1000), 0.5, gl.Generator(0))
    >>> sorted(set(y.tolist()))
    [0.0, 2.0]
    """
    if not isinstance(rng, Generator):
        raise TypeError(f"dropout: expected a gl.Generator as rng, got {type(rng).__name__}")
    x = adopt(x)
    if not hasattr(x, "dtype") or not is_floating(x.dtype):
        raise TypeError(f"dropout: expected a floating-point array, got {describe(x)}")
    check_rate("dropout", rate)
    return _dropout(x, rng.seed, drawn(rng), rate=float(rate))


def check_rate(name: str, rate: Any) -> None:
    """ValueError unless 0 <= rate < 1."""
    if not isinstance(rate, (int, float, np.number)) or not 0 <= rate < 1:
        raise ValueError(f"{name}: expected 0 <= rate < 1, got {rate!r}")


def drawn(rng: Generator) -> Any:
    """The counter of the next mask, 0-d uint64; `rng` counts on."""
    draws = _DRAWS.get()
    return _draw(rng) if draws is None else draws.next(rng)


def _draw(rng: Generator) -> Any:
    """The generator's counter, a copy since it goes on counting in place."""
    counter = recorded(copied, rng.counter)
    effect(_count_on, rng)
    return counter


def _count_on(rng: Generator) -> None:
    rng.counter += np.uint64(1)


class _Draws:
    """One run of a function that may run again: takes its counters from a list, and adds to it those that are new."""

    def __init__(self, counters: list[Any]) -> None:
        self.counters, self.at, self.outer = counters, 0, _DRAWS.get()

    def next(self, rng: Generator) -> Any:
        if self.at == len(self.counters):
            self.counters.append(_draw(rng) if self.outer is None else self.outer.next(rng))
        self.at += 1
        return self.counters[self.at - 1]


_DRAWS: ContextVar[_Draws | None] = ContextVar("gradlib_draws", default=None)


@contextmanager
def same_masks(counters: list[Any]) -> Iterator[None]:
    """Every block given the same list, empty at first, draws the same masks: for what is computed again."""
    token = _DRAWS.set(_Draws(counters))
    try:
        yield
    finally:
        _DRAWS.reset(token)
