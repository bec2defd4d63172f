"""checkpoint and custom_rules under every transform; detect_anomaly; trace."""

import tracemalloc

import numpy as np
import pytest

import gradlib as gl

RNG = np.random.default_rng(0)
W, X = RNG.standard_normal((3, 3)), RNG.standard_normal((4, 3))


def layers(w, x, block):
    for _ in range(3):
        x = block(w, x)["h"]
    return x


def plain(w, x):
    return {"h": np.tanh(x @ w)}


def f(w, x):
    return layers(w, x, plain)


def g(w, x):
    return layers(w, x, gl.checkpoint(plain))


TRANSFORMS = {
    "grad": lambda f: gl.grad(lambda w: f(w, X).sum())(W),
    "jvp": lambda f: gl.jvp(f, (W, X), (W, X)),
    "jacrev": lambda f: gl.jacrev(f, (0, 1))(W, X),
    "jacfwd": lambda f: gl.jacfwd(f)(W, X),
    "hessian": lambda f: gl.hessian(lambda w: f(w, X).sum())(W),
    "third order": lambda f: gl.jacobian(gl.hessian(lambda w: f(w, X).sum()))(W),
    "batch_jacobian": lambda f: gl.batch_jacobian(lambda x: f(W, x))(X),
    "batch_jacobian of parameters": lambda f: gl.batch_jacobian(f, in_axes=(None, 0))(W, X),
    "per_sample_grad": lambda f: gl.per_sample_grad(lambda w, x: f(w, x).sum(1))(W, X),
    "capture": lambda f: gl.capture(gl.grad(lambda w: f(w, X).sum()))(W),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_checkpoint_changes_nothing(name):
    for a, b in zip(*(gl.tree.flatten(TRANSFORMS[name](h))[0] for h in (f, g)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def test_checkpoint_saves_memory():
    def chain(x):
        for _ in range(20):
            x = np.sin(x)
        return x

    def peak(part):
        x = np.ones(50_000)
        tracemalloc.start()
        gl.grad(lambda x: np.sum(part(part(part(part(x))))))(x)
        bytes_ = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return bytes_

    assert peak(gl.checkpoint(chain)) < 0.45 * peak(chain)


def test_checkpoint_refuses_traced_arrays_from_outside():
    with pytest.raises(TypeError, match="checkpoint: the function uses a traced array from outside"):
        gl.grad(lambda x: gl.checkpoint(lambda y: x * y)(x).sum())(X)


def test_checkpoint_takes_an_outer_transforms_array():
    value = gl.grad(lambda w: gl.grad(lambda x: gl.checkpoint(lambda y: y @ w)(x).sum())(X).sum())(W)
    np.testing.assert_allclose(value, np.full((3, 3), 4.0))


@gl.custom_rules(
    vjp=lambda primals, y, dy: (dy * np.cos(primals[0]) * primals[1], (dy * np.sin(primals[0])).sum(axis=1), None),
    jvp=lambda primals, y, dx: dx[0] * np.cos(primals[0]) * primals[1] + dx[1][:, None] * np.sin(primals[0]),
)
def scaled_sine(x, a, name):
    assert name == "static"
    return np.sin(x) * a


def test_custom_rules_are_differentiated_in_turn():
    gl.check_grads(lambda x, a: scaled_sine(x, a, "static"), (X[0], np.array(1.7)), order=3, rtol=1e-4)


def test_custom_rules_give_what_they_say():
    clipped = gl.custom_rules(vjp=lambda primals, y, dy: (np.clip(dy, -1, 1),))(lambda x: x + 0.0)
    np.testing.assert_array_equal(gl.grad(lambda x: np.sum(5 * clipped(x)))(np.ones(2)), np.ones(2))
    with pytest.raises(NotImplementedError, match="no jvp rule"):
        gl.jvp(clipped, (X,), (X,))


@gl.custom_rules(
    vjp=lambda primals, y, dy: (np.multiply(dy, -3.0, out=dy),),
    jvp=lambda primals, y, dx: np.multiply(dx[0], -3.0, out=dx[0]),
)
def scaled_in_place(x):
    return x + 0.0


def test_rules_may_write_to_what_they_are_given():
    """Neither another use of the cotangent nor a later replay nor the user's own arrays see it."""
    x, labels, one = np.array([[0.5, -1.0, 2.0]], np.float32), np.array([1]), np.ones((1, 3), np.float32)

    def loss(x):
        return scaled_in_place(gl.cross_entropy(x, labels)) + gl.cross_entropy(x, labels)

    want = -2 * gl.grad(lambda x: gl.cross_entropy(x, labels))(x)
    replay = gl.capture(gl.grad(loss))
    for got in (gl.grad(loss)(x), replay(x), replay(x), replay(x)):
        np.testing.assert_allclose(got, want, rtol=1e-6)
    gl.vjp(scaled_in_place, x)[1](one)
    np.testing.assert_array_equal(gl.jvp(scaled_in_place, (x,), (one,))[1], -3)
    np.testing.assert_array_equal(one, 1)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (lambda primals, y, dy: dy, "should return a tuple of 1 cotangents"),
        (lambda primals, y, dy: (dy, dy), "should return a tuple of 1 cotangents"),
        (lambda primals, y, dy: (dy[..., :1],), r"should return a stack of shape \(1, 4, 3\), got float64\[1, 4, 1\]"),
    ],
)
def test_wrong_custom_rules_are_named(rule, words):
    def mine(x):
        return x * 2

    with pytest.raises(ValueError, match=f"mine: its vjp rule {words}"):
        gl.grad(lambda x: gl.custom_rules(vjp=rule)(mine)(x).sum())(X)


@pytest.mark.parametrize(
    ("function", "x", "words"),
    [
        (lambda x: np.sum(np.sqrt(x)), [0.0, 1.0], "derivative of sqrt is not finite.*np.sqrt"),
        (
            lambda x: np.sum(np.log(x)),
            [0.0, 1.0],
            r"log gives non-finite values of finite ones \(float64\[2\]\).*np.log",
        ),
        (lambda x: np.sum(np.exp(1000 * x)), [0.0, 1.0], "exp gives non-finite values"),
    ],
)
def test_detect_anomaly_names_op_and_line(function, x, words):
    with pytest.raises(FloatingPointError, match=words), gl.detect_anomaly():
        gl.grad(function)(np.array(x))


def test_detect_anomaly_lets_masks_pass():
    with gl.detect_anomaly():
        gl.grad(lambda x: gl.softmax(np.where(np.array([True, False]), x, -np.inf))[0])(np.ones(2))
    gl.grad(lambda x: np.sum(np.sqrt(x)))(np.array([1.0]))


def test_trace_prints_the_graph():
    graph = gl.trace(lambda p: np.sum(np.sin(p["x"]) * 2), {"x": np.zeros(3)})
    assert str(graph).splitlines() == [
        "inputs: x0 float64[3]",
        "name  op        inputs  result      bytes",
        "y0    sin       x0      float64[3]     24",
        "y1    multiply  y0, 2   float64[3]     24",
        "y2    sum       y1      float64[]       8",
        "returns y2; 56 bytes",
    ]


@pytest.mark.parametrize("wrap", [gl.checkpoint, gl.custom_rules(vjp=lambda primals, y, dy: (dy,))])
def test_traced_keywords_are_refused(wrap):
    with pytest.raises(TypeError, match="by position, not by keyword"):
        gl.grad(lambda x: np.sum(wrap(np.negative)(x=x)))(np.ones(2))
