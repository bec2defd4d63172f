"""Matrix products: matmul by BLAS, and dot, inner, outer, tensordot, kron written with it.

    y = a @ b        da = dy @ bᵀ        db = aᵀ @ dy        dy = da @ b + a @ db

The op takes arrays of two or more dimensions; handlers give vectors their missing axis.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..jacobian.blocks import Kronecker, SharedDense
from ..jacobian.factors import Outer, Products, by_sample, rows_by_sample
from ..op import Op, describe, normalize_axis, shape_of, unbroadcast
from ..precision import narrow, wide
from ..trace import HANDLERS, lose_trace
from .arithmetic import multiply
from .batching import Mixed
from .join import taking_lists
from .shape import expand_dims, reshape, squeeze, swapaxes, transpose


def _t(xp: Any, x: Any) -> Any:
    return xp.swapaxes(x, -1, -2)


def _check(a: Any, b: Any) -> None:
    x, y = shape_of(a), shape_of(b)
    if len(x) < 2 or len(y) < 2 or x[-1] != y[-2]:
        raise ValueError(f"matmul: expected (..., n, k) @ (..., k, m), got {describe(a)} @ {describe(b)}")
    if x[:-2] and y[:-2]:
        try:
            np.broadcast_shapes(x[:-2], y[:-2])
        except ValueError:
            raise ValueError(f"matmul: leading axes do not broadcast: {describe(a)} @ {describe(b)}") from None


def _forward(xp: Any, a: Any, b: Any) -> tuple:
    return multiplied(xp, a, b), (a, b)


def multiplied(xp: Any, a: Any, b: Any) -> Any:
    """a @ b, added up in float32 where a and b are float16 or bfloat16."""
    if a.dtype.itemsize != 2 and b.dtype.itemsize != 2:
        return product(xp, a, b)
    return narrow(product(xp, *factors(xp, a, b)), xp.result_type(a.dtype, b.dtype))


def product(xp: Any, a: Any, b: Any) -> Any:
    """a @ b; of many matrices a and one b a single product, since many small ones cost several times as much."""
    if a.ndim == 2 or b.ndim > 2 or not a.size:
        return xp.matmul(a, b)
    return xp.matmul(a.reshape((-1, a.shape[-1])), b).reshape((*a.shape[:-1], b.shape[-1]))


def factors(xp: Any, a: Any, b: Any) -> tuple[Any, Any]:
    """a and b as the product takes them: in float32, but for float16 on a GPU, whose BLAS adds that up in float32."""
    if a.dtype == b.dtype == np.float16 and getattr(xp, "module", xp) is not np:
        return a, b
    return wide(a), wide(b)


def _behind(xp: Any, d: Any, ndim: int) -> Any:
    """A stack [V, *x] with axes of size 1 behind V up to rank `ndim` + 1."""
    return d if d.ndim > ndim else d.reshape((d.shape[0], *(1,) * (ndim + 1 - d.ndim), *d.shape[1:]))


def _vjp(xp: Any, saved: tuple, dy: Any, need: tuple) -> tuple:
    a, b = saved
    da = db = None
    if need[0]:
        da = multiplied(xp, dy, _t(xp, b))
        da = unbroadcast(xp, da, a.shape)
    if need[1]:
        db = weight_cotangent(xp, a, dy) if b.ndim == 2 else unbroadcast(xp, multiplied(xp, _t(xp, a), dy), b.shape)
    return da, db


def weight_cotangent(xp: Any, a: Any, dy: Any) -> Any:
    """Σ over all leading axes of aᵀ @ dy: a (..., n, k), dy [V, ..., n, m] -> [V, k, m]."""
    v, k, m = dy.shape[0], a.shape[-1], dy.shape[-1]
    if not dy.size or not a.size:
        return xp.zeros((v, k, m), dy.dtype)
    rows = a.reshape((-1, k))
    if v == 1:  # one product of two matrices
        return multiplied(xp, rows.T, dy.reshape((-1, m))).reshape((1, k, m))
    if m == 1:  # a matrix times a vector: again one product, of all cotangents
        return multiplied(xp, dy.reshape((v, -1)), rows).reshape((v, k, 1))
    return multiplied(xp, rows.T, dy.reshape((v, -1, m)))


def _vjp_each(xp: Any, saved: tuple, dy: Any, need: tuple, axis: int) -> tuple:
    """Per-sample cotangents of what all samples share: of one matrix b db = Σ_r a_r dy_rᵀ over the rows of a sample; of
    several, or of a, the products aᵀ dy and dy bᵀ."""
    a, b = saved
    if need[0]:
        return Products(by_sample(dy, axis, 1), _t(xp, by_sample(b, axis, 0))[None], a.shape), None
    if b.ndim == 2:
        return None, Outer(rows_by_sample(a, axis, 0), rows_by_sample(dy, axis, 1))
    return None, Products(_t(xp, by_sample(a, axis, 0))[None], by_sample(dy, axis, 1), b.shape)


def _each_takes(shapes: tuple, need: tuple, axis: int, static: dict) -> bool:
    """Where the batch is an axis ahead of those of the shared matrices, or of the rows that one b is applied to."""
    shared = len(shapes[0 if need[0] else 1])
    return (shared == 2 and not need[0]) or (axis <= -3 and -axis > shared)


def _jvp(xp: Any, saved: tuple, dx: tuple) -> Any:
    (a, b), ndim = saved, max(saved[0].ndim, saved[1].ndim)
    total = None
    if dx[0] is not None:
        da = _behind(xp, dx[0], ndim)
        total = multiplied(xp, da, b)
    if dx[1] is not None:
        part = multiplied(xp, a, _behind(xp, dx[1], ndim))
        total = part if total is None else total + part
    return total


def _batch(tags: tuple, shapes: tuple, static: dict) -> Any:
    a, b = tags
    if (a and a.axis == -1) or (b and b.axis == -2):
        return Mixed("matmul", "sums over the batch axis")
    if a and b and a != b:
        return Mixed("matmul", "pairs the samples of its two arguments")
    if a and b and a.axis >= -2:
        return Mixed("matmul", "pairs the samples of its two arguments")
    return a or b


def _block(xp: Any, saved: tuple, i: int) -> Any:
    a, b = saved
    if b.ndim != 2:
        return None
    return SharedDense(b, a.shape[:-1]) if i == 0 else Kronecker(a, b.shape[1])


_matmul = Op(
    "matmul",
    check=_check,
    forward=_forward,
    vjp=_vjp,
    jvp=_jvp,
    vjp_each=_vjp_each,
    each_takes=_each_takes,
    block=_block,
    batch=_batch,
    reads=((1,), (0,)),
)


def matmul(a: Any, b: Any) -> Any:
    na, nb = len(shape_of(a)), len(shape_of(b))
    if not na or not nb:
        raise ValueError(f"matmul: expected arrays of at least one dimension, got {describe(a)} @ {describe(b)}")
    a = a if na > 1 else expand_dims(a, 0)
    b = b if nb > 1 else expand_dims(b, 1)
    if na == 2 and nb > 2:  # (bᵀ aᵀ)ᵀ: one matrix for all samples has structure on the right
        _check(a, b)
        return swapaxes(_matmul(swapaxes(b, -1, -2), swapaxes(a, -1, -2)), -1, -2)
    y = _matmul(a, b)
    drop = tuple(axis for axis, n in ((-2, na), (-1, nb)) if n == 1)
    return squeeze(y, drop) if drop else y


def dot(a: Any, b: Any, out: Any = None) -> Any:
    if out is not None:
        raise lose_trace("dot: out=", "use the result instead")
    na, nb = len(shape_of(a)), len(shape_of(b))
    if not na or not nb:
        return multiply(a, b)
    return matmul(a, b) if nb <= 2 else tensordot(a, b, ((na - 1,), (nb - 2,)))


def inner(a: Any, b: Any) -> Any:
    na, nb = len(shape_of(a)), len(shape_of(b))
    return multiply(a, b) if not na or not nb else tensordot(a, b, ((na - 1,), (nb - 1,)))


def outer(a: Any, b: Any, out: Any = None) -> Any:
    if out is not None:
        raise lose_trace("outer: out=", "use the result instead")
    return multiply(reshape(a, (-1, 1)), reshape(b, (1, -1)))


def vdot(a: Any, b: Any) -> Any:
    return matmul(reshape(a, (-1,)), reshape(b, (-1,)))


def tensordot(a: Any, b: Any, axes: Any = 2) -> Any:
    na, nb = len(shape_of(a)), len(shape_of(b))
    if isinstance(axes, int):
        left, right = list(range(na - axes, na)), list(range(axes))
    else:
        pair = [x if isinstance(x, (tuple, list)) else (x,) for x in axes]
        left = [normalize_axis("tensordot", x, na) for x in pair[0]]
        right = [normalize_axis("tensordot", x, nb) for x in pair[1]]
    free_a, free_b = [i for i in range(na) if i not in left], [i for i in range(nb) if i not in right]
    contracted = int(np.prod([a.shape[i] for i in left]))
    if [a.shape[i] for i in left] != [b.shape[i] for i in right]:
        raise ValueError(f"tensordot: axes {axes} do not match in {describe(a)} and {describe(b)}")
    shape = (*[a.shape[i] for i in free_a], *[b.shape[i] for i in free_b])
    rows = int(np.prod([a.shape[i] for i in free_a]))
    x = reshape(transpose(a, free_a + left), (rows, contracted))
    w = reshape(transpose(b, right + free_b), (contracted, int(np.prod([b.shape[i] for i in free_b]))))
    return reshape(_matmul(x, w), shape)


def kron(a: Any, b: Any) -> Any:
    ndim = max(len(shape_of(a)), len(shape_of(b)))
    sa, sb = ((1,) * (ndim - len(shape_of(x))) + shape_of(x) for x in (a, b))
    left = reshape(a, tuple(n for s in sa for n in (s, 1)))
    right = reshape(b, tuple(n for s in sb for n in (1, s)))
    return reshape(multiply(left, right), tuple(m * n for m, n in zip(sa, sb, strict=True)))


HANDLERS.update(
    {
        np.matmul: matmul,
        np.dot: taking_lists(dot),
        np.inner: taking_lists(inner),
        np.outer: taking_lists(outer),
        np.vdot: taking_lists(vdot),
        np.tensordot: taking_lists(tensordot, 2),
        np.kron: taking_lists(kron),
    }
)
