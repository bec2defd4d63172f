"""detect_anomaly: where the first value or derivative that is not finite arose."""

from __future__ import annotations

import linecache
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from .op import Op, describe
from .precision import is_floating
from .trace import WATCHER, Node, module_of, raw

_OWN = (os.path.dirname(__file__) + os.sep, os.path.dirname(np.__file__) + os.sep)


@contextmanager
def detect_anomaly() -> Iterator[None]:
    """Within the block, raise FloatingPointError where a transform meets the first nan or infinity.

    The error names the op and the line of your code: for a value, an op that makes non-finite numbers of finite ones;
    for a derivative, the op whose rule does. It costs a look at every array, so it is for finding faults.

    >>> import gradlib as gl, numpy as np
    >>> with gl.detect_anomaly():
    ...     gl.grad(np.sqrt)(0.0)
    Traceback (most recent call last):
        ...
    FloatingPointError: the derivative of sqrt is not finite; it was computed at ...
    """
    token = WATCHER.set(_Watcher())
    try:
        with np.errstate(all="ignore"):
            yield
    finally:
        WATCHER.reset(token)


class _Watcher:
    """Looks at what a trace records and sweeps."""

    def recorded(self, op: Op, vals: Any, y: Any) -> str:
        """The user's line that called the op."""
        line = user_line()
        if not _finite(y) and _finite(vals):
            given = ", ".join(map(describe, vals))
            raise FloatingPointError(f"{op.name} gives non-finite values of finite ones ({given}) at {line}")
        return line

    def swept(self, node: Node, before: Any, after: Any) -> None:
        if not _finite(after) and _finite(before):
            raise FloatingPointError(f"the derivative of {node.op.name} is not finite; it was computed at {node.line}")


def _finite(values: Any) -> bool:
    """Whether all floating-point numbers in an array, or a sequence of arrays and None, are finite."""
    if isinstance(values, (tuple, list)):
        return all(map(_finite, values))
    values = raw(values)
    if values is None or not is_floating(getattr(values, "dtype", np.dtype(float))):
        return True
    return bool(module_of(values).isfinite(values).all())


def user_line() -> str:
    """'file:line: code' of the innermost frame that is neither gradlib's nor NumPy's."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OWN):
        frame = frame.f_back
    file, line = frame.f_code.co_filename, frame.f_lineno
    return f"{file}:{line}: {linecache.getline(file, line).strip()}".rstrip(": ")
