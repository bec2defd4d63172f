"""Pointwise functions and their derivatives, as device functions shared by `elementwise` and `linear`.

Each entry: f(x, a) and df(x, y, a), with y = f(x) and one parameter a that most ignore. Formulas and sources are those
of `gradlib.ops.elementwise`; here they are written so that nothing overflows and every number has the kernel's dtype T.
They touch no memory: a number is in a register before and after, so access is the callers' affair.
"""

import math as host_math

from .intrinsics import device, divide, math, square_root

TWO_OVER_ROOT_PI = 2 / host_math.sqrt(host_math.pi)
ROOT_HALF = host_math.sqrt(0.5)
DENSITY_AT_0 = 1 / host_math.sqrt(2 * host_math.pi)
TANH_SCALE = host_math.sqrt(2 / host_math.pi)
TANH_CUBIC = 0.044715


def exp(T):
    return lambda x, a: math.exp(x), lambda x, y, a: y


def log(T):
    return lambda x, a: math.log(x), lambda x, y, a: divide(T(1), x)


def log1p(T):
    return lambda x, a: math.log1p(x), lambda x, y, a: divide(T(1), T(1) + x)


def expm1(T):
    return lambda x, a: math.expm1(x), lambda x, y, a: math.exp(x)


def sqrt(T):
    return lambda x, a: square_root(x), lambda x, y, a: divide(T(0.5), y)


def square(T):
    return lambda x, a: x * x, lambda x, y, a: T(2) * x


def reciprocal(T):
    return lambda x, a: divide(T(1), x), lambda x, y, a: -(y * y)


def sin(T):
    return lambda x, a: math.sin(x), lambda x, y, a: math.cos(x)


def cos(T):
    return lambda x, a: math.cos(x), lambda x, y, a: -math.sin(x)


def erf(T):
    return lambda x, a: math.erf(x), lambda x, y, a: T(TWO_OVER_ROOT_PI) * math.exp(-(x * x))


def negative(T):
    return lambda x, a: -x, lambda x, y, a: T(-1)


def absolute(T):
    return lambda x, a: math.fabs(x), lambda x, y, a: T(1) if x > T(0) else (T(-1) if x < T(0) else x)


def tanh(T):
    return lambda x, a: math.tanh(x), lambda x, y, a: T(1) - y * y


def sigmoid(T):
    return lambda x, a: divide(T(1), T(1) + math.exp(-x)), lambda x, y, a: y * (T(1) - y)


def relu(T):
    """max(x, 0); a NaN stays one."""
    return lambda x, a: T(0) if x <= T(0) else x, lambda x, y, a: T(1) if y > T(0) else T(0)


def leaky_relu(T):
    return lambda x, a: x if x > T(0) else a * x, lambda x, y, a: T(1) if x > T(0) else a


def elu(T):
    def df(x, y, a):
        slope = a * math.exp(x)
        return T(1) if x > T(0) else slope

    return lambda x, a: x if x > T(0) else a * math.expm1(x), df


def softplus(T):
    """log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|)); the derivative is sigmoid(x)."""

    def f(x, a):
        return (x if x > T(0) else T(0)) + math.log1p(math.exp(-math.fabs(x)))

    return f, lambda x, y, a: divide(T(1), T(1) + math.exp(-x))


def silu(T):
    """x s with s = sigmoid(x); the derivative is s (1 + x (1 - s))."""

    def df(x, y, a):
        s = divide(T(1), T(1) + math.exp(-x))
        return s * (T(1) + x * (T(1) - s))

    return lambda x, a: divide(x, T(1) + math.exp(-x)), df


def gelu(T):
    """x Phi(x), Phi the normal distribution function; the derivative is Phi(x) + x phi(x)."""

    def df(x, y, a):
        return T(0.5) * (T(1) + math.erf(x * T(ROOT_HALF))) + x * (T(DENSITY_AT_0) * math.exp(T(-0.5) * x * x))

    return lambda x, a: T(0.5) * x * (T(1) + math.erf(x * T(ROOT_HALF))), df


def gelu_tanh(T):
    """x/2 (1 + tanh u), u = sqrt(2/pi) (x + 0.044715 x^3)."""

    def f(x, a):
        return T(0.5) * x * (T(1) + math.tanh(T(TANH_SCALE) * (x + T(TANH_CUBIC) * x * x * x)))

    def df(x, y, a):
        t = math.tanh(T(TANH_SCALE) * (x + T(TANH_CUBIC) * x * x * x))
        du = T(TANH_SCALE) * (T(1) + T(3 * TANH_CUBIC) * x * x)
        return T(0.5) * (T(1) + t) + T(0.5) * x * (T(1) - t * t) * du

    return f, df


def identity(T):
    return lambda x, a: x, lambda x, y, a: T(1)


FORMULAS = {
    make.__name__: make
    for make in (
        *(exp, log, log1p, expm1, sqrt, square, reciprocal, sin, cos, erf, negative, absolute, tanh, sigmoid, relu),
        *(leaky_relu, elu, softplus, silu, gelu, gelu_tanh, identity),
    )
}


def formula(T, name):
    """-> device functions (f, df) of FORMULAS[name] for number type T."""
    f, df = FORMULAS[name](T)
    return device(f), device(df)


def without(dtype, name, *variant):
    """No float64 sin and cos: libdevice reduces huge arguments with a table in local memory; the array code serves."""
    return dtype == "float64" and name in ("sin", "cos")


def except_for(dtype, name, *variant):
    """The rule that sin and cos computed in float32 break: libdevice reduces huge arguments in float64."""
    return ("float64",) if name in ("sin", "cos") else ()
