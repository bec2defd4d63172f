"""What a recorded op keeps of `saved`: the arrays that its rules read for the inputs that are differentiated.

Of the others it keeps the `Form`, shape and dtype, which is all that rules ask of them. So z lives on after ``z * z``,
but not after ``z + 1``, ``z * 2`` or ``np.sum(z)``, and after ``z @ w`` only where w is differentiated.
"""

from __future__ import annotations

import dis
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

#: (saved, slots of the inputs, forms by slot, form of the result) -> what is kept of `saved`.
Keeper = Callable[[tuple, Sequence[int], Sequence[Any], Any], tuple]

#: Of each input, the places of `saved` that its derivative is made of.
Reads = tuple[tuple[int, ...], ...]

_VARIADIC = 0x04  # of code flags: takes *args


class Form(NamedTuple):
    """Shape and dtype: what stands in `saved` for an array whose entries no rule reads."""

    shape: tuple[int, ...]
    dtype: Any

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return prod(self.shape)

    def astype(self, dtype: Any) -> Form:
        return Form(self.shape, dtype)


class _Forms(dict[tuple, Form]):
    """The one form of each (shape, dtype): looking it up takes a third of the time of making it."""

    def __missing__(self, key: tuple) -> Form:
        if len(self) >= 4096:
            self.clear()
        form = self[key] = Form(*key)
        return form


FORMS = _Forms()


def form_of(x: Any) -> Any:
    """The form of an array; numbers and 0-d arrays, which hold no memory to speak of, as they are."""
    return FORMS[x.shape, x.dtype] if getattr(x, "shape", ()) else x


def places_read(formula: Any, inputs: int) -> tuple[int, ...]:
    """The places of (*x, y) that a partial f(xp, *x, y, **static) of so many inputs reads, by its code."""
    if not callable(formula):  # a constant
        return ()
    every, code = tuple(range(inputs + 1)), getattr(formula, "__code__", None)
    if code is None or code.co_argcount != inputs + 2 or code.co_flags & _VARIADIC:
        return every
    read = {name for i in dis.get_instructions(code) for name in (i.argval if type(i.argval) is tuple else (i.argval,))}
    return tuple([k for k in every if code.co_varnames[k + 1] in read])


def keeper(reads: Reads, places: int) -> Keeper:
    """The function that keeps of so many places what is read for the inputs that are differentiated.

    The first places of `saved` are the inputs; the next one, if nothing reads it, is the result. It is written out as
    one expression, since every recorded op calls it:

        saved[0] if slots[1] >= 0 else outs[slots[0]] …, saved[1] if slots[0] >= 0 else …, form      (multiply)
    """
    parts = []
    for k in range(places):
        by = [f"slots[{i}] >= 0" for i, some in enumerate(reads) if k in some]
        form = "form"
        if k < len(reads):  # a single input is differentiated always
            form = f"outs[slots[{k}]]" + (f" if slots[{k}] >= 0 else form_of(saved[{k}])" if len(reads) > 1 else "")
        kept = f"saved[{k}]"
        parts.append(kept if len(by) == len(reads) else f"{kept} if {' or '.join(by)} else {form}" if by else form)
    return eval(f"lambda saved, slots, outs, form: ({', '.join(parts)},)", {"form_of": form_of})
