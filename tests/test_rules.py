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


def test_trace_takes_any_argument_and_shows_what_is_not_traced():
    def f(x, ids, name, scale, *, power=1, weights=None):
        assert name == "a"
        return np.sum(np.where(x[ids] > 0, x[ids] * scale, power) * weights)

    graph = gl.trace(f, np.ones(3), np.array([0, 2]), "a", 2.5, power=3, weights=np.ones((4, 2), np.float32))
    assert graph.inputs == ["x0 float64[3]", "x1 float64[]"]
    assert [(r["op"], r["inputs"]) for r in graph.rows] == [
        ("getitem", "x0, int64[2]"),
        ("getitem", "x0, int64[2]"),
        ("multiply", "y1, x1"),
        ("where", "bool[2], y2, 3"),
        ("multiply", "y3, float32[4, 2]"),
        ("sum", "y4"),
    ]
    assert [r["op"] for r in gl.trace(gl.checkpoint(np.tanh), np.ones(2)).rows] == ["checkpoint"]
    assert [r["op"] for r in gl.trace(gl.grad(lambda x: np.sum(np.sin(x))), np.ones(2)).rows][-1] == "getitem"


RESULTS = {
    "string": lambda x: (np.sin(x), "s"),
    "int": lambda x: [3, {"y": np.sin(x)}],
    "float and None": lambda x: (np.sin(x), 1.5, None),
    "array of ints": lambda x: (np.sin(x), np.arange(3)),
}


def _first(y):
    return next(x for x in gl.tree.flatten(y)[0] if getattr(x, "dtype", None) == np.float64)


@pytest.mark.parametrize("wrap", [gl.checkpoint, gl.custom_rules(lambda p, y, d: (_first(d) * np.cos(p[0]),))])
@pytest.mark.parametrize("name", RESULTS)
def test_results_that_are_no_arrays_pass_as_they_are(name, wrap):
    f = RESULTS[name]
    wrapped, seen = wrap(f), []

    def loss(x):
        seen.append(wrapped(x))
        return np.sum(_first(seen[-1]) ** 2)

    np.testing.assert_allclose(gl.grad(loss)(X[0]), 2 * np.sin(X[0]) * np.cos(X[0]), rtol=1e-12)
    if wrap is gl.checkpoint:
        np.testing.assert_allclose(gl.hessian(loss)(X[0]), 2 * np.diag(np.cos(2 * X[0])), atol=1e-12)
    (got, structure), (want, expected) = gl.tree.flatten(seen[0]), gl.tree.flatten(f(X[0]))
    assert structure == expected
    assert [x for x in got if not hasattr(x, "shape")] == [x for x in want if not hasattr(x, "shape")]
    assert [type(x) for x in got if not hasattr(x, "shape")] == [type(x) for x in want if not hasattr(x, "shape")]


def test_a_checkpoint_without_arrays_is_refused():
    with pytest.raises(TypeError, match="checkpoint: expected the function to return at least one array, got int"):
        gl.grad(lambda x: gl.checkpoint(lambda y: 5)(x) * np.sum(x))(X)


def root(x):
    y = x * 2
    y = np.sqrt(y)  # root
    return y * 1.0


def power(x):
    y = np.power(x + 1.0 - 1.0, 1.5)  # power
    return np.sum(y)


ZERO = np.array([[0.0, 1.0]])
ANOMALIES = {
    "batch_jacobian": (lambda: gl.batch_jacobian(root)(ZERO), "derivative of sqrt", "# root"),
    "batch_jacobian mixed": (lambda: gl.batch_jacobian(root, mode="mixed")(ZERO), "derivative of sqrt", "# root"),
    "jacobian mixed": (lambda: gl.jacobian(root, mode="mixed")(ZERO[0]), "derivative of sqrt", "# root"),
    "per_sample_norms": (
        lambda: gl.per_sample_norms(lambda w, x: root(w * x).sum(1))(np.ones(2), ZERO),
        "derivative of sqrt",
        "# root",
    ),
    "logabsdet": (lambda: gl.logabsdet(root)(ZERO), "derivative of sqrt", "# root"),
    "gramian": (lambda: gl.gramian(lambda w, x: root(x * w))(np.ones(2), ZERO), "derivative of sqrt", "# root"),
    "hessian": (lambda: gl.hessian(power)(ZERO), "derivative of power", "# power"),
    "hvp": (lambda: gl.hvp(power, (ZERO,), (ZERO + 1,)), "derivative of power", "# power"),
    "reverse twice": (lambda: gl.grad(lambda x: gl.grad(power)(x).sum())(ZERO), "derivative of power", "# power"),
    "forward twice": (
        lambda: gl.jvp(lambda x: gl.jvp(power, (x,), (x + 1,))[1], (ZERO,), (ZERO + 1,)),
        "derivative of power",
        "# power",
    ),
    "checkpoint": (lambda: gl.grad(lambda x: gl.checkpoint(root)(x).sum())(ZERO), "derivative of sqrt", "# root"),
    "value in a checkpoint": (
        lambda: gl.grad(lambda x: gl.checkpoint(root)(np.exp(x) * 1.5e308).sum())(0 * ZERO),
        "multiply gives non-finite values",
        "y = x * 2",
    ),
    "sum of derivatives": (
        lambda: gl.grad(lambda x: np.sum((y := x * 1e-9) * 1e308 + y * 1.5e308))(ZERO),
        "sum of derivatives from several uses is not finite, of the result of multiply",
        "y := x",
    ),
    "sum at an argument": (
        lambda: gl.grad(lambda x: np.sum(x * 1e308 + x * 1.5e308))(1e-9 * ZERO),
        "sum of derivatives from several uses is not finite, of an argument",
        "",
    ),
}


@pytest.mark.parametrize("name", ANOMALIES)
def test_detect_anomaly_under_every_transform(name):
    call, words, line = ANOMALIES[name]
    with pytest.raises(FloatingPointError) as caught, gl.detect_anomaly():
        call()
    assert words in str(caught.value)
    assert line in str(caught.value)


CALLS = {
    "batch_jacobian": lambda: gl.batch_jacobian(root)(ZERO + 1),
    "jacobian mixed": lambda: gl.jacobian(root, mode="mixed")(ZERO[0] + 1),
    "per_sample_norms": lambda: gl.per_sample_norms(lambda w, x: root(x @ w).sum(1))(np.eye(2), ZERO + 1),
    "gramian": lambda: gl.gramian(lambda w, x: root(x @ w))(np.eye(2), ZERO + 1),
    "logabsdet": lambda: gl.logabsdet(root)(ZERO + 1),
}


@pytest.mark.parametrize("name", CALLS)
def test_looking_for_anomalies_changes_no_result(name):
    want = CALLS[name]()
    with gl.detect_anomaly():
        got = CALLS[name]()
    np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.parametrize("wrap", [gl.checkpoint, gl.custom_rules(vjp=lambda primals, y, dy: (dy,))])
def test_traced_keywords_are_refused(wrap):
    with pytest.raises(TypeError, match="by position, not by keyword"):
        gl.grad(lambda x: np.sum(wrap(np.negative)(x=x)))(np.ones(2))
