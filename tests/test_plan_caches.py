"""Plans and costs are kept by the signature of the graph: found again, bounded, shared by threads."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from rulecheck import close, randn
from test_function import P, V, W, X, chain, model, residual

import gradlib as gl
from gradlib.jacobian import known
from gradlib.jacobian.cost import apart_cost, whole_costs
from gradlib.jacobian.plan import PLANS, _cheapest
from gradlib.jacobian.stream import schedule


def test_plans_are_found_again_and_bounded():
    _cheapest.cache_clear()
    schedule.cache_clear()
    known._known.clear()
    for _ in range(3):
        gl.batch_jacobian(chain)(X)
    assert schedule.cache_info().misses == 1
    gl.batch_jacobian(lambda x: gl.softmax(np.tanh(x @ (2 * W)) @ V))(X + 1)  # other arrays of the same shapes
    assert schedule.cache_info().misses == 1
    for options in ({"mode": "fwd"}, {"chunk_size": 2}, {"max_bytes": 10_000}):
        gl.batch_jacobian(chain, **options)(X)
    gl.batch_jacobian(chain)(X.astype("f"))
    gl.batch_jacobian(chain)(X[:4])
    assert schedule.cache_info().misses == 6
    for size in range(1, 2 * PLANS):
        gl.batch_jacobian(np.tanh)(np.ones((size, 2)))
    assert schedule.cache_info().currsize == PLANS >= _cheapest.cache_info().currsize


def test_costs_of_sweeps_are_found_again():
    for cache, jacobian, args in (
        (whole_costs, gl.batch_jacobian(residual, max_bytes=50_000), (X,)),
        (whole_costs, gl.jacobian(residual), (X,)),
        (apart_cost, gl.batch_jacobian(model, in_axes=(None, 0)), (P, X)),
    ):
        jacobian.plan(*args)
        before = cache.cache_info()
        jacobian(*gl.tree.map(lambda a: a + 1, args))
        after = cache.cache_info()
        assert after.misses == before.misses and after.maxsize == PLANS
    for op in (np.sin, np.exp):  # another op is another graph
        before = whole_costs.cache_info().misses
        gl.jacobian(lambda x, op=op: np.outer(op(x), op(x)))(X[0])
        gl.jacobian(lambda x, op=op: np.outer(op(x), op(x)))(X[0])
        assert whole_costs.cache_info().misses == before + 1


def test_threads_share_the_plans():
    schedule.cache_clear()
    shapes = [(b, n) for b in (1, 2, 3) for n in range(2, 30)]
    ws = {n: randn(n, 5) for _, n in shapes}

    def check(shape):
        x, w = randn(*shape), ws[shape[1]]
        for options in ({}, {"max_bytes": 3000}):
            got = gl.batch_jacobian(lambda x: np.tanh(x @ w), **options)(x)
            close(got, np.einsum("bj,ij->bji", 1 - np.tanh(x @ w) ** 2, w), 1e-13)
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(check, shapes * 3))
    assert schedule.cache_info().currsize <= PLANS
