"""What the device has that grids are made for: multiprocessors and shared memory."""

from functools import lru_cache
from typing import NamedTuple

from .launch import simulating


class Machine(NamedTuple):
    """Multiprocessors, and bytes of shared memory of a block and of a multiprocessor."""

    multiprocessors: int
    block_bytes: int
    bytes: int


SIMULATED = Machine(2, 227 << 10, 228 << 10)


@lru_cache(maxsize=16)
def device_machine(device) -> Machine:
    """That of a device, by its number."""
    import cupy

    given = cupy.cuda.Device(device).attributes
    names = ("MultiProcessorCount", "MaxSharedMemoryPerBlockOptin", "MaxSharedMemoryPerMultiprocessor")
    return Machine(*(given[name] for name in names))


def machine_of(xp) -> Machine:
    """The current device's, or the simulator's."""
    return SIMULATED if simulating() else device_machine(xp.cuda.runtime.getDevice())
