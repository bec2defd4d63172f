"""Questions about values: plain answers, right under transforms, refused where a capture would freeze them."""

import numpy as np
import pytest

import gradlib as gl

X = np.array([[1.0, -2.0, 0.0], [0.5, 3.0, -1.0]])
CALLS = {
    "nonzero": lambda x: np.nonzero(x)[1] + x.nonzero()[0],
    "flatnonzero": lambda x: np.flatnonzero(x > 0),
    "argwhere": np.argwhere,
    "searchsorted": lambda x: np.searchsorted(np.array([-1.0, 0.0, 1.0]), x) + np.searchsorted(np.sort(x[0]), 0.3),
    "argpartition": lambda x: np.argpartition(x, 1, axis=-1)[:, 1],
    "isclose": lambda x: np.isclose(x, x + 1e-12) & np.isreal(x) & ~np.isneginf(x) & ~np.isposinf(x) & ~np.iscomplex(x),
    "isin": lambda x: np.isin(x, [0.0, 3.0]),
    "nanargmax": lambda x: np.nanargmax(x, 0) + np.nanargmin(x, axis=0),
    "lexsort": lambda x: np.lexsort((x[0], x[1])),
    "digitize": lambda x: np.digitize(x, [0.0, 1.0]),
    "bincount": lambda x: np.bincount(np.digitize(x[0], [0.0, 1.0])),
    "equal": lambda x: np.array_equiv(x, x) and np.isrealobj(x) and not np.iscomplexobj(x),
    "indices": lambda x: (
        np.triu_indices_from(x, 1)[0].sum() + np.tril_indices_from(x)[1] + np.diag_indices_from(x[:, :2])[0][0]
    ),
    "rank": lambda x: np.linalg.matrix_rank(x),
    "fix": lambda x: np.fix(x) + np.round(x, 1) + np.around(x) + x.round() + np.heaviside(x, 0.5),
    "all": lambda x: x.all() or x.any(),
}


@pytest.mark.parametrize("name", CALLS)
def test_answers_are_numpys_and_have_no_derivative(name):
    f, seen = CALLS[name], []

    def g(x):
        seen.append(f(x))
        return np.sum(2 * x)

    assert (gl.grad(gl.grad(lambda x: g(x * 1.0)) and g)(X) == 2).all()
    np.testing.assert_array_equal(seen[0], f(X))


def test_indices_work_in_traced_code():
    f = lambda x: np.sum(x[np.nonzero(x > 0)] ** 2) + np.sum(x[np.triu_indices_from(x)])  # noqa: E731
    gl.check_grads(f, (X + 0.1,))


@pytest.mark.parametrize(
    "f", [lambda x: x[np.nonzero(x > 0)].sum(), lambda x: x * np.any(x > 0), lambda x: np.compress(x[0] > 0, x, 1)]
)
def test_a_capture_refuses_what_it_would_freeze(f):
    with pytest.raises(TypeError, match=r"gl\.capture would freeze"):
        gl.capture(f)(X)
