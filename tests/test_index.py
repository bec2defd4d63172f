"""Indexing: every kind of index against NumPy and finite differences."""

import numpy as np
import pytest
from rulecheck import Case, RuleCheck, randn
from standin import MODULE, DeviceArray, rules_only

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
    (lambda: gl.grad(lambda x: x[A_MASK].sum())(np.ones(2)), IndexError, "expected a mask of shape (2,), got bool[3]"),
    (lambda: gl.grad(lambda x: x[:, A_MASK].sum())(np.ones((3, 2))), IndexError, "a mask of shape (2,), got bool[3]"),
    (lambda: gl.grad(lambda x: x[np.ones((2, 4), bool)].sum())(np.ones((3, 5))), IndexError, "(3, 5), got bool[2, 4]"),
    (lambda: gl.grad(lambda x: x[3])(np.ones(3)), IndexError, "3"),
    (lambda: gl.grad(lambda x: np.take(x, 0, mode="edge"))(np.ones(3)), ValueError, 'take: expected mode "raise", "w'),
    (lambda: gl.grad(lambda x: np.take(x, 0, out=np.ones(1)))(np.ones(3)), TypeError, "take: out="),
    (
        lambda: gl.grad(lambda x: np.take_along_axis(x, np.array([0]), 0).sum())(np.ones((2, 2))),
        ValueError,
        "take_along_axis: expected indices of 2 dimensions, got int64[1]",
    ),
]


A_MASK = np.array([True, False, True])


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
    "take wrap": lambda x: np.take(x, [[9, -7], [3, 0]], 1, mode="wrap") + x.take([-1, 99], mode="wrap")[0],
    "take clip": lambda x: np.take(x, np.array([9, -7, 2]), axis=0, mode="clip"),
    "take at a place": lambda x: np.take(x, np.argmax(x[:, 0, 0]) + 7, 0, mode="wrap"),
    "along": lambda x: np.take_along_axis(x, np.argsort(x, axis=1), axis=1),
    "along broadcast": lambda x: np.take_along_axis(x, np.array([[[0], [3]]]), axis=1),
    "along flat": lambda x: np.take_along_axis(x, np.array([3, 3]), axis=None),
    "diagonal": lambda x: np.diagonal(x, 1).T + x.diagonal(0, 2, 1),
    "diagonal outside": lambda x: np.diagonal(x, 9),
    "trace": lambda x: np.trace(x, -1, 1, 0),
    "repeat": lambda x: np.repeat(x, 2, axis=1),
    "repeat each": lambda x: x.repeat([2, 0, 1], axis=0),
    "repeat flat": lambda x: np.repeat(x, 2),
    "single bools": lambda x: x[True] + x[:, None, np.True_].swapaxes(1, 2).swapaxes(0, 1)[0],
    "False": lambda x: x[:, False],
    "single bool and arrays": lambda x: x[[0, 1], True, :, [1, 0]] + x[0, True, [2, 3], 1:],
    "range": lambda x: x[range(2)] + x[1:, range(0, 4, 1)],
    "tuples": lambda x: x[(0, 1), (1, 2)] * x[:2, (3,), 1:],
    "mask behind an ellipsis": lambda x: x[..., np.array([True, False])],
    "repeat by a place": lambda x: np.repeat(x, np.argmax(x[0, :, 0]), 1),
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


def _replays(f, x, change):
    """A capture of f gives what f gives, before and after the change of an array that f holds."""
    captured = gl.capture(f)
    for _ in range(2):
        np.testing.assert_array_equal(captured(x), f(x))
    before = f(x)
    change()
    np.testing.assert_array_equal(captured(x), f(x))
    assert np.any(f(x) != before)


def test_a_replay_sees_indices_that_change_in_place():
    ids, other = np.arange(3), np.array([0])
    gradient = gl.grad(lambda x: np.sum(x[ids] ** 2))
    _replays(gradient, X, lambda: ids.fill(1))
    ids = np.arange(3)
    _replays(gl.hessian(lambda x: np.sum(x[ids, other] ** 3)), X[..., 0], lambda: ids.fill(1))
    mask = np.array([True, False, True])
    _replays(gl.grad(lambda x: np.sum(x[mask] ** 2)), X, lambda: mask.put([0, 1], [False, True]))
    _replays(gl.grad(lambda x: np.sum(np.compress(mask, x, 0) ** 2)), X, lambda: mask.put([0, 1], [True, False]))
    counts = np.array([1, 2, 0])
    gradient = gl.grad(lambda x: np.sum(np.repeat(x, counts, 0) ** 2))
    _replays(gradient, X, lambda: counts.put([0, 1], [3, 0]))
    _replays(gl.grad(lambda x: np.sum(np.take(x, counts, 0, mode="wrap") ** 2)), X, lambda: counts.put([1], [8]))
    drop = np.array([0])
    _replays(gl.grad(lambda x: np.sum(np.delete(x, drop, 0) ** 2)), X, lambda: drop.fill(2))


def test_a_replay_refuses_indices_of_another_number():
    mask, counts, ids = np.array([True, False, True]), np.array([1, 2, 0]), np.arange(3)
    picked, repeated = gl.capture(lambda x: x[mask]), gl.capture(lambda x: np.repeat(x, counts, 0))
    rows = gl.capture(gl.batch_jacobian(lambda x: x[ids, [0, 1, 1]] ** 2))
    assert rows(X[..., 0]).shape == (3, 4)
    picked(X), repeated(X)
    mask[:], counts[:], ids[:] = True, 1, 0
    counts[0] = 2
    with pytest.raises(ValueError, match=r"mask of an index picks 3 entries, 2 when gl\.capture recorded it"):
        picked(X)
    with pytest.raises(ValueError, match=r"np\.repeat picks 4 entries, 3 when"):
        repeated(X)
    with pytest.raises(ValueError, match="gave each sample its own row"):
        rows(X[..., 0])


def test_on_a_device_an_index_that_stopped_counting_makes_nan():
    """It is not waited for."""
    ids = MODULE.arange(3)
    gradient = gl.capture(gl.grad(lambda x: (x[ids] ** 2).sum()))
    x = DeviceArray(X[:, :2, 0])
    with rules_only():
        for _ in range(2):
            np.testing.assert_array_equal(gradient(x).get(), 2 * X[:, :2, 0])
        ids.host[:] = 1
        assert np.isnan(gradient(x).get()[1]).all()


def test_counts_that_an_argument_decides_are_refused_by_a_capture():
    with pytest.raises(TypeError, match=r"the counts in np\.repeat of a value inside gl\.capture would freeze"):
        gl.capture(lambda x: np.repeat(x, np.argmax(x)))(V)


@pytest.mark.parametrize("library", ["torch", "jax.numpy"])
def test_indices_of_other_libraries(library):
    ids = pytest.importorskip(library).asarray([0, 2, 2])
    np.testing.assert_array_equal(gl.grad(lambda x: np.sum(x[ids]))(V), [1, 0, 2, 0, 0])
