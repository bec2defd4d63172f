"""CUDA in plain Python: runs a kernel thread by thread on NumPy arrays, with warps, barriers and shared memory.

Each CUDA thread is a greenlet. It runs until it meets a barrier or a warp call, where it waits for the others; so a
run is deterministic and its order can be chosen. One warp at a time goes on: with GRADLIB_SIM_SCHEDULE=forward (the
default) the first that can, with `reverse` the last, with an integer a random one, seeded by it, its lanes shuffled. So
warps run as far ahead of each other as barriers let them, and a missing barrier shows as a result that depends on the
schedule.

What hardware leaves undefined is an error or a NaN here: uninitialised shared and local memory is NaN, an index outside
an array raises IndexError; misaligned vectors, threads that wait for each other for ever, lanes of a warp that meet in
different calls, and grids and blocks that no launch takes raise SimulationError. What it cannot show: speed, races
between blocks, float32 promoted to float64.
"""

import contextvars
import itertools
import os
import random
import sys
from collections import namedtuple

import numpy as np

from .launch import GRID_Z, THREADS

try:
    from greenlet import getcurrent, greenlet
except ImportError as error:  # pragma: no cover
    raise ImportError('the CUDA simulator needs greenlet: pip install "gradlib[sim]"') from error

FULL = 0xFFFFFFFF
WARP = 32
GRID = (2**31 - 1, GRID_Z, GRID_Z)  # the most blocks
Dim3 = namedtuple("Dim3", "x y z")


class SimulationError(RuntimeError):
    """The kernel does what hardware leaves undefined."""


class Memory:
    """Flat memory that knows its bounds; `array` is the NumPy array behind it."""

    __slots__ = ("array", "name", "size")

    def __init__(self, array, name):
        self.array, self.size, self.name = array.reshape(-1), array.size, name

    def _check(self, i):
        if not 0 <= i < self.size:
            raise IndexError(f"{self.name}[{i}] lies outside 0..{self.size - 1}")

    def __getitem__(self, i):
        if not 0 <= i < self.size:
            self._check(i)
        return self.array[i]

    def __setitem__(self, i, value):
        if not 0 <= i < self.size:
            self._check(i)
        self.array[i] = value

    def vector(self, i, width):
        """The NumPy view of `width` elements from i, for an access of 16 bytes."""
        self._check(i)
        self._check(i + width - 1)
        view = self.array[i : i + width]
        if view.ctypes.data % (width * view.itemsize):
            raise SimulationError(f"{self.name}[{i}]: an access of {width} elements is not aligned")
        return view


class Thread(greenlet):
    """One CUDA thread. `request` is what it waits for: ("barrier", value) or ("warp", mask, operation, value)."""

    def __init__(self, body, index, block):
        super().__init__(body)
        self.index, self.block, self.request = index, block, None
        self.position = Dim3(index, 0, 0)
        self.gr_context = block.context

    def wait(self, *request):
        return self.parent.switch(request)


class Block:
    """One block: its threads, its shared memory and its schedule."""

    def __init__(self, name, body, index, grid, size, schedule):
        self.name, self.index, self.grid, self.size = name, index, grid, size
        self.shape = Dim3(size, 1, 1)
        self.shared, self.context = {}, contextvars.copy_context()
        self.threads = [Thread(body, i, self) for i in range(size)]
        self.warps = [self.threads[i : i + WARP] for i in range(0, size, WARP)]
        self.choose, self.order = SCHEDULES.get(schedule) or _shuffled(int(schedule))

    def run(self, args):
        """Let one warp after another go as far as it can."""
        ready = [dict.fromkeys(warp, args) for warp in self.warps]  # of each warp: thread -> what its switch() is given
        while any(self.warps):
            if not any(ready):
                ready = self._meet_at_barrier()
            w = self.choose([w for w, threads in enumerate(ready) if threads])
            for thread in self.order(list(ready[w])):
                self._advance(thread, ready[w][thread])
            self.warps[w] = [t for t in self.warps[w] if not t.dead]
            ready[w] = self._meet_in_warp(self.warps[w])

    def _advance(self, thread, args):
        try:
            thread.request = thread.switch(*args)
        except SimulationError:
            raise
        except Exception as error:
            error.add_note(f"in kernel {self.name}, block {tuple(self.index)}, thread {thread.index}")
            raise

    def _meet_in_warp(self, warp):
        """Serve the warp calls whose lanes have all arrived; -> the threads that go on, with what they are given."""
        lanes = {t.index % WARP: t for t in warp}
        freed = {}
        for mask in sorted({t.request[1] for t in warp if t.request[0] == "warp"}):
            freed.update(self._meet(lanes, mask))
        return freed

    def _meet(self, lanes, mask):
        here = {l: t for l, t in lanes.items() if t.request[:2] == ("warp", mask)}
        if outside := [l for l in here if not mask >> l & 1]:
            raise SimulationError(f"{self._where()}: lane {outside[0]} makes a warp call with mask {mask:#x}")
        if any(mask >> l & 1 and l not in here for l in lanes):
            return {}
        operations = {t.request[2] for t in here.values()}
        if len(operations) > 1:
            raise SimulationError(f"{self._where()}: lanes of one warp meet in different calls {sorted(operations)}")
        values = {l: t.request[3] for l, t in here.items()}
        serve = WARP_CALLS[operations.pop()]
        return {t: (serve(l, values),) for l, t in here.items()}

    def _meet_at_barrier(self):
        """All threads go on where all wait at the barrier; -> of each warp: thread -> what it is given."""
        threads = [t for warp in self.warps for t in warp]
        waiting = [t for t in threads if t.request[0] == "barrier"]
        if len(waiting) < len(threads):
            stuck = next(t for t in threads if t.request[0] == "warp")
            raise SimulationError(
                f"{self._where()}: deadlock, {len(waiting)} of {len(threads)} threads wait at syncthreads, "
                f"thread {stuck.index} in {stuck.request[2]} with mask {stuck.request[1]:#x}"
            )
        if len(waiting) < self.size:
            raise SimulationError(f"{self._where()}: {self.size - len(waiting)} threads ended before a syncthreads")
        votes = [t.request[1] for t in waiting]
        return [dict.fromkeys(warp, (votes,)) for warp in self.warps]

    def _where(self):
        return f"kernel {self.name}, block {tuple(self.index)}"


# name -> (which of the warps that can go on goes on, in which order its lanes do)
SCHEDULES = {
    "forward": (lambda warps: warps[0], lambda threads: threads),
    "reverse": (lambda warps: warps[-1], lambda threads: threads[::-1]),
}


def _shuffled(seed):
    shuffler = random.Random(seed)
    return shuffler.choice, lambda threads: shuffler.sample(threads, len(threads))


def _taken(lane, values, source):
    """What a shuffle gives: the source lane's value, NaN (or nonsense) from a lane that ended, its own past the end."""
    own = values[lane][0]
    if not 0 <= source < WARP:
        return own
    if source in values:
        return values[source][0]
    return type(own)(np.nan if isinstance(own, float | np.floating) else 0x55555555)


WARP_CALLS = {
    "syncwarp": lambda l, v: None,
    "shfl_sync": lambda l, v: _taken(l, v, int(v[l][1]) % WARP),
    "shfl_xor_sync": lambda l, v: _taken(l, v, l ^ int(v[l][1])),
    "shfl_up_sync": lambda l, v: _taken(l, v, l - int(v[l][1])),
    "shfl_down_sync": lambda l, v: _taken(l, v, l + int(v[l][1])),
    "ballot_sync": lambda l, v: sum(1 << i for i in v if v[i]),
    "any_sync": lambda l, v: any(map(bool, v.values())),
    "all_sync": lambda l, v: all(map(bool, v.values())),
}


def _poisoned(shape, dtype, name):
    array = np.empty(shape, dtype)
    array.fill(np.nan if array.dtype.kind == "f" else 0x55)
    return Memory(array, name)


class _Shared:
    @staticmethod
    def array(shape, dtype, alignment=None):
        """One array a call site and block, as on hardware, where a device function has one static buffer."""
        frame = sys._getframe(1)
        site, arrays = (frame.f_code, frame.f_lasti), getcurrent().block.shared
        if site not in arrays:
            arrays[site] = _poisoned(shape, dtype, "shared memory")
        return arrays[site]


class _Local:
    @staticmethod
    def array(shape, dtype, alignment=None):
        return _poisoned(shape, dtype, "local memory")


class Cuda:
    """What a kernel sees as `cuda`."""

    shared, local = _Shared, _Local
    threadIdx = property(lambda self: getcurrent().position)
    blockIdx = property(lambda self: getcurrent().block.index)
    blockDim = property(lambda self: getcurrent().block.shape)
    gridDim = property(lambda self: getcurrent().block.grid)

    @staticmethod
    def syncthreads():
        getcurrent().wait("barrier", None)

    @staticmethod
    def syncwarp(mask=FULL):
        getcurrent().wait("warp", mask, "syncwarp", None)


def _warp_call(name):
    return staticmethod(lambda mask, *value: getcurrent().wait("warp", mask, name, value))


def _vote(name):
    return staticmethod(lambda mask, value: getcurrent().wait("warp", mask, name, value))


for _name in ("shfl_sync", "shfl_xor_sync", "shfl_up_sync", "shfl_down_sync"):
    setattr(Cuda, _name, _warp_call(_name))
for _name in ("ballot_sync", "any_sync", "all_sync"):
    setattr(Cuda, _name, _vote(_name))


def _check_launch(name, grid, threads):
    """What CUDA refuses, and blocks of more threads than kernels are compiled for."""
    if not 0 < threads <= THREADS:
        raise SimulationError(f"kernel {name}: blocks of {threads} threads, 1 to {THREADS} are possible")
    if not all(0 < n <= most for n, most in zip(grid, GRID, strict=True)):
        raise SimulationError(f"kernel {name}: a grid of {tuple(grid)} blocks, at most {GRID} are possible")


def run_grid(name, body, grid, threads, args, only=None):
    """Run kernel `body` over a grid of blocks of `threads` threads, or the blocks `only` of it, each an (x, y, z);
    arrays in `args` are changed in place."""
    schedule = os.environ.get("GRADLIB_SIM_SCHEDULE", "forward")
    grid = Dim3(*grid, *(1,) * (3 - len(grid)))
    _check_launch(name, grid, threads)
    names = body.__code__.co_varnames
    args = tuple(Memory(a, n) if isinstance(a, np.ndarray) else a for n, a in zip(names, args, strict=False))
    with np.errstate(all="ignore"):  # the hardware's arithmetic raises nothing
        for index in only or ((x, y, z) for z, y, x in itertools.product(*map(range, grid[::-1]))):
            Block(name, body, Dim3(*index), grid, threads, schedule).run(args)
