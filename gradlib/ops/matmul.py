"""Matrix products: matmul by BLAS, einsum, and dot, inner, outer, tensordot, kron written with them.

    y = a @ b        da = dy @ bᵀ        db = aᵀ @ dy        dy = da @ b + a @ db

The op takes arrays of two or more dimensions; handlers give vectors their missing axis.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..jacobian.blocks import Kronecker, SharedDense
from ..jacobian.factors import Outer, rows_by_sample
from ..op import Op, describe, normalize_axis, shape_of, unbroadcast
from ..precision import narrow, wide
from ..trace import HANDLERS, Traced, lose_trace, module_of
from .arithmetic import multiply
from .batching import Mixed, Tag
from .index import getitem
from .join import as_array, taking_lists
from .reduce import sum_
from .shape import broadcast_to, expand_dims, reshape, squeeze, transpose


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
        return xp.matmul(a, b)
    return narrow(xp.matmul(*factors(xp, a, b)), xp.result_type(a.dtype, b.dtype))


def factors(xp: Any, a: Any, b: Any) -> tuple[Any, Any]:
    """a and b as the product takes them: in float32, but for float16 on a GPU, whose BLAS adds that up in float32."""
    if a.dtype == b.dtype == np.float16 and getattr(xp, "module", xp) is not np:
        return a, b
    return wide(a), wide(b)


def stacked_matmul(xp: Any, d: Any, b: Any) -> Any:
    """d [V, ..., n, k] @ b (k, m) as one product of two matrices."""
    if not d.size:
        return xp.zeros((*d.shape[:-1], b.shape[-1]), d.dtype)
    return multiplied(xp, d.reshape((-1, d.shape[-1])), b).reshape((*d.shape[:-1], b.shape[-1]))


def _behind(xp: Any, d: Any, ndim: int) -> Any:
    """A stack [V, *x] with axes of size 1 behind V up to rank `ndim` + 1."""
    return d if d.ndim > ndim else d.reshape((d.shape[0], *(1,) * (ndim + 1 - d.ndim), *d.shape[1:]))


def _vjp(xp: Any, saved: tuple, dy: Any, need: tuple) -> tuple:
    a, b = saved
    da = db = None
    if need[0]:
        da = stacked_matmul(xp, dy, _t(xp, b)) if b.ndim == 2 else multiplied(xp, dy, _t(xp, b))
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


def _vjp_each(xp: Any, saved: tuple, dy: Any, need: tuple, axis: int) -> tuple | None:
    """Per-sample cotangents of one matrix b for all samples: db = Σ_r a_r dy_rᵀ over the rows of a sample."""
    a, b = saved
    if not need[1] or b.ndim != 2:
        return None
    return None, Outer(rows_by_sample(a, axis, 0), rows_by_sample(dy, axis, 1))


def _jvp(xp: Any, saved: tuple, dx: tuple) -> Any:
    (a, b), ndim = saved, max(saved[0].ndim, saved[1].ndim)
    total = None
    if dx[0] is not None:
        da = _behind(xp, dx[0], ndim)
        total = stacked_matmul(xp, da, b) if b.ndim == 2 else multiplied(xp, da, b)
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


def _contracted(xp: Any, subscripts: str, *x: Any, optimize: bool) -> Any:
    """xp.einsum; of float16 and bfloat16 in float32."""
    if 2 not in [a.dtype.itemsize for a in x]:
        return xp.einsum(subscripts, *x, optimize=optimize)
    dtype = xp.result_type(*[a.dtype for a in x])
    return narrow(xp.einsum(subscripts, *map(wide, x), optimize=optimize), dtype)


# einsum: every argument has distinct letters, each of which has one size and occurs in the result or elsewhere.
def _einsum_forward(xp: Any, *x: Any, terms: tuple, out: str) -> tuple:
    return _contracted(xp, f"{','.join(terms)}->{out}", *x, optimize=len(x) > 1), x


def _stack_letter(terms: tuple) -> str:
    return next(c for c in "VWXYZABCDEFGHIJKLMNOPQRSTU" if c not in "".join(terms))


def _einsum_vjp(xp: Any, saved: tuple, dy: Any, need: tuple, *, terms: tuple, out: str) -> tuple:
    v = _stack_letter((*terms, out))
    grads: list[Any] = []
    for i, n in enumerate(need):
        if not n:
            grads.append(None)
            continue
        others = [t for j, t in enumerate(terms) if j != i]
        args = [x for j, x in enumerate(saved) if j != i]
        sub = f"{','.join([v + out, *others])}->{v}{terms[i]}"
        grads.append(_contracted(xp, sub, dy, *args, optimize=len(args) > 0))
    return tuple(grads)


def _einsum_jvp(xp: Any, saved: tuple, dx: tuple, *, terms: tuple, out: str) -> Any:
    v, total = _stack_letter((*terms, out)), None
    for i, d in enumerate(dx):
        if d is None:
            continue
        subs = ",".join(v + t if j == i else t for j, t in enumerate(terms))
        args = [d if j == i else x for j, x in enumerate(saved)]
        part = _contracted(xp, f"{subs}->{v}{out}", *args, optimize=len(args) > 1)
        total = part if total is None else total + part
    return total


def _einsum_batch(tags: tuple, shapes: tuple, static: dict) -> Any:
    letters = {t[tag.axis] for t, tag in zip(static["terms"], tags, strict=True) if tag}
    if not letters:
        return None
    if len(letters) > 1:
        return Mixed("einsum", "pairs the samples of its arguments")
    letter, out = letters.pop(), static["out"]
    if letter not in out:
        return Mixed("einsum", "sums over the batch axis")
    rows = {tag.rows for tag in tags if tag}
    return Tag(out.index(letter) - len(out), rows.pop()) if len(rows) == 1 else Mixed("einsum", "mixes row counts")


_einsum = Op("einsum", forward=_einsum_forward, vjp=_einsum_vjp, jvp=_einsum_jvp, batch=_einsum_batch)


def _expand_dots(terms: list[str], out: str | None, args: list[Any]) -> tuple[list[str], str]:
    """'...' as letters, aligned from the right, and the implicit result spelled out."""
    used = set("".join(terms) + (out or ""))
    spare = [c for c in "zyxwvutsrqponmlkjihgfedcbaZYXWVUTSRQPONMLKJIHGFEDCBA" if c not in used]
    extra = max(
        [len(shape_of(x)) - len(t.replace("...", "")) for t, x in zip(terms, args, strict=True) if "..." in t] + [0]
    )
    dots = "".join(spare[:extra])
    if out is None:
        joined = "".join(terms).replace(".", "")
        out = ("..." if extra else "") + "".join(sorted(c for c in set(joined) if joined.count(c) == 1))
    full = []
    for t, x in zip(terms, args, strict=True):
        n = len(shape_of(x)) - len(t.replace("...", ""))
        full.append(t.replace("...", dots[len(dots) - n :]) if "..." in t else t)
    return full, out.replace("...", dots)


def einsum(subscripts: Any, *operands: Any, out: Any = None, optimize: Any = False) -> Any:
    """np.einsum: any letters, '...', repeated and summed letters; or arrays and lists of axis numbers in turn."""
    if out is not None:
        raise lose_trace("einsum: out=", "use the result instead")
    if not isinstance(subscripts, str):
        subscripts, operands = _lettered((subscripts, *operands))
    like = next((x for x in operands if type(x) is Traced), None)
    operands = tuple(as_array(x, like) if isinstance(x, (list, tuple)) else x for x in operands)
    left, arrow, result = subscripts.replace(" ", "").partition("->")
    terms, args = left.split(","), list(operands)
    if len(terms) != len(args):
        raise ValueError(f"einsum: {len(terms)} terms in {subscripts!r} for {len(args)} arguments")
    terms, result = _expand_dots(terms, result if arrow else None, args)
    for i, (t, x) in enumerate(zip(terms, args, strict=True)):
        if len(t) != len(shape_of(x)):
            raise ValueError(f"einsum: term {t!r} of {subscripts!r} does not fit {describe(x)}")
        terms[i], args[i] = _distinct(t, x)
    args = _of_equal_sizes(subscripts, terms, args)
    for i in range(len(args)):
        elsewhere = set(result).union(*(terms[:i] + terms[i + 1 :]))
        alone = tuple(j for j, c in enumerate(terms[i]) if c not in elsewhere)
        if alone:
            args[i], terms[i] = sum_(args[i], alone), "".join(c for c in terms[i] if c in elsewhere)
    return _einsum(*args, terms=tuple(terms), out=result)


def _lettered(given: tuple) -> tuple[str, tuple]:
    """The string form of einsum(x, [0, 1], y, [1, 2], [0, 2])."""
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    terms = ["".join("..." if i is Ellipsis else letters[i] for i in axes) for axes in given[1::2]]
    out = "->" + "".join("..." if i is Ellipsis else letters[i] for i in given[-1]) if len(given) % 2 else ""
    return ",".join(terms) + out, given[: len(terms) * 2 : 2]


def _distinct(term: str, x: Any) -> tuple[str, Any]:
    """A repeated letter, as in 'ii', takes the diagonal."""
    for c in dict.fromkeys(term):
        while term.count(c) > 1:
            i = term.index(c)
            j = term.index(c, i + 1)
            rest = [n for n in range(len(term)) if n not in (i, j)]
            x = transpose(x, (i, j, *rest))
            steps = module_of(x).arange(x.shape[0])
            x, term = getitem(x, (steps, steps)), c + "".join(term[n] for n in rest)
    return term, x


def _of_equal_sizes(subscripts: str, terms: list[str], args: list[Any]) -> list[Any]:
    """The arguments, with an axis of size 1 repeated where its letter is longer in another."""
    sizes: dict[str, int] = {}
    for term, x in zip(terms, args, strict=True):
        for c, n in zip(term, shape_of(x), strict=True):
            if n != 1 and sizes.setdefault(c, n) != n:
                raise ValueError(f"einsum: letter {c!r} of {subscripts!r} has sizes {sizes[c]} and {n}")
    full = [tuple(sizes.get(c, 1) for c in term) for term in terms]
    return [x if shape_of(x) == s else broadcast_to(x, s) for x, s in zip(args, full, strict=True)]


HANDLERS.update(
    {
        np.matmul: matmul,
        np.dot: taking_lists(dot),
        np.inner: taking_lists(inner),
        np.outer: taking_lists(outer),
        np.vdot: taking_lists(vdot),
        np.tensordot: taking_lists(tensordot, 2),
        np.kron: taking_lists(kron),
        np.einsum: einsum,
    }
)
