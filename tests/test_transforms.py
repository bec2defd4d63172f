"""Transforms against JAX: nesting, pytrees, arguments, threads, values that leak."""

import dataclasses
import math
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rulecheck import close, randn

import gradlib as gl

jax = pytest.importorskip("jax")
jax.config.update("jax_enable_x64", True)
jnp = jax.numpy

UNARY = ["sin", "cos", "tanh", "exp", "square", "negative"]
BINARY = ["add", "multiply", "subtract"]


@st.composite
def programs(draw):
    """A random straight-line program of x and y: (function name, places of its arguments), …"""
    steps = []
    for n in range(draw(st.integers(1, 6))):
        name = draw(st.sampled_from(UNARY + BINARY))
        steps.append((name, tuple(draw(st.integers(0, n + 1)) for _ in range(1 if name in UNARY else 2))))
    return steps


def execute(xp, steps):
    def f(x, y):
        values = [x, y]
        for name, places in steps:
            values.append(xp.tanh(getattr(xp, name)(*[values[p] for p in places])))
        return xp.sum(values[-1] * values[len(values) // 2])

    return f


TRANSFORMS = ["grad", "jacrev", "jacfwd"]


@settings(max_examples=20, deadline=None, derandomize=True)
@given(programs(), st.lists(st.tuples(st.sampled_from(TRANSFORMS), st.integers(0, 1)), min_size=1, max_size=3))
def test_random_programs_under_random_nesting(steps, transforms):
    x, y = np.array([0.3, -0.7]), np.array(0.4)
    ours, theirs = execute(np, steps), execute(jnp, steps)
    for k, (name, n) in enumerate(transforms):
        name = name if k == 0 else "jacrev" if name == "grad" else name
        ours, theirs = getattr(gl, name)(ours, n), getattr(jax, name)(theirs, n)
    close(ours(x, y), np.asarray(jax.jit(theirs)(x, y)), 1e-11)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(programs(), st.integers(0, 99))
def test_random_programs_hvp_and_linearize(steps, seed):
    x, y = randn(2, seed=seed), randn(seed=seed + 1)
    t = randn(2, seed=seed + 2), randn(seed=seed + 3)
    ours, theirs = execute(np, steps), execute(jnp, steps)
    _, (slope, want) = jax.jit(lambda *p: jax.jvp(jax.value_and_grad(theirs, (0, 1)), p, t))(x, y)
    for a, b in zip(gl.hvp(ours, (x, y), t), want, strict=True):
        close(a, np.asarray(b), 1e-11)
    close(gl.linearize(ours, x, y)[1](*t), np.asarray(slope), 1e-11)


@pytest.mark.parametrize("order", range(1, 6))
def test_nested_to_fifth_order(order):
    ours, theirs = lambda x: np.sin(x) * np.exp(x), lambda x: jnp.sin(x) * jnp.exp(x)
    for _ in range(order):
        ours, theirs = gl.grad(ours), jax.grad(theirs)
    close(float(ours(0.7)), float(theirs(0.7)), 1e-13)


def test_perturbations_are_not_confused():
    assert gl.grad(lambda x: x * gl.grad(lambda y: x + y)(2.0))(3.0) == 1
    assert gl.grad(lambda x: x * gl.grad(lambda y: x * y)(2.0))(3.0) == 6
    assert gl.jvp(lambda x: x * gl.jvp(lambda y: x * y, (2.0,), (1.0,))[1], (3.0,), (1.0,))[1] == 6
    assert gl.jvp(lambda x: x * gl.grad(lambda y: x * y**2)(2.0), (3.0,), (1.0,))[1] == 24
    assert gl.grad(lambda x: gl.jvp(lambda y: x * y**2, (x,), (x,))[1])(3.0) == 54
    assert gl.grad(lambda x: gl.grad(lambda y: gl.grad(lambda z: x * y * z)(1.0) * y)(x))(2.0) == 8
    outer = gl.grad(lambda x: gl.vjp(lambda y: x * y, 4.0)[1](x)[0])
    assert outer(3.0) == 6  # the pullback is x · x


def test_closures_over_several_levels():
    def f(x):
        def g(y):
            def h(z):
                return np.sum(np.sin(x * y) * z**2)

            return np.sum(gl.grad(h)(y) * x)

        return np.sum(gl.grad(g)(x) ** 2)

    def jf(x):
        def g(y):
            return jnp.sum(jax.grad(lambda z: jnp.sum(jnp.sin(x * y) * z**2))(y) * x)

        return jnp.sum(jax.grad(g)(x) ** 2)

    x = randn(3)
    close(gl.grad(f)(x), np.asarray(jax.grad(jf)(x)), 1e-12)


Pair = namedtuple("Pair", "a b")


def test_any_tree_and_none_leaves():
    tree = {"l": [randn(2), (randn(3), None)], "p": Pair(randn(), None), "e": {}}

    def f(t):
        return np.sum(t["l"][0]) * np.sum(np.sin(t["l"][1][0])) + t["p"].a ** 2

    value, g = gl.value_and_grad(f)(tree)
    assert isinstance(g["p"], Pair) and g["p"].b is None and g["l"][1][1] is None and g["e"] == {}
    close(g["p"].a, 2 * tree["p"].a, 1e-15)
    close(g["l"][1][0], np.sum(tree["l"][0]) * np.cos(tree["l"][1][0]), 1e-15)
    y, pullback = gl.vjp(lambda t: {"y": t["p"].a * 2, "none": None}, tree)
    assert y["none"] is None
    assert pullback({"y": np.array(1.0), "none": None})[0]["p"].a == 2
    assert gl.jvp(f, (tree,), (tree,))[1].shape == ()
    assert float(value) == float(f(tree))


@dataclasses.dataclass(frozen=True)
class Layer:
    w: Any
    bias: Any = None
    name: str = dataclasses.field(default="layer", metadata={"pytree_node": False})
    twice: Any = dataclasses.field(init=False)

    def __post_init__(self):
        assert isinstance(self.w, np.ndarray)  # not asked of what gradlib rebuilds
        object.__setattr__(self, "twice", 2 * self.w)


@dataclasses.dataclass
class Net:
    layers: list


def test_dataclasses_are_trees():
    def f(net):
        first, second = net.layers
        return np.sum(first.w * first.twice) + np.sum(second.w**3) + second.bias

    w = np.array([1.0, 2.0])
    net = Net([Layer(w), Layer(w, 1.5, "last")])
    for g in (gl.grad(f)(net), gl.capture(gl.grad(f))(net), gl.jacfwd(f)(net)):
        first, second = g.layers
        assert (type(g), type(first), second.name, first.bias) == (Net, Layer, "last", None)
        np.testing.assert_array_equal(first.w, 2 * w)  # a field of its own, `twice`, holds the rest
        np.testing.assert_array_equal(first.twice, w)
        np.testing.assert_array_equal(second.w, 3 * w**2)
        assert second.bias == 1
    assert gl.tree.paths(net)[0] == ".layers[0].w"
    y, dy = gl.jvp(lambda x: Layer(np.zeros(2), bias=np.sin(x)), (w,), (w,))
    np.testing.assert_array_equal(dy.bias, w * np.cos(w))
    moved = gl.to_device({"net": net}, "cpu")["net"]
    assert moved.layers[1].w is w
    stopped = gl.grad(lambda net: f(gl.stop_gradient(net)) + net.layers[1].bias)(net)
    assert not stopped.layers[0].w.any()
    with pytest.raises(TypeError, match=r"got int64\[2\] in argument\[0\]\.layers\[0\]\.bias"):
        gl.grad(f)(Net([Layer(w, np.arange(2)), Layer(w)]))


def test_a_dataclass_of_values_is_an_argument_of_a_capture():
    @dataclasses.dataclass(eq=False)
    class Settings:
        x: Any
        power: int

    captured, calls = gl.capture(lambda s: calls.append(s) or s.x**s.power), []
    for x in (np.ones(2), np.full(2, 3.0)):
        np.testing.assert_array_equal(captured(Settings(x, 2)), x**2)
    assert len(calls) == 1


@pytest.mark.parametrize("argnums", [0, 1, -1, (0,), (0, 2), (-1, 0), (2, 1, 0)])
def test_argnums(argnums):
    def f(x, y, z):
        return np.sum(x * y**2 * z**3)

    args = randn(2), randn(2, seed=1), randn(2, seed=2)
    got = gl.grad(f, argnums)(*args)
    nums = tuple(n % 3 for n in argnums) if isinstance(argnums, tuple) else argnums % 3
    want = jax.grad(f, nums)(*map(jnp.asarray, args))
    assert isinstance(got, tuple) == isinstance(argnums, tuple)
    for a, b in zip(got, want, strict=True) if isinstance(argnums, tuple) else [(got, want)]:
        close(a, np.asarray(b), 1e-14)


def test_auxiliary_values():
    def f(x):
        return np.sum(x**2), {"y": 2 * x, "text": "a", "none": None}

    x = randn(3)
    g, aux = gl.grad(f, has_aux=True)(x)
    (value, aux2), g2 = gl.value_and_grad(f, has_aux=True)(x)
    y, pullback, aux3 = gl.vjp(f, x, has_aux=True)
    close(g, 2 * x, 1e-15)
    assert (g == g2).all() and value == y == np.sum(x**2)
    for a in (aux, aux2, aux3):
        assert type(a["y"]) is np.ndarray and (a["y"] == 2 * x).all() and a["text"] == "a"
    close(pullback(np.array(2.0))[0], 4 * x, 1e-15)
    inner = gl.grad(lambda x: np.sum(gl.grad(f, has_aux=True)(x)[1]["y"] ** 2))
    close(inner(x), 8 * x, 1e-15)


def test_keywords_and_other_arguments_pass_through():
    def f(x, name, *, scale, how="sum"):
        """Text."""
        assert (name, how) == ("n", "mean")
        return np.sum(x) * scale

    assert gl.grad(f)(np.ones(2), "n", scale=3.0, how="mean").tolist() == [3, 3]
    assert gl.grad(f).__doc__ == "Text." and gl.grad(f).__name__ == "f"


def test_pullback_and_pushforward_can_be_called_again():
    x = randn(3)
    y, pullback = gl.vjp(np.sin, x)
    first = pullback(np.ones(3))[0]
    first[:] = 0
    close(pullback(np.ones(3))[0], np.cos(x), 1e-15)
    push = gl.linearize(np.sin, x)[1]
    close(push(np.ones(3)) + push(np.ones(3)), 2 * np.cos(x), 1e-15)
    assert y.shape == (3,)


def test_gradients_belong_to_the_caller():
    x, y = randn(3), randn(3, seed=1)
    for f in (
        lambda x, y: np.sum(x + y),
        lambda x, y: np.sum(np.concatenate([x, y])),
        lambda x, y: np.sum(x.reshape(3, 1)),
    ):
        gx, gy = gl.grad(f, (0, 1))(x, y)
        assert gx.flags.writeable and gy.flags.writeable and not np.shares_memory(gx, gy)
        gx += 1
        assert (gy == gl.grad(f, 1)(x, y)).all()
    c = np.ones(3)
    (g,) = gl.vjp(lambda x: x, x)[1](c)
    assert not np.shares_memory(g, c)
    assert (x == randn(3)).all()


def test_python_numbers_are_0d():
    g = gl.grad(lambda x, y: x * y)(2.0, 3)
    assert g.shape == () and g.dtype == "float64" and g == 3
    assert gl.grad(lambda x: x * 2)(np.float32(3)).dtype == "float32"
    assert gl.vjp(lambda x: x * 2, 3.0)[1](1.0)[0] == 2
    assert gl.jvp(lambda x: x * 2, (3.0,), (1,))[1] == 2


def test_stop_gradient():
    x = randn(3)
    close(gl.grad(lambda x: np.sum(x * gl.stop_gradient(x)))(x), x, 1e-15)
    t = gl.grad(lambda t: np.sum(gl.stop_gradient(t)["a"] * t["b"]))({"a": x, "b": x})
    assert (t["a"] == 0).all() and (t["b"] == x).all()
    assert gl.stop_gradient(x) is x
    assert gl.grad(lambda x: gl.grad(lambda y: y * gl.stop_gradient(x))(x))(2.0) == 0
    assert gl.hessian(lambda x: np.sum(gl.stop_gradient(x) * x))(x).tolist() == np.zeros((3, 3)).tolist()


def test_results_that_do_not_depend():
    assert gl.grad(lambda x: 3.0)(np.ones(2)).tolist() == [0, 0]
    assert gl.grad(lambda x, y: np.sum(y), (0, 1))(np.ones(2), np.ones(1))[0].tolist() == [0, 0]
    assert gl.jvp(lambda x: np.ones(2), (np.ones(3),), (np.ones(3),))[1].tolist() == [0, 0]
    assert gl.vjp(lambda x: np.ones(2), np.ones(3))[1](np.ones(2))[0].tolist() == [0, 0, 0]


def test_empty_arrays():
    assert gl.grad(lambda x: np.sum(np.sin(x) @ x))(np.zeros(0)).shape == (0,)
    assert gl.jvp(np.sin, (np.zeros((2, 0)),), (np.zeros((2, 0)),))[1].shape == (2, 0)


def test_a_value_used_after_its_transform_raises():
    kept = []
    gl.grad(lambda x: (kept.append(x * 2), np.sum(x))[1])(np.ones(2))
    for use in (
        lambda: kept[0] + 1,
        lambda: np.sin(kept[0]),
        lambda: gl.grad(lambda x: np.sum(x * kept[0]))(np.ones(2)),
    ):
        with pytest.raises(RuntimeError, match="outside the gradlib transform that made it"):
            use()

    def fails(x):
        kept.append(x)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        gl.grad(fails)(1.0)
    with pytest.raises(RuntimeError, match="outside"):
        kept[-1] * 2


def test_threads_do_not_meet():
    x = randn(50)

    def work(k):
        f = gl.grad(lambda x: np.sum(gl.grad(lambda y: np.sum(np.sin(k * y) * x))(x) ** 2))
        return f(x)

    alone = [work(k) for k in range(16)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(work, range(16)))
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_array_equal(a, b)


def test_control_flow_and_recursion():
    def power(x, n):
        return 1.0 if n == 0 else x * power(x, n - 1)

    assert gl.grad(lambda x: power(x, 5))(2.0) == 80

    def newton(a):
        y = a
        while abs(y * y - a) > 1e-12:
            y = (y + a / y) / 2
        return y

    close(float(gl.grad(newton)(2.0)), 0.5 / math.sqrt(2), 1e-9)


def test_long_programs_do_not_recurse():
    def f(x):
        for _ in range(5_000):
            x = x + 1e-5 * x
        return x

    close(float(gl.grad(f)(1.0)), (1 + 1e-5) ** 5_000, 1e-9)


def test_check_grads_sees_a_wrong_rule():
    from gradlib.op import REGISTRY, Op

    try:
        wrong = Op("wrong", forward=lambda xp, x: (x * x, (x,)), vjp=lambda xp, s, dy, need: (2.02 * dy * s[0],),
                   jvp=lambda xp, s, dx: 2 * dx[0] * s[0])  # fmt: skip
        with pytest.raises(AssertionError, match="vjp of order 1"):
            gl.check_grads(wrong, (randn(3),), order=1)
        gl.check_grads(wrong, (randn(3),), order=1, modes=("fwd",))
    finally:
        del REGISTRY["wrong"]


@pytest.mark.parametrize(("change", "message"), [({"modes": ("back",)}, "modes"), ({"order": 0}, "order >= 1")])
def test_check_grads_refuses_to_check_nothing(change, message):
    with pytest.raises(ValueError, match=message):
        gl.check_grads(np.sin, (np.ones(2),), **change)


def test_check_grads_names_the_order_that_fails():
    @gl.custom_rules(jvp=lambda primals, y, dx: dx[0] * gl.stop_gradient(np.cos(primals[0])))
    def sine(x):  # its second derivative is lost
        return np.sin(x)

    gl.check_grads(sine, (np.ones(2),), order=1, modes=("fwd",))
    with pytest.raises(AssertionError, match="jvp of order 2"):
        gl.check_grads(sine, (np.ones(2),), order=2, modes=("fwd",))
