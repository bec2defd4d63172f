"""jacobian_svd: against the decomposition of the dense matrix, small and large, tall and wide."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse.linalg
from rulecheck import close, randn
from standin import rules_only, to_numpy, to_standin

import gradlib as gl
from gradlib.jacobian.jacobian_svd import DENSE

SIZES = {"small": (6, 4), "small and wide": (4, 6), "tall": (140, 90), "wide": (90, 140), "square": (100, 100)}


def problem(m, n, dtype=float):
    """A function of n numbers with m results, the point, and its Jacobian."""
    w, x = (randn(n, m) / n**0.5).astype(dtype), randn(n).astype(dtype)
    f = lambda x: np.tanh(x @ w) * x.sum()  # noqa: E731
    return f, x, gl.jacobian(f)(x)


def check(got, j, k, tolerance=1e-10):
    """The k leading triplets of j, orthonormal, with the signs that are promised."""
    (u, s, vt), (m, n) = got, j.shape
    assert u.shape == (m, k) and s.shape == (k,) and vt.shape == (k, n)
    close(s, np.linalg.svd(j, compute_uv=False)[:k], tolerance)
    close(u.T @ u, np.eye(k), tolerance)
    close(vt @ vt.T, np.eye(k), tolerance)
    close(j @ vt.T, u * s, tolerance)
    close(j.T @ u, vt.T * s, tolerance)
    for row in vt:
        assert row[np.argmax(abs(row) > 0.999 * abs(row).max())] > 0


@pytest.mark.parametrize("size", SIZES)
def test_against_numpy(size):
    f, x, j = problem(*SIZES[size])
    rank = min(j.shape)
    for k in {1, 2, rank - 1, rank}:
        check(gl.jacobian_svd(f, k=k)(x), j, k)
    check(gl.jacobian_svd(f)(x), j, rank)


@pytest.mark.parametrize("size", ["tall", "wide"])
def test_large_problems_are_never_formed(size, monkeypatch):
    f, x, j = problem(*SIZES[size])
    assert min(j.shape) > DENSE
    monkeypatch.setattr(gl.JacobianOperator, "to_dense", None)
    check(gl.jacobian_svd(f, k=3)(x), j, 3)


def test_equal_calls_give_equal_results():
    f, x, _ = problem(*SIZES["tall"])
    for a, b in zip(gl.jacobian_svd(f, k=2)(x), gl.jacobian_svd(f, k=2)(x), strict=True):
        assert (a == b).all()


def test_both_ways_agree_in_sign():
    f, x, _ = problem(*SIZES["square"])
    for few, every in zip(gl.jacobian_svd(f, k=2)(x), gl.jacobian_svd(f)(x), strict=True):
        close(few, every[:2] if few.ndim == 1 or few.shape[0] == 2 else every[:, :2], 1e-9)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_rank_less_than_k(rank):
    """Singular values of 0 come with vectors that are orthonormal all the same."""
    a, b = randn(90, rank), randn(rank, 120)
    check(gl.jacobian_svd(lambda x: (x @ a) @ b, k=3)(randn(90)), (a @ b).T, 3)


def test_singular_values_that_are_all_equal():
    check(gl.jacobian_svd(lambda x: 2 * x, k=3)(randn(90)), 2 * np.eye(90), 3)


@pytest.mark.parametrize("size", ["small", "tall"])
def test_float32(size):
    f, x, j = problem(*SIZES[size], np.float32)
    got = gl.jacobian_svd(f, k=2)(x)
    assert {a.dtype.name for a in got} == {"float32"}
    check(got, j.astype(float), 2, 2e-5)


def test_float16_is_calculated_in_float32():
    f, x, j = problem(*SIZES["small"], np.float16)
    got = gl.jacobian_svd(f, k=2)(x)
    assert {a.dtype.name for a in got} == {"float32"}
    close(got[1], np.linalg.svd(j.astype(float), compute_uv=False)[:2], 1e-5)


def test_trees_and_arguments():
    g = lambda p, x: (x @ p["w"], p["b"] * 2)  # noqa: E731
    p, x = {"w": randn(3, 2), "b": randn(2)}, randn(4, 3)
    check(gl.jacobian_svd(g)(p, x), gl.JacobianOperator(lambda p: g(p, x), p).to_dense(), 8)
    check(gl.jacobian_svd(g, (0, 1), k=2)(p, x), gl.JacobianOperator(g, p, x).to_dense(), 2)


@pytest.mark.parametrize(("m", "n"), [(0, 3), (3, 0), (0, 0)])
def test_empty(m, n):
    u, s, vt = gl.jacobian_svd(lambda x: np.sum(x) * np.ones(m))(np.ones(n))
    assert u.shape == (m, 0) and s.shape == (0,) and vt.shape == (0, n)


def test_ties_of_magnitude_keep_their_sign():
    """(1, -1) / √2 is decided by its first entry, however it is rounded."""
    j = np.array([[1.0, -1.0], [1e-9, 1e-9]])
    for scale in (1, -1, 1 + 1e-12):
        vt = gl.jacobian_svd(lambda x, scale=scale: scale * j @ x, k=1)(np.ones(2))[2]
        close(vt, np.array([[1.0, -1.0]]) / 2**0.5, 1e-8)


def test_on_device_arrays(monkeypatch):
    """CuPy's Lanczos is called with arrays of the device alone."""
    f, x, j = problem(*SIZES["tall"])
    w = (randn(90, 140) / 90**0.5).astype(float)

    def eigsh(gram, k, which, v0):
        host = scipy.sparse.linalg.LinearOperator(
            gram.shape, matvec=lambda v: gram.matvec(to_standin(v)).get(), dtype=float
        )
        return to_standin(scipy.sparse.linalg.eigsh(host, k, which=which, v0=v0.get()))

    module = SimpleNamespace(LinearOperator=lambda shape, **parts: SimpleNamespace(shape=shape, **parts), eigsh=eigsh)
    monkeypatch.setitem(sys.modules, "cupyx.scipy.sparse.linalg", module)
    with rules_only():
        g = lambda x, w: np.tanh(x @ w) * x.sum()  # noqa: E731
        check(to_numpy(gl.jacobian_svd(lambda x: g(x, to_standin(w)), k=2)(to_standin(x))), j, 2)
        _, s, _ = gl.jacobian_svd(lambda x: g(x, to_standin(w)))(to_standin(x))
        close(to_numpy(s), np.linalg.svd(j, compute_uv=False), 1e-12)


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: gl.jacobian_svd(np.sin, k=0), ValueError, "jacobian_svd: expected k a positive int or None, got 0"),
        (lambda: gl.jacobian_svd(np.sin, k=1.0), ValueError, "jacobian_svd: expected k a positive int or None"),
        (lambda: gl.jacobian_svd(np.sin, k=4)(np.ones(3)), ValueError, r"expected k at most min\(M, N\) = 3, got 4"),
        (lambda: gl.jacobian_svd(np.sin)(np.arange(3)), TypeError, "jacobian_svd: expected floating-point arrays"),
        (lambda: gl.jacobian_svd(np.sin)(np.ones(3) * 1j), TypeError, "jacobian_svd: expected floating-point arrays"),
        (lambda: gl.jacobian_svd(np.sin, 1)(np.ones(3)), ValueError, "jacobian_svd: argnums 1 does not fit"),
        (
            lambda: gl.grad(lambda x: gl.jacobian_svd(np.sin)(x)[1].sum())(np.ones(3)),
            TypeError,
            "jacobian_svd: cannot be differentiated or captured",
        ),
        (
            lambda: gl.capture(lambda x: gl.jacobian_svd(np.sin)(x)[1])(np.ones(3)),
            TypeError,
            "jacobian_svd: cannot be differentiated or captured",
        ),
    ],
)
def test_bad_input(call, kind, words):
    with pytest.raises(kind, match=words):
        call()
