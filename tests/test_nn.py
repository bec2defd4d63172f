"""Layers against plain NumPy, initialisers against their moments, the article's network end to end."""

import numpy as np
import pytest

import gradlib as gl

nn = gl.nn


def test_sequential_equals_its_layers_written_out():
    net = nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 3), nn.Tanh(), nn.Linear(3, 2, bias=False))
    params = net.init(1, dtype=np.float64)
    x = np.random.default_rng(0).standard_normal((5, 4))
    h = np.maximum(x @ params[0]["w"] + params[0]["b"], 0)
    h = np.tanh(h @ params[2]["w"] + params[2]["b"])
    np.testing.assert_allclose(net(params, x), h @ params[4]["w"], rtol=1e-12)
    assert params[1] == {}


@pytest.mark.parametrize(
    "layer",
    [nn.ReLU(), nn.Sigmoid(), nn.Tanh(), nn.SiLU(), nn.Softplus(), nn.GELU(), nn.GELU(True), nn.ELU(), nn.ELU(0.5),
     nn.LeakyReLU(), nn.LeakyReLU(0.2)],
    ids=repr,
)  # fmt: skip
def test_fused_activation_equals_the_layer(layer):
    linear = nn.Linear(3, 4)
    net = nn.Sequential(linear, layer)
    params = net.init(0, dtype=np.float64)
    x = np.random.default_rng(0).standard_normal((6, 3))
    apart = layer({}, linear(params[0], x))
    np.testing.assert_allclose(net(params, x), apart, rtol=1e-13)
    gl.check_grads(lambda p: net(p, x), (params,), order=2, rtol=1e-4)


def test_softmax_layers():
    x = np.random.default_rng(0).standard_normal((6, 3))
    np.testing.assert_allclose(nn.Softmax()({}, x).sum(1), 1)
    np.testing.assert_allclose(np.exp(nn.LogSoftmax()({}, x)), nn.Softmax()({}, x))


@pytest.mark.parametrize(
    ("name", "variance"),
    [
        ("glorot_uniform", 2 / 500),
        ("glorot_normal", 2 / 500),
        ("he_uniform", 2 / 200),
        ("he_normal", 2 / 200),
        ("lecun_uniform", 1 / 200),
        ("lecun_normal", 1 / 200),
    ],
)
def test_initialisers_have_their_variance(name, variance):
    w = nn.Linear(200, 300, init=name).init(3)["w"].astype(float)
    assert abs(w.mean()) < 4 * np.sqrt(variance / w.size)
    assert abs(w.var() / variance - 1) < 0.03  # five standard errors of a variance of 60,000 draws


@pytest.mark.parametrize("shape", [(20, 5), (5, 20)])
def test_orthogonal(shape):
    w = nn.Linear(*shape, init="orthogonal").init(0, dtype=np.float64)["w"]
    short = w.T @ w if shape[0] > shape[1] else w @ w.T
    np.testing.assert_allclose(short, np.eye(5), atol=1e-12)


def test_init_is_reproducible_and_keeps_the_dtype():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    a, b, c = net.init(5), net.init(5), net.init(6)
    assert a[0]["w"].dtype == np.float32
    np.testing.assert_array_equal(a[1]["w"], b[1]["w"])
    assert not np.array_equal(a[1]["w"], c[1]["w"])


def test_dropout_is_off_without_a_generator():
    x = np.ones((50, 40))
    layer = nn.Dropout(0.25)
    assert layer({}, x) is x
    y = layer({}, x, gl.Generator(0))
    assert set(np.unique(y)) == {0, 1 / 0.75}
    assert abs((y == 0).mean() - 0.25) < 0.05


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: nn.Linear(0, 3), ValueError, "in_features"),
        (lambda: nn.Linear(3, 2.5), ValueError, "out_features"),
        (lambda: nn.Linear(3, 2, init="he"), ValueError, "he_normal"),
        (lambda: nn.Dropout(1.0), ValueError, "rate"),
        (lambda: nn.Sequential(nn.ReLU), TypeError, "Sequential: expected layers"),
        (lambda: nn.Linear(3, 2).init(0, dtype=int), TypeError, "floating-point dtype"),
        (lambda: nn.Linear(3, 2)([1], np.ones((1, 3))), TypeError, r"Linear\(3, 2\): expected its parameters"),
        (lambda: nn.Sequential(nn.Linear(3, 2))([], np.ones((1, 3))), TypeError, "parameters of 1 layers"),
        (lambda: nn.Linear(3, 2)(nn.Linear(3, 2).init(0), np.ones((1, 4))), ValueError, "linear: expected x"),
    ],
)
def test_errors(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_the_articles_network_learns_and_gives_its_jacobian():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((100, 100)).astype(np.float32)
    y = rng.integers(0, 10, 100)
    net = nn.Sequential(nn.Linear(100, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    params = net.init(0)
    opt = gl.optim.Adam(params, lr=3e-3)
    step = gl.value_and_grad(lambda p: gl.cross_entropy(net(p, x), y))
    first = float(step(params)[0])
    for _ in range(150):
        loss, grads = step(params)
        opt.step(grads)
    assert first > 2
    assert float(loss) < 0.05
    exact = gl.tree.map(lambda w: w.astype(np.float64), params)
    few = x[:7].astype(np.float64)
    jacobian = gl.jacobian(lambda p: net(p, few))(exact)
    assert jacobian[0]["w"].shape == (7, 10, 100, 64)
    direction, middle = rng.standard_normal((64, 32)), exact[2]["w"].copy()
    ahead, behind = (
        net([*exact[:2], {**exact[2], "w": middle + s * 1e-6 * direction}, *exact[3:]], few) for s in (1, -1)
    )
    got = np.einsum("bcij,ij->bc", jacobian[2]["w"], direction)
    np.testing.assert_allclose(got, (ahead - behind) / 2e-6, rtol=1e-5, atol=1e-6)
