"""Indexing: every kind of index against NumPy and finite differences."""

import numpy as np
import pytest
from rulecheck import Case, RuleCheck, randn

import gradlib as gl
from gradlib.op import REGISTRY
from gradlib.ops.index import ARRAY

A, ALL = ARRAY, slice(None)
I, J = np.array([2, 0, 2]), np.array([[1], [0]])
#: shape of x, template, arrays
TEMPLATES = [
    ((3, 4), (slice(0, 2), slice(None, None, -2)), ()),
    ((3, 4), (1, None), ()),
    ((3,), (0,), ()),
    ((3, 4), (A,), (I,)),
    ((3, 4), (ALL, A), (I,)),
    ((3, 4), (A, A), (I, J)),
    ((3, 2, 4), (A, ALL, A), (I, I)),
    ((3, 2, 4), (A, None, 1, A), (I, J)),
    ((2, 3, 4), (ALL, A, 2), (I,)),
    ((3, 2), (A,), (np.zeros((0,), int),)),
    ((0, 2), (ALL, A), (np.array([1, 1]),)),
    ((3,), (A,), (np.array([-1, 2, 0]),)),
]


def _on_stack(name, arrays_of):
    return [Case(REGISTRY[name], arrays_of(*t), template=t[1], **({"shape": t[0]} if name == "scatter" else {}))
            for t in TEMPLATES]  # fmt: skip


def _indexed(shape, template, arrays):
    left = iter(arrays)
    return np.zeros(shape)[tuple(next(left) if t is ARRAY else t for t in template)]


CASES = [Case(REGISTRY["getitem"], (randn(*s), *a), template=t, aligned=(False,) * len(a)) for s, t, a in TEMPLATES]
CASES += _on_stack("gather", lambda s, t, a: (randn(2, *s), *a))
CASES += _on_stack("scatter", lambda s, t, a: (randn(2, *_indexed(s, t, a).shape), *a))
ERRORS = [
    (lambda: gl.grad(lambda x: x[0, 0])(np.ones(3)), IndexError, "indexing: 2 indices for an array of 1 dim"),
    (lambda: gl.grad(lambda x: x[1.0])(np.ones(3)), TypeError, "indexing: expected slices, ints … got float"),
    (lambda: gl.grad(lambda x: x["a"])(np.ones(3)), TypeError, "indexing: expected … got str"),
    (lambda: gl.grad(lambda x: x[np.ones(2)].sum())(np.ones(3)), TypeError, "ints or bools, got float64[2]"),
    (lambda: gl.grad(lambda x: x[True])(np.ones(3)), TypeError, "got a Python bool"),
    (lambda: gl.grad(lambda x: x[3])(np.ones(3)), IndexError, "3"),
    (
        lambda: gl.grad(lambda x: np.take(x, 0, mode="clip"))(np.ones(3)),
        NotImplementedError,
        "take: out= and mode=",
    ),
    (
        lambda: gl.grad(lambda x: np.take_along_axis(x, np.array([0]), 0).sum())(np.ones((2, 2))),
        ValueError,
        "take_along_axis: expected indices of 2 dimensions, got int64[1]",
    ),
]


class TestRules(RuleCheck):
    cases = CASES
    errors = ERRORS


X, V = randn(3, 4, 2), randn(5)
MASK = X[..., 0] > 0
CALLS = {
    "ellipsis": lambda x: x[..., 0],
    "ellipsis between": lambda x: x[1, ..., None, 1],
    "negative int": lambda x: x[-1],
    "numpy int": lambda x: x[np.int64(1), np.array(2)],
    "list": lambda x: x[[0, 2, 2]],
    "empty list": lambda x: x[[]],
    "mask": lambda x: x[MASK],
    "mask of one axis": lambda x: x[:, np.array([True, False, True, False])],
    "mask computed": lambda x: x[x > 0],
    "mask none": lambda x: x[x > 99],
    "mask and array": lambda x: x[np.array([True, False, True]), :, np.array([1, 0])],
    "pairs": lambda x: x[np.arange(3), np.array([1, 0, 3])],
    "take": lambda x: np.take(x, [1, 1, 0], axis=1) + x.take(np.array([2, 1, 0]), axis=1),
    "take flat": lambda x: np.take(x, np.array([[5, 0], [5, -1]])),
    "along": lambda x: np.take_along_axis(x, np.argsort(x, axis=1), axis=1),
    "along broadcast": lambda x: np.take_along_axis(x, np.array([[[0], [3]]]), axis=1),
    "along flat": lambda x: np.take_along_axis(x, np.array([3, 3]), axis=None),
    "diagonal": lambda x: np.diagonal(x, 1).T + x.diagonal(0, 2, 1),
    "diagonal outside": lambda x: np.diagonal(x, 9),
    "trace": lambda x: np.trace(x, -1, 1, 0),
    "repeat": lambda x: np.repeat(x, 2, axis=1),
    "repeat each": lambda x: x.repeat([2, 0, 1], axis=0),
    "repeat flat": lambda x: np.repeat(x, 2),
    "iteration": lambda x: sum((i + 1) * row for i, row in enumerate(x)),
}


@pytest.mark.parametrize("name", CALLS)
def test_any_index(name):
    f = CALLS[name]
    np.testing.assert_array_equal(gl.vjp(f, X)[0], f(X))
    if f(X).size:
        gl.check_grads(f, (X,), order=2)
    assert gl.jacobian(f, mode="rev")(X).shape == (*f(X).shape, *X.shape)


@pytest.mark.parametrize("k", [-1, 0, 2])
def test_diag_of_a_vector_and_of_a_matrix(k):
    np.testing.assert_array_equal(gl.vjp(lambda v: np.diag(v, k), V)[0], np.diag(V, k))
    gl.check_grads(lambda v: np.diag(v, k) ** 2, (V,), order=2)
    np.testing.assert_array_equal(gl.vjp(lambda x: np.diag(x, k), X[0])[0], np.diag(X[0], k))


def test_repeated_entries_add_up():
    assert gl.grad(lambda x: x[[1, 1, 1]].sum())(np.zeros(3)).tolist() == [0, 3, 0]
    many = np.random.default_rng(0).integers(0, 50, 1000)
    np.testing.assert_array_equal(gl.grad(lambda x: x[many].sum())(np.zeros(50)), np.bincount(many, minlength=50))


def test_iteration_over_a_number():
    with pytest.raises(TypeError, match="iteration over a 0-d"):
        gl.grad(lambda x: sum(x))(1.0)
