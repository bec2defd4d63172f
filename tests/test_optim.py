"""Optimisers against the textbook recurrences written out in float64 Python, and what they must refuse."""

import math

import numpy as np
import pytest

import gradlib as gl
from gradlib.kernels import cpu
from gradlib.ops import optim as rules

SHARED = np.ones(1)
TOLERANCE = {np.float32: 1e-6, np.float64: 1e-13}


def adam_scalar(p, grads, lr, b1, b2, eps, decay, decoupled):
    m = v = 0.0
    for t, g in enumerate(grads, 1):
        if decoupled:
            p = p * (1 - lr * decay)
        else:
            g = g + decay * p
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        p -= lr * (m / (1 - b1**t)) / (math.sqrt(v / (1 - b2**t)) + eps)
    return p


def sgd_scalar(p, grads, lr, momentum, nesterov, decay):
    v = 0.0
    for g in grads:
        g = g + decay * p
        v = momentum * v + g
        p -= lr * (g + momentum * v if nesterov else v)
    return p


def make(dtype, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(3, 5), (5,), (), (1, 1), (0, 4), (257,)]
    params = {f"p{i}": np.array(rng.standard_normal(s), dtype) for i, s in enumerate(shapes)}
    grads = [{k: np.array(rng.standard_normal(p.shape), dtype) for k, p in params.items()} for _ in range(4)]
    return params, grads


def run(opt_class, dtype, **settings):
    """(parameters after four steps, what the scalar recurrence is given for each entry)."""
    params, grads = make(dtype)
    start = {k: p.copy() for k, p in params.items()}
    held = dict(params)
    opt = opt_class(params, **settings)
    for g in grads:
        before = {k: x.copy() for k, x in g.items()}
        opt.step(g)
        assert all(np.array_equal(g[k], before[k]) for k in g)
    assert all(params[k] is held[k] for k in params)
    return start, grads, params


def compare(start, grads, params, reference, dtype):
    for k, p in params.items():
        assert p.dtype == dtype
        flat = [g[k].reshape(-1).astype(float) for g in grads]
        want = [reference(float(x), [g[i] for g in flat]) for i, x in enumerate(start[k].reshape(-1))]
        np.testing.assert_allclose(p.reshape(-1), want, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize(("opt_class", "decoupled"), [(gl.optim.Adam, False), (gl.optim.AdamW, True)])
def test_adam(opt_class, decoupled, decay, dtype):
    result = run(opt_class, dtype, lr=0.05, betas=(0.8, 0.95), eps=1e-4, weight_decay=decay)
    compare(*result, lambda p, g: adam_scalar(p, g, 0.05, 0.8, 0.95, 1e-4, decay, decoupled), dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("momentum,nesterov", [(0.0, False), (0.9, False), (0.9, True)])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_sgd(momentum, nesterov, decay, dtype):
    result = run(gl.optim.SGD, dtype, lr=0.05, momentum=momentum, nesterov=nesterov, weight_decay=decay)
    compare(*result, lambda p, g: sgd_scalar(p, g, 0.05, momentum, nesterov, decay), dtype)


@pytest.mark.parametrize("decoupled", [False, True])
def test_array_rule_equals_the_compiled_loop(decoupled):
    settings = {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1, "decoupled": decoupled}
    results = []
    for update in (rules.adam, cpu.adam):
        params, grads = make(np.float64)
        p, g = ([x.reshape(-1) for x in part.values()] for part in (params, grads[0]))
        m, v = [np.zeros_like(x) for x in p], [np.zeros_like(x) for x in p]
        for t in (1, 2):
            update(p, g, m, v, np.array(t), np.array(0.1), **settings)
        results.append((p, m, v))
    for a, b in zip(*[[x for part in r for x in part] for r in results], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-15)


def test_strided_parameters_are_updated_in_place():
    whole = np.ones((4, 6))
    opt = gl.optim.Adam([whole[:, ::2]], lr=0.1)
    opt.step([np.ones((4, 3))])
    np.testing.assert_allclose(whole[:, ::2], 0.9, rtol=1e-6)
    np.testing.assert_array_equal(whole[:, 1::2], 1)


def test_learning_rate_can_change_between_steps():
    p = [np.zeros(1)]
    opt = gl.optim.SGD(p, lr=1.0)
    opt.step([np.ones(1)])
    opt.lr = 0.25
    opt.step([np.ones(1)])
    assert p[0][0] == -1.25
    assert opt.steps == 2
    assert opt.lr == 0.25


@pytest.mark.parametrize(
    ("make_error", "error", "words"),
    [
        (lambda: gl.optim.Adam({"w": np.ones(2, int)}), TypeError, "Adam: expected floating-point arrays.*int64.*w"),
        (lambda: gl.optim.Adam({"w": np.float64(2)}), TypeError, "Adam: expected floating-point arrays"),
        (lambda: gl.optim.Adam([np.broadcast_to(1.0, 3)]), ValueError, "read-only"),
        (lambda: gl.optim.Adam([np.ones(1)], betas=0.9), ValueError, "Adam: expected two betas"),
        (lambda: gl.optim.Adam([SHARED, SHARED]), ValueError, "one array stands at two places"),
        (lambda: gl.optim.Adam([np.ones(1)], lr=-1), ValueError, "Adam: expected 0 <= lr"),
        (lambda: gl.optim.Adam([np.ones(1)], betas=(0.9, 1.0)), ValueError, r"betas\[1\]"),
        (lambda: gl.optim.SGD([np.ones(1)], nesterov=True), ValueError, "nesterov needs momentum"),
        (lambda: gl.optim.SGD([np.ones(1)], lr=float("nan")), ValueError, "lr"),
    ],
)
def test_bad_settings(make_error, error, words):
    with pytest.raises(error, match=words):
        make_error()


@pytest.mark.parametrize(
    ("grads", "error", "words"),
    [
        ([np.ones(2), np.ones(2)], ValueError, r"Adam.step: expected float64\[3\] at .*1.*got float64\[2\]"),
        ([np.ones(2), np.ones(3, np.float32)], ValueError, "got float32"),
        ([np.ones(2)], ValueError, "structure"),
        ([np.ones(2), [1.0, 2.0, 3.0]], ValueError, "structure"),
        ([np.ones(2), "x"], TypeError, "numpy array"),
    ],
)
def test_bad_gradients_change_nothing(grads, error, words):
    params = [np.ones(2), np.ones(3)]
    opt = gl.optim.Adam(params)
    with pytest.raises(error, match=words):
        opt.step(grads)
    assert opt.steps == 0
    assert all((p == 1).all() for p in params)


@pytest.mark.parametrize("make", [gl.optim.SGD, gl.optim.Adam, gl.optim.AdamW])
def test_float16_parameters_keep_a_state_of_float32(make):
    gradients = [np.array([0.0, 1e-3, -2.0]), np.array([1e-4, 3e-3, 1.0])]
    params = [[np.array([1.0, 2.0, 3.0], t)] for t in (np.float16, np.float64)]
    for p in params:
        opt = make(p, lr=1e-2)
        for g in gradients:
            opt.step([g.astype(p[0].dtype)])
    assert params[0][0].dtype == np.float16
    np.testing.assert_allclose(params[0][0], params[1][0], rtol=2e-3)
