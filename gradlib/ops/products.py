"""Matrix powers and chains, products under NumPy 2's names, what np.linalg shares with np, and `ufunc.outer`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..op import describe, normalize_axis, shape_of
from ..trace import HANDLERS, module_of
from . import arithmetic, numeric
from .arithmetic import multiply
from .linalg import _inv
from .matmul import matmul, outer, tensordot
from .matrices import check_matrix
from .picking import diagonal, trace
from .reduce import sum_
from .shape import expand_dims, matrix_transpose, moveaxis, reshape, squeeze


def vecdot(x1: Any, x2: Any, /, *, axis: int = -1) -> Any:
    """Σ x1 x2 along an axis of both."""
    a, b = (moveaxis(x, axis, -1) if len(shape_of(x)) > 1 else x for x in (x1, x2))
    for x in (a, b):
        normalize_axis("vecdot", -1, len(shape_of(x)))
    if shape_of(a)[-1] != shape_of(b)[-1]:
        raise ValueError(f"vecdot: expected vectors of one length, got {describe(x1)} and {describe(x2)}")
    return sum_(multiply(a, b), -1)


def matvec(x1: Any, x2: Any, /) -> Any:
    """Matrices (..., M, N) times vectors (..., N)."""
    return squeeze(matmul(x1, expand_dims(x2, -1)), -1)


def vecmat(x1: Any, x2: Any, /) -> Any:
    """Vectors (..., M) times matrices (..., M, N)."""
    return squeeze(matmul(expand_dims(x1, -2), x2), -2)


def matrix_power(a: Any, n: int) -> Any:
    """a @ a @ … n times by repeated squaring; the inverse's power for n < 0."""
    check_matrix("matrix_power", a, square=True)
    if not hasattr(n, "__index__"):
        raise TypeError(f"matrix_power: expected an int as exponent, got {type(n).__name__}")
    if n == 0:
        xp = module_of(a)
        return xp.zeros(shape_of(a), a.dtype) + xp.eye(shape_of(a)[-1], dtype=a.dtype)
    result, square, left = None, _inv(a) if n < 0 else a, abs(n.__index__())
    while left:
        if left & 1:
            result = square if result is None else matmul(result, square)
        left >>= 1
        square = matmul(square, square) if left else square
    return result


def multi_dot(arrays: Any, *, out: Any = None) -> Any:
    """The product of a chain of matrices (vectors at the ends), bracketed at the least cost.

    Source: Cormen, Leiserson, Rivest & Stein, *Introduction to Algorithms*, "Matrix-chain multiplication".
    """
    chain = list(arrays)
    if out is not None or len(chain) < 2:
        raise ValueError("multi_dot: expected at least two arrays, and no out=")
    first, last = len(shape_of(chain[0])), len(shape_of(chain[-1]))
    chain[0] = expand_dims(chain[0], 0) if first == 1 else chain[0]
    chain[-1] = expand_dims(chain[-1], 1) if last == 1 else chain[-1]
    for x in chain:
        if len(shape_of(x)) != 2:
            raise np.linalg.LinAlgError(
                f"multi_dot: expected matrices, and vectors at the ends only, got {describe(x)}"
            )
    y = _multiply_chain(chain, _cuts([*[shape_of(x)[0] for x in chain], shape_of(chain[-1])[1]]), 0, len(chain) - 1)
    drop = tuple(i for i, n in enumerate((first, last)) if n == 1)
    return squeeze(y, drop) if drop else y


def _cuts(sizes: list[int]) -> dict[tuple[int, int], int]:
    """For each part (i, j) of a chain, matrix n of which is sizes[n] × sizes[n+1], where to cut it."""
    n = len(sizes) - 1
    cost, cut = {(i, i): 0 for i in range(n)}, {}
    for length in range(1, n):
        for i in range(n - length):
            j = i + length
            prices = {k: cost[i, k] + cost[k + 1, j] + sizes[i] * sizes[k + 1] * sizes[j + 1] for k in range(i, j)}
            cut[i, j] = min(prices, key=prices.__getitem__)
            cost[i, j] = prices[cut[i, j]]
    return cut


def _multiply_chain(chain: list[Any], cut: dict, i: int, j: int) -> Any:
    if i == j:
        return chain[i]
    k = cut[i, j]
    return matmul(_multiply_chain(chain, cut, i, k), _multiply_chain(chain, cut, k + 1, j))


def _matrices(name: str, f: Callable[..., Any]) -> Callable[..., Any]:
    """np.linalg's form of a function on the last two axes."""

    def call(x: Any, /, *, offset: int = 0) -> Any:
        if len(shape_of(x)) < 2:
            raise ValueError(f"{name}: expected matrices (..., M, N), got {describe(x)}")
        return f(x, offset, -2, -1)

    return call


def _linalg_outer(x1: Any, x2: Any, /) -> Any:
    if len(shape_of(x1)) != 1 or len(shape_of(x2)) != 1:
        raise ValueError(f"outer: expected two vectors, got {describe(x1)} and {describe(x2)}")
    return outer(x1, x2)


def _outer_of(f: Callable[..., Any]) -> Callable[..., Any]:
    """f of every entry of a with every entry of b."""
    return lambda a, b: f(reshape(a, (*shape_of(a), *(1,) * len(shape_of(b)))), b)


_BINARY: dict[np.ufunc, Callable[..., Any]] = {
    np.add: arithmetic.add,
    np.subtract: arithmetic.subtract,
    np.multiply: arithmetic.multiply,
    np.divide: arithmetic.divide,
    np.power: arithmetic.power,
    np.maximum: arithmetic.maximum,
    np.minimum: arithmetic.minimum,
    np.logaddexp: arithmetic.logaddexp,
    np.hypot: arithmetic.hypot,
    np.arctan2: arithmetic.arctan2,
    np.remainder: numeric.mod,
}
HANDLERS.update({(ufunc, "outer"): _outer_of(f) for ufunc, f in _BINARY.items()})
HANDLERS.update(
    {
        np.vecdot: vecdot,
        np.linalg.vecdot: vecdot,
        np.linalg.matrix_power: matrix_power,
        np.linalg.multi_dot: multi_dot,
        np.linalg.matmul: lambda x1, x2, /: matmul(x1, x2),
        np.linalg.outer: _linalg_outer,
        np.linalg.tensordot: lambda x1, x2, /, *, axes=2: tensordot(x1, x2, axes),
        np.linalg.matrix_transpose: matrix_transpose,
        np.linalg.diagonal: _matrices("diagonal", diagonal),
        np.linalg.trace: _matrices("trace", trace),
    }
)
if hasattr(np, "matvec"):  # NumPy 2.2
    HANDLERS.update({np.matvec: matvec, np.vecmat: vecmat})
