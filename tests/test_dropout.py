"""Dropout: rules, the generator against published test vectors, the same mask every time."""

import numpy as np
import pytest
from rulecheck import Case, RuleCheck, randn

import gradlib as gl
from gradlib.op import REGISTRY
from gradlib.ops.dropout import keep_mask, philox

SEED, COUNTER = np.array(7, np.uint64), np.array(2**33 + 5, np.uint64)


CASES = [
    Case(REGISTRY["dropout"], (randn(*s), SEED, COUNTER), rate=r)
    for s, r in [((3, 5), 0.3), ((), 0.5), ((0, 2), 0.5), ((7,), 0.0), ((1, 1), 0.9)]
]
ERRORS = [
    (lambda: gl.dropout(np.ones(3), 0.5, 0), TypeError, "dropout: expected a gl.Generator as rng, got int"),
    (lambda: gl.dropout(np.arange(3), 0.5, gl.Generator(0)), TypeError, "dropout: expected … got int64[3]"),
    (lambda: gl.dropout("a", 0.5, gl.Generator(0)), TypeError, "dropout: expected … got str"),
    (lambda: gl.dropout(np.ones(3), 1.0, gl.Generator(0)), ValueError, "dropout: expected 0 <= rate < 1, got 1.0"),
    (lambda: gl.dropout(np.ones(3), -0.1, gl.Generator(0)), ValueError, "dropout: expected 0 <= rate < 1"),
    (lambda: gl.Generator(-1), ValueError, "Generator: expected a seed in [0, 2**64), got -1"),
    (lambda: gl.Generator(0.5), ValueError, "Generator: expected a seed"),
]


class TestRules(RuleCheck):
    cases = CASES
    errors = ERRORS


@pytest.mark.parametrize(
    ("counter", "key", "want"),
    [  # the known answers that come with Salmon et al.'s generator, philox4x32-10
        ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_words(counter, key, want):
    words = philox(np, tuple(map(np.uint64, counter)), tuple(map(np.uint64, key)))
    assert tuple(map(int, words)) == want


def test_the_mask_is_independent_of_shape_and_changes_with_counter_and_seed():
    a = keep_mask(np, (6, 7), SEED, COUNTER, 0.5)
    np.testing.assert_array_equal(a.ravel(), keep_mask(np, (42,), SEED, COUNTER, 0.5))
    np.testing.assert_array_equal(a.ravel()[:5], keep_mask(np, (5,), SEED, COUNTER, 0.5))
    for seed, counter in ((SEED, COUNTER + np.uint64(1)), (SEED + np.uint64(1), COUNTER), (SEED, np.uint64(5))):
        assert (a != keep_mask(np, (6, 7), seed, counter, 0.5)).any()


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_rate_and_mean(rate):
    n = 200_000
    y = gl.dropout(np.ones(n), rate, gl.Generator(1))
    dropped = (y == 0).mean()
    assert abs(dropped - rate) < 5 * np.sqrt(rate * (1 - rate) / n)
    np.testing.assert_allclose(np.unique(y), [0, 1 / (1 - rate)])


def test_the_generator_counts_and_the_backward_mask_is_the_forward_one():
    x, rng = randn(50), gl.Generator(3)
    first, pullback = gl.vjp(lambda x: gl.dropout(x, 0.5, rng), x)
    second = gl.dropout(x, 0.5, rng)
    assert int(rng.counter) == 2 and (first != second).any()
    np.testing.assert_array_equal(pullback(np.ones(50))[0], np.where(first == 0, 0.0, 2.0))
    again = gl.Generator(3)
    np.testing.assert_array_equal(gl.dropout(x, 0.5, again), first)


def test_rate_zero_is_the_identity():
    x = randn(4, 5)
    np.testing.assert_array_equal(gl.dropout(x, 0.0, gl.Generator(0)), x)


def test_what_is_computed_again_draws_the_same_masks():
    def function(inner, outer):
        rng = gl.Generator(5)
        f = outer(lambda x: gl.dropout(x**3, 0.5, rng) + inner(lambda z: gl.dropout(z**2, 0.25, rng))(x))
        return (lambda x: np.sum(f(x))), rng

    x, found = np.arange(1.0, 13.0), []
    for inner in (lambda f: f, gl.checkpoint):
        for outer in (lambda f: f, gl.checkpoint):
            for transform in (gl.grad, gl.hessian):
                f, rng = function(inner, outer)
                found.append((transform(f)(x), int(rng.counter)))
    for (d, n), (want, _) in zip(found, found[:2] * 4, strict=True):
        np.testing.assert_array_equal(d, want)
        assert n == 2
