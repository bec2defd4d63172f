"""The optimiser kernels against the formulas in float64, over several steps and many tensors at once."""

import numpy as np
import pytest
from kernel_device import DTYPES, SIMULATED, back, to

from gradlib.kernels import optim as kernels
from gradlib.kernels.launch import simulate

SHAPES = [(3,), (), (0,), (33, 5), (1,), (4096,), (4097,)]


def run(update, *args, **static):
    """Call an update where kernels run; -> its arguments after it."""
    args = to([list(a) if isinstance(a, list) else a for a in args])
    if SIMULATED:
        with simulate():
            result = update(*args, **static)
    else:
        result = update(*args, **static)
    return result, back(args)


def tensors(seed, dtype, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.normal(size=s), dtype) for s in shapes]


def exact(arrays):
    return [a.astype(float) for a in arrays]


def check(got, expected, dtype):
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == dtype and a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=100 * np.finfo(dtype).eps, atol=20 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd(momentum, nesterov, dtype):
    p, lr = tensors(0, dtype), np.array(0.1)
    v = [np.zeros_like(a) for a in p] if momentum else []
    p64, v64 = exact(p), [np.zeros(a.shape) for a in p]
    for step in range(2):
        g = tensors(step + 1, dtype)
        _, (p, _, v, _) = run(kernels.sgd, p, g, v, lr, momentum=momentum, nesterov=nesterov, weight_decay=0.01)
        for i, d in enumerate(exact(g)):
            d = d + 0.01 * p64[i]
            v64[i] = momentum * v64[i] + d
            p64[i] = p64[i] - 0.1 * (d + momentum * v64[i] if nesterov else v64[i])
    check(p, p64, dtype)
    if momentum:
        check(v, v64, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("decoupled", [False, True])
def test_adam(decoupled, dtype, schedule):
    shapes, settings = [*SHAPES[:5], (4099,)], {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1}
    p, lr, step = tensors(0, dtype, shapes), np.array(0.01), np.array(0)
    m, v = [np.zeros_like(a) for a in p], [np.zeros_like(a) for a in p]
    p64, m64, v64 = exact(p), exact(m), exact(v)
    for t in (1, 2):
        g, step = tensors(t, dtype, shapes), step + np.int64(1)
        _, (p, _, m, v, *_) = run(kernels.adam, p, g, m, v, np.asarray(step), lr, decoupled=decoupled, **settings)
        for i, d in enumerate(exact(g)):
            d = d if decoupled else d + 0.1 * p64[i]
            m64[i], v64[i] = 0.9 * m64[i] + 0.1 * d, 0.999 * v64[i] + 0.001 * d**2
            p64[i] = p64[i] * (1 - 0.001 * decoupled)
            p64[i] -= 0.01 * (m64[i] / (1 - 0.9**t)) / (np.sqrt(v64[i] / (1 - 0.999**t)) + 1e-8)
    check(p, p64, dtype)
    check(m, m64, dtype)
    check(v, v64, dtype)


def test_late_steps_and_no_betas():
    p, zero = [np.ones(3)], [np.zeros(3)]
    settings = {"beta1": 0.0, "beta2": 0.0, "eps": 0.0, "weight_decay": 0.0, "decoupled": False}
    arrays = (p, [np.full(3, -2.0)], zero, [np.zeros(3)], np.array(10**6), np.array(0.5))
    _, (q, *_) = run(kernels.adam, *arrays, **settings)
    np.testing.assert_allclose(q[0], 1.5)


def test_tensors_of_two_dtypes_and_of_odd_addresses():
    base = np.zeros(65, "float32")
    p = [base[1:], np.zeros(7), base[:1].copy()]
    g = [np.ones(a.shape, a.dtype) for a in p]
    run_lists = (p, g, [], np.array(0.25))
    _, (q, *_) = run(kernels.sgd, *run_lists, momentum=0.0, nesterov=False, weight_decay=0.0)
    for a in q:
        np.testing.assert_array_equal(a, -0.25)


def test_gradients_are_not_changed():
    g = tensors(1, "float32", [(10,)])
    before = g[0].copy()
    run(
        kernels.sgd,
        tensors(0, "float32", [(10,)]),
        g,
        [],
        np.array(0.1),
        momentum=0.0,
        nesterov=False,
        weight_decay=0.5,
    )
    np.testing.assert_array_equal(g[0], before)


def test_other_dtypes_change_nothing():
    p = [np.ones(3, "float32"), np.ones(3, "longdouble")]
    result, (q, *_) = run(kernels.sgd, p, p, [], np.array(0.1), momentum=0.0, nesterov=False, weight_decay=0.0)
    assert result is NotImplemented and (q[0] == 1).all()
