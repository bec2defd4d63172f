"""Ops that move entries: rules, NumPy's calling conventions, and bad shapes."""

import numpy as np
import pytest
from rulecheck import Case, RuleCheck, randn

import gradlib as gl
from gradlib.op import REGISTRY

OPS = {n: REGISTRY[n] for n in ("reshape", "transpose", "broadcast_to", "flip", "roll", "astype")}


CASES = [
    Case(OPS["reshape"], (randn(2, 3),), shape=(3, 1, 2)),
    Case(OPS["reshape"], (randn(),), shape=(1, 1)),
    Case(OPS["reshape"], (randn(1),), shape=()),
    Case(OPS["reshape"], (randn(0, 3),), shape=(2, 0)),
    Case(OPS["transpose"], (randn(2, 3, 4),), axes=(2, 0, 1)),
    Case(OPS["transpose"], (randn(3, 0),), axes=(1, 0)),
    Case(OPS["transpose"], (randn(),), axes=()),
    Case(OPS["broadcast_to"], (randn(3),), shape=(2, 3)),
    Case(OPS["broadcast_to"], (randn(2, 1),), shape=(4, 2, 3)),
    Case(OPS["broadcast_to"], (randn(),), shape=(2,)),
    Case(OPS["broadcast_to"], (randn(1, 3),), shape=(0, 3)),
    Case(OPS["flip"], (randn(2, 3),), axis=(0, 1)),
    Case(OPS["flip"], (randn(5),), axis=(0,)),
    Case(OPS["flip"], (randn(2),), axis=()),
    Case(OPS["roll"], (randn(5, 2),), shift=-2, axis=0),
    Case(OPS["roll"], (randn(0, 2),), shift=1, axis=0),
    Case(OPS["astype"], (randn(2, 3),), dtype=np.dtype("float64")),
]
ERRORS = [
    (lambda: gl.grad(lambda x: x.reshape(4).sum())(np.ones(3)), ValueError, "reshape: cannot reshape (3,) … (4,)"),
    (lambda: gl.grad(lambda x: x.reshape(2, -1).sum())(np.ones(3)), ValueError, "reshape: cannot reshape"),
    (lambda: gl.grad(lambda x: x.reshape(-1, -1).sum())(np.ones(4)), ValueError, "reshape: cannot reshape"),
    (lambda: gl.grad(lambda x: x.reshape(3, order="K").sum())(np.ones(3)), ValueError, 'reshape: expected order "C"'),
    (lambda: gl.capture(lambda x: x.ravel("K"))(np.ones(3)), TypeError, "the order of an array in memory … freeze"),
    (lambda: gl.grad(lambda x: x.transpose(0, 0).sum())(np.ones((2, 2))), ValueError, "transpose: axes (0, 0)"),
    (lambda: gl.grad(lambda x: np.squeeze(x, 0).sum())(np.ones((2, 1))), ValueError, "squeeze: axis 0 … (2, 1)"),
    (
        lambda: gl.grad(lambda x: np.broadcast_to(x, (2, 4)).sum())(np.ones(3)),
        ValueError,
        "broadcast_to: (3,) does not broadcast to (2, 4)",
    ),
    (lambda: gl.grad(lambda x: x.astype(complex).sum())(np.ones(3)), TypeError, "astype: expected a real dtype"),
    (lambda: gl.grad(lambda x: np.moveaxis(x, (0, 1), 0).sum())(np.ones((2, 2))), ValueError, "moveaxis: source"),
    (lambda: gl.grad(lambda x: np.swapaxes(x, 0, 2).sum())(np.ones((2, 2))), ValueError, "swapaxes: axis 2"),
]


class TestRules(RuleCheck):
    cases = CASES
    errors = ERRORS


X = randn(2, 3, 4)
CALLS = {
    "reshape": lambda x: x.reshape(4, -1),
    "reshape tuple": lambda x: np.reshape(x, (-1,)),
    "ravel": lambda x: x.ravel() + x.flatten() + np.ravel(x),
    "Fortran": lambda x: x.reshape(4, -1, order="F") + np.reshape(x[:, 0].ravel("F"), (4, 2), "F") @ np.ones((2, 6)),
    "ravel Fortran": lambda x: np.ravel(x, "F") + x.flatten("F") + x.ravel(order="A") + x.T.flatten("K"),
    "T": lambda x: x.T,
    "mT": lambda x: x.mT + np.matrix_transpose(x),
    "transpose": lambda x: x.transpose(1, 0, 2) + x.transpose((1, 0, 2)) + np.transpose(x, (1, -3, -1)),
    "transpose none": lambda x: x.transpose() + np.transpose(x),
    "swapaxes": lambda x: x.swapaxes(0, -1) + np.swapaxes(x, 2, 0),
    "moveaxis": lambda x: np.moveaxis(x, 0, -1),
    "moveaxis many": lambda x: np.moveaxis(x, (0, 2), (1, 0)),
    "expand": lambda x: np.expand_dims(x, (0, -1)),
    "squeeze": lambda x: np.squeeze(x[:1, :, :1]) * x[:1].squeeze(0)[:, 0],
    "broadcast": lambda x: np.broadcast_to(x[0], (5, 3, 4)),
    "flip": lambda x: np.flip(x) + np.flip(x, 1) + np.flip(x, (0, 2)),
    "roll": lambda x: np.roll(x, 5) + np.roll(x, 1, 0) + np.roll(x, (1, -2), (0, 2)),
    "atleast": lambda x: np.atleast_1d(x[0, 0, 0]) * np.atleast_2d(x[0, 0]),
    "copy": lambda x: np.copy(x) + x.copy(),
}


@pytest.mark.parametrize("name", CALLS)
def test_numpy_conventions(name):
    f = CALLS[name]
    np.testing.assert_array_equal(gl.vjp(f, X)[0], f(X))
    gl.check_grads(f, (X,), order=2)


def test_questions_about_the_shape_are_plain():
    def f(x):
        assert (np.shape(x), np.ndim(x), np.size(x), np.size(x, 1)) == ((2, 3, 4), 3, 24, 3)
        assert (x.shape, x.ndim, x.size, x.nbytes, len(x)) == ((2, 3, 4), 3, 24, 192, 2)
        return sum(row.sum() for row in x)

    np.testing.assert_array_equal(gl.grad(f)(X), np.ones_like(X))


def test_casts():
    x = np.array([1.5, -2.5], np.float32)
    assert gl.vjp(lambda x: x.astype(np.float64), x)[0].dtype == "float64"
    assert gl.grad(lambda x: np.sum(x.astype(np.float64) ** 2))(x).dtype == "float32"
    assert gl.jvp(lambda x: x.astype(np.float64), (x,), (x,))[1].dtype == "float64"
    assert gl.grad(lambda x: np.sum(x * x.astype(int)))(x).tolist() == [1, -2]


@pytest.mark.parametrize("lay", [np.asfortranarray, lambda x: x.transpose(1, 2, 0), lambda x: x[::-1, :, ::2]])
@pytest.mark.parametrize("order", ["A", "K", "C", "F"])
def test_orders_of_memory(lay, order):
    x = lay(np.arange(24.0).reshape(2, 3, 4))
    fs = [lambda x: x.ravel(order), lambda x: np.ravel(x * 1, order), lambda x: x.T.flatten(order)]
    fs += [lambda x: np.reshape(x, (-1, 2), order=order)] if order != "K" else []
    for f in fs:
        y, pullback = gl.vjp(f, x)
        np.testing.assert_array_equal(y, f(x))
        np.testing.assert_array_equal(pullback(np.sin(y))[0], np.sin(x))
        np.testing.assert_array_equal(gl.jvp(f, (x,), (np.sin(x),))[1], np.sin(y))
