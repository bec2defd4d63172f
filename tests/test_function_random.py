"""Modes and budgets agree on random graphs, and on residual networks, whose graphs are no chains."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from rulecheck import close, randn
from test_batched_random import MIXTURES, PROGRAMS, SHAPES, mixture, run_program

import gradlib as gl

X, V = randn(5, 6), randn(6, 4)
BUDGETS = [{}, {"chunk_size": 1}, {"chunk_size": 3}, {"max_bytes": "auto"}, {"max_bytes": 1}]


def under(budget, transform, f, args, **settings):
    """The Jacobian under a budget; one of a byte stands for the least that is enough."""
    if budget == {"max_bytes": 1}:
        try:
            return transform(f, **settings, **budget)(*args)
        except ValueError as error:
            if "too small" not in str(error):
                raise
            budget = {"max_bytes": int(str(error).split("needs ")[1].split(" bytes")[0])}
    return transform(f, **settings, **budget)(*args)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(PROGRAMS, SHAPES, st.sampled_from(BUDGETS))
def test_modes_and_budgets_agree_on_random_graphs(steps, shape, budget):
    x = randn(*shape)

    def f(x):
        return run_program(steps, x)

    whole = gl.jacobian(f)(x)
    for mode in ("auto", "mixed", "rev", "fwd"):
        close(under(budget, gl.jacobian, f, (x,), mode=mode), whole, 1e-10)
        try:
            got = gl.batch_jacobian(f, mode=mode)(x)
        except (ValueError, NotImplementedError):
            continue
        again = gl.batch_jacobian(f, mode=mode, max_bytes=20_000)
        close(under(budget, gl.batch_jacobian, f, (x,), mode=mode), got, 1e-10)
        close(again.into(np.full_like(got, np.nan), x), got, 1e-10)
        close(np.concatenate([piece for _, piece in again.chunks(x)]), got, 1e-10)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(MIXTURES, SHAPES, st.sampled_from(BUDGETS))
def test_budgets_agree_on_random_graphs_with_parameters(steps, shape, budget):
    f = mixture(steps)
    w, x = randn(4), randn(*shape)
    try:
        want = gl.batch_jacobian(f, in_axes=(None, 0))(w, x)
    except (ValueError, NotImplementedError):
        return
    close(under(budget, gl.batch_jacobian, f, (w, x), in_axes=(None, 0)), want, 1e-10)
    pieces = gl.batch_jacobian(f, in_axes=(None, 0), max_bytes=200_000).chunks(w, x)
    close(np.concatenate([piece for _, piece in pieces]), want, 1e-10)


def test_residual_networks_are_cut_where_every_path_passes():
    ws = [randn(6, 6) / 3 for _ in range(3)]

    def network(x):
        for w in ws:
            x = x + np.tanh(x @ w)
        return x @ V

    plan = gl.batch_jacobian(network).plan(X)
    assert plan.blocks == ("rules 6 -> 6",) * 3 + ("shared matrix 6 -> 4",)
    whole = gl.jacobian(network)(X)
    want = np.stack([whole[b, :, b] for b in range(5)])
    for mode in ("auto", "mixed", "rev", "fwd"):
        for budget in BUDGETS:
            close(under(budget, gl.batch_jacobian, network, (X,), mode=mode), want, 1e-12)
