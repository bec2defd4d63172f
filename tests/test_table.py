"""SUPPORTED.md is up to date, and what it says holds."""

import importlib
import pathlib

import numpy as np
import pytest
import scipy.special as special
from functioncheck import check, leaves
from rulecheck import close, randn, uniform

import gradlib as gl
from gradlib.ops import table
from gradlib.ops.conventions import CONVENTIONS
from gradlib.trace import ALTERNATIVES, CREATORS, HANDLERS

X, P = randn(3, 4), uniform(2, 3, low=0.2, high=0.8)
I = np.array([[0, 2], [1, 1]])
#: One call of each function that no other test file's CALLS has.
CALLS = {
    "dot": (
        lambda x: np.dot(x, x.T) + np.inner(x, x) + np.outer(x[0, :3], x[1, :3]) + np.vdot(x, x) + np.matmul(x, x.T),
        X,
    ),
    "kron": (lambda x: np.kron(x, x[:1]) + np.tensordot(x[:1], x.T, ((1,), (0,))).sum(), X),
    "einsum": (lambda x: np.einsum("ij,kj->ik", x, x), X),
    "concatenate": (lambda x: np.concatenate([x, x]) + np.vstack([x, x]) + np.stack([x, x]).reshape(6, 4), X),
    "hstack": (lambda x: np.hstack([x, x]) + np.column_stack([x, x]), X),
    "split": (lambda x: np.split(x, 2, 1) + np.array_split(x, 2), X),
    "take": (lambda x: np.take(x, I) + np.take_along_axis(x[:2], I, 1) + np.repeat(x, 2, 1)[:2, :2], X),
    "diagonal": (lambda x: np.diagonal(x) + np.trace(x) + np.diag(x) + np.diag(x[0])[:3, 0], X),
    "reshape": (
        lambda x: (
            np.reshape(x, (4, 3)) + np.ravel(x)[0] + np.transpose(x) + np.swapaxes(x, 0, 1) + np.moveaxis(x, 0, 1)
        ),
        X,
    ),
    "expand": (
        lambda x: np.squeeze(np.expand_dims(x, 0)) + np.broadcast_to(x[0], (3, 4)) + np.matrix_transpose(x.T),
        X,
    ),
    "flip": (lambda x: np.flip(x) + np.roll(x, 1) + np.copy(x) + np.astype(x, x.dtype), X),
    "sum": (
        lambda x: (
            np.sum(x, 0) + np.mean(x, 0) + np.prod(x, 0) + np.max(x, 0) + np.min(x, 0) + np.var(x, 0) + np.std(x, 0)
        ),
        X,
    ),
    "reduce": (lambda x: np.add.reduce(x) + np.multiply.reduce(x) + np.maximum.reduce(x) + np.minimum.reduce(x), X),
    "amax": (lambda x: np.amax(x, 1) + np.amin(x, 1) + np.cumsum(x, 0)[:, 0], X),
    "where": (lambda x: np.where(x > 0, x**2, -x) + np.clip(x, -0.5, 0.5), X),
    "real": (lambda x: np.real(x), X),
}
for _f in (
    f for f in HANDLERS if isinstance(f, np.ufunc) and table.name_of(f) in table.supported() and f.signature is None
):
    _at = P + 1 if _f is np.arccosh else P
    CALLS[_f.__name__] = (_f, _at) if _f.nin == 1 else (_f, _at, P[0] / 1.5)
for _f in (
    np.add,
    np.subtract,
    np.divide,
    np.power,
    np.logaddexp,
    np.hypot,
    np.arctan2,
    np.maximum,
    np.minimum,
    np.remainder,
):
    CALLS[f"{_f.__name__}.outer"] = (lambda x, f=_f: f.outer(x, x[0] / 1.5 + 0.01), P)


@pytest.mark.parametrize("name", CALLS)
def test_examples(name):
    check(*CALLS[name], float32=name != "float_power")


def test_the_file_is_up_to_date():
    if np.lib.NumpyVersion(np.__version__) >= "2.2.0":  # it lists functions of that version
        assert table.FILE.read_text(encoding="utf-8") == table.render(), "run python -m gradlib.ops.table"


def _all_calls():
    """The examples of all test files."""
    found = {}
    for path in pathlib.Path(__file__).parent.glob("test_*.py"):
        if "from functioncheck import" in path.read_text():
            calls = CALLS if path.stem == "test_table" else getattr(importlib.import_module(path.stem), "CALLS", {})
            found |= {(path.stem, name): call for name, call in calls.items()}
    return found


#: Examples with a choice by value, which a capture refuses.
_CHOOSE = {("test_building", "extract"), ("test_linalg", "lstsq"), ("test_linalg", "lstsq all")}
_CHOOSE |= {("test_linalg", "lstsq singular values")}


def test_captures_replay_to_the_bit_on_new_data():
    """Nothing of the values of the first call is kept in a record."""
    for key, (f, *args) in _all_calls().items():
        gradient = gl.grad(lambda *x, f=f: sum(np.sum(np.sin(y)) for y in leaves(f(*x))))
        captured = gl.capture(gradient)
        if key in _CHOOSE:
            with pytest.raises(TypeError, match=r"gl\.capture would freeze"):
                captured(*args)
            continue
        captured(*args)
        new = [0.9 * x for x in args]
        np.testing.assert_array_equal(captured(*new), gradient(*new), err_msg=str(key))


def test_every_supported_function_is_called_in_a_test(monkeypatch):
    wanted, seen = {*table.supported()}, set()

    def watched(name, f):
        return lambda *args, **kwargs: (seen.add(name), f(*args, **kwargs))[1]

    for key, f in list(HANDLERS.items()):
        monkeypatch.setitem(HANDLERS, key, watched(table.name_of(key), f))
    for f, *args in _all_calls().values():
        gl.vjp(lambda *x, f=f: leaves(f(*x)), *args)
    assert wanted == wanted & seen


@pytest.mark.parametrize("row", CONVENTIONS, ids=lambda row: f"{row[0]} at {row[1]}"[:60])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_conventions(row):
    code, at, want, _ = row
    names = {"np": np, "gl": gl, "special": special}
    x, want = (np.asarray(eval(text, names), float) for text in (at, want))
    f = eval(f"lambda x: {code}", names)
    got = gl.grad(f)(x)
    np.testing.assert_allclose(got, want, atol=1e-13)
    for k in range(x.size):  # forward mode by the unit tangents
        tangent = np.zeros(x.size)
        tangent[k] = 1
        ahead = gl.jvp(f, (x,), (tangent.reshape(x.shape),))[1]
        np.testing.assert_allclose(ahead, want.reshape(-1)[k], atol=1e-13)


def test_unsupported_functions_are_named_with_an_alternative():
    for f, words in [
        (np.interp, None),
        (np.convolve, None),
        (lambda x: np.fft.fft(x), "fft.fft; complex numbers have no derivative here"),
        (lambda x: np.apply_along_axis(np.sum, 0, x), "apply_along_axis; call your function on slices"),
        (lambda x: np.unique(x), "does not differentiate unique; take x[places] with the places"),
    ]:
        with pytest.raises(NotImplementedError) as caught:
            gl.grad(lambda x, f=f: f(x, x, x) if f is np.interp else f(x, x) if f is np.convolve else f(x))(X[0])
        assert (words or f"does not differentiate {f.__name__}; {ALTERNATIVES[f.__name__]}") in str(caught.value)


#: Functions of dates and of printing, which take no numbers to differentiate.
_NO_NUMBERS = {"busday_count", "busday_offset", "is_busday", "datetime_as_string", "isnat", "printoptions"}


@pytest.mark.parametrize("module", [np, np.linalg])
def test_every_function_of_numpy_is_supported_or_has_an_alternative(module):
    for name in dir(module):
        f = getattr(module, name)
        dispatches = isinstance(f, np.ufunc) or (hasattr(f, "__wrapped__") and hasattr(f, "_implementation"))
        if name.startswith("_") or not dispatches or f in HANDLERS or f in CREATORS or name in _NO_NUMBERS:
            continue
        path = name if isinstance(f, np.ufunc) else f"{f.__module__}.{f.__name__}".removeprefix("numpy.")
        assert path in ALTERNATIVES or path.partition(".")[0] in ALTERNATIVES, name


def test_other_functions_of_scipy_point_to_rules_of_ones_own():
    with pytest.raises(
        NotImplementedError, match=r"differentiate ellipk; .* or give its derivative in gl\.custom_rules"
    ):
        gl.grad(lambda x: special.ellipk(x))(0.5)


@pytest.mark.parametrize("bad", [1j, np.ones(4, complex), np.array(["a"] * 4), np.array([None] * 4)])
def test_arrays_that_have_no_derivative(bad):
    for f in (np.add, np.dot, np.append, lambda x, y: np.where(x > 0, x, y), lambda x, y: np.stack([x, np.asarray(y)])):
        if f is np.add or not isinstance(bad, complex):
            with pytest.raises((TypeError, ValueError), match=r"expected|differ"):
                gl.grad(lambda x, f=f: np.sum(f(x, bad)))(X[0])
    for x in (np.ones(4, complex), np.ones(4, int), np.array(["a"]), np.array([None])):
        with pytest.raises(TypeError, match="expected floating-point arrays to differentiate"):
            gl.grad(np.sum)(x)


def test_no_values_were_changed():
    x = X.copy()
    gl.jacobian(lambda x: np.sort(np.cumprod(np.pad(x, 1, "wrap"), 0)))(x)
    close(x, X, 0)
