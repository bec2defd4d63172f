"""The Jacobian as an operator, and curvature products, against dense matrices and SciPy."""

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse.linalg

import gradlib as gl

RNG = np.random.default_rng(0)
W = RNG.standard_normal((4, 6))
X = RNG.standard_normal(4)


def f(x):
    return np.tanh(x @ W) * x.sum()


def dense():
    return gl.jacobian(f)(X)


def test_products_equal_the_dense_matrix():
    J, D = gl.JacobianOperator(f, X), dense()
    v, u, V = RNG.standard_normal(4), RNG.standard_normal(6), RNG.standard_normal((4, 3))
    assert J.shape == (6, 4)
    for got, want in [
        (J @ v, D @ v),
        (J.rmatvec(u), D.T @ u),
        (J.T @ u, D.T @ u),
        (J.T.rmatvec(v), D @ v),
        (J @ V, D @ V),
        (J.T.T @ V, D @ V),
        (J.T @ RNG.standard_normal((6, 0)), np.zeros((4, 0))),
        (J.to_dense(), D),
        (J.T.to_dense(), D.T),
    ]:
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-13)


def test_pytrees_are_flattened_in_order():
    g = lambda p, s: {"b": p["w"] * s, "a": p["w"].sum() + p["c"]}  # noqa: E731
    p = {"w": RNG.standard_normal(3), "c": np.array(2.0)}
    J = gl.JacobianOperator(g, p, np.array(1.5))
    assert J.shape == (4, 5)
    blocks = gl.jacobian(g, (0, 1))(p, np.array(1.5))
    rows = []
    for k in ("a", "b"):
        by_p, by_s = blocks[k]
        rows.append(np.concatenate([np.reshape(x, (by_s.size, -1)) for x in (by_p["c"], by_p["w"], by_s)], 1))
    np.testing.assert_allclose(J.to_dense(), np.concatenate(rows), rtol=1e-12)


def test_scipy_takes_it():
    J, D = gl.JacobianOperator(f, X).to_scipy(), dense()
    np.testing.assert_allclose(
        scipy.sparse.linalg.svds(J, k=2, return_singular_vectors=False, random_state=0),
        np.sort(np.linalg.svd(D, compute_uv=False))[-2:],
        rtol=1e-8,
    )
    b = RNG.standard_normal(6)
    np.testing.assert_allclose(scipy.sparse.linalg.lsqr(J, b)[0], np.linalg.lstsq(D, b, rcond=None)[0], rtol=1e-6)


def test_least_squares_takes_it_as_jac():
    target = f(np.full(4, 0.3))
    found = scipy.optimize.least_squares(
        lambda x: f(x) - target, np.full(4, 0.2), jac=lambda x: gl.JacobianOperator(f, x).to_scipy(), tr_solver="lsmr"
    )
    assert found.cost < 1e-12


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda J: J.matvec(np.ones(6)), r"matvec: expected an array of shape \(4,\), got float64\[6\]"),
        (lambda J: J.rmatvec(np.ones((6, 1))), r"rmatvec: expected an array of shape \(6,\)"),
        (lambda J: J.matmat(np.ones((3, 4))), r"matmat: expected an array of shape \(4, k\)"),
    ],
)
def test_wrong_vectors(make, words):
    with pytest.raises(ValueError, match=words):
        make(gl.JacobianOperator(f, X))


def test_ggnvp_and_fisher_vp():
    x, y = RNG.standard_normal((5, 4)), RNG.integers(0, 6, 5)
    net = lambda w: np.tanh(x @ w)  # noqa: E731
    v = RNG.standard_normal((4, 6))
    J = gl.jacobian(net)(W).reshape(30, 24)
    H = gl.hessian(lambda z: gl.cross_entropy(z, y))(net(W)).reshape(30, 30)
    got = gl.ggnvp(net, lambda z: gl.cross_entropy(z, y), W, v)
    np.testing.assert_allclose(got.reshape(-1), J.T @ H @ J @ v.reshape(-1), rtol=1e-9, atol=1e-12)
    each = lambda z: gl.cross_entropy(z, y, reduction="none")  # noqa: E731
    G = gl.jacobian(lambda w: each(net(w)))(W).reshape(5, 24)
    got = gl.fisher_vp(net, each, W, v)
    np.testing.assert_allclose(got.reshape(-1), G.T @ (G @ v.reshape(-1)) / 5, rtol=1e-10, atol=1e-13)
    with pytest.raises(ValueError, match="ggnvp: expected v with the structure"):
        gl.ggnvp(net, lambda z: z.sum(), W, v.T)
