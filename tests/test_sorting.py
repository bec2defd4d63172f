"""Sorting: permutations along an axis, ties."""

import numpy as np
import pytest
from functioncheck import check
from hypothesis import given, settings
from hypothesis import strategies as st
from rulecheck import Case, RuleCheck, close, randn

import gradlib as gl
from gradlib.op import REGISTRY

SORT = REGISTRY["sort"]
CASES = [
    Case(SORT, (randn(*shape),), axis=axis, kth=kth)
    for shape, axis, kth in [
        ((5,), 0, None), ((3, 4), 0, None), ((2, 3, 2), 1, None), ((3, 4), 1, (2,)), ((5,), 0, (1, 3)),
        ((1,), 0, None), ((0, 3), 1, None), ((3, 0), 1, None),
    ]
]  # fmt: skip
ERRORS = [
    (lambda: gl.grad(lambda x: np.sort(x, 2).sum())(randn(2, 2)), ValueError, "sort: axis 2 is out of range"),
    (lambda: gl.grad(lambda x: np.partition(x, 7).sum())(randn(3)), ValueError, "partition: kth … 7"),
    (lambda: gl.grad(lambda x: x.sort())(randn(3)), TypeError, "x.sort() … np.sort(x)"),
]


class TestRules(RuleCheck):
    cases = CASES
    errors = ERRORS


X, V = randn(3, 4), randn(5)
CALLS = {
    "sort": (lambda x: np.sort(x) * np.sort(x, axis=0) + np.sort(x, kind="stable"), X),
    "sort flat": (lambda x: np.sort(x, None), X),
    "partition": (lambda v: np.partition(v, 2)[2:3] + np.partition(v, (1, -1), axis=None)[1], V),
}


@pytest.mark.parametrize("name", CALLS)
def test_numpy_conventions(name):
    check(*CALLS[name])


def test_argsort_gives_plain_indices():
    x = np.array([1.0, 0.0, 1.0, 0.0])
    for options in ({}, {"kind": "stable"}, {"stable": True}, {"axis": None, "kind": "mergesort"}):
        y = gl.grad(lambda x, o=options: np.sum(x[np.argsort(x, **o)] * np.arange(4.0)))(x)
        assert y.tolist() == ([2, 0, 3, 1] if options else y.tolist())
        assert sorted(y.tolist()) == [0, 1, 2, 3]


def test_ties_keep_their_order():
    assert gl.grad(lambda x: np.sort(x) @ np.arange(4.0))(np.array([1.0, 0.0, 1.0, 1.0])).tolist() == [1, 0, 2, 3]


def test_samples_stay_apart():
    close(gl.batch_jacobian(np.sort)(X), np.stack([gl.jacobian(np.sort)(x) for x in X]), 0)
    with pytest.raises(ValueError, match="sort works along the batch axis"):
        gl.batch_jacobian(lambda x: np.sort(x, 0))(X)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.data())
def test_a_derivative_is_a_permutation(shape, data):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    x = np.random.default_rng(0).standard_normal(shape)
    d = gl.jacobian(lambda x: np.sort(x, axis))(x).reshape(x.size, x.size)
    np.testing.assert_array_equal(d @ d.T, np.eye(x.size))
    np.testing.assert_array_equal((d @ x.ravel()).reshape(shape), np.sort(x, axis))
