"""The Jacobian as an operator, and curvature products, against dense matrices, SciPy and JAX."""

import importlib
import sys
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse.linalg
from rulecheck import LAYOUTS, close, randn
from standin import DeviceArray, rules_only, to_numpy, to_standin

import gradlib as gl

jax = pytest.importorskip("jax")
jax.config.update("jax_enable_x64", True)
jnp = jax.numpy

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
        (J.rmatmat(u[:, None]), D.T @ u[:, None]),
        (J.T @ u, D.T @ u),
        (J.T.rmatvec(v), D @ v),
        (J.T.rmatmat(V), D @ V),
        (J @ V, D @ V),
        (J.T.T @ V, D @ V),
        (J.T @ RNG.standard_normal((6, 0)), np.zeros((4, 0))),
        (J @ np.arange(4), D @ np.arange(4)),
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


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3), (0,), (2, 0)])
@pytest.mark.parametrize("g", [np.sin, lambda x: np.stack([x, x**2]), np.sum, lambda x: np.ones(2)])
def test_shapes(g, shape):
    x = randn(*shape)
    J = gl.JacobianOperator(g, x)
    D = gl.jacobian(g)(x).reshape(np.size(g(x)), x.size)
    assert J.shape == D.shape
    assert J.T.to_dense().shape == D.T.shape
    np.testing.assert_allclose(J.to_dense(), D, rtol=1e-12)
    np.testing.assert_allclose(J @ np.ones(x.size), D @ np.ones(x.size), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_vectors_of_any_layout_are_left_as_they_are(layout):
    J, D, V = gl.JacobianOperator(f, X), dense(), LAYOUTS[layout](randn(4, 3))
    before = V.copy()
    close(J @ V, D @ V, 1e-12)
    close(J @ V[:, 1], D @ V[:, 1], 1e-12)
    assert (before == V).all()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_dtypes(dtype):
    x = X.astype(dtype)
    J = gl.JacobianOperator(lambda x: np.tanh(x @ W.astype(dtype)), x)
    assert J.dtype == J.to_dense().dtype == (J @ np.ones(4)).dtype == J.rmatvec(np.ones(6)).dtype == dtype
    solver = np.promote_types(dtype, "float32")
    scipy_view = J.to_scipy()
    assert scipy_view.dtype == solver == (scipy_view @ np.ones(4, solver)).dtype


@pytest.mark.parametrize("g", [f, lambda x: f(x)[:3]], ids=["by columns", "by rows"])
@pytest.mark.parametrize("options", [{"chunk_size": 1}, {"chunk_size": 2}, {"chunk_size": 100}, {"max_bytes": 1000}])
def test_dense_in_chunks(g, options):
    J = gl.JacobianOperator(g, X)
    np.testing.assert_allclose(J.to_dense(**options), gl.jacobian(g)(X), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(J.T.to_dense(**options), gl.jacobian(g)(X).T, rtol=1e-12, atol=1e-14)


def test_dense_keeps_to_its_budget():
    w = randn(300, 2000)
    J = gl.JacobianOperator(lambda x: np.tanh(x @ w), randn(300))
    tracemalloc.start()
    result = J.to_dense(max_bytes="1MB")
    peak = tracemalloc.get_traced_memory()[1] - result.nbytes
    tracemalloc.stop()
    assert peak < 1.1e6


def test_products_can_be_differentiated_by_their_vector():
    J, D, v = gl.JacobianOperator(f, X), dense(), randn(4)
    np.testing.assert_allclose(gl.grad(lambda v: np.sum((J @ v) ** 2))(v), 2 * D.T @ D @ v, rtol=1e-11)


# --- SciPy -----------------------------------------------------------------------------------------------------------
def wide_problem():
    """A function of 30 numbers with 40 results, its operator and its matrix."""
    w, x = randn(30, 40), randn(30)
    g = lambda x: np.tanh(x @ w / 5)  # noqa: E731
    return gl.JacobianOperator(g, x).to_scipy(), gl.jacobian(g)(x)


def test_svds():
    J, D = wide_problem()
    u, s, vt = scipy.sparse.linalg.svds(J, k=3, v0=np.ones(30))
    np.testing.assert_allclose(np.sort(s)[::-1], np.linalg.svd(D, compute_uv=False)[:3], rtol=1e-10)
    np.testing.assert_allclose(D @ vt.T, u * s, atol=1e-10)


def test_solvers_take_the_operator_itself():
    """They hand it columns (N, 1), and expect columns."""
    w, x, b = randn(30, 40), randn(30), randn(40)
    g = lambda x: np.tanh(x @ w / 5)  # noqa: E731
    J, D = gl.JacobianOperator(g, x), gl.jacobian(g)(x)
    close(J.matvec(x[:, None]), D @ x[:, None], 1e-12)
    close(J.rmatvec(b[:, None]), D.T @ b[:, None], 1e-12)
    close(J.T.matvec(b[:, None]), D.T @ b[:, None], 1e-12)
    u, s, vt = scipy.sparse.linalg.svds(J, k=3, v0=np.ones(30))
    np.testing.assert_allclose(np.sort(s)[::-1], np.linalg.svd(D, compute_uv=False)[:3], rtol=1e-10)
    np.testing.assert_allclose(D @ vt.T, u * s, atol=1e-10)
    found = scipy.sparse.linalg.lsqr(J, b, atol=1e-12, btol=1e-12)[0]
    np.testing.assert_allclose(found, np.linalg.lstsq(D, b, rcond=None)[0], rtol=1e-6)


def test_lsqr():
    J, D = wide_problem()
    b = randn(40)
    found = scipy.sparse.linalg.lsqr(J, b, atol=1e-12, btol=1e-12)[0]
    np.testing.assert_allclose(found, np.linalg.lstsq(D, b, rcond=None)[0], rtol=1e-6)


def test_lobpcg_on_the_gram_operator():
    J, D = wide_problem()
    for gram, start, s in ((J.T @ J, randn(30, 2), 2), (J.H @ J, randn(30, 1), 1)):
        w, _ = scipy.sparse.linalg.lobpcg(gram, start, tol=1e-9, maxiter=200)
        np.testing.assert_allclose(np.sqrt(w), np.linalg.svd(D, compute_uv=False)[:s], rtol=1e-8)


@pytest.mark.parametrize("method", ["trf", "dogbox"])
def test_least_squares_takes_it_as_jac(method):
    target = f(np.full(4, 0.3))
    found = scipy.optimize.least_squares(
        lambda x: f(x) - target,
        np.full(4, 0.2),
        jac=lambda x: gl.JacobianOperator(f, x).to_scipy(),
        tr_solver="lsmr",
        method=method,
    )
    assert found.cost < 1e-12
    np.testing.assert_allclose(f(found.x), target, atol=1e-6)


# --- devices ---------------------------------------------------------------------------------------------------------
def test_on_device_arrays(monkeypatch):
    """Products stay on the device; `to_scipy` takes CuPy's LinearOperator there."""
    module = SimpleNamespace(LinearOperator=lambda shape, **parts: SimpleNamespace(shape=shape, **parts))
    monkeypatch.setitem(sys.modules, "cupyx.scipy.sparse.linalg", module)
    w, x, v = to_standin((W, X, randn(4, 2)))
    with rules_only():
        J = gl.JacobianOperator(lambda x: np.tanh(x @ w), x)
        D = gl.jacobian(lambda x: np.tanh(x @ W))(X)
        close(to_numpy(J @ v), D @ randn(4, 2), 1e-12)
        close(to_numpy(J.T @ J.matvec(v[:, 0])), D.T @ D @ randn(4, 2)[:, 0], 1e-12)
        close(to_numpy(J.to_dense(chunk_size=3)), D, 1e-12)
        close(to_numpy(J.to_scipy().matmat(v)), D @ randn(4, 2), 1e-12)
        with pytest.raises(TypeError, match=r"matvec: expected real numbers in an array of standin, got float64\[4\]"):
            J @ randn(4)
        assert isinstance(J @ v, DeviceArray)


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda J: J.matvec(np.ones(6)), ValueError, r"matvec: expected an array of shape \(4,\), got float64\[6\]"),
        (lambda J: J.rmatvec(np.ones((6, 2))), ValueError, r"rmatvec: expected an array of shape \(6,\)"),
        (lambda J: J.matmat(np.ones((3, 4))), ValueError, r"matmat: expected an array of shape \(4, k\)"),
        (lambda J: J.T @ np.ones(4), ValueError, r"matvec: expected an array of shape \(6,\)"),
        (lambda J: J.matvec([1.0] * 4), ValueError, r"matvec: expected an array of shape \(4,\), got list"),
        (lambda J: J @ np.ones(4, complex), TypeError, r"matvec: expected real numbers .* got complex128\[4\]"),
        (lambda J: J.to_dense(chunk_size=0), ValueError, "to_dense: expected a positive int or None as chunk_size"),
        (lambda J: J.to_dense(max_bytes=8), ValueError, "to_dense: max_bytes=8 is too small: .* one row needs"),
        (lambda J: gl.JacobianOperator(f, np.arange(4)), TypeError, "JacobianOperator: expected floating-point arrays"),
        (lambda J: gl.JacobianOperator(f, X * 1j), TypeError, "JacobianOperator: expected floating-point arrays"),
        (lambda J: gl.JacobianOperator(f), ValueError, "JacobianOperator: expected at least one array"),
        (
            lambda J: gl.grad(lambda x: np.sum(gl.JacobianOperator(f, x).to_dense()))(X),
            TypeError,
            "JacobianOperator: expected arrays, not values traced",
        ),
    ],
)
def test_bad_input(make, kind, words):
    with pytest.raises(kind, match=words):
        make(gl.JacobianOperator(f, X))


# --- curvature -------------------------------------------------------------------------------------------------------
PARAMS = {"w": randn(4, 5), "b": randn(5), "v": randn(5, 3)}
ALONG = {"w": randn(4, 5, seed=1), "b": randn(5, seed=1), "v": randn(5, 3, seed=1)}
DATA, LABELS = randn(7, 4), np.array([0, 2, 1, 1, 0, 2, 2])


def net(xp):
    return lambda p: xp.tanh(DATA @ p["w"] + p["b"]) @ p["v"]


def jax_losses(y):
    return -jnp.take_along_axis(jax.nn.log_softmax(y), LABELS[:, None], 1)[:, 0]


def same(got, want, tolerance=1e-11):
    assert got.keys() == want.keys()
    for k in got:
        close(got[k], np.asarray(want[k]), tolerance)


def test_ggnvp_is_the_product_of_a_softmax_network_with_jax():
    ravel = importlib.import_module("jax.flatten_util").ravel_pytree
    flat, rebuild = ravel(PARAMS)
    y = net(jnp)(PARAMS)
    J = jax.jacrev(lambda q: net(jnp)(rebuild(q)).reshape(-1))(flat)
    H = jax.hessian(lambda z: jax_losses(z.reshape(y.shape)).mean())(y.reshape(-1))
    want = rebuild(J.T @ (H @ (J @ ravel(ALONG)[0])))
    same(gl.ggnvp(net(np), lambda z: gl.cross_entropy(z, LABELS), PARAMS, ALONG), want)


def test_fisher_vp_is_the_mean_over_gradients_of_samples_with_jax():
    each = jax.jacrev(lambda p: jax_losses(net(jnp)(p)))(PARAMS)
    along = sum(jnp.sum((each[k] * ALONG[k]).reshape(len(DATA), -1), 1) for k in PARAMS)
    want = {k: jnp.tensordot(along, each[k], 1) / len(DATA) for k in PARAMS}
    same(gl.fisher_vp(net(np), lambda z: gl.cross_entropy(z, LABELS, reduction="none"), PARAMS, ALONG), want)


def test_hvp_and_hessian_with_jax():
    loss, reference = lambda p: gl.cross_entropy(net(np)(p), LABELS), lambda p: jax_losses(net(jnp)(p)).mean()
    same(gl.hvp(loss, (PARAMS,), (ALONG,)), jax.jvp(jax.grad(reference), (PARAMS,), (ALONG,))[1])
    want = jax.hessian(reference)(PARAMS)
    for chunk_size in (None, 4):
        got = gl.hessian(loss, chunk_size=chunk_size)(PARAMS)
        for k in PARAMS:
            same(got[k], want[k])


def test_curvature_products_leave_the_vector_alone_and_take_numbers():
    before = {k: v.copy() for k, v in ALONG.items()}
    gl.ggnvp(net(np), lambda z: np.sum(z**2), PARAMS, ALONG)
    assert all((before[k] == ALONG[k]).all() for k in ALONG)
    assert gl.ggnvp(lambda w: 3.0 * w, lambda y: y**2, 1.0, 2.0) == 36
    assert gl.fisher_vp(lambda w: w * np.array([1.0, 3.0]), lambda y: y, 1.0, 1.0) == 5


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (
            lambda: gl.ggnvp(net(np), np.sum, PARAMS, ALONG["w"]),
            ValueError,
            "ggnvp: expected v with the structure of the parameters",
        ),
        (
            lambda: gl.ggnvp(np.tanh, np.sum, W, W.T),
            ValueError,
            r"ggnvp: expected a v of shape \(4, 6\), got float64\[6, 4\]",
        ),
        (
            lambda: gl.fisher_vp(np.tanh, lambda y: y.sum(1), W, "a"),
            TypeError,
            "fisher_vp: expected an array as v, got str",
        ),
        (
            lambda: gl.fisher_vp(np.tanh, np.sum, W, W),
            ValueError,
            r"fisher_vp: expected one loss a sample, \(B,\), got float64\[\]",
        ),
        (lambda: gl.ggnvp(np.tanh, np.sum, np.arange(3), np.ones(3)), TypeError, "ggnvp: expected floating-point"),
    ],
)
def test_bad_curvature_products(make, kind, words):
    with pytest.raises(kind, match=words):
        make()
