"""Products, sums and transposes of blocks: equal to those of their dense forms, and as structured as promised."""

import itertools
from math import prod

import numpy as np
import pytest

from gradlib.jacobian import algebra
from gradlib.jacobian.blocks import (
    Block,
    Dense,
    Diagonal,
    DiagonalLowRank,
    Gather,
    Identity,
    Kronecker,
    RepeatedDiagonal,
    RowGradient,
    Select,
    SharedDense,
    Spread,
)

B, N, M = 3, 4, 5


def blocks():
    """One block of each class and of different shapes, by name."""
    rng = np.random.default_rng(0)

    def a(*shape):
        return rng.standard_normal(shape)

    like = a(1)
    square = {
        "identity": Identity(like, (B, N)),
        "diagonal": Diagonal(a(B, N)),
        "select": Select(like, a(B, N) > 0),
        "softmax": DiagonalLowRank(a(B, N), (a(B, N),), (a(B, N),), 1),
        "norm": DiagonalLowRank(a(B, N), (a(B, N), a(B, N)), (a(B, N), a(B, N)), 1),
        "shared": SharedDense(a(N, N), (B,)),
        "shared scaled": SharedDense(a(N, N), (B,), a(B, N)),
        "dense": Dense(a(B, N, N)),
        "norms": DiagonalLowRank(a(B, N), (a(B, N), a(B, N), a(B, N)), (a(B, N), a(B, N), a(B, N)), 1),
        "repeated": Gather(like, np.array([2, 0, 2, 2]), (B, N), distinct=False),
        "permutation": Gather(like, np.random.default_rng(1).permutation(N), (B, N)),
        "general": algebra.Product(Dense(a(B, N, N)), Diagonal(a(B, N))),
    }
    others = {
        "wider": SharedDense(a(N, M), (B,)),
        "narrower": SharedDense(a(M, N), (B,), a(B, N)),
        "dense wider": Dense(a(B, M, N)),
        "split": Identity(like, (B, N), (B, 2, N // 2)),
        "joined": Identity(like, (B, 2, N // 2), (B, N)),
        "flat": Identity(like, (B, N), (B * N,)),
        "unflat": Identity(like, (B * N,), (B, N)),
        "picked": Gather(like, np.array([[3, 1]]), (B, N)),
        "sum": RowGradient(a(B, N), (1,)),
        "kept sum": RowGradient(a(B, N), (1,), keepdims=True),
        "spread": Spread(a(B, N), (B, 1)),
        "spread down": Spread(a(B, N), (1, N)),
        "kept": Diagonal(a(B, 1)),
        "tall sum": RowGradient(a(B, 2, N // 2), (2,)),
        "tall kept sum": RowGradient(a(B, 2, N // 2), (1,), keepdims=True),
        "sum of sums": RowGradient(a(B, 2), (1,)),
        "kept sum of kept sums": RowGradient(a(B, 1, N // 2), (2,), keepdims=True),
        "tall spread": Spread(a(B, 2, N // 2), (B, 1, N // 2)),
        "axis put back": Identity(like, (B,), (B, 1)),
        "axis taken away": Identity(like, (B, 1), (B,)),
        "weights": Kronecker(a(B, M), N),
        "bias": RepeatedDiagonal(like, (B, N)),
        "rows": Diagonal(a(B)),
    }
    return square | others


BLOCKS = blocks()


def matrix(block: Block) -> np.ndarray:
    return block.to_dense().reshape(prod(block.y_shape), prod(block.x_shape))


def check(block: Block, want: np.ndarray) -> None:
    """The dense form and both directions on a stack."""
    np.testing.assert_allclose(matrix(block), want, rtol=1e-12, atol=1e-12)
    dy = np.random.default_rng(2).standard_normal((2, *block.y_shape))
    dx = np.random.default_rng(3).standard_normal((2, *block.x_shape))
    np.testing.assert_allclose(block.vjp(dy).reshape(2, -1), dy.reshape(2, -1) @ want, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(block.jvp(dx).reshape(2, -1), dx.reshape(2, -1) @ want.T, rtol=1e-12, atol=1e-12)
    assert block.vjp(dy).shape == dx.shape and block.jvp(dx).shape == dy.shape


FITTING = [(m, n) for m, n in itertools.product(BLOCKS, BLOCKS) if BLOCKS[m].x_shape == BLOCKS[n].y_shape]


@pytest.mark.parametrize(("m", "n"), FITTING)
def test_product(m, n):
    a, b = BLOCKS[m], BLOCKS[n]
    check(a @ b, matrix(a) @ matrix(b))


@pytest.mark.parametrize(
    ("m", "n"),
    [
        (m, n)
        for m, n in itertools.product(BLOCKS, BLOCKS)
        if (BLOCKS[m].x_shape, BLOCKS[m].y_shape) == (BLOCKS[n].x_shape, BLOCKS[n].y_shape)
    ],
)
def test_sum(m, n):
    a, b = BLOCKS[m], BLOCKS[n]
    check(a + b, matrix(a) + matrix(b))


@pytest.mark.parametrize("name", BLOCKS)
def test_transpose(name):
    a = BLOCKS[name]
    check(a.T, matrix(a).T)
    check(a.T.T, matrix(a))


@pytest.mark.parametrize(
    ("m", "n", "kind"),
    [
        ("diagonal", "diagonal", Diagonal),
        ("diagonal", "softmax", DiagonalLowRank),
        ("softmax", "diagonal", DiagonalLowRank),
        ("diagonal", "shared scaled", SharedDense),
        ("shared", "shared", SharedDense),
        ("dense", "dense", Dense),
        ("sum", "diagonal", RowGradient),
        ("rows", "sum", RowGradient),
        ("select", "diagonal", Diagonal),
        ("diagonal", "select", Diagonal),
        ("select", "select", Select),
        ("select", "softmax", DiagonalLowRank),
        ("sum", "softmax", RowGradient),
        ("sum of sums", "tall sum", RowGradient),
        ("kept sum of kept sums", "tall kept sum", RowGradient),
        ("axis put back", "sum", RowGradient),
        ("axis taken away", "kept sum", RowGradient),
        ("spread", "kept sum", DiagonalLowRank),
        ("kept sum", "spread", Diagonal),
        ("spread", "kept", Spread),
        ("diagonal", "spread", Spread),
        ("softmax", "spread", Spread),
        ("softmax", "norm", DiagonalLowRank),
        ("norms", "norm", algebra.Product),
        ("permutation", "repeated", Gather),
        ("diagonal", "weights", Kronecker),
        ("diagonal", "bias", RepeatedDiagonal),
        ("unflat", "flat", Identity),
        ("permutation", "permutation", Gather),
        ("split", "permutation", Gather),
        ("permutation", "joined", Gather),
        ("flat", "permutation", algebra.Product),
        ("shared", "softmax", algebra.Product),
    ],
)
def test_structure_is_kept(m, n, kind):
    assert type(BLOCKS[m] @ BLOCKS[n]) is kind


def test_sums_keep_structure():
    d, s, i = BLOCKS["diagonal"], BLOCKS["softmax"], BLOCKS["identity"]
    assert type(d + d) is type(d + i) is type(i + i) is Diagonal
    assert type(d + s) is type(s + d) is type(i + s) is DiagonalLowRank
    assert type(BLOCKS["select"] + i) is type(BLOCKS["select"] + BLOCKS["select"]) is Diagonal
    assert type(s + BLOCKS["norm"]) is DiagonalLowRank and type(BLOCKS["spread"] + BLOCKS["spread"]) is Spread
    assert type(BLOCKS["norm"] + BLOCKS["norms"]) is algebra.Sum
    assert type(BLOCKS["shared"] + BLOCKS["shared"]) is SharedDense
    assert type(BLOCKS["shared"] + d) is algebra.Sum


def test_an_identity_costs_nothing():
    for name in ("diagonal", "softmax", "shared", "picked", "sum", "weights"):
        block = BLOCKS[name]
        assert block @ Identity(block.like, block.x_shape) is block
        assert Identity(block.like, block.y_shape) @ block is block


def test_two_shared_matrices_become_one_only_where_it_is_smaller():
    bottleneck = SharedDense(np.ones((2, 50)), (B,)) @ SharedDense(np.ones((50, 2)), (B,))
    assert type(bottleneck) is algebra.Product
    assert type(SharedDense(np.ones((50, 2)), (B,)) @ SharedDense(np.ones((2, 50)), (B,))) is SharedDense


def test_blocks_that_do_not_fit():
    with pytest.raises(ValueError, match=r"\(3, 5\) before an input of shape \(3, 4\)"):
        BLOCKS["diagonal"] @ BLOCKS["wider"]
    with pytest.raises(ValueError, match="do not fit"):
        BLOCKS["diagonal"] + BLOCKS["wider"]
