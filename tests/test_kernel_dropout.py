"""The dropout kernel: Philox against known answers and an implementation in Python's integers, masks bit by bit."""

import numpy as np
import pytest
from kernel_device import DTYPES, call
from numpy.testing import assert_array_equal

from gradlib.kernels import dropout as kernels
from gradlib.kernels.launch import SIMULATED

LOW = 0xFFFFFFFF


def philox(counter, key):
    """Philox4x32-10 of Salmon et al., in Python's integers."""
    (a, b, c, d), (k, l) = counter, key
    for _ in range(10):
        p, q = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (q >> 32) ^ b ^ k, q & LOW, (p >> 32) ^ d ^ l, p & LOW
        k, l = (k + 0x9E3779B9) & LOW, (l + 0xBB67AE85) & LOW
    return a, b, c, d


KNOWN = [
    ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((LOW,) * 4, (LOW,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers(counter, key, words):
    assert philox(counter, key) == words


@pytest.mark.skipif(not SIMULATED, reason="calls a device function")
@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers_of_the_kernel(counter, key, words):
    with np.errstate(over="ignore"):
        got = kernels.philox(*map(np.uint32, counter), *map(np.uint32, key))
    assert tuple(map(int, got)) == words


def keep(n, seed, counter, rate):
    """The mask, from the definition."""
    words = []
    for e in range(-(-n // 4)):
        words += philox((e & LOW, e >> 32, counter & LOW, counter >> 32), (seed & LOW, seed >> 32))
    return np.array(words[:n]) >= min(round(rate * 2**32), LOW)


def state(seed, counter):
    return np.array(seed, np.uint64), np.array(counter, np.uint64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (3,), (5, 7), (8, 16), (1026,), (0, 3)])
def test_mask_bit_by_bit(shape, dtype, schedule):
    seed, counter = 0x1234567890ABCDEF, 2**40 + 3
    n, rng = int(np.prod(shape)), np.random.default_rng(0)
    mask = keep(n, seed, counter, 0.3).reshape(shape)
    x = np.asarray(rng.normal(size=shape), dtype)
    y, saved = call(kernels.dropout.forward, x, *state(seed, counter), rate=0.3)
    assert y.dtype == x.dtype and y.shape == x.shape
    np.testing.assert_allclose(y, np.where(mask, x / 0.7, 0), rtol=1e-6)
    assert int(saved[0]) == seed and int(saved[1]) == counter
    for V in (0, 1, 3):
        d = rng.normal(size=(V, *shape)).astype(dtype)
        dx, *rest = call(kernels.dropout.vjp, saved, d, (True, False, False), rate=0.3)
        assert rest == [None, None]
        np.testing.assert_allclose(dx, np.where(mask, d / 0.7, 0), rtol=1e-6)
        assert_array_equal(call(kernels.dropout.jvp, saved, (d, None, None), rate=0.3), dx)


def test_saved_counter_does_not_move_with_its_owner():
    seed, counter = state(1, 5)
    _, saved = call(kernels.dropout.forward, np.ones(8, "float32"), seed, counter, rate=0.5)
    counter += np.uint64(1)
    assert int(saved[1]) == 5


@pytest.mark.parametrize(("rate", "expected"), [(0.0, 1.0), (1 - 2**-40, 0.0)])
def test_rates_at_the_ends(rate, expected):
    y, _ = call(kernels.dropout.forward, np.ones(64, "float64"), *state(3, 4), rate=rate)
    assert_array_equal(y, expected)


def test_what_is_left_to_the_rule():
    assert call(kernels.dropout.forward, np.ones(4, "longdouble"), *state(1, 2), rate=0.5) is NotImplemented
    assert call(kernels.dropout.vjp, state(1, 2), np.ones((1, 4)), (False, False, False), rate=0.5) == (None,) * 3
