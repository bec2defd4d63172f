"""SciPy's special functions: each states f and its partials, all rules follow.

They are ufuncs and reach us through their protocol: `scipy.special.erfc(x)` on a traced array, whatever the device.
SciPy is not imported for it: handlers are found by the ufunc's name. Formulas: NIST Digital Library of Mathematical
Functions, ch. 5 (gamma), 7 (error functions), 8 (incomplete gamma), 10 (Bessel), 25.11 (Hurwitz zeta).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..op import Op, describe
from ..precision import is_floating, is_narrow, wide
from ..trace import HANDLERS, Traced
from .elementwise import _erf, _sigmoid_op
from .pointwise import Partial, elementwise
from .softmax import logsumexp
from .special import special

_ROOT_PI = math.sqrt(math.pi)
_ROOT_2PI = math.sqrt(2 * math.pi)


def _op(name: str, *dfs: Partial, ufunc: str | None = None) -> Op:
    """An op for SciPy's function `name`, and its handler.

    The dtype is SciPy's (a Python number among several arguments makes it float64), but float16 and bfloat16 stay.
    """

    def f(xp: Any, *x: Any) -> Any:
        y = getattr(special(xp), name)(*map(wide, x))
        dtype = np.result_type(*[getattr(v, "dtype", v) for v in x])
        return y.astype(dtype) if y.dtype != dtype and is_narrow(dtype) else y

    op = elementwise(f"special_{name}", f, *dfs, module="special_functions")
    HANDLERS["scipy.special", ufunc or name] = op
    return op


def _or_limit(xp: Any, x: Any, limit: float, value: Any) -> Any:
    """value(x), and `limit` where x = 0."""
    zero = xp.equal(x, 0)
    return xp.where(zero, limit, value(xp.where(zero, 1, x)))


HANDLERS["scipy.special", "erf"] = _erf
HANDLERS["scipy.special", "expit"] = _sigmoid_op
for _name in ("cbrt", "exp2", "expm1", "log1p"):
    HANDLERS["scipy.special", _name] = HANDLERS[getattr(np, _name)]

# error functions and the normal distribution
_op("erfc", lambda xp, x, y: (-2 / _ROOT_PI) * xp.exp(-x * x))
_op("erfcx", lambda xp, x, y: 2 * x * y - 2 / _ROOT_PI)
_op("erfinv", lambda xp, x, y: (_ROOT_PI / 2) * xp.exp(y * y))
_op("erfcinv", lambda xp, x, y: (-_ROOT_PI / 2) * xp.exp(y * y))
_op("erfi", lambda xp, x, y: (2 / _ROOT_PI) * xp.exp(x * x))
_op("dawsn", lambda xp, x, y: 1 - 2 * x * y)
_op("ndtr", lambda xp, x, y: xp.exp(-0.5 * x * x) / _ROOT_2PI)
_op("log_ndtr", lambda xp, x, y: xp.exp(-0.5 * x * x - y) / _ROOT_2PI)
_op("ndtri", lambda xp, x, y: _ROOT_2PI * xp.exp(0.5 * y * y))

# logistic
_op("logit", lambda xp, x, y: 1 / (x * (1 - x)))
_op("log_expit", lambda xp, x, y: _sigmoid_op(-x))
_op("exp1", lambda xp, x, y: -xp.exp(-x) / x)
_op("expi", lambda xp, x, y: xp.exp(x) / x)
_op("exp10", lambda xp, x, y: math.log(10) * y)

# gamma: the derivatives of ψ are ψ⁽ⁿ⁾(x) = (-1)ⁿ⁺¹ n! ζ(n + 1, x), with Hurwitz' zeta
zeta: Op = _op("zeta", None, lambda xp, s, q, y: -s * zeta(s + 1, q), ufunc="_zeta")
digamma = _op("digamma", lambda xp, x, y: zeta(2.0, x), ufunc="psi")
gammaln = _op("gammaln", lambda xp, x, y: digamma(x))
_op("loggamma", lambda xp, x, y: digamma(x))
_op("gamma", lambda xp, x, y: y * digamma(x))
_op("rgamma", lambda xp, x, y: -y * digamma(x))
_op(
    "beta",
    lambda xp, a, b, y: y * (digamma(a) - digamma(a + b)),
    lambda xp, a, b, y: y * (digamma(b) - digamma(a + b)),
)
betaln: Op = _op(
    "betaln", lambda xp, a, b, y: digamma(a) - digamma(a + b), lambda xp, a, b, y: digamma(b) - digamma(a + b)
)


# entropies: x log y and its kin are 0 at x = 0 for every y
def _ratio(xp: Any, x: Any, y: Any) -> Any:
    zero = xp.equal(x, 0)
    return xp.where(zero, 0, x / xp.where(zero, 1, y))


xlogy = _op("xlogy", lambda xp, a, b, y: xp.log(b), lambda xp, a, b, y: _ratio(xp, a, b))
xlog1py: Op = _op("xlog1py", lambda xp, a, b, y: xp.log1p(b), lambda xp, a, b, y: _ratio(xp, a, 1 + b))
_op("entr", lambda xp, x, y: -1 - xp.log(x))
_op("rel_entr", lambda xp, a, b, y: xp.log(a / b) + 1, lambda xp, a, b, y: -a / b)
_op("kl_div", lambda xp, a, b, y: xp.log(a / b), lambda xp, a, b, y: 1 - a / b)


# Bessel functions
i0: Op = _op("i0", lambda xp, x, y: i1(x))
i1: Op = _op("i1", lambda xp, x, y: i0(x) - _or_limit(xp, x, 0.5, lambda s: i1(s) / s))
i0e: Op = _op("i0e", lambda xp, x, y: i1e(x) - xp.sign(x) * y)
i1e: Op = _op("i1e", lambda xp, x, y: i0e(x) - xp.sign(x) * y - _or_limit(xp, x, 0.5, lambda s: i1e(s) / s))
j0: Op = _op("j0", lambda xp, x, y: -j1(x))
j1: Op = _op("j1", lambda xp, x, y: j0(x) - _or_limit(xp, x, 0.5, lambda s: j1(s) / s))
y0: Op = _op("y0", lambda xp, x, y: -y1(x))
y1: Op = _op("y1", lambda xp, x, y: y0(x) - y / x)
k0: Op = _op("k0", lambda xp, x, y: -k1(x))
k1: Op = _op("k1", lambda xp, x, y: -k0(x) - y / x)
jv: Op = _op("jv", None, lambda xp, n, x, y: 0.5 * (jv(n - 1, x) - jv(n + 1, x)))
yn: Op = _op("yn", None, lambda xp, n, x, y: 0.5 * (yn(n - 1, x) - yn(n + 1, x)))
yv: Op = _op("yv", None, lambda xp, n, x, y: 0.5 * (yv(n - 1, x) - yv(n + 1, x)))
iv: Op = _op("iv", None, lambda xp, n, x, y: 0.5 * (iv(n - 1, x) + iv(n + 1, x)))
ive: Op = _op("ive", None, lambda xp, n, x, y: 0.5 * (ive(n - 1, x) + ive(n + 1, x)) - xp.sign(x) * y)
kv: Op = _op("kv", None, lambda xp, n, x, y: -0.5 * (kv(n - 1, x) + kv(n + 1, x)))
HANDLERS[np.i0] = i0


# incomplete gamma: ∂/∂x = ±xᵃ⁻¹ exp(-x) / Γ(a)
def _gamma_density(xp: Any, a: Any, x: Any) -> Any:
    log_gamma = math.lgamma(a) if isinstance(a, (int, float)) else gammaln(a)
    return xp.exp(xlogy(a - 1, x) - x - log_gamma)


_op("gammainc", None, lambda xp, a, x, y: _gamma_density(xp, a, x))
_op("gammaincc", None, lambda xp, a, x, y: -_gamma_density(xp, a, x))


# incomplete beta: ∂/∂x = ±xᵃ⁻¹ (1 - x)ᵇ⁻¹ / B(a, b)
def _beta_density(xp: Any, a: Any, b: Any, x: Any) -> Any:
    log_beta = betaln(a, b)
    return xp.exp(xlogy(a - 1, x) + xlog1py(b - 1, -x) - log_beta)


_op("betainc", None, None, lambda xp, a, b, x, y: _beta_density(xp, a, b, x))
_op("betaincc", None, None, lambda xp, a, b, x, y: -_beta_density(xp, a, b, x))


def _only_last(name: str, op: Any) -> Any:
    """No derivative by the other arguments is known in closed form: traced ones are refused, not taken for data."""

    def call(*args: Any) -> Any:
        for place, x in zip(("first", "second"), args[:-1], strict=False):
            if type(x) is Traced and is_floating(x.dtype):
                raise NotImplementedError(
                    f"{name}: the derivative with respect to its {place} argument ({describe(x)}) is not supported; "
                    "wrap it in gl.stop_gradient if it is a constant"
                )
        return op(*args)

    return call


for _name in ("_zeta", "jv", "yn", "yv", "iv", "ive", "kv", "gammainc", "gammaincc", "betainc", "betaincc"):
    HANDLERS["scipy.special", _name] = _only_last(_name.strip("_"), HANDLERS["scipy.special", _name])


def _logaddexp_reduce(array: Any, axis: int = 0, keepdims: bool = False) -> Any:
    return logsumexp(array, axis, keepdims)


HANDLERS[np.logaddexp, "reduce"] = _logaddexp_reduce
