"""Run kernels' host functions in tests, NumPy in and NumPy out, in the simulator or on the GPU."""

import os

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

from gradlib.kernels.launch import SIMULATED, simulate

DTYPES = ("float32", "float64")
LARGEST = int(os.environ.get("GRADLIB_SMALL_TESTS", 0))  # numbers in an array; tests of larger ones are skipped then


def where():
    """The array module that kernels take here: NumPy in the simulator, else CuPy."""
    if SIMULATED:
        return np
    return pytest.importorskip("cupy")


def to(tree, known=None):
    """The tree of arrays where kernels run: CuPy arrays on a GPU, strided and misaligned as they are here.

    known: a `Known`, in which the pairs of arrays are noted.
    """
    if isinstance(tree, tuple | list):
        return type(tree)(to(branch, known) for branch in tree)
    if SIMULATED or not isinstance(tree, np.ndarray):
        return tree
    return (Known() if known is None else known).device_of(tree)


def back(tree, known=None):
    """The tree of arrays as NumPy's; one array of the device is one array here, those that `to` noted the same ones."""
    known = Known() if known is None else known
    if isinstance(tree, tuple | list):
        return type(tree)(back(branch, known) for branch in tree)
    return known.host_of(tree) if hasattr(tree, "get") else tree


class Known:
    """Arrays of the host and their twins on the device, so that `is` says here what it says there."""

    def __init__(self):
        self.pairs = []

    def device_of(self, host):
        for one, twin in self.pairs:
            if one is host:
                return twin
        self.pairs.append((host, _moved(host)))
        return self.pairs[-1][1]

    def host_of(self, twin):
        for host, one in self.pairs:
            if one is twin:
                return host
        self.pairs.append((twin.get(), twin))
        return self.pairs[-1][0]


def _moved(x):
    """x on the device with its strides, and as far from a 16-byte boundary."""
    xp = where()
    if x.size == 0 or (x.flags.c_contiguous and x.ctypes.data % 16 == 0):
        return xp.asarray(x)
    low, high = np.lib.array_utils.byte_bounds(x)
    size, ahead = x.itemsize, low % 16 // x.itemsize
    memory = np.zeros(ahead + (high - low) // size, x.dtype)
    first = ahead + (x.ctypes.data - low) // size
    as_strided(memory[first:], x.shape, x.strides)[...] = x
    return xp.lib.stride_tricks.as_strided(xp.asarray(memory)[first:], x.shape, x.strides)


def call(rule, *args, **static):
    """rule(xp, *args, **static) on the device; asserts that no array among the arguments is changed."""
    if LARGEST and any(a.size > LARGEST for a in _arrays(args)):
        pytest.skip("larger than GRADLIB_SMALL_TESTS")
    before, known = [a.copy() for a in _arrays(args)], Known()
    if SIMULATED:
        with simulate():
            result = rule(np, *args, **static)
    else:
        result = rule(where(), *to(args, known), **static)
    for a, b in zip(_arrays(args), before, strict=True):
        after = a if SIMULATED else known.device_of(a).get()
        assert after.tobytes() == b.tobytes(), "an input was changed"
    return back(result, known)


def _arrays(tree):
    if isinstance(tree, tuple | list):
        return [a for branch in tree for a in _arrays(branch)]
    return [tree] if isinstance(tree, np.ndarray) else []


def close(got, expected, dtype, scale=1.0):
    """Assert closeness at the dtype's precision: a few ulp of the result plus a few of `scale`."""
    tolerance = 16 * np.finfo(dtype).eps * scale
    assert got.dtype == np.dtype(dtype)
    assert got.shape == np.shape(expected), f"{got.shape} is not {np.shape(expected)}"
    np.testing.assert_allclose(got, expected, rtol=16 * np.finfo(dtype).eps, atol=tolerance)
