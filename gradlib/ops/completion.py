"""Completing orthonormal columns to an orthogonal matrix, for qr(mode="complete") and svd(full_matrices=True).

The columns that complete q are determined up to a rotation among themselves. NumPy's choice is given as `rest`, and
dq moves it without rotation:

    d rest = -q dqᵀ rest        dq = -rest drestᵀ q
"""

from __future__ import annotations

from typing import Any

from ..op import Op
from ..trace import Namespace
from .join import concatenate
from .matrices import matrices_batch, mt


def _complement_forward(xp: Any, q: Any, rest: Any) -> tuple:
    y = _complement(q, rest) if type(xp) is Namespace else xp.asarray(rest)
    return y, (q, y)


def _complement_vjp(xp: Any, saved: tuple, dy: Any, need: tuple) -> tuple:
    q, rest = saved
    return -xp.matmul(rest, xp.matmul(mt(xp, dy), q)), None


def _complement_jvp(xp: Any, saved: tuple, dx: tuple) -> Any:
    q, rest = saved
    return -xp.matmul(q, xp.matmul(mt(xp, dx[0]), rest))


_complement = Op(
    "complement",
    forward=_complement_forward,
    vjp=_complement_vjp,
    jvp=_complement_jvp,
    batch=matrices_batch("complement", 2),
    registered=False,  # its value is given: differences do not see how it moves
)


def _rest_forward(xp: Any, a: Any, *, of: str) -> tuple:
    m, n = a.shape[-2:]
    if of == "qr":
        return xp.linalg.qr(a, mode="complete")[0][..., n:], ()
    u, _, vt = xp.linalg.svd(a, full_matrices=True)
    return (u[..., n:] if m > n else mt(xp, vt)[..., m:]), ()


_rest = Op("rest_of_basis", forward=_rest_forward, batch=matrices_batch("svd", 2))


def completed(q: Any, a: Any, of: str) -> Any:
    """q (..., M, K), completed to (..., M, M) by the last columns of the full decomposition of a."""
    return concatenate([q, _complement(q, _rest(a, of=of))], -1)
