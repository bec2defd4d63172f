"""Whether a traced value is asked for its float to be stored in an array of numbers, which would lose its derivative.

NumPy asks for a plain float then, as `float(x)` does; only the caller's instruction tells one from the other.
"""

from __future__ import annotations

import dis
from types import CodeType, FrameType

_STORE_ITEM = dis.opmap["STORE_SUBSCR"]
_WRITERS = frozenset({"__setitem__", "fill", "fromiter", "setitem"})
_REDUCERS = frozenset({"numpy._core.fromnumeric", "numpy._core._methods"})  # where np.max and x.max hand `initial` on
_HIDING = ("setting an array element with a sequence", "Error setting single item of array")


def storing(frame: FrameType) -> str | None:
    """How the frame's current instruction stores a number in an array, as users write it; None if it does not."""
    code, at = frame.f_code, frame.f_lasti
    if frame.f_globals.get("__name__") in _REDUCERS:
        return "initial= of a reduction of plain numbers (write np.maximum(np.max(x), y), np.sum(x) + y instead)"
    if code.co_code[at] == _STORE_ITEM:
        return "y[i] = traced"
    if _WRITERS.isdisjoint(code.co_names):
        return None
    name = _called(code, at)
    return f"{name} of a traced value" if name in _WRITERS else None


def _called(code: CodeType, at: int) -> str | None:
    """The name of the function that the call at `at` calls: what was loaded last where the whole call begins."""
    before = [i for i in dis.get_instructions(code) if i.offset <= at]
    if not before or not before[-1].opname.startswith("CALL"):
        return None
    begin = _begin(before.pop())
    loads = [i for i in before if i.opname.startswith("LOAD") and _begin(i) == begin]
    return str(loads[-1].argval) if loads else None


def _begin(instruction: dis.Instruction) -> tuple:
    place = instruction.positions
    return (None, None) if place is None else (place.lineno, place.col_offset)


def raise_hidden(error: ValueError, lost: TypeError | None) -> None:
    """Raise what an assignment to one entry raised, `lost`, if NumPy put this error of its own in its place."""
    if lost is not None and str(error).startswith(_HIDING):
        raise lost from None
