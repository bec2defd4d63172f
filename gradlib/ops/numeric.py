"""Elementwise functions of NumPy beyond arithmetic: remainders, sinc, nan_to_num, real and imaginary parts of reals.

Conventions: `mod`, `fmod` and `nan_to_num` have the derivative of the piece they are on, at a jump too; what
`nan_to_num` replaced has derivative 0.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..op import Op, shape_of
from ..trace import HANDLERS, Traced, module_of, raw
from .arithmetic import add, multiply, power, subtract
from .elementwise import positive
from .index import getitem
from .join import as_array
from .nondiff import floor_divide
from .pointwise import elementwise

# a mod b = a - b floor(a / b), and fmod with trunc
mod = elementwise(
    "remainder",
    lambda xp, a, b: xp.remainder(a, b),
    1,
    lambda xp, a, b, y: -xp.floor(xp.divide(a, b)),
    module="numeric",
)
fmod = elementwise(
    "fmod", lambda xp, a, b: xp.fmod(a, b), 1, lambda xp, a, b, y: -xp.trunc(xp.divide(a, b)), module="numeric"
)
copysign = elementwise(
    "copysign",
    lambda xp, a, b: xp.copysign(a, b),
    lambda xp, a, b, y: xp.sign(a) * xp.copysign(1.0, b),
    lambda xp, a, b, y: xp.zeros(y.shape, y.dtype),
    module="numeric",
)


# log2(2^a + 2^b): partials 2^(a - y), 2^(b - y)
def _exp2_difference(xp: Any, a: Any, y: Any) -> Any:
    return xp.exp2(xp.where(xp.equal(a, -np.inf), -np.inf, a - xp.where(xp.equal(y, -np.inf), 0.0, y)))


logaddexp2 = elementwise(
    "logaddexp2",
    lambda xp, a, b: xp.logaddexp2(a, b),
    lambda xp, a, b, y: _exp2_difference(xp, a, y),
    lambda xp, a, b, y: _exp2_difference(xp, b, y),
    module="numeric",
)


# sinc: s(x) = sin(πx) / πx. Differentiating x s(x) = sin(πx) / π n times gives
#     x s⁽ⁿ⁾ = πⁿ⁻¹ sin(πx + nπ/2) - n s⁽ⁿ⁻¹⁾,
# which cancels near 0; there the series s⁽ⁿ⁾ = Σ_j (-1)ʲ π²ʲ x²ʲ⁻ⁿ / ((2j + 1) (2j - n)!) is taken.
def _sinc_f(xp: Any, x: Any, *, nth: int) -> Any:
    if not nth:
        return xp.sinc(x)
    near = xp.abs(x) < 0.5 + 0.2 * nth
    far_x = xp.where(near, 1, x)
    far = xp.sinc(far_x)
    for n in range(1, nth + 1):
        far = (math.pi ** (n - 1) * xp.sin(math.pi * far_x + n * math.pi / 2) - n * far) / far_x
    return xp.where(near, _sinc_series(xp.where(near, x, 0), nth), far)


def _sinc_series(x: Any, nth: int) -> Any:
    first, terms = (nth + 1) // 2, 16 + 2 * nth
    c = [(-1) ** j * math.pi ** (2 * j) / ((2 * j + 1) * math.factorial(2 * j - nth))
         for j in range(first, first + terms)]  # fmt: skip
    total = 0 * x + c[-1]
    for value in c[-2::-1]:
        total = total * (x * x) + value
    return total * x if nth % 2 else total


_sinc: Op = elementwise("sinc", _sinc_f, lambda xp, x, y, *, nth: _sinc(x, nth=nth + 1), module="numeric")

_nan_to_num = elementwise(
    "nan_to_num",
    lambda xp, x, **to: xp.nan_to_num(x, **to),
    lambda xp, x, y, **to: xp.isfinite(x).astype(y.dtype),
    module="numeric",
)


def nan_to_num(x: Any, copy: bool = True, nan: float = 0.0, posinf: Any = None, neginf: Any = None) -> Any:
    if not copy:
        raise TypeError("nan_to_num: copy=False would lose the derivative of a traced array; use the result instead")
    return _nan_to_num(x, nan=nan, posinf=posinf, neginf=neginf)


def float_power(a: Any, b: Any) -> Any:
    """a**b in at least float64."""
    wide = [x.astype(np.float64) if getattr(x, "dtype", np.float64) != np.float64 else x for x in (a, b)]
    return power(*wide)


def divmod_(a: Any, b: Any) -> tuple:
    """a // b and a mod b."""
    return floor_divide(a, b), mod(a, b)


def modf(x: Any) -> tuple:
    """The fraction and the whole part, both with the sign of x."""
    whole = HANDLERS[np.trunc](x)
    return subtract(x, whole), whole


def polyval(p: Any, x: Any) -> Any:
    """Σ_k p_k x^(n-1-k) by Horner's rule."""
    like = x if type(x) is Traced else p
    p, x = (as_array(v, like) if isinstance(v, (list, tuple)) else v for v in (p, x))
    y = multiply(x, 0)
    for k in range(shape_of(p)[0]):
        y = add(multiply(y, x), getitem(p, k))
    return y


def imag(val: Any) -> Any:
    """Zeros: traced arrays are real."""
    return module_of(raw(val)).zeros(shape_of(val), val.dtype)


HANDLERS.update(
    {
        np.remainder: mod,
        np.fmod: fmod,
        np.divmod: divmod_,
        np.modf: modf,
        np.polyval: polyval,
        np.copysign: copysign,
        np.logaddexp2: logaddexp2,
        np.sinc: lambda x: _sinc(x, nth=0),
        np.nan_to_num: nan_to_num,
        np.float_power: float_power,
        np.conjugate: positive,
        np.real: positive,
        np.imag: imag,
        np.real_if_close: lambda a, tol=100: positive(a),
    }
)
