"""All that the machine code of a function depends on, in whatever files it stands, as words that can be hashed.

A function is its code, and what that refers to by closures and globals: numbers, arrays, other functions, of which the
same. A module stands for those of its names that the code mentions. Of what Python and the compiler bring along the
name is enough: their versions are known.
"""

import inspect
import re
import sys
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np

BROUGHT = sys.stdlib_module_names | {"cuda", "llvmlite", "numba", "numba_cuda", "numpy"}
ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def words_of(function: Any) -> list[str]:
    """Words that are the same in every process for the same code and the same values, and else differ."""
    seen, words, queue = set(), [], [function]
    for value in queue:  # which grows on the way
        value = inspect.unwrap(value)
        if isinstance(value, FunctionType) and (value.__module__ or "").split(".")[0] not in BROUGHT:
            if value not in seen:
                seen.add(value)
                codes = list(_codes(value.__code__))
                words += [_written(code) for code in codes]
                for name, used in _used(value, codes):
                    words.append(name)
                    queue.append(used)
        elif isinstance(value, tuple | list):
            words.append(f"{type(value).__name__} {len(value)}")
            queue += value
        elif isinstance(value, np.ndarray):
            words.append(f"{value.dtype} {value.shape} {value.tobytes().hex()}")
        else:
            words.append(f"{type(value).__qualname__} {_plain(value)}")
    return words


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A function's code and that of the functions within it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _written(code: CodeType) -> str:
    constants = [c for c in code.co_consts if not isinstance(c, CodeType)]
    names = code.co_names, code.co_varnames, code.co_freevars
    return f"{code.co_code.hex()} {[(type(c).__name__, _plain(c)) for c in constants]} {names}"


def _used(function: FunctionType, codes: list[CodeType]) -> list[tuple[str, Any]]:
    """(name, value) of what the codes refer to outside themselves."""
    around = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    names = sorted({name for code in codes for name in code.co_names})
    found = [(name, cell.cell_contents) for name, cell in around]
    found += [(name, function.__globals__[name]) for name in names if name in function.__globals__]
    modules = [value for _, value in found if isinstance(value, ModuleType)]
    return found + [(name, vars(m)[name]) for m in modules for name in names if name in vars(m)]


def _plain(value: Any) -> str:
    if isinstance(value, frozenset | set):
        return str(sorted(map(repr, value)))
    return ADDRESS.sub("", repr(value))
