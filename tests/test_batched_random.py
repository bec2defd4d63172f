"""batch_jacobian on random programs whose axes all have the same size: it is right, or it raises; never silently wrong.

Equal sizes are the hard case: a batch axis cannot be told from the others by its length.
"""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from rulecheck import close, randn

import gradlib as gl
from gradlib.jacobian.dense import MODES


def _axis(x, k):
    return k % x.ndim


def _reshaped(x, k):
    """One of the shapes with x's entries: axes merged, split or reordered in size."""
    n = x.size
    shapes = [(a, b, n // a // b) for a in range(1, n + 1) for b in range(1, n // a + 1) if n % (a * b) == 0]
    shapes += [(a, n // a) for a in range(1, n + 1) if n % a == 0]
    return x.reshape(shapes[k % len(shapes)])


def _permuted(x, k):
    order = list(range(x.ndim))
    order = order[k % x.ndim :] + order[: k % x.ndim]
    return x.transpose(order[::-1] if k % 2 else order)


def _square(x):
    """The matrix product of x with itself, where it fits."""
    return x @ x if x.ndim >= 2 and x.shape[-1] == x.shape[-2] else x * 2


def _own_entries(x, k):
    n = min(x.shape[:2]) if x.ndim >= 2 else 0
    return x[np.arange(n), np.arange(n)[:: -1 if k % 2 else 1]] if n else x


#: each from an array and a number to an array
STEPS = {
    "sin": lambda x, k: np.sin(x),
    "reshape": _reshaped,
    "transpose": _permuted,
    "sum": lambda x, k: np.sum(x, axis=_axis(x, k), keepdims=bool(k % 2)) if x.ndim > 1 else x,
    "centred": lambda x, k: x - np.mean(x, axis=_axis(x, k), keepdims=True),
    "softmax": lambda x, k: gl.softmax(x, axis=_axis(x, k)),
    "cumsum": lambda x, k: np.cumsum(x, axis=_axis(x, k)),
    "flip": lambda x, k: np.flip(x, _axis(x, k)),
    "roll": lambda x, k: np.roll(x, 1, _axis(x, k)),
    "take": lambda x, k: np.take(x, np.arange(x.shape[_axis(x, k)])[::-1], axis=_axis(x, k)),
    "slice": lambda x, k: x[(slice(None),) * _axis(x, k) + (slice(0, 1),)],
    "integer": lambda x, k: x[(slice(None),) * _axis(x, k) + (0,)] if x.ndim > 1 else x,
    "own entries": _own_entries,
    "along axis": lambda x, k: np.take_along_axis(x, np.argsort(x, axis=_axis(x, k)), axis=_axis(x, k)),
    "sorted by": lambda x, k: x[np.argsort(x.reshape(len(x), -1)[:, 0])],
    "product": lambda x, k: _square(x),
    "einsum": lambda x, k: np.einsum("ij,kj->ik" if k % 2 else "ij,ij->ij", x, x) if x.ndim == 2 else x,
    "matrix": lambda x, k: x @ np.arange(1.0, 1 + 2 * x.shape[-1]).reshape(-1, 2),
    "from the left": lambda x, k: np.ones((2, x.shape[-2])) @ x if x.ndim > 1 else x,
    "concatenate": lambda x, k: np.concatenate([x, 2 * x], axis=_axis(x, k)),
    "stack": lambda x, k: np.stack([x, x * x], axis=k % (x.ndim + 1)),
    "expand": lambda x, k: np.expand_dims(x, k % (x.ndim + 1)),
    "outer": lambda x, k: x[..., None] * x[..., None, :] if x.size < 30 else x,
    "with itself transposed": lambda x, k: x + x.T if x.shape == x.shape[::-1] else x,
    "broadcast": lambda x, k: x * np.ones((2,) + (1,) * x.ndim) if k % 2 else x * np.ones(x.shape),
    "repeat": lambda x, k: np.repeat(x, 2, axis=_axis(x, k)),
    "inner gradient": lambda x, k: gl.grad(lambda z: np.sum(np.sum(z, axis=_axis(z, k)) ** 2))(x),
    "mask": lambda x, k: np.where(np.argmax(x, axis=_axis(x, k)) > 0, 1.0, 2.0) * x if x.ndim == 2 else x,
}
PROGRAMS = st.lists(st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 11)), min_size=1, max_size=4)
SHAPES = st.sampled_from([(2, 2), (3, 3), (2, 2, 2), (1, 2), (4, 2), (2, 4)])


def run_program(steps, x):
    for name, k in steps:
        x = STEPS[name](x, k)
        if x.size > 300:
            return x
    return x


def check(steps, shape, mode):
    """True where batch_jacobian gave a result (the right one), False where it refused."""
    x = randn(*shape)

    def f(x):
        return run_program(steps, x)

    try:
        got = gl.batch_jacobian(f, mode=mode)(x)
    except (ValueError, NotImplementedError):
        return False
    whole = np.moveaxis(gl.jacobian(f)(x), f(x).ndim, 1)  # (B, B, *out, *in)
    samples = np.arange(len(x))
    close(got, whole[samples, samples], 1e-10)
    whole[samples, samples] = 0
    assert not whole.any(), "samples mix, and no error was raised"
    return True


@settings(max_examples=400, deadline=None, derandomize=True)
@given(PROGRAMS, SHAPES, st.sampled_from(MODES))
def test_right_or_refused(steps, shape, mode):
    check(steps, shape, mode)


def _cut(w, n):
    """The first n entries of w, repeated as often as needed."""
    return np.concatenate([w] * (n // len(w) + 1))[:n]


#: each from an array, a number and a parameter w (4,) shared by all samples
SHARED_STEPS = {
    "w scales": lambda x, k, w: x * _cut(w, x.shape[-1]),
    "w as a matrix": lambda x, k, w: x @ np.outer(_cut(w, x.shape[-1]), np.sin(w[:2])),
    "w from the left": lambda x, k, w: np.outer(w[:2], _cut(w, x.shape[-2])) @ x if x.ndim > 1 else x,
    "one entry of w": lambda x, k, w: x + w[k % 4],
    "w beside x": lambda x, k, w: np.concatenate([x, w[0] * np.ones(x.shape)], axis=_axis(x, k)),
    "w where": lambda x, k, w: np.where(x > 0, x, _cut(w, x.shape[-1])),
    "w by index": lambda x, k, w: x * w[np.argmax(x, axis=-1) % 4][..., None],
    "w at least": lambda x, k, w: np.maximum(x, _cut(w, x.shape[-1])),
    "linear": lambda x, k, w: gl.linear(x, np.outer(_cut(w, x.shape[-1]), w[:3]), w[1:], activation="tanh"),
    "einsum": lambda x, k, w: np.einsum("...j,j,k->...k", x, _cut(w, x.shape[-1]), w[:2]),
    "exponent": lambda x, k, w: (x * x + 1) ** w[0],
}
MIXTURES = st.lists(
    st.tuples(st.sampled_from(sorted(SHARED_STEPS) * 2 + sorted(STEPS)), st.integers(0, 11)), min_size=1, max_size=4
)


def mixture(steps):
    """The function of a parameter w and samples x that the steps describe, cut off before it grows large."""

    def f(w, x):
        for name, k in steps:
            x = SHARED_STEPS[name](x, k, w) if name in SHARED_STEPS else STEPS[name](x, k)
            if x.size > 200:
                return x
        return x

    return f


@settings(max_examples=200, deadline=None, derandomize=True)
@given(MIXTURES, SHAPES, st.sampled_from([None, 3]))
def test_shared_parameters_right_or_refused(steps, shape, chunk_size):
    f = mixture(steps)
    w, x = randn(4), randn(*shape)
    try:
        got = gl.batch_jacobian(f, in_axes=(None, 0), chunk_size=chunk_size)(w, x)
    except (ValueError, NotImplementedError):
        return
    close(got, gl.jacobian(f)(w, x), 1e-10)


def test_programs_that_do_not_mix_are_accepted():
    """Refusing everything would be safe and useless."""
    rng = np.random.default_rng(0)
    names = sorted(set(STEPS) - {"mask"})  # a mask may take other samples into account at no derivative
    accepted = separate = 0
    for _ in range(150):
        steps = [(names[rng.integers(len(names))], int(rng.integers(12))) for _ in range(2)]
        x = randn(3, 3)
        y = run_program(steps, x)
        if y.shape[:1] != (3,):
            continue
        whole = np.moveaxis(gl.jacobian(lambda x, steps=steps: run_program(steps, x))(x), y.ndim, 1)
        whole[np.arange(3), np.arange(3)] = 0
        if not whole.any():
            separate += 1
            accepted += check(steps, (3, 3), "rev")
    assert separate > 30 and accepted > 0.9 * separate, (accepted, separate)
