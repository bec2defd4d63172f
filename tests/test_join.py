"""Joining and splitting against NumPy and finite differences."""

import numpy as np
import pytest
from rulecheck import Case, RuleCheck, randn

import gradlib as gl
from gradlib.op import REGISTRY

OP = REGISTRY["concatenate"]


CASES = [
    Case(OP, (randn(2, 3), randn(1, 3)), axis=0),
    Case(OP, (randn(2, 3), randn(2, 1), randn(2, 0)), axis=1),
    Case(OP, (randn(3),), axis=0),
    Case(OP, (randn(2), np.array([1, 2], np.int8)), axis=0),
    Case(OP, (randn(0, 2), randn(0, 2)), axis=0),
]
ERRORS = [
    (
        lambda: gl.grad(lambda x: np.concatenate([x, np.ones((2, 2))], 0).sum())(np.ones((1, 3))),
        ValueError,
        "concatenate: shapes differ beside axis 0: … float64[1, 3] … float64[2, 2]",
    ),
    (
        lambda: gl.grad(lambda x: np.concatenate([x, np.ones(3)]).sum())(np.ones((1, 3))),
        ValueError,
        "concatenate: shapes differ",
    ),
    (lambda: gl.grad(lambda x: np.concatenate([x], 3).sum())(np.ones(3)), ValueError, "concatenate: axis 3"),
    (lambda: gl.grad(lambda x: np.stack([x, np.ones(2)]).sum())(np.ones(3)), ValueError, "stack: expected equal"),
    (lambda: gl.grad(lambda x: np.split(x, 2)[0].sum())(np.ones(3)), ValueError, "split: axis of size 3"),
    (
        lambda: gl.grad(lambda x: np.concatenate([x], out=np.ones(3)).sum())(np.ones(3)),
        TypeError,
        "concatenate: out=",
    ),
]


class TestRules(RuleCheck):
    cases = CASES
    errors = ERRORS


X, Y, V = randn(2, 3), randn(2, 3, seed=9), randn(4)
CALLS = {
    "none axis": lambda x, y: np.concatenate([x, y], axis=None),
    "plain between": lambda x, y: np.concatenate([x, np.ones((2, 1)), y], axis=-1),
    "stack": lambda x, y: np.stack([x, y, x], axis=1),
    "stack last": lambda x, y: np.stack((x, y), -1),
    "stack numbers": lambda x, y: np.stack([x[0, 0], y[0, 0], 1.0]),
    "hstack": lambda x, y: np.hstack([x, y]),
    "hstack 1d": lambda x, y: np.hstack([x[0], y[0, 0]]),
    "vstack": lambda x, y: np.vstack([x, y[0]]),
    "column_stack": lambda x, y: np.column_stack([x[:, 0], y]),
    "split": lambda x, y: np.split(x, 3, axis=1)[1] * np.split(y, [1, 2], axis=1)[2],
    "array_split": lambda x, y: np.array_split(x, 2, axis=1)[0] + np.array_split(y, 2, 1)[0],
    "split beyond": lambda x, y: np.concatenate([*np.split(x, [1, 7], axis=1), y], axis=1),
    "split unsorted": lambda x, y: np.concatenate([*np.split(x, [2, 1], axis=1), y], axis=1),
}


@pytest.mark.parametrize("name", CALLS)
def test_numpy_conventions(name):
    f = CALLS[name]
    np.testing.assert_array_equal(gl.vjp(f, X, Y)[0], f(X, Y))
    gl.check_grads(f, (X, Y), order=2)


L = [1.0, 2.0, 3.0]
DTYPES = {
    "concatenate": lambda x: np.concatenate([x, x**2], dtype=np.float64),
    "stack": lambda x: np.stack([x, [1, 2, 3]], dtype=np.float64, casting="unsafe"),
    "hstack": lambda x: np.hstack([x, 1.0], dtype=np.float32),
    "vstack": lambda x: np.vstack([x, x], dtype=np.float64),
}


@pytest.mark.parametrize("name", DTYPES)
def test_the_dtype_of_the_result(name):
    f, x = DTYPES[name], np.array([0.5, 1.5, -2.0], np.float32)
    y, pullback = gl.vjp(f, x)
    assert y.dtype == f(x).dtype and pullback(np.ones_like(y))[0].dtype == np.float32
    np.testing.assert_array_equal(y, f(x))
    if y.dtype == np.float64:
        gl.check_grads(f, (x.astype(float),))


LISTS = {
    "hstack": lambda z: np.hstack([z[0], 1.0, z[1], L, [z[2]]]),
    "vstack": lambda z: np.vstack([z, L, (z[0], 1, 2)]),
    "column_stack": lambda z: np.column_stack([z, L]),
    "concatenate": lambda z: np.concatenate([L, z, [z[1] * z[2]]]),
    "stack": lambda z: np.stack([[z[0], 1, 2], z]),
    "dot": lambda z: np.dot(z, L) + np.inner(L, z) + np.vdot(L, z),
    "outer": lambda z: np.outer(z, L) + np.outer((1, 2, 3), z),
    "kron": lambda z: np.kron(L, z) + np.kron(z, L),
    "tensordot": lambda z: np.tensordot(L, z, 1) + np.tensordot(z, L, ((0,), (0,))),
    "einsum": lambda z: np.einsum("i,i->i", z, L) + np.einsum(L, [0], z, [0], [0]),
    "where": lambda z: np.where([True, False, True], z, L) + np.where(z > 0, (z[0], 1.0, 2.0), z),
    "select": lambda z: np.select([[True, False, False], z > 0], [z, [z[1], 2, z[2] ** 2]]),
    "meshgrid": lambda z: np.meshgrid(z, [1.0, 2.0])[0] + np.meshgrid([1.0, 2.0, 3.0], z[:2])[1],
    "broadcast_arrays": lambda z: np.broadcast_arrays([1.0, 2.0], z[:1])[1],
    "solve": lambda z: np.linalg.solve(np.diag(z), L) + np.linalg.solve([[1.0, 2, 0], [0, 1, 0], [3, 0, 1]], z),
    "lstsq": lambda z: np.linalg.lstsq(np.diag(z), L)[0] + np.linalg.tensorsolve(np.diag(z), L),
}


@pytest.mark.parametrize("name", LISTS)
def test_lists_and_numbers_are_arrays(name):
    f, z = LISTS[name], np.array([0.5, 1.5, -2.0])
    got, want = gl.vjp(f, z)[0], f(z)
    assert (got.shape, got.dtype) == (want.shape, want.dtype)
    np.testing.assert_allclose(got, want, rtol=1e-12)
    gl.check_grads(f, (z,), order=2)


def test_pieces_have_the_dtypes_of_their_sources():
    x, y = X.astype("float32"), Y
    z, pullback = gl.vjp(lambda x, y: np.concatenate([x, y]), x, y)
    dx, dy = pullback(np.ones_like(z))
    assert (z.dtype, dx.dtype, dy.dtype) == ("float64", "float32", "float64")
