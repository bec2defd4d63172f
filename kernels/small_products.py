"""Products of the stacks of small layers on the CPU, compiled by numba. Loaded when first used.

    out_b = m_b diag(d_b) w diag(d'_b) w' …        m_b (V, N), d_b (N,), w (N, K) of all samples; V, N, K some tens

A library's matrix product is made for large matrices and cannot see that half of a ReLU's columns are zero. Here the
columns of a sample that are zero in all V rows are left out, and the others are summed in registers: a tile of up to
5 rows and 64 bytes of columns, one scalar times one row of w after the other. A tile that would reach over the end is
moved back so that it ends with the rows or columns; what two tiles share they calculate alike. Some samples go through
all layers together while their rows are in a near cache. The result of each depends on it alone, so the batch may be
cut anywhere, also between threads.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numba import njit

from ..threads import cores
from .small_tiles import ROWS, TILE_BYTES, address, moved, pointer_to, scaled_columns, tile1, tile2, tile3, tile4, tile5
from .team import INSIDE, LAST, NEXT, OPEN, PATIENCE, Team, added, closed, opened, pause, seen

TURNED = 8  # rows of a matrix turned at a time
BETWEEN = 32 << 10  # bytes of samples between two layers: so a layer's matrix is read from far once for all of them

# bytes of a number -> an array of such integers, and the bits of inf
_BITS: dict[int, Any] = {4: (np.empty(0, np.int32), np.float32(np.inf).view(np.int32))}
_BITS[8] = np.empty(0, np.int64), np.float64(np.inf).view(np.int64)
_NO_BOARD = np.zeros(1, np.int64)


@njit(nogil=True, cache=True, error_model="numpy")
def _scale(m, d, rows, inner, wide, s, sizes, columns):
    """s = m diag(d) of one sample, rows x inner entries; the columns that are not zero (nan is not), their number."""
    if inner < wide:
        for n in range(inner):
            sizes[n] = 0
            for v in range(rows):
                x = m[v * inner + n] * d[n]
                s[v * inner + n] = x
                sizes[n] += abs(x)
    else:
        for at in range(0, inner, wide):
            n = min(at, inner - wide)
            scaled_columns(moved(m, n), moved(d, n), moved(s, n), address(sizes, n), rows, inner)
    count = 0
    for n in range(inner):
        columns[count] = n
        count += sizes[n] != 0
    return count


@njit(nogil=True, cache=True, error_model="numpy")
def _narrow(s, inner, columns, count, w, width, out, rows):
    """out = s w, entry by entry, where a row of it is shorter than a tile."""
    for v in range(rows):
        for k in range(width):
            total = s[v * inner] * 0
            for i in range(count):
                total += s[v * inner + columns[i]] * w[columns[i] * width + k]
            out[v * width + k] = total


@njit(nogil=True, cache=True, error_model="numpy")
def _tiles(s, inner, columns, count, w, width, wide, out, stack):
    """out = s w of one sample, tile by tile of `wide` columns."""
    groups = (stack + ROWS - 1) // ROWS
    rows = (stack + groups - 1) // groups  # of all groups, the last moved back where it would reach over the end
    for group in range(groups):
        v = min(group * rows, stack - rows)
        for at in range(0, width, wide):
            k = min(at, width - wide)
            left, right, target = moved(s, v * inner), moved(w, k), moved(out, v * width + k)
            if rows == 5:
                tile5(left, inner, columns, count, right, width, target, width)
            elif rows == 4:
                tile4(left, inner, columns, count, right, width, target, width)
            elif rows == 3:
                tile3(left, inner, columns, count, right, width, target, width)
            elif rows == 2:
                tile2(left, inner, columns, count, right, width, target, width)
            else:
                tile1(left, inner, columns, count, right, width, target, width)


@njit(nogil=True, cache=True, error_model="numpy")
def _turn(w, bits, rows, columns, infinite, out):
    """out = wᵀ; whether all of it is finite. bits: w as integers, infinite: the bits of inf."""
    largest = infinite ^ infinite
    for i in range(rows * columns):
        largest = max(largest, bits[i] & infinite)
    whole = rows - rows % TURNED
    for start in range(0, whole, TURNED):
        for k in range(columns):
            for n in range(TURNED):
                out[k * rows + start + n] = w[(start + n) * columns + k]
    for n in range(whole, rows):
        for k in range(columns):
            out[k * rows + n] = w[n * columns + k]
    return largest != infinite


# A job is a row of integers, for helpers to read: these places, then for every layer the address of d, entries from one
# sample's d to the next one's (0: one for all), the address of w, its rows, and 1 where d is of bools; last the columns
# of the result.
_M, _M_STEP, _OUT, _SAMPLES, _STACK, _ITEM, _WIDEST, _PIECE, _LAYERS, _FIRST = range(10)
_EACH, JOB = 5, 512  # of up to 100 layers


@njit(nogil=True, cache=True, error_model="numpy")
def _together(job):
    """How many samples go through a layer before the next one."""
    return max(1, BETWEEN // (job[_STACK] * job[_WIDEST] * job[_ITEM]))


@njit(nogil=True, cache=True, error_model="numpy")
def _room(job, like):
    """What a thread works in: rows scaled, samples between two layers, a diagonal, sizes of columns; columns; bools."""
    size, widest = job[_STACK] * job[_WIDEST], job[_WIDEST]
    held, between = np.empty(size, like.dtype), np.empty(_together(job) * size, like.dtype)
    scales, sizes = np.empty(widest, like.dtype), np.empty(widest, like.dtype)
    return held, between, scales, sizes, np.empty(widest + 1, np.int64), np.empty(0, np.uint8)


@njit(nogil=True, cache=True, error_model="numpy")
def _samples(job, start, stop, room):
    """The samples start..stop of a job, some at a time through all layers."""
    count = _together(job)
    for first in range(start, stop, count):
        for layer in range(job[_LAYERS]):
            for b in range(first, min(first + count, stop)):
                _layer(job, layer, b, b - first, room)


@njit(nogil=True, cache=True, error_model="numpy")
def _layer(job, layer, b, place, room):
    """Sample b through one layer: from the first matrix, or its place among those between two layers."""
    held, between, scales, sizes, listed, bools = room
    stack, item = job[_STACK], job[_ITEM]
    at, wide, end = _FIRST + _EACH * layer, TILE_BYTES // item, layer == job[_LAYERS] - 1
    inner = job[at + 3]
    width = job[at + _EACH] if end else job[at + _EACH + 3]
    own = address(between, place * stack * job[_WIDEST])
    given = own if layer else pointer_to(job[_M] + b * job[_M_STEP] * item, held)
    out = pointer_to(job[_OUT] + b * stack * width * item, held) if end else own
    d, w = pointer_to(job[at] + b * job[at + 1] * item, held), pointer_to(job[at + 2], held)
    if job[at + 4]:
        mask, d = pointer_to(job[at] + b * job[at + 1], bools), address(scales, 0)
        for n in range(inner):
            d[n] = mask[n]
    s, columns = address(held, 0), address(listed, 0)
    count = _scale(given, d, stack, inner, wide, s, sizes, columns)
    if width < wide:
        _narrow(s, inner, columns, count, w, width, out, stack)
    else:
        _tiles(s, inner, columns, count, w, width, wide, out, stack)


@njit(nogil=True, cache=True, error_model="numpy")
def _alone(job, like):
    room = _room(job, like)  # an array is freed after its last use: it must be held out here, as long as addresses are
    _samples(job, 0, job[_SAMPLES], room)


@njit(nogil=True, cache=True, error_model="numpy")
def _pieces(board, job, like, from_end):
    """Take pieces of a job until none is left; how many. Helpers take them from the end: so a core's part of the
    result, where it is on the memory of the last one, is in its own cache."""
    taken, room, size = 0, _room(job, like), job[_PIECE]
    count = (job[_SAMPLES] + size - 1) // size
    while added(board, NEXT, 1) < count:
        piece = count - 1 - added(board, LAST, 1) if from_end else taken
        _samples(job, piece * size, min((piece + 1) * size, job[_SAMPLES]), room)
        taken += 1
    return taken


@njit(nogil=True, cache=True, error_model="numpy")
def _turn_all(job, room, bits, infinite):
    """Have a job whose matrices stand as they do in layers take them turned, from `room`; False, where one of them but
    the first has an entry that is not finite."""
    stack, inner = job[_STACK], job[_FIRST + 3]
    _turn(pointer_to(job[_M], room), pointer_to(job[_M], bits), inner, stack, infinite, address(room, 0))
    job[_M], place = room.ctypes.data, stack * inner
    for layer in range(job[_LAYERS]):
        at = _FIRST + _EACH * layer
        w, inner = job[at + 2], job[at + 3]
        width = job[at + _EACH + 3] if layer < job[_LAYERS] - 1 else job[at + _EACH]
        if not _turn(pointer_to(w, room), pointer_to(w, bits), width, inner, infinite, address(room, place)):
            return False
        job[at + 2], place = room.ctypes.data + place * job[_ITEM], place + inner * width
    return True


@njit(nogil=True, cache=True, error_model="numpy")
def _chain(board, job, room, bits, infinite, helped):
    if not _turn_all(job, room, bits, infinite):
        return False
    if helped:
        opened(board)
        _pieces(board, job, room, False)
        closed(board)
    else:
        _alone(job, room)
    return True


@njit(nogil=True, cache=True, error_model="numpy")
def _serve(board, job, single, double):
    """What a helper does, until it has looked out in vain for a while."""
    idle = 0
    while idle < PATIENCE:
        pause()
        idle += 1
        if seen(board, OPEN):
            added(board, INSIDE, 1)
            if seen(board, OPEN):
                taken = _pieces(board, job, single, True) if job[_ITEM] == 4 else _pieces(board, job, double, True)
                idle = 0 if taken else idle
            added(board, INSIDE, -1)


@cache
def _team(process: int) -> Team:
    single, double = np.empty(0, np.float32), np.empty(0, np.float64)
    return Team(lambda board, job: _serve(board, job, single, double), JOB)


@njit(cache=True)
def _place(array):
    """Its address, at a third of the time of NumPy's attribute."""
    return array.ctypes.data


_Factors = Sequence[tuple[np.ndarray, np.ndarray]]


def _job(m: np.ndarray, step: int, factors: _Factors, axis: int, out: np.ndarray) -> list:
    """The job of factors (d, w), of which w has its rows along `axis`."""
    samples, stack, last = out.shape
    widest, piece = max([w.shape[axis] for _, w in factors]), max(1, samples // (8 * cores()))
    job = [_place(m), step, _place(out), samples, stack, out.itemsize, widest, piece, len(factors)]
    for d, w in factors:
        job += _place(d), d.shape[1] if len(d) > 1 else 0, _place(w), w.shape[axis], d.dtype == bool
    job.append(last)
    return job


def products(m: np.ndarray, factors: _Factors, out: np.ndarray) -> None:
    """out[b] = m[b] diag(d1[b]) w1 diag(d2[b]) w2 … for all samples, factors ((d1, w1), …). The GIL is free meanwhile.

    m: (B, V, N1), or (1, V, N1) for all samples; d1: (B, N1) or (1, N1); w1: (N1, N2) of finite numbers; and so on;
    out: (B, V, N), V at least 1. All C-contiguous and of one dtype, float32 or float64; d1 also of bools.
    """
    step = m.shape[1] * m.shape[2] if len(m) > 1 else 0
    _alone(np.array(_job(m, step, factors, 0, out), np.int64), out)


def chain(last: np.ndarray, factors: _Factors, out: np.ndarray) -> bool:
    """out[b] = lastᵀ diag(d1[b]) w1ᵀ diag(d2[b]) w2ᵀ … likewise: a network's Jacobian, its layers last to first.

    last: (N1, V), w1: (N2, N1), …. All cores share the samples, unless another caller's chain has them. False, and out
    as it was, where an entry of w1, w2, … is not finite.
    """
    job = _job(last, 0, factors, 1, out)
    room = np.empty(last.size + sum([w.size for _, w in factors]), out.dtype)
    bits, infinite = _BITS[out.itemsize]
    team = _team(os.getpid()) if cores() > 1 and len(job) <= JOB else None
    if team is None or not team.taken.acquire(blocking=False):
        return _chain(_NO_BOARD, np.array(job, np.int64), room, bits, infinite, False)
    try:
        team.job[: len(job)] = job
        team.wake()
        return _chain(team.board, team.job, room, bits, infinite, True)
    finally:
        team.taken.release()


@njit(nogil=True, cache=True, error_model="numpy")
def _turned(w, bits, infinite, out):
    return _turn(address(w, 0), address(bits, 0), w.shape[0], w.shape[1], infinite, address(out, 0))


def turned(w: np.ndarray) -> np.ndarray | None:
    """wᵀ as a contiguous array of its own; None where an entry is not finite. w: (N, K), C-contiguous."""
    out, (bits, infinite) = np.empty(w.shape[::-1], w.dtype), _BITS[w.itemsize]
    return out if _turned(w, w.reshape(-1).view(bits.dtype), infinite, out) else None
