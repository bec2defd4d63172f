"""jacobian, jacrev, jacfwd, hessian: shapes, modes, chunks, pytrees, against JAX."""

import numpy as np
import pytest
from rulecheck import close, randn

import gradlib as gl
from gradlib.jacobian.dense import MODES

jax = pytest.importorskip("jax")
jax.config.update("jax_enable_x64", True)


def net(xp):
    def f(p, x):
        h = xp.tanh(x @ p["w"] + p["b"])
        return {"h": h, "s": xp.sum(h**2)}

    return f


PARAMS = {"w": randn(3, 2), "b": randn(2)}
X = randn(4, 3)


def same(a, b):
    a, b = gl.tree.flatten(a), gl.tree.flatten(b)
    assert a[1] == b[1]
    for p, q in zip(a[0], b[0], strict=True):
        close(p, np.asarray(q), 1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("chunk_size", [None, 1, 3, 100])
def test_trees_against_jax(mode, chunk_size):
    got = gl.jacobian(net(np), mode=mode, chunk_size=chunk_size)(PARAMS, X)
    same(got, jax.jit(jax.jacrev(net(jax.numpy)))(PARAMS, X))
    assert all(j.flags.c_contiguous for j in gl.tree.flatten(got)[0])


@pytest.mark.parametrize("argnums", [0, 1, -1, (0,), (1, 0), (0, -1)])
def test_argnums(argnums):
    got = gl.jacobian(net(np), argnums)(PARAMS, X)
    nums = tuple(n % 2 for n in argnums) if isinstance(argnums, tuple) else argnums % 2
    same(got, jax.jit(jax.jacfwd(net(jax.numpy), nums))(PARAMS, X))


@pytest.mark.parametrize("f", [gl.jacobian, gl.jacrev, gl.jacfwd])
@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3), (0,), (2, 0)])
def test_shapes(f, shape):
    x = randn(*shape)
    assert f(lambda x: np.sin(x))(x).shape == (*shape, *shape)
    assert f(lambda x: np.sum(x))(x).shape == shape
    assert f(lambda x: np.stack([x, x]))(x).shape == (2, *shape, *shape)
    assert f(lambda x: x)(x).tolist() == np.eye(x.size).reshape((*shape, *shape)).tolist()


@pytest.mark.parametrize("f", [gl.jacobian, gl.jacrev, gl.jacfwd])
def test_results_that_do_not_depend(f):
    assert f(lambda x: np.ones(2))(X).tolist() == np.zeros((2, 4, 3)).tolist()
    assert f(lambda x: 3.0)(np.ones(2)).tolist() == [0, 0]
    assert f(lambda x: x.argmax() * 1.0)(np.ones(2)).tolist() == [0, 0]
    same(f(lambda x: (x * 2, np.ones(1)))(np.ones(1)), (np.array([[2.0]]), np.zeros((1, 1))))


@pytest.mark.parametrize("f", [lambda x, y: np.sum(x + y), lambda x, y: x + y, lambda x, y: np.stack([x, y])])
@pytest.mark.parametrize("jacobian", [gl.jacrev, gl.jacfwd])
def test_jacobians_by_several_arguments_have_their_own_memory(jacobian, f):
    a, b = jacobian(f, (0, 1))(np.ones(3), np.ones(3))
    assert a.flags.writeable and b.flags.writeable and not np.shares_memory(a, b)


def test_jacobians_do_not_share_memory_with_inputs_or_each_other():
    x = randn(3)
    y = gl.jacobian(lambda x: (x, x))(x)
    y[0][:] = 7
    assert (y[1] == np.eye(3)).all() and (x == randn(3)).all()


def test_hessian_against_jax():
    def f(xp):
        return lambda p, x: xp.sum(xp.tanh(x @ p["w"] + p["b"]) ** 3)

    for argnums in (0, 1, (0, 1)):
        same(gl.hessian(f(np), argnums)(PARAMS, X), jax.jit(jax.hessian(f(jax.numpy), argnums))(PARAMS, X))
    same(gl.hessian(f(np), chunk_size=2)(PARAMS, X), jax.jit(jax.hessian(f(jax.numpy)))(PARAMS, X))


def test_hessian_of_a_linear_function_is_zero():
    assert gl.hessian(lambda x: 3 * np.sum(x))(np.ones(2)).tolist() == [[0, 0], [0, 0]]
    assert gl.hessian(lambda x: 3.0)(1.0) == 0


def test_jacobian_of_jacobian():
    x = randn(3)
    got = gl.jacobian(gl.jacobian(lambda x: np.outer(x, x) * np.sin(x)))(x)
    want = jax.jit(jax.jacfwd(jax.jacrev(lambda x: jax.numpy.outer(x, x) * jax.numpy.sin(x))))(x)
    assert got.shape == (3, 3, 3, 3)
    close(got, np.asarray(want), 1e-12)


def test_dtypes_of_both_sides():
    x = np.ones(2, np.float32)
    for f in (gl.jacrev, gl.jacfwd):
        assert f(lambda x: x * 2)(x).dtype == np.float32


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (
            lambda: gl.jacobian(np.sin, mode="both"),
            ValueError,
            r"jacobian: expected mode 'auto', .*, got 'both'",
        ),
        (lambda: gl.jacobian(np.sin, chunk_size=0), ValueError, "jacobian: expected a positive int"),
        (lambda: gl.jacrev(np.sin, chunk_size=1.5), ValueError, "jacrev: expected a positive int"),
        (lambda: gl.jacobian(np.sin)(np.arange(3)), TypeError, "jacobian: expected floating-point arrays"),
        (lambda: gl.jacobian(np.sin)(np.ones(3, complex)), TypeError, r"jacobian: expected floating.* complex128\[3\]"),
        (lambda: gl.jacobian(np.sin, 1)(np.ones(3)), ValueError, "jacobian: argnums 1 does not fit"),
        (lambda: gl.jacobian(lambda x: "a")(np.ones(3)), TypeError, "jacobian: expected the function to return arrays"),
        (lambda: gl.hessian(np.sin)(np.ones(3)), ValueError, "expected the function to return one 0-d array"),
    ],
)
def test_bad_input(call, kind, words):
    with pytest.raises(kind, match=words):
        call()
