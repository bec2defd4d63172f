"""Elementwise ops of one argument: NumPy's functions and the activations. Each states f and df; all rules follow.

    y = f(x)      dx = dy * df(x, y)      dy = dx * df(x, y)      Jacobian: diagonal

`df` gets x and y and uses whichever is cheaper. Formulas: Abramowitz & Stegun, *Handbook of Mathematical Functions*,
ch. 4; GELU: Hendrycks & Gimpel 2016 (arXiv:1606.08415); ELU: Clevert et al. 2015 (arXiv:1511.07289);
SiLU: Elfwing et al. 2017 (arXiv:1702.03118).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..device import adopt
from ..op import Op, describe
from ..precision import in_working, is_floating
from ..trace import HANDLERS
from .pointwise import Partial, elementwise
from .special import special


def _numpy_unary(name: str, df: Partial, numpy_name: str | None = None) -> Op:
    """An op for a NumPy ufunc of one argument, and its handler."""
    numpy_name = numpy_name or name

    ufunc = getattr(np, numpy_name)

    def f(xp: Any, x: Any) -> Any:
        return ufunc(x) if xp is np else getattr(xp, numpy_name)(x)

    op = elementwise(name, f, df)
    HANDLERS[ufunc] = op
    return op


negative = _numpy_unary("negative", -1)
positive = _numpy_unary("positive", 1)
# |x| has derivative 0 at 0.
absolute = _numpy_unary("absolute", lambda xp, x, y: xp.sign(x))
fabs = _numpy_unary("fabs", lambda xp, x, y: xp.sign(x))
exp = _numpy_unary("exp", lambda xp, x, y: y)
exp2 = _numpy_unary("exp2", lambda xp, x, y: y * math.log(2))
expm1 = _numpy_unary("expm1", lambda xp, x, y: xp.exp(x))
log = _numpy_unary("log", lambda xp, x, y: 1 / x)
log2 = _numpy_unary("log2", lambda xp, x, y: (1 / math.log(2)) / x)
log10 = _numpy_unary("log10", lambda xp, x, y: (1 / math.log(10)) / x)
log1p = _numpy_unary("log1p", lambda xp, x, y: 1 / (1 + x))
sqrt = _numpy_unary("sqrt", lambda xp, x, y: 0.5 / y)
cbrt = _numpy_unary("cbrt", lambda xp, x, y: (1 / 3) / (y * y))
square = _numpy_unary("square", lambda xp, x, y: 2 * x)
reciprocal = _numpy_unary("reciprocal", lambda xp, x, y: -y * y)
sin = _numpy_unary("sin", lambda xp, x, y: xp.cos(x))
cos = _numpy_unary("cos", lambda xp, x, y: -xp.sin(x))
tan = _numpy_unary("tan", lambda xp, x, y: 1 + y * y)
arcsin = _numpy_unary("arcsin", lambda xp, x, y: 1 / xp.sqrt((1 - x) * (1 + x)))
arccos = _numpy_unary("arccos", lambda xp, x, y: -1 / xp.sqrt((1 - x) * (1 + x)))
arctan = _numpy_unary("arctan", lambda xp, x, y: 1 / (1 + x * x))
sinh = _numpy_unary("sinh", lambda xp, x, y: xp.cosh(x))
cosh = _numpy_unary("cosh", lambda xp, x, y: xp.sinh(x))
tanh = _numpy_unary("tanh", lambda xp, x, y: 1 - y * y)
arcsinh = _numpy_unary("arcsinh", lambda xp, x, y: 1 / xp.sqrt(x * x + 1))
arccosh = _numpy_unary("arccosh", lambda xp, x, y: 1 / xp.sqrt((x - 1) * (x + 1)))
arctanh = _numpy_unary("arctanh", lambda xp, x, y: 1 / ((1 - x) * (1 + x)))
deg2rad = _numpy_unary("deg2rad", lambda xp, x, y: math.pi / 180)
rad2deg = _numpy_unary("rad2deg", lambda xp, x, y: 180 / math.pi)
HANDLERS[np.radians], HANDLERS[np.degrees] = deg2rad, rad2deg


def _special(xp: Any, name: str, x: Any) -> Any:
    """SciPy's function `name` of x, in the dtype of x (SciPy widens float16)."""
    y = getattr(special(xp), name)(x)
    dtype = getattr(x, "dtype", y.dtype)
    return y if y.dtype == dtype else y.astype(dtype)


@in_working
def _sigmoid(xp: Any, x: Any) -> Any:
    return _special(xp, "expit", x)  # no overflow at either end, and all digits of the small values


def _softplus(xp: Any, x: Any) -> Any:
    return xp.logaddexp(x, 0)


_ZEROS = {np.dtype(kind): np.zeros(1 << 14, kind) for kind in ("float32", "float64")}


def rectified(xp: Any, x: Any, out: Any = None) -> Any:
    """max(x, 0). NumPy's maximum takes vectors of two arrays, but entry by entry of an array and a number: so a few
    thousand entries meet as many zeros, in half of the time."""
    if xp is np and type(x) is np.ndarray and 1 << 11 <= x.size <= 1 << 14 and x.flags.c_contiguous:
        zeros = _ZEROS.get(x.dtype)
        if zeros is not None:
            return np.maximum(x, zeros[: x.size].reshape(x.shape), out=out)
    return xp.maximum(x, 0) if out is None else xp.maximum(x, 0, out=out)


_relu = elementwise("relu", rectified, lambda xp, x, y: _as(xp, y > 0, y))
_sigmoid_op = elementwise("sigmoid", _sigmoid, lambda xp, x, y: y * (1 - y))
_softplus_op = elementwise("softplus", _softplus, lambda xp, x, y: sigmoid(x))
_silu = elementwise("silu", in_working(lambda xp, x: x * _sigmoid(xp, x)), lambda xp, x, y: _silu_df(xp, x))
_erf = elementwise(
    "erf", in_working(lambda xp, x: _special(xp, "erf", x)), lambda xp, x, y: (2 / math.sqrt(math.pi)) * xp.exp(-x * x)
)


def _as(xp: Any, mask: Any, like: Any) -> Any:
    """A bool mask as 0 and 1 in the dtype of `like`."""
    return mask.astype(like.dtype)


def _silu_df(xp: Any, x: Any) -> Any:
    s = sigmoid(x)
    return s * (1 + x * (1 - s))


@in_working
def _elu_f(xp: Any, x: Any, *, alpha: float) -> Any:
    return xp.where(x > 0, x, alpha * xp.expm1(xp.minimum(x, 0)))


def _elu_df(xp: Any, x: Any, y: Any, *, alpha: float) -> Any:
    return xp.where(x > 0, 1.0, alpha * xp.exp(xp.minimum(x, 0)))


@in_working
def _leaky_f(xp: Any, x: Any, *, negative_slope: float) -> Any:
    return xp.where(x > 0, x, negative_slope * x)


def _leaky_df(xp: Any, x: Any, y: Any, *, negative_slope: float) -> Any:
    m = _as(xp, x > 0, x)
    return m + negative_slope * (1 - m)


_TANH_SCALE = math.sqrt(2 / math.pi)


@in_working
def _gelu_f(xp: Any, x: Any, *, approximate: bool) -> Any:
    if approximate:
        return 0.5 * x * (1 + xp.tanh(_TANH_SCALE * (x + 0.044715 * x * x * x)))
    return 0.5 * x * (1 + _special(xp, "erf", x * math.sqrt(0.5)))


def _gelu_df(xp: Any, x: Any, y: Any, *, approximate: bool) -> Any:
    if approximate:
        t = xp.tanh(_TANH_SCALE * (x + 0.044715 * x * x * x))
        return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * (_TANH_SCALE * (1 + 3 * 0.044715 * x * x))
    density = xp.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))
    return 0.5 * (1 + erf(x * math.sqrt(0.5))) + x * density


_elu = elementwise("elu", _elu_f, _elu_df)
_leaky_relu = elementwise("leaky_relu", _leaky_f, _leaky_df)
_gelu = elementwise("gelu", _gelu_f, _gelu_df)


def _floating(name: str, x: Any) -> Any:
    """`x`, if it is a floating-point array or a number; TypeError otherwise."""
    if isinstance(x, (bool, int)):
        return float(x)
    x = adopt(x)
    if not isinstance(x, float) and (not hasattr(x, "dtype") or not is_floating(x.dtype)):
        raise TypeError(f"{name}: expected a floating-point array, got {describe(x)}")
    return x


def relu(x: Any) -> Any:
    """max(x, 0), elementwise; the derivative at 0 is 0. x: any shape, floating point.

    >>> import gradlib as gl, numpy as np
    >>> gl.relu(np.array([-1.0, 2.0]))
    array([0., 2.])
    """
    return _relu(_floating("relu", x))


def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x)), elementwise, without overflow. x: any shape, floating point.

    >>> import gradlib as gl
    >>> float(gl.sigmoid(0.0))
    0.5
    """
    return _sigmoid_op(_floating("sigmoid", x))


def tanh_(x: Any) -> Any:
    """Hyperbolic tangent, elementwise. x: any shape, floating point.

    >>> import gradlib as gl
    >>> float(gl.tanh(0.0))
    0.0
    """
    return tanh(_floating("tanh", x))


def silu(x: Any) -> Any:
    """x · sigmoid(x), elementwise (also called swish). x: any shape, floating point.

    >>> import gradlib as gl
    >>> float(gl.silu(0.0))
    0.0
    """
    return _silu(_floating("silu", x))


def softplus(x: Any) -> Any:
    """log(1 + exp(x)), elementwise, without overflow. x: any shape, floating point.

    >>> import gradlib as gl
    >>> float(gl.softplus(1e4))
    10000.0
    """
    return _softplus_op(_floating("softplus", x))


def erf(x: Any) -> Any:
    """The error function 2/√π ∫₀ˣ exp(-t²) dt, elementwise. x: any shape, floating point.

    >>> import gradlib as gl
    >>> float(gl.erf(0.0))
    0.0
    """
    return _erf(_floating("erf", x))


def elu(x: Any, alpha: float = 1.0) -> Any:
    """x where x > 0, else alpha · (exp(x) - 1), elementwise. x: any shape, floating point.

    >>> import gradlib as gl
    >>> float(gl.elu(2.0))
    2.0
    """
    return _elu(_floating("elu", x), alpha=float(alpha))


def leaky_relu(x: Any, negative_slope: float = 0.01) -> Any:
    """x where x > 0, else negative_slope · x, elementwise. x: any shape, floating point.

    >>> import gradlib as gl
    >>> float(gl.leaky_relu(-2.0, 0.5))
    -1.0
    """
    return _leaky_relu(_floating("leaky_relu", x), negative_slope=float(negative_slope))


def gelu(x: Any, approximate: bool = False) -> Any:
    """x · Φ(x) with the normal distribution function Φ, elementwise; `approximate` takes the tanh formula.

    x: any shape, floating point.

    >>> import gradlib as gl
    >>> round(float(gl.gelu(1.0)), 6)
    0.841345
    """
    return _gelu(_floating("gelu", x), approximate=bool(approximate))
