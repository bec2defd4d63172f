"""What lives on between the two directions: a recorded op keeps what its rules read, a sweep what it needs yet."""

import tracemalloc

import numpy as np
import pytest

import gradlib as gl
from gradlib.kept import FORMS, Form, form_of, places_read
from gradlib.op import REGISTRY
from gradlib.transforms import run

N, STEPS = 1 << 17, 40  # entries of 1 MB, links of a chain
RNG = np.random.default_rng(0)
W, MASK = RNG.standard_normal(N), RNG.random(N) > 0.5
SQUARE = RNG.standard_normal((16, 16)) / 4

#: A link of a chain, and how many arrays the gradient of 40 of them may hold at once, beside the argument.
FREE = {
    "z + 1": lambda z: z + 1,
    "-z": lambda z: -z,
    "z * 2": lambda z: z * 2,
    "z / 2": lambda z: z / 2,
    "z * w": lambda z: z * W,
    "z + w": lambda z: W - z,
    "z - mean(z)": lambda z: z - np.mean(z),
    "z - sum(z)": lambda z: z - 1e-6 * np.sum(z),
    "cumsum": lambda z: np.cumsum(z) / 1e6,
    "reshape": lambda z: np.reshape(z * 0.5, (N,)),
    "transpose": lambda z: np.reshape(np.transpose(np.reshape(z, (2, -1))) * 0.5, (N,)),
    "reversed": lambda z: z[::-1] + 1,
    "rolled": lambda z: np.roll(z, 3) + 1,
    "picked and joined": lambda z: np.concatenate([z[5:], z[:5]]),
    "z @ w": lambda z: (z.reshape(-1, 16) @ SQUARE).reshape(-1),
    "linear": lambda z: gl.linear(z.reshape(-1, 16), SQUARE).reshape(-1),
}
HOLDING = {
    "where": (lambda z: np.where(z > 0, z, 0.5 * z), 5 + 6),  # masks of an eighth of the size
    "where, constant": (lambda z: np.where(MASK, z, 0.0), 6),
    "sqrt(z * z + 1)": (lambda z: np.sqrt(z * z + 1), STEPS + 6),
    "tanh": (np.tanh, STEPS + 4),
    "sin": (np.sin, STEPS + 4),
    "exp(-z)": (lambda z: np.exp(-z), STEPS + 4),
    "z * z": (lambda z: z * z * 0.5, STEPS + 6),
}
CHAINS = {name: (step, 6) for name, step in FREE.items()} | HOLDING


def chain(step):
    def f(z):
        for _ in range(STEPS):
            z = step(z)
        return z

    return f


def peak(call):
    """Bytes that a call takes at its widest, in arrays of N."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1] / (8 * N)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", CHAINS)
def test_a_gradient_holds_what_its_rules_read(name):
    step, most = CHAINS[name]
    z, f = RNG.random(N), chain(step)
    gradient = gl.grad(lambda z: np.sum(f(z)))
    assert peak(lambda: gradient(z)) <= most


@pytest.mark.parametrize("name", CHAINS)
def test_forward_mode_frees_tangents_after_their_last_use(name):
    step, most = CHAINS[name]
    z, dz, f = RNG.random(N), RNG.random(N), chain(step)
    assert peak(lambda: gl.jvp(f, (z,), (dz,))) <= most


def test_a_pushforward_frees_tangents_and_can_be_called_again():
    z, dz = RNG.random(N), RNG.random(N)
    _, pushforward = gl.linearize(chain(lambda z: np.tanh(z) * 2), z)
    assert peak(lambda: pushforward(dz)) <= 5
    np.testing.assert_array_equal(pushforward(dz), pushforward(dz))


def test_forward_mode_keeps_what_is_used_later_and_what_is_returned():
    def f(x):
        y = np.sin(x)
        z = y * 2 + x
        return y, np.cos(z) * y, z + y, x

    x, dx = RNG.random(3), RNG.random(3)
    y, z = np.sin(x), np.sin(x) * 2 + x
    dy, dz = np.cos(x) * dx, 2 * np.cos(x) * dx + dx
    want = (dy, -np.sin(z) * dz * y + np.cos(z) * dy, dz + dy, dx)
    for got, d in zip(gl.jvp(f, (x,), (dx,))[1], want, strict=True):
        np.testing.assert_allclose(got, d, rtol=1e-14)


@pytest.mark.parametrize("op", [np.matmul, gl.linear])
def test_the_argument_of_a_constant_product_is_not_kept(op):
    """x @ w keeps w for the derivative by x, and x for that by w."""
    x, w = RNG.random((3, 4)), RNG.random((4, 2))
    (by_x,) = run("test", lambda x: op(x, w), (x,))[0].trace.nodes
    assert by_x.saved[0] == Form((3, 4), x.dtype) and by_x.saved[1] is w
    (by_w,) = run("test", lambda w: op(x, w), (w,))[0].trace.nodes
    assert by_w.saved[0] is x
    (by_both,) = run("test", op, (x, w))[0].trace.nodes
    assert by_both.saved[0] is x and by_both.saved[1] is w


def saved_by(f, *args):
    return run("test", f, args)[0].trace.nodes[-1].saved


def test_what_a_formula_reads_is_kept():
    x, form = RNG.random(3), Form((3,), np.dtype(float))
    assert saved_by(np.negative, x) == (form, form)
    (kept, other), y = saved_by(np.exp, x), np.exp(x)
    assert kept == form and (other == y).all()
    assert saved_by(np.sin, x)[0] is x and saved_by(np.sin, x)[1] == form
    assert saved_by(lambda x: x * 2.0, x) == (form, 2.0, form)
    assert saved_by(lambda x: x + W[:3], x) == (form, form, form)
    a, b, y = saved_by(lambda x: x / 2.0, x)
    assert (a, b, y) == (form, 2.0, form)
    a, b, y = saved_by(lambda x: 2.0 / x, x)
    assert a == 2.0 and b is x and (y == 2.0 / x).all()


def test_broadcast_inputs_keep_their_own_shape():
    x, row = RNG.random((2, 3)), RNG.random(3)
    assert [s.shape for s in saved_by(np.add, x, row)] == [(2, 3), (3,), (2, 3)]
    for d, a in zip(gl.grad(lambda x, row: np.sum((x + row) * x), (0, 1))(x, row), (x, row), strict=True):
        assert d.shape == a.shape
    np.testing.assert_allclose(gl.grad(lambda row: np.sum((x - row) * x))(row), -x.sum(0), rtol=1e-14)


def test_the_code_of_a_formula_tells_what_it_reads():
    def seen_from_within(xp, x, y, *, a):
        return [x * k for k in (a,)]

    assert places_read(lambda xp, x, y: xp.cos(x), 1) == (0,)
    assert places_read(lambda xp, a, b, y: -y / b, 2) == (1, 2)
    assert places_read(seen_from_within, 1) == (0,)
    assert places_read(lambda xp, *x: x[0], 1) == (0, 1)  # cannot be told
    assert places_read(max, 1) == (0, 1)
    assert places_read(-1, 1) == places_read(None, 2) == ()


@pytest.mark.parametrize("name", ["negative", "exp", "multiply", "divide", "where", "sum", "matmul"])
def test_ops_declare_what_they_read(name):
    assert REGISTRY[name].keep is not None


def test_a_form_has_what_rules_ask_for():
    form = form_of(np.zeros((2, 3), np.float32))
    assert (form.shape, form.dtype, form.ndim) == ((2, 3), np.float32, 2)
    assert form.astype(np.dtype(float)) == Form((2, 3), np.dtype(float))
    assert form_of(2.0) == 2.0 and form_of(np.float64(2)) == 2.0 and form_of(None) is None


def test_few_forms_are_remembered():
    for n in range(5000):
        assert FORMS[(n,), np.dtype(float)].shape == (n,)
    assert len(FORMS) <= 4096


def test_the_graph_still_shows_constants():
    text = str(gl.trace(lambda x: np.sum(x + W[:3]) * 2.0, np.zeros(3)))
    assert "x0, float64[3]" in text and "2.0" in text


@pytest.mark.parametrize("f", [lambda z: np.sum(W[:3] * (z + 1) - np.exp(-z) / z), lambda z: np.sum(z @ z * 3.0 - z)])
def test_captured_and_higher_orders_are_equal_to_the_bit(f):
    z = RNG.random(3)
    gradient = gl.grad(f)
    replayed = gl.capture(gradient)
    for _ in range(3):
        np.testing.assert_array_equal(replayed(z), gradient(z))
    hessian = gl.capture(gl.hessian(f))
    for _ in range(3):
        np.testing.assert_array_equal(hessian(z), gl.hessian(f)(z))
    gl.check_grads(f, (z,), order=3)


@pytest.mark.parametrize("f", [lambda x: -x + x, lambda x: 2.0 * (x - 1) + x, lambda x: np.deg2rad(x) - x[..., ::-1]])
def test_a_batch_of_jacobians_of_ops_that_keep_nothing(f):
    x = RNG.random((5, 3))
    want = np.stack([np.stack([f(e + 0.0) - f(e * 0.0) for e in np.eye(3)], -1)] * 5)  # f is affine
    for _ in range(2):  # and from what is known of the first call
        np.testing.assert_allclose(gl.batch_jacobian(f)(x), want, rtol=1e-13, atol=1e-15)
