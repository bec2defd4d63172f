"""Building arrays out of arrays, in NumPy's argument forms."""

import numpy as np
import pytest
from functioncheck import check
from hypothesis import given, settings
from hypothesis import strategies as st
from rulecheck import RuleCheck, randn

import gradlib as gl

X, V = randn(3, 4), randn(5)
CALLS = {
    "tile": (lambda x: np.tile(x, (2, 1, 3)), X),
    "tile number": (lambda x: np.tile(x, 2) * np.tile(np.tile(x, [1, 1]), (2,)), X),
    "full_like": (lambda x: np.full_like(x, x[0, 0]) + np.full_like(x, 2.0), X),
    "linspace": (lambda v: np.linspace(v[0], v[1], 7) + np.linspace(v[0], 2, 7) + np.linspace(0, v[0], 7), V),
    "linspace axis": (lambda v: np.linspace(v[:2], [1.0, 2.0], 6, endpoint=False, axis=-1), V),
    "linspace step": (lambda v: np.linspace(v[0], v[1:3], 4, retstep=True), V),
    "linspace dtype": (lambda v: np.linspace(v[0], v[1], 4, dtype=float) * np.linspace(9 * v[0], 5, 4, dtype=int), V),
    "logspace": (lambda v: np.logspace(v[0], v[1], 5) + np.logspace(0, 1, 5, base=v[2] ** 2, dtype=float), V),
    "geomspace": (lambda v: np.geomspace(v[:2] ** 2, [1.0, 2.0], 6, axis=-1) + np.geomspace(-2, -(v[0] ** 2), 6), V),
    "geomspace open": (lambda v: np.geomspace(v[0] ** 2, 4, 3, endpoint=False, dtype=float), V),
    "linspace one": (lambda v: np.linspace(v[0], v[1], 1), V),
    "select": (lambda x: np.select([x > 1, x > 0], [x**2, x], np.sin(x)), X),
    "select lists": (lambda x: np.select([x > 0, np.ones(4, bool)], [x, [1.0, 2.0, 3.0, 4.0]]), X),
    "delete": (lambda x: np.delete(x, [1], 1).sum() + np.delete(x, 0) * np.delete(x, slice(2, 3)), X),
    "compress": (lambda x: np.compress([True, False, True], x, 0) + x.compress([0, 1, 1], 0), X),
    "extract": (lambda x: np.extract(x > 0, x), X),
    **{f"rot90 {k}": (lambda x, k=k: np.rot90(x, k), X) for k in range(-1, 5)},
    "rot90 axes": (lambda x: np.rot90(x[None], axes=(2, 0)), X),
    "rollaxis": (lambda x: np.rollaxis(x[None], 2) + np.rollaxis(x.T[:, None], 0, 1), X),
    "flips": (lambda x: np.fliplr(x) * np.flipud(x), X),
    "diagflat": (lambda x: np.diagflat(x, 1), X),
    "atleast": (lambda v: (*np.atleast_3d(v, v[0], 2.0)[:2], np.atleast_2d(v), *np.atleast_1d(v[0], v)), V),
    "append": (lambda x: np.append(x, [1, 2]), X),
    "append axis": (lambda x: np.append(x, [[x[0, 0], 1, 2, 3]], 0), X),
    "dstack": (lambda x: np.dstack([x, x]) + np.dstack((x[0], [1.0, 2.0, 3.0, 4.0])), X),
    "hsplit": (lambda x: np.hsplit(x, 2) + np.hsplit(x[0], [1]), X),
    "vsplit": (lambda x: np.vsplit(x, [1]), X),
    "dsplit": (lambda x: np.dsplit(x[None], 2), X),
    "block": (lambda x: np.block([[x, x], [np.ones((1, 8))]]), X),
    "block flat": (lambda v: np.block([v, v[0], 2.0]), V),
    "meshgrid": (lambda v: np.meshgrid(v, v[:2] ** 2), V),
    "meshgrid ij": (lambda v: np.meshgrid(v, v[:2], v[:1], indexing="ij", sparse=True), V),
    "broadcast_arrays": (lambda x: np.broadcast_arrays(x, x[0]), X),
}
if hasattr(np, "unstack"):
    CALLS["unstack"] = (lambda x: np.unstack(x, axis=1), X)


@pytest.mark.parametrize("name", CALLS)
def test_numpy_conventions(name):
    check(*CALLS[name])


ERRORS = [
    (lambda: gl.grad(lambda x: np.tile(x, -1).sum())(X), ValueError, "tile: expected counts of at least 0"),
    (lambda: gl.grad(lambda x: np.select([x], [x]).sum())(X), TypeError, "select: expected conditions of booleans"),
    (
        lambda: gl.grad(lambda x: np.select([x > 0], [x, x]).sum())(X),
        ValueError,
        "select: expected as many … 1 and 2",
    ),
    (
        lambda: gl.grad(lambda x: np.rot90(x, axes=(0, 0)).sum())(X),
        ValueError,
        "rot90: expected two different axes",
    ),
    (lambda: gl.grad(lambda x: np.fliplr(x).sum())(V), ValueError, "flip: expected an array of at least 2"),
    (lambda: gl.grad(lambda x: np.vsplit(x, 1)[0].sum())(V), ValueError, "vsplit: expected at least 2"),
    (lambda: gl.grad(lambda x: np.append(x, 1j).sum())(V), TypeError, "complex"),
    (lambda: gl.grad(lambda x: np.append(x, ["a"]).sum())(V), TypeError, "expected arrays of real numbers"),
    (lambda: gl.grad(lambda x: np.full(3, x).sum())(1.0), (TypeError, NotImplementedError), "np.broadcast_to"),
]


class TestErrors(RuleCheck):
    errors = ERRORS


def test_full_like_keeps_numpys_dtypes():
    x = V.astype(np.float32)
    assert gl.vjp(lambda x: np.full_like(x, x[0].astype(float)), x)[0].dtype == np.float32
    assert gl.vjp(lambda x: np.full_like(x, x[0], dtype=float, shape=(2, 1)), x)[0].dtype == np.float64


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=3), st.lists(st.integers(0, 3), max_size=3))
def test_tile_of_any_shape(shape, reps):
    x = np.random.default_rng(0).standard_normal(shape)
    y, pullback = gl.vjp(lambda x: np.tile(x, reps), x)
    np.testing.assert_array_equal(y, np.tile(x, reps))
    copies = np.prod(reps) if x.size else 0
    np.testing.assert_array_equal(pullback(np.ones_like(y))[0], np.full(x.shape, copies, float))
