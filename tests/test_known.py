"""A call that does the same as an earlier one is made by what is known of it, and by nothing that differs."""

import gc
import threading
import weakref

import numpy as np
import pytest

import gradlib as gl
from gradlib.jacobian import batched, batched_work, known
from gradlib.jacobian.cost import PLANS
from gradlib.op import REGISTRY

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def nothing_known():
    known._known.clear()


@pytest.fixture
def chains(monkeypatch):
    """How often a chain was looked for."""
    found = []
    plain = batched_work.plain_chain
    monkeypatch.setattr(batched_work, "plain_chain", lambda call: found.append(1) or plain(call))
    return found


def fresh(f, x):
    known._known.clear()
    return gl.batch_jacobian(f)(x)


def arrays(*shapes):
    return [RNG.standard_normal(s) for s in shapes]


def test_other_numbers_of_the_same_form_take_the_known_way(chains):
    def network(x, w, b, v):
        return gl.softmax(np.tanh(np.maximum(x @ w + b, 0) @ v * 0.5)) * 2

    for _ in range(3):
        x, *rest = arrays((5, 4), (4, 6), (6,), (6, 3))
        got = gl.batch_jacobian(lambda x, rest=rest: network(x, *rest))(x)
        eps = 1e-6
        for i in range(4):
            step = np.zeros_like(x)
            step[:, i] = eps
            want = (network(x + step, *rest) - network(x - step, *rest)) / (2 * eps)
            np.testing.assert_allclose(got[:, :, i], want, rtol=1e-6, atol=1e-8)
    assert len(chains) == 1


def differing():
    """Pairs of functions that do not do the same, of the same form."""
    w, v = arrays((4, 4), (4, 4))
    return [
        (lambda x: x * 2.0, lambda x: x * 3.0),
        (lambda x: x * 0.0, lambda x: x * -0.0),
        (lambda x: gl.elu(x, 1.0), lambda x: gl.elu(x, 2.0)),
        (lambda x: gl.leaky_relu(x, 0.1) @ w, lambda x: gl.leaky_relu(x, 0.2) @ w),
        (lambda x: x[:, 1:3], lambda x: x[:, 0:2]),
        (lambda x: x[:, [0, 1]] * 3.0, lambda x: x[:, [2, 1]] * 3.0),
        (lambda x: np.roll(x, 1, axis=1) @ w, lambda x: np.roll(x, 2, axis=1) @ w),
        (lambda x: x @ w @ w, lambda x: x @ w @ v),  # once one array, once two
        (lambda x: x**2.0, lambda x: x**3.0),
        (lambda x: np.clip(x, -1.0, 1.0), lambda x: np.clip(x, -0.5, 0.5)),
        (lambda x: gl.linear(x, w, activation="tanh"), lambda x: gl.linear(x, w, activation="sigmoid")),
        (lambda x: np.where(x > 0, x, 2.0 * x), lambda x: np.where(x > 0, 2.0 * x, x)),
        (lambda x: np.arctan2(x, 2.0), lambda x: np.arctan2(2.0, x)),
    ]


@pytest.mark.parametrize("at", range(len(differing())))
def test_what_differs_is_not_taken_for_the_same(at):
    one, other = differing()[at]
    (x,) = arrays((3, 4))
    want = [fresh(one, x), fresh(other, x)]
    known._known.clear()
    for f, w in ((one, want[0]), (other, want[1]), (one, want[0])):
        got = gl.batch_jacobian(f)(x)
        np.testing.assert_array_equal(got, w)
        np.testing.assert_array_equal(np.signbit(got), np.signbit(w))


def test_shapes_and_dtypes_count():
    w = RNG.standard_normal((4, 4))
    for x in (*arrays((3, 4), (5, 4)), RNG.standard_normal((3, 4)).astype(np.float32)):
        got = gl.batch_jacobian(lambda x: np.tanh(x @ w.astype(x.dtype)))(x)
        want = (1 - np.tanh(x @ w.astype(x.dtype)) ** 2)[:, :, None] * w.T
        assert got.dtype == x.dtype
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_one_array_saved_twice_and_then_two():
    """The recipe is made where w is used twice; it must not take the first for both later."""
    w, v, x = arrays((4, 4), (4, 4), (3, 4))
    for a, b in ((w, w), (w, v), (v, w)):
        got = gl.batch_jacobian(lambda x, a=a, b=b: np.tanh(x @ a) @ b)(x)
        want = np.einsum("kj,bk,ik->bji", b, 1 - np.tanh(x @ a) ** 2, a)
        np.testing.assert_allclose(got, want, rtol=1e-10)


def test_errors_are_still_raised():
    """A function that mixes samples is not known, and neither is what a budget does not allow."""
    (x,) = arrays((3, 4))
    for _ in range(2):
        with pytest.raises(ValueError, match="mixes samples"):
            gl.batch_jacobian(lambda x: x - x.mean(axis=0))(x)
    (w,) = arrays((4, 4))
    gl.batch_jacobian(lambda x: np.tanh(x) @ w)(x)
    for _ in range(2):
        with pytest.raises(ValueError, match="max_bytes=1 is too small"):
            gl.batch_jacobian(lambda x: np.tanh(x) @ w, max_bytes=1)(x)


def test_what_is_found_by_probing_is_found_anew(monkeypatch):
    """It holds for the numbers of one call alone."""
    probes = []
    plain = batched.probe
    monkeypatch.setattr(batched, "probe", lambda *given: probes.append(1) or plain(*given))
    monkeypatch.setattr(REGISTRY["tanh"], "batch", None)  # as of an op that does not say where the axis goes
    (x,) = arrays((3, 4))
    for _ in range(2):
        gl.batch_jacobian(np.tanh)(x)
    assert len(probes) == 2


def test_nothing_of_a_call_stays_alive():
    x, w = arrays((50, 40), (40, 30))
    seen = []

    def f(x):
        h = np.tanh(x @ w)
        seen.append(weakref.ref(h.value))
        return np.tanh(h)

    gl.batch_jacobian(f)(x)
    assert known._known
    gc.collect()
    assert seen[0]() is None


def test_what_is_known_is_bounded_and_safe_between_threads():
    def ask(shift):
        for size in range(1, PLANS):
            x = np.full((2, size + shift), 0.5)
            np.testing.assert_allclose(
                gl.batch_jacobian(np.tanh)(x)[1], np.eye(size + shift) * (1 - np.tanh(0.5) ** 2), rtol=1e-12
            )

    failures = []

    def guarded(shift):
        try:
            ask(shift)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(40 * i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures and 0 < len(known._known) <= PLANS
