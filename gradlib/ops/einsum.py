"""einsum: sums of products over letters.

    y[out] = Σ Π_i x_i[terms_i], over the letters that are not in `out`
    dx_i[terms_i] = Σ dy[out] Π_{j≠i} x_j[terms_j]

A sum over two arguments with no letter in both and in the result is one product of matrices, "btd,dhk->bthk" for
instance, and recorded as that: BLAS calculates it, and the Jacobian engine knows its structure.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from ..op import Op, describe, shape_of
from ..precision import narrow, wide
from ..trace import HANDLERS, Traced, lose_trace, module_of
from .batching import Mixed, Tag
from .index import getitem
from .join import as_array
from .matmul import matmul
from .reduce import sum_
from .shape import broadcast_to, reshape, transpose


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
    product = _as_product(terms, args, result) if len(args) == 2 else None
    return _einsum(*args, terms=tuple(terms), out=result) if product is None else product


def _as_product(terms: list[str], args: list[Any], out: str) -> Any:
    """x @ w, where some letters are in x and w alone and all others in one of them and in `out`; None elsewhere.

    Only the letters that are summed over, and those of w and `out`, become one axis: x keeps the axis of the batch.
    """
    (s, x), (t, w) = zip(terms, args, strict=True)
    if out and out[0] in t:
        (s, x), (t, w) = (t, w), (s, x)
    summed, rows, columns = [c for c in t if c in s], [c for c in out if c in s], [c for c in out if c in t]
    if not summed or not rows or not set(summed).isdisjoint(out):
        return None
    sizes = dict(zip(s + t, (*shape_of(x), *shape_of(w)), strict=True))
    lead, k, wide = ([sizes[c] for c in group] for group in (rows, summed, columns))
    left = _of_shape(_in_order(x, s, rows + summed), (*lead, prod(k)))
    right = _of_shape(_in_order(w, t, summed + columns), (prod(k), prod(wide)))
    return _in_order(_of_shape(matmul(left, right), (*lead, *wide)), rows + columns, list(out))


def _of_shape(x: Any, shape: tuple[int, ...]) -> Any:
    return x if shape_of(x) == shape else reshape(x, shape)


def _in_order(x: Any, term: str | list[str], letters: list[str]) -> Any:
    """x with its axes, named by `term`, in another order."""
    return x if list(term) == letters else transpose(x, [term.index(c) for c in letters])


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


HANDLERS[np.einsum] = einsum
