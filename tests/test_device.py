"""Arrays of other libraries, creation like a traced array, the array namespace, moving trees."""

import numpy as np
import pytest

import gradlib as gl
from gradlib.device import adopt, array_module, is_array

X = np.arange(1.0, 4.0)


def test_a_jax_array_goes_in_without_a_copy():
    jnp = pytest.importorskip("jax.numpy")
    x = jnp.arange(1.0, 4.0, dtype=jnp.float32)
    ours = adopt(x)
    assert type(ours) is np.ndarray
    assert ours.ctypes.data == x.unsafe_buffer_pointer()
    got = gl.grad(lambda x: np.sum(x**3 * jnp.ones(3)))(x)
    assert type(got) is np.ndarray
    np.testing.assert_allclose(got, 3 * np.asarray(x) ** 2)
    np.testing.assert_allclose(gl.softmax(adopt(x)).sum(), 1, rtol=1e-6)


def test_a_torch_tensor_goes_in_without_a_copy():
    torch = pytest.importorskip("torch")
    x = torch.arange(1.0, 4.0, dtype=torch.float64)
    assert adopt(x).ctypes.data == x.data_ptr()
    np.testing.assert_allclose(gl.grad(lambda x: np.sum(x * x))(x), 2 * X)


def foreign(library):
    """A function that makes an array of another library, of float64 or int64."""
    if library == "torch":
        torch = pytest.importorskip("torch")
        return lambda x: torch.from_numpy(np.asarray(x))
    jax = pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)
    return jax.numpy.asarray


TABLE = np.array([[0.5, -1.0, 2.0], [1.0, 0.0, 3.0]])
LABELS, NARROW = np.array([2, 0]), np.ones((3, 2))
# f(x, i, t): x of three floats, i of two integers, t of two rows, which may be another library's
TAKEN = {
    "cotangent": lambda x, i, t: gl.vjp(np.sin, X)[1](x),
    "tangent": lambda x, i, t: gl.jvp(np.sin, (x,), (x,)),
    "direction": lambda x, i, t: gl.hvp(lambda z: np.sum(z**3), (x,), (x,)),
    "vector of an operator": lambda x, i, t: gl.JacobianOperator(np.sin, X).matvec(x),
    "index": lambda x, i, t: gl.grad(lambda z: np.sum(z[i] ** 2))(X),
    "index beside a slice": lambda x, i, t: gl.grad(lambda z: np.sum(z[1:, i] ** 2))(TABLE),
    "mask": lambda x, i, t: gl.grad(lambda z: np.sum(z[x > 1.5] ** 2))(X),
    "take": lambda x, i, t: gl.grad(lambda z: np.sum(np.take(z, i) ** 2))(X),
    "take_along_axis": lambda x, i, t: gl.grad(lambda z: np.sum(np.take_along_axis(z, i, 0) ** 2))(X),
    "checkpoint": lambda x, i, t: gl.grad(lambda z: gl.checkpoint(lambda a, b, j: np.sum((a * b)[j]))(z, x, i))(X),
    "per_sample_grad": lambda x, i, t: gl.per_sample_grad(lambda w, x, y: gl.cross_entropy(x @ w, y, reduction="none"))(
        np.eye(3), t, i
    ),
    "cross_entropy": lambda x, i, t: gl.grad(lambda z: gl.cross_entropy(z, i))(t),
    "embedding": lambda x, i, t: gl.grad(lambda z: np.sum(gl.embedding(i % 2, z) ** 2))(t),
    "linear": lambda x, i, t: gl.grad(lambda z: np.sum(gl.linear(t, z) ** 2))(NARROW),
    "layer_norm": lambda x, i, t: gl.grad(lambda z: np.sum(gl.layer_norm(z, x, x) ** 3))(t),
    "rms_norm": lambda x, i, t: gl.rms_norm(t, x),
    "softmax": lambda x, i, t: gl.softmax(t, mask=t > 0),
    "log_softmax": lambda x, i, t: gl.log_softmax(t),
    "logsumexp": lambda x, i, t: gl.logsumexp(t),
    "gelu": lambda x, i, t: gl.gelu(x),
    "dropout": lambda x, i, t: gl.dropout(x, 0.5, gl.Generator(0)),
    "bias_dropout_add": lambda x, i, t: gl.bias_dropout_add(t, x, t),
    "capture": lambda x, i, t: gl.capture(lambda x, i: np.sum(np.sin(x[i])))(x, i),
    "held by a capture": lambda x, i, t: gl.capture(gl.grad(lambda z: np.sum(z * x)))(X),
}


@pytest.mark.parametrize("library", ["torch", "jax"])
@pytest.mark.parametrize("name", TAKEN)
def test_arrays_of_other_libraries_wherever_one_is_taken(name, library):
    make, f = foreign(library), TAKEN[name]
    got, want = (gl.tree.flatten(f(*args))[0] for args in (map(make, (X, LABELS, TABLE)), (X, LABELS, TABLE)))
    for a, b in zip(got, want, strict=True):
        assert type(a) is type(b)
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_a_capture_records_once_for_arrays_of_another_library(library):
    make, calls = foreign(library), []

    def f(x):
        calls.append(x)
        return np.sum(x**2)

    captured = gl.capture(gl.grad(f))
    for x in (X, X + 1, X):
        np.testing.assert_array_equal(captured(make(x)), 2 * x)
    assert len(calls) == 1
    if library == "torch":  # without a copy: what changes in place is seen
        held = make(X.copy())
        captured = gl.capture(lambda x: np.sum(x * held))
        captured(X)
        held += 1
        assert captured(X) == np.sum(X * (X + 1))


def test_dlpack_of_anyone():
    class Foreign:
        """Another library's array, as far as DLPack goes."""

        def __dlpack_device__(self):
            return X.__dlpack_device__()

        def __dlpack__(self, **kwargs):
            return X.__dlpack__(**kwargs)

    np.testing.assert_allclose(gl.grad(lambda x: np.sum(np.sin(x)))(Foreign()), np.cos(X))
    np.testing.assert_allclose(gl.grad(lambda x: np.sum(x * Foreign()))(X), X)


def test_what_is_no_array_stays():
    for thing in (None, 3, "x", [1.0], object, np.ndarray):
        assert adopt(thing) is thing
        assert not is_array(thing)


LIKE = {
    "zeros": lambda x: np.zeros(3, like=x) + x,
    "full": lambda x: np.full(3, 2.0, like=x) * x,
    "arange": lambda x: np.arange(3, like=x) * x,
    "eye": lambda x: np.eye(3, like=x) @ x,
    "asarray of numbers": lambda x: np.asarray([1.0, 2.0, 3.0], like=x) * x,
    "asarray of traced values": lambda x: np.asarray([x[0], 2 * x[1], x[2] * x[0]], like=x),
    "array of lists": lambda x: np.array([[x[0], 1.0], [x[1], x[2]]], like=x) @ np.ones(2),
    "array of more dimensions": lambda x: np.array(x, ndmin=3, like=x) * np.asarray(x, None, "C", like=x),
    "contiguous array": lambda x: np.ascontiguousarray(x[0], like=x) ** 2,
    "full of a traced value": lambda x: np.full(2, x[0], like=x) + np.full((1, 2), x[:2] ** 2, float, like=x),
    "array of itself": lambda x: np.array(x, dtype=np.float64, like=x) ** 2,
}


@pytest.mark.parametrize("name", LIKE)
def test_creation_like_a_traced_array(name):
    gl.check_grads(LIKE[name], (X,), order=2, rtol=1e-4)
    assert gl.vjp(lambda x: np.array(x, ndmin=3, like=x), X)[0].shape == (1, 1, 3)
    assert gl.vjp(lambda x: np.full(2, x[0], np.float32, like=x), X)[0].dtype == np.float32


def test_the_array_namespace_of_a_traced_array():
    def f(x):
        xp = x.__array_namespace__()
        return xp.sum(xp.exp(x) * xp.linspace(0, 1, 3)) + xp.linalg.norm(xp.concat([x, xp.ones(2)]))

    want = np.exp(X) * np.linspace(0, 1, 3) + X / np.sqrt(np.sum(X * X) + 2)
    np.testing.assert_allclose(gl.grad(f)(X), want, rtol=1e-12)
    with pytest.raises(NotImplementedError, match="fft"):
        gl.grad(lambda x: x.__array_namespace__().fft.fft(x).sum())(X)


def test_sparse_rows_move_whole():
    sp = pytest.importorskip("scipy.sparse")
    matrix = sp.csr_array([[0.0, 2.0], [3.0, 0.0]])
    x = gl.CSR.from_scipy(matrix)
    moved = []
    y = x.moved(lambda a: moved.append(a) or a.copy())
    assert len(moved) == 3
    assert y.pattern != x.pattern
    assert x.pattern == gl.CSR.from_scipy(matrix).pattern
    np.testing.assert_array_equal(y.to_scipy().toarray(), matrix.toarray())
    assert isinstance(gl.to_device({"x": x}, "cpu")["x"], gl.CSR)


def test_to_device():
    tree = {"w": X, "n": 3, "none": None}
    moved = gl.to_device(tree, "cpu")
    assert moved["w"] is X
    assert moved["n"] == 3
    with pytest.raises(ValueError, match='to_device: expected device "cuda" or "cpu"'):
        gl.to_device(tree, "gpu")
    if not gl.device_info():
        with pytest.raises(RuntimeError, match="CuPy is"):
            gl.to_device(tree, "cuda")
    assert array_module(X) is np
