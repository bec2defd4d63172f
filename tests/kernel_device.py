"""Run kernels' host functions in tests, NumPy in and NumPy out, in the simulator or on the GPU."""

import numpy as np
import pytest

from gradlib.kernels.launch import SIMULATED, simulate

DTYPES = ("float32", "float64")


def where():
    """The array module that kernels take here: NumPy in the simulator, else CuPy."""
    if SIMULATED:
        return np
    return pytest.importorskip("cupy")


def to(tree):
    """The tree of arrays where kernels run: CuPy arrays on a GPU."""
    if isinstance(tree, tuple | list):
        return type(tree)(map(to, tree))
    return where().asarray(tree) if isinstance(tree, np.ndarray) and not SIMULATED else tree


def back(tree):
    """The tree of arrays as NumPy's."""
    if isinstance(tree, tuple | list):
        return type(tree)(map(back, tree))
    return tree.get() if hasattr(tree, "get") else tree


def call(rule, *args, **static):
    """rule(xp, *args, **static) on the device; asserts that no array among the arguments is changed."""
    before = [a.copy() for a in _arrays(args)]
    if SIMULATED:
        with simulate():
            result = rule(np, *args, **static)
    else:
        result = rule(where(), *to(args), **static)
    for a, b in zip(_arrays(args), before, strict=True):
        assert a.tobytes() == b.tobytes(), "an input was changed"
    return back(result)


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
