"""SciPy's special functions: values by SciPy, derivatives by mpmath's arithmetic and by differences."""

import mpmath
import numpy as np
import pytest
import scipy.special as special
from functioncheck import check
from rulecheck import Case, RuleCheck, close, uniform

import gradlib as gl
from gradlib.op import REGISTRY

UNARY = ["erfc", "erfcx", "erfinv", "erfcinv", "ndtr", "log_ndtr", "ndtri", "logit", "log_expit", "exp10", "gammaln"]
UNARY += ["loggamma", "digamma", "gamma", "rgamma", "entr", "i0", "i1", "i0e", "i1e", "j0", "j1", "y0", "y1"]
UNARY += ["erfi", "dawsn", "exp1", "expi", "k0", "k1"]
BINARY = ["beta", "betaln", "xlogy", "xlog1py", "rel_entr", "kl_div"]
SECOND = {"jv": 2, "yn": 1, "yv": 1.5, "iv": 0.5, "ive": 2, "kv": 1.5}
SECOND |= {"gammainc": 1.5, "gammaincc": 2.5, "_zeta": 2.5}
P, Q = uniform(2, 3, low=0.2, high=0.8), uniform(3, low=0.3, high=0.7, seed=1)


def op(name):
    return REGISTRY[f"special_{name.strip('_')}"]


CASES = [Case(op(name), (x,)) for name in UNARY for x in (P, np.zeros((0, 2)) + 0.5)]
CASES += [Case(op(name), (P, Q)) for name in BINARY]
CASES += [Case(op(name), (order, P), order=2) for name, order in SECOND.items()]
CASES += [Case(op(name), (1.5, 2.5, P), order=2) for name in ("betainc", "betaincc")]
ERRORS = [
    (
        lambda: gl.grad(lambda x: special.betainc(2.0, x, 0.5))(1.0),
        NotImplementedError,
        "betainc: … its second",
    ),
    (lambda: gl.grad(lambda x: special.gammainc(x, 2.0))(1.0), NotImplementedError, "gammainc: the derivative … first"),
    (lambda: gl.grad(lambda x: special.jv(x, x))(1.0), NotImplementedError, "jv: the derivative"),
    (lambda: gl.grad(lambda x: special.ellipk(x))(0.5), NotImplementedError, "gradlib does not differentiate ellipk"),
    (lambda: gl.grad(lambda x: special.logsumexp(x))(P), TypeError, "would lose the derivative … gl.logsumexp"),
]


class TestRules(RuleCheck):
    cases = CASES
    errors = ERRORS

    @pytest.mark.parametrize("dtype", ["float32"])  # SciPy's own float16 differs from function to function
    def test_dtype_is_kept(self, case, dtype):
        in_float32 = ("special_ndtri", "special_erfcinv", "special_yn")
        if case.op.name not in in_float32 and "inc" not in case.op.name:  # beside a Python number float64, as in SciPy
            RuleCheck.test_dtype_is_kept(self, case, dtype)


CALLS = {name: (getattr(special, name), P) for name in [*UNARY, "erf", "expit", "cbrt", "exp2", "expm1", "log1p"]}
CALLS |= {name: (getattr(special, name), P, Q) for name in BINARY}


def _of_second(name):
    f, order = getattr(special, name.strip("_")), SECOND[name]
    return lambda x: f(order, x)


CALLS |= {name: (_of_second(name), P) for name in SECOND}
CALLS |= {f.__name__: (lambda x, f=f: f(1.5, 2.5, x), P) for f in (special.betainc, special.betaincc)}
CALLS |= {
    "number and array": (lambda x: special.xlogy(x, 2.0) + special.gammainc(1.5, x) + special.xlogy(2.0, x), P),
    "np.i0": (np.i0, P),
    "logaddexp.reduce": (lambda x: np.logaddexp.reduce(x) + np.logaddexp.reduce(x, axis=1, keepdims=True), P),
    "polygamma": (lambda x: -2 * special.zeta(3, x), P),
}


@pytest.mark.parametrize("name", CALLS)
def test_scipy_conventions(name):
    check(*CALLS[name], float32=False)


MPMATH = {
    "erfc": mpmath.erfc, "erfinv": mpmath.erfinv, "gammaln": mpmath.loggamma, "digamma": mpmath.digamma,
    "gamma": mpmath.gamma, "i1": lambda x: mpmath.besseli(1, x), "j1": lambda x: mpmath.besselj(1, x),
    "y1": lambda x: mpmath.bessely(1, x), "expit": lambda x: 1 / (1 + mpmath.exp(-x)),
    "gammainc": lambda x: mpmath.gammainc(1.5, 0, x, regularized=True),
}  # fmt: skip


@pytest.mark.parametrize("name", MPMATH)
def test_three_derivatives_by_mpmath(name):
    f = getattr(special, name)
    g = (lambda x: f(1.5, x)) if name == "gammainc" else f
    for x in (0.3, 0.9):
        h, want = g, [float(d) for d in mpmath.taylor(MPMATH[name], x, 3)]
        for n in (1, 2, 3):
            h = gl.grad(h)
            close(float(h(x)) / [1, 1, 2, 6][n], want[n], 1e-9, f"derivative {n}")


def test_at_zero_and_far_away():
    assert gl.grad(special.i1)(0.0) == gl.grad(special.j1)(0.0) == 0.5
    assert gl.grad(gl.grad(special.i1))(0.0) == 0
    assert gl.grad(lambda y: special.xlogy(0.0, y))(0.0) == 0
    assert gl.grad(lambda x: special.xlogy(x, 2.0))(0.0) == np.log(2)
    close(gl.grad(special.log_ndtr)(-40.0), 40.02496877, 1e-6)
    close(gl.grad(special.erfcx)(30.0), -6.2638e-4, 1e-6)


def test_import_of_gradlib_needs_no_scipy():
    import subprocess
    import sys

    code = "import gradlib, sys; sys.exit(any(m.startswith('scipy') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
