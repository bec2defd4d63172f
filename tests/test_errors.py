"""Bad input: each a clear error that says what was expected and what came, before anything is computed."""

import contextlib
import copy
import operator
import pickle

import numpy as np
import pytest
import scipy.sparse as sp
from standin import DeviceArray, rules_only, to_standin

import gradlib as gl

X, W = np.ones((2, 3)), np.ones((3, 2))
TEXT, OBJECTS, COMPLEX = np.array(["a", "b"]), np.array([1, None]), np.ones(2, complex)


def total(f):
    """The gradient of the sum of f, at ones."""
    return gl.grad(lambda x: np.sum(f(x)))(X)


WRONG_ARGUMENTS = [
    (lambda: gl.grad(np.sum)(np.arange(3)), TypeError, "floating-point arrays to differentiate, got int64[3] … astype"),
    (lambda: gl.grad(np.sum)(np.array([True])), TypeError, "got bool[1]"),
    (lambda: gl.grad(np.sum)(3), TypeError, "got int"),
    (lambda: gl.grad(np.sum)(TEXT), TypeError, "grad: … got <U1[2]"),
    (lambda: gl.grad(np.sum)(OBJECTS), TypeError, "grad: … got object[2]"),
    (lambda: gl.grad(np.sum)(COMPLEX), TypeError, "grad: … got complex128[2]"),
    (lambda: gl.grad(np.sum)("text"), TypeError, "grad: … got str"),
    (lambda: gl.grad(lambda p: 1.0)({"w": X, "n": [np.arange(2)]}), TypeError, "got int64[2] in argument … 'n'"),
    (lambda: gl.grad(lambda x, n: x)(1.0), TypeError, "missing 1 required positional argument"),
    (lambda: gl.grad(np.sum, 1)(X), ValueError, "grad: argnums 1 does not fit a call with 1 positional"),
    (lambda: gl.grad(np.sum, "x")(X), ValueError, "grad: argnums x does not fit"),
    (lambda: gl.grad(np.add, (0, -2))(1.0, 2.0), ValueError, "names an argument twice"),
    (lambda: gl.vjp(np.sin, np.arange(2)), TypeError, "vjp: expected floating-point"),
    (lambda: gl.jvp(np.sin, X, X), TypeError, "jvp: expected a tuple of primals"),
    (lambda: gl.jvp(np.sin, (X,), (X, X)), ValueError, "expected tangents of structure"),
    (lambda: gl.jvp(np.sin, (X,), (np.ones(3),)), ValueError, "expected a tangent of shape (2, 3), got float64[3]"),
    (lambda: gl.jvp(np.sin, (X,), ("a",)), TypeError, "expected an array as tangent, got str"),
    (lambda: gl.vjp(np.sin, X)[1](np.ones(3)), ValueError, "expected a cotangent of shape (2, 3), got float64[3]"),
    (lambda: gl.vjp(np.sin, X)[1]((X, X)), ValueError, "expected a cotangent of structure"),
    (lambda: gl.vjp(np.sin, X)[1]("a"), TypeError, "expected an array as cotangent, got str"),
    (lambda: gl.vjp(np.sin, X)[1](1j * X), TypeError, "pullback: … real numbers as cotangent, got complex128[2, 3]"),
    (lambda: gl.vjp(np.sin, X)[1](X.astype(object)), TypeError, "real numbers as cotangent, got object[2, 3]"),
    (lambda: gl.vjp(np.sin, X)[1](X.astype(str)), TypeError, "real numbers as cotangent, got <U32[2, 3]"),
    (lambda: gl.jvp(np.sin, (X,), (1j * X,)), TypeError, "jvp: … real numbers as tangent, got complex128[2, 3]"),
    (lambda: gl.hvp(np.sum, (X,), (1j * X,)), TypeError, "hvp: … real numbers as tangent, got complex128[2, 3]"),
    (lambda: gl.linearize(np.sin, X)[1](1j * X), TypeError, "pushforward: … real numbers as tangent"),
    (lambda: gl.jvp(np.sin, (TEXT,), (TEXT,)), TypeError, "jvp: expected floating-point arrays to differentiate"),
]
WRONG_RESULTS = [
    (
        lambda: gl.grad(np.sin)(X),
        ValueError,
        "grad: expected the function to return one 0-d array, got float64[2, 3]; sum",
    ),
    (lambda: gl.grad(lambda x: (np.sum(x), np.sum(x)))(X), ValueError, "one 0-d array, got float64[], float64[]"),
    (lambda: gl.grad(lambda x: None)(X), ValueError, "one 0-d array, got nothing"),
    (lambda: gl.grad(lambda x: "a")(X), TypeError, "grad: expected the function to return arrays, got str"),
    (lambda: gl.grad(lambda x: np.complex128(1j))(X), TypeError, "expected … to return real numbers, got complex128[]"),
    (lambda: gl.vjp(lambda x: (x, TEXT), X), TypeError, "vjp: expected … to return real numbers, got <U1[2]"),
    (lambda: gl.grad(np.sum, has_aux=True)(X), TypeError, "has_aux expects the function to return (value, aux)"),
    (
        lambda: gl.vjp(lambda x: {"y": object()}, X),
        TypeError,
        "vjp: expected the function to return arrays, got object",
    ),
]
LOST_DERIVATIVES = [
    (lambda: total(lambda x: np.asarray(x)), TypeError, "would lose the derivative of a traced array; join … np.stack"),
    (lambda: total(lambda x: np.array([x, x])), TypeError, "would lose the derivative"),
    (lambda: total(lambda x: np.array(x)), TypeError, "would lose the derivative"),
    (
        lambda: total(lambda x: _assign(np.zeros((2, 3)), 0, x[0])),
        TypeError,
        "item assignment would lose the derivative",
    ),
    (
        lambda: total(lambda x: _assign(np.zeros(2), 0, x[0, 0])),
        TypeError,
        "y[i] = traced would lose … join … np.stack",
    ),
    (lambda: total(lambda x: _assign(np.zeros(2).flat, 0, x[0, 0])), TypeError, "y[i] = traced would lose … np.stack"),
    (lambda: gl.batch_jacobian(lambda x: _assign(np.zeros(2), 0, x[0, 0]))(X), TypeError, "y[i] = traced would lose"),
    (lambda: gl.capture(lambda x: _assign(np.zeros(2), 0, x[0, 0]))(X), TypeError, "y[i] = traced would lose"),
    (lambda: total(lambda x: np.zeros(2).fill(np.sum(x) if x.size else 0)), TypeError, "fill of a traced value … lose"),
    (lambda: total(lambda x: np.fromiter((v for v in x[0]), float)), TypeError, "fromiter of a traced value … lose"),
    (lambda: total(lambda x: np.max(np.ones(3), initial=x[0, 0])), TypeError, "initial= of a reduction … lose"),
    (lambda: total(lambda x: np.ones(3).sum(initial=x[0, 0])), TypeError, "initial= of a reduction … lose"),
    (lambda: total(lambda x: operator.setitem(np.zeros(2), 0, x[0, 0] + 1)), TypeError, "setitem of a traced value"),
    (lambda: total(lambda x: np.zeros(2).__setitem__(0, x[0, 0])), TypeError, "__setitem__ of a traced value"),
    (lambda: total(lambda x: pickle.dumps(x)), TypeError, "pickling would lose"),
    (lambda: total(lambda x: _assign(x, 0, 1.0)), TypeError, "item assignment would lose … np.where"),
    (lambda: total(lambda x: _increment(np.ones((2, 3)), x)), TypeError, "update in place … write y = y + x"),
    (lambda: total(lambda x: np.add(x, 1, out=np.ones((2, 3)))), TypeError, "add: out= or an update in place"),
    (lambda: total(lambda x: np.sum(x, out=np.ones(()))), TypeError, "sum: out="),
    (lambda: total(lambda x: np.matmul(x, W, out=np.ones((2, 2)))), TypeError, "matmul: out="),
    (lambda: total(lambda x: np.einsum("ij->i", x, out=np.ones(2))), TypeError, "einsum: out="),
]
NOT_COVERED = [
    (lambda: total(np.trim_zeros), NotImplementedError, "does not differentiate trim_zeros; … gl.stop_gradient"),
    (lambda: total(lambda x: np.poly(x[0])), NotImplementedError, "gradlib does not differentiate poly"),
    (lambda: total(lambda x: np.add.at(x, 0, 1)), NotImplementedError, "add.at"),
    (lambda: total(lambda x: np.add(x, 1, where=x > 0)), NotImplementedError, "add: keyword where is not supported"),
    (lambda: total(lambda x: np.greater(x, 0, dtype=bool)), NotImplementedError, "greater: keyword dtype"),
]
WRONG_OPERANDS = [
    (lambda: total(lambda x: x + np.ones(2)), ValueError, "add: shapes do not broadcast: float64[2, 3] and float64[2]"),
    (lambda: total(lambda x: x @ X), ValueError, "matmul: expected"),
    (lambda: total(lambda x: x + TEXT[:1]), TypeError, "add: expected arrays of real numbers, got <U1[1]"),
    (lambda: total(lambda x: x * OBJECTS[:1]), TypeError, "multiply: expected arrays of real numbers, got object[1]"),
    (
        lambda: total(lambda x: x * COMPLEX[:1]),
        TypeError,
        "multiply: expected arrays of real numbers, got complex128[1]",
    ),
    (lambda: total(lambda x: x * (1 + 2j)), TypeError, "multiply: expected arrays or numbers, got complex"),
    (lambda: total(lambda x: x + sp.eye_array(3)), TypeError, "expected"),
    (lambda: total(lambda x: x + {}), TypeError, "add: expected arrays or numbers, got dict"),
    (lambda: gl.relu(TEXT), TypeError, "relu: expected a floating-point array, got <U1[2]"),
    (lambda: gl.softmax(OBJECTS), TypeError, "softmax: expected a floating-point array, got object[2]"),
    (lambda: gl.cross_entropy(X, np.array([0, 3])), ValueError, "cross_entropy: label 3 is out of range for 3 classes"),
    (lambda: gl.cross_entropy(X[:0], np.zeros(0, int)), ValueError, "the mean over an empty batch is not defined"),
    (lambda: gl.to_device(X, "gpu"), ValueError, 'to_device: expected device "cuda" or "cpu", got \'gpu\''),
]
TABLE = WRONG_ARGUMENTS + WRONG_RESULTS + LOST_DERIVATIVES + NOT_COVERED + WRONG_OPERANDS


def _assign(y, index, value):
    y[index] = value
    return y


def _increment(y, x):
    y += x
    return y


@pytest.mark.parametrize(("call", "kind", "words"), TABLE, ids=[str(n) for n in range(len(TABLE))])
def test_bad_input(call, kind, words):
    with pytest.raises(kind) as caught:
        call()
    for word in words.split(" … "):
        assert word in str(caught.value)


def test_numbers_may_be_stored_and_values_copied():
    def f(x):
        y = np.zeros(2)
        y.fill(float(x[0]))
        y[1] = float(x[1]) + x[1].item()
        operator.setitem(y, 0, float(np.sum(x)) if x.size else 1.0)
        with contextlib.suppress(
            ValueError
        ):  # what NumPy says; another error of the function's own is not taken for it
            y[0] = x[0]
        return np.sum(y) * np.sum(copy.copy(x) * copy.deepcopy([x])[0])

    np.testing.assert_array_equal(gl.grad(f)(np.array([1.0, 2.0])), [14.0, 28.0])

    def own_error(x):
        with contextlib.suppress(ValueError):
            np.zeros(2)[0] = x[0]
        raise ValueError("my own")

    with pytest.raises(ValueError, match="my own"):
        gl.grad(own_error)(X[0])


@pytest.fixture
def without_kernels():
    with rules_only():
        yield


MIXED = [
    lambda x, d: x + d,
    lambda x, d: d * x,
    lambda x, d: x @ d.T,
    lambda x, d: np.where(x > 0, x, d),
    lambda x, d: np.maximum(d, x),
    lambda x, d: gl.linear(x, d),
]


@pytest.mark.parametrize("f", MIXED)
def test_arrays_of_two_devices(f, without_kernels):
    d = to_standin(np.ones((3, 3)))
    x = np.ones((3, 3))
    for call in (lambda: gl.grad(lambda x: np.sum(f(x, d)))(x), lambda: gl.grad(lambda t: np.sum(f(x, t)))(d)):
        with pytest.raises(TypeError, match=r"numpy and standin.*like="):
            call()


def test_numbers_mix_with_arrays_of_any_device(without_kernels):
    x, d = np.full(3, 2.0), to_standin(np.full(3, 2.0))
    for number in (3, 3.0, True, np.float32(3), np.float64(3), np.int64(3), np.array(3.0), np.array(3)):

        def f(x, number=number):
            return np.sum(number * x + x * number - x / (number + x) + np.maximum(x, number) ** number)

        want, got = gl.grad(f)(x), gl.grad(f)(d)
        assert isinstance(got, DeviceArray)
        np.testing.assert_allclose(got.get(), want, rtol=1e-14)


def test_float32_is_not_widened_by_numbers():
    x = np.ones(3, np.float32)
    for f in (lambda x: 2.5 * x, lambda x: x**3, lambda x: x / 3, lambda x: np.maximum(x, 0.5), lambda x: x**0.5 - 1):
        y, pullback = gl.vjp(f, x)
        assert y.dtype == pullback(y)[0].dtype == np.float32


def test_cotangents_of_numbers_on_any_device(without_kernels):
    d = to_standin(np.ones(3))
    assert isinstance(gl.vjp(np.sum, d)[1](1.0)[0], DeviceArray)
    assert isinstance(gl.vjp(np.sum, d)[1](np.float64(1.0))[0], DeviceArray)
    with pytest.raises(TypeError, match="the cotangent lives on numpy, the value on standin"):
        gl.vjp(np.sin, d)[1](np.ones(3))


def test_nothing_is_changed_when_an_error_is_raised():
    x = X.copy()
    for call, kind, _ in TABLE:
        with pytest.raises(kind):
            call()
    np.testing.assert_array_equal(x, X)
    assert gl.grad(np.sum)(x).tolist() == np.ones((2, 3)).tolist()


def test_cuda_without_a_gpu_says_what_is_missing():
    try:
        gl.to_device(X, "cuda")
    except RuntimeError as error:
        assert "CuPy is" in str(error) and ("pip install" in str(error) or "gradlib info" in str(error))
