"""Remainders, sinc, nan_to_num and other elementwise functions."""

import numpy as np
import pytest
from functioncheck import check
from rulecheck import Case, RuleCheck, close, randn, uniform

import gradlib as gl
from gradlib.op import REGISTRY

OPS = {n: REGISTRY[n] for n in ("remainder", "fmod", "copysign", "logaddexp2", "sinc", "nan_to_num")}
A, B = uniform(2, 3, low=1.1, high=1.9), uniform(3, low=0.55, high=0.9)
TO = {"nan": 0.0, "posinf": None, "neginf": None}
CASES = [Case(OPS[n], (A * s, B)) for n in ("remainder", "fmod") for s in (1, -1)]
CASES += [Case(OPS["remainder"], (A, 0.77)), Case(OPS["fmod"], (5.0, B)), Case(OPS["fmod"], (np.zeros((0, 3)), B))]
CASES += [Case(OPS["copysign"], (A, -B)), Case(OPS["logaddexp2"], (A, B)), Case(OPS["logaddexp2"], (A, 0.5))]
CASES += [Case(OPS["sinc"], (x,), nth=0) for x in (randn(2, 3), np.zeros(()), np.array([1e-9, 0.4, 0.5, 3.0, -40.0]))]
CASES += [Case(OPS["sinc"], (np.array([0.0, 0.69, 0.71, 1.3]),), nth=2)]
CASES += [Case(OPS["nan_to_num"], (randn(2, 3),), **TO)]
ERRORS = [
    (lambda: gl.grad(lambda x: np.nan_to_num(x, copy=False).sum())(A), TypeError, "nan_to_num: copy=False"),
    (lambda: gl.grad(lambda x: np.mod(x, np.ones(4)).sum())(A), ValueError, "remainder: shapes do not broadcast"),
    (lambda: gl.grad(lambda x: np.mod(x, 1j).sum())(A), TypeError, "remainder: expected … complex"),
    (lambda: gl.grad(lambda x: np.fmod(x, "a").sum())(A), TypeError, "fmod: expected arrays or numbers, got str"),
]


class TestRules(RuleCheck):
    cases = CASES
    errors = ERRORS

    def test_higher_orders(self, case):
        if case.op.name != "sinc" or np.size(case.args[0]) != 5:  # x near 0: differences of sinc's series are rounding
            RuleCheck.test_higher_orders(self, case)


X = randn(3, 4)
CALLS = {
    "mod": (lambda x: np.mod(x, 0.7) + x % x[0] + 3.3 % x, X),
    "fmod": (lambda x: np.fmod(x, x[0]) + np.fmod(x, 0.4), X),
    "copysign": (lambda x: np.copysign(x, x[::-1]), X),
    "logaddexp2": (lambda x: np.logaddexp2(x, x[::-1]), X),
    "sinc": (np.sinc, X),
    "nan_to_num": (lambda x: np.nan_to_num(x, nan=2.0), X),
    "float_power": (lambda x: np.float_power(np.abs(x), x[0]), X),
    "real": (lambda x: np.real(x) + np.imag(x) + np.conj(x) + x.real + x.imag + x.conj() + np.real_if_close(x), X),
    "divmod": (lambda x: (*np.divmod(x, 0.7), *divmod(x, x[0]), *divmod(3.3, x)), X),
    "modf": (np.modf, X),
    "polyval": (lambda x: np.polyval(x[0], x) + np.polyval([1.0, 2.0, 3.0], x) + np.polyval(x[1], [[1.0]] * 3), X),
    "dtype": (lambda x: np.add(x, 1, dtype=float) * np.exp(x, dtype=np.float64), X),
    "lists": (lambda x: x * [1, 2, 3, 4] + [[1], [2], [3]] - np.add([1, 2, 3, 4], x) + np.multiply(x, [2]), X),
}


@pytest.mark.parametrize("name", CALLS)
def test_numpy_conventions(name):
    check(*CALLS[name])


def test_sinc_at_zero_at_every_order():
    """The series of sin(πx)/(πx) gives the derivatives at 0: (-1)^k π^2k / (2k + 1)."""
    f = np.sinc
    for n in range(7):
        want = 0.0 if n % 2 else (-1) ** (n // 2) * np.pi**n / (n + 1)
        close(float(f(0.0)), want, 1e-12, f"order {n}")
        f = gl.grad(f)


def test_replaced_values_are_constant():
    x = np.array([np.nan, np.inf, -np.inf, 2.0])
    y, pullback = gl.vjp(lambda x: np.nan_to_num(x, nan=1.0, posinf=5.0), x)
    np.testing.assert_array_equal(y, np.nan_to_num(x, nan=1.0, posinf=5.0))
    assert pullback(np.ones(4))[0].tolist() == [0, 0, 0, 1]


def test_logaddexp2_of_infinities():
    assert gl.grad(lambda x: np.logaddexp2(x, -np.inf))(-np.inf) == 0
    assert gl.grad(lambda x: np.logaddexp2(x, 0.0))(1e4) == 1
