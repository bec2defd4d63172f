"""Threads that share the pieces of a compiled loop on the CPU, at the cost of a few microseconds.

A pool of Python threads takes 50 µs and more to hand work over and must hold the GIL for it. Here helpers wait inside
compiled code: for a third of a millisecond after a loop they look out for the next one, then they sleep. The thread
that calls takes pieces itself, so a helper that sleeps, or a core that is busy, costs nothing.

    board    open (a job is there), next (piece to take), inside (helpers at work): a cache line each

A helper enters (inside += 1), then looks whether the job is open; who closes the job (open = 0) then waits for
inside = 0. So either the helper sees that it is closed, or it is waited for.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from threading import Lock, Thread
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from ..threads import cores

OPEN, NEXT, INSIDE, LAST = 0, 8, 16, 24  # places on the board
PATIENCE = 40_000  # pauses of 20-40 ns for which a helper looks out before it sleeps: about a millisecond

_PAUSE = "llvm.x86.sse2.pause" if platform.machine() in ("x86_64", "AMD64") else None


def _slot(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    data = cgutils.create_struct_proxy(signature.args[0])(context, builder, args[0]).data
    return builder.gep(data, [args[1]])


@intrinsic
def added(typing, board, place, amount):
    """board[place] += amount for all threads at once; gives what was there before."""

    def generate(context, builder, signature, args):
        return builder.atomic_rmw("add", _slot(context, builder, signature, args), args[2], "seq_cst")

    return types.int64(board, types.intp, types.int64), generate


@intrinsic
def exchanged(typing, board, place, value):
    """board[place] = value, seen by all threads before what follows; gives what was there before."""

    def generate(context, builder, signature, args):
        return builder.atomic_rmw("xchg", _slot(context, builder, signature, args), args[2], "seq_cst")

    return types.int64(board, types.intp, types.int64), generate


@intrinsic
def seen(typing, board, place):
    """board[place] as other threads have left it."""

    def generate(context, builder, signature, args):
        return builder.load_atomic(_slot(context, builder, signature, args), "acquire", 8)

    return types.int64(board, types.intp), generate


@intrinsic
def pause(typing):
    """A moment in which the core does nothing, where there is an instruction for it."""

    def generate(context, builder, signature, args):
        if _PAUSE is not None:
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(builder.module.declare_intrinsic(_PAUSE, (), kind), [])
        return context.get_dummy_value()

    return types.void(), generate


@njit(nogil=True)
def opened(board):
    """Let helpers take pieces of the job."""
    exchanged(board, NEXT, 0)
    exchanged(board, LAST, 0)
    exchanged(board, OPEN, 1)


@njit(nogil=True)
def closed(board):
    """Let no helper in any more, and wait for those inside."""
    exchanged(board, OPEN, 0)
    while seen(board, INSIDE) > 0:
        pause()


class Team:
    """The helpers of this process, the board they look at, and the job: numbers and addresses of a fixed size.

    `serve(board, job)` is what they do: compiled, until they have seen no job for a while.
    """

    def __init__(self, serve: Callable[[np.ndarray, np.ndarray], None], size: int) -> None:
        self.board, self.job = np.zeros(32, np.int64), np.zeros(size, np.int64)
        self.taken = Lock()  # by the one caller whom they help
        self.asleep: list[Any] = []  # a bell for each
        for _ in range(cores() - 1):
            Thread(target=self._help, args=(serve,), name="gradlib", daemon=True).start()

    def _help(self, serve: Callable[[np.ndarray, np.ndarray], None]) -> None:
        while True:
            serve(self.board, self.job)
            bell = Lock()
            bell.acquire()
            self.asleep.append(bell)
            bell.acquire()

    def wake(self) -> None:
        """Ring for those who sleep."""
        while self.asleep:
            self.asleep.pop().release()
