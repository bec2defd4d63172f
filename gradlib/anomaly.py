"""detect_anomaly: where the first value or derivative that is not finite arose."""

from __future__ import annotations

import linecache
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from .op import Op, describe
from .precision import is_floating
from .trace import WATCHER, Node, Trace, module_of, raw

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

    def ruled(self, node: Node, before: Any, rule: Callable[..., Any], *args: Any, **static: Any) -> Any:
        """What a rule of the node's op makes of the derivatives `before`."""
        after = rule(*args, **static)
        if not _finite(after) and _finite(before):
            raise FloatingPointError(f"the derivative of {node.op.name} is not finite; it was computed at {node.line}")
        return after

    def summed(self, trace: Trace, slot: int, parts: Any, total: Any) -> None:
        """The cotangents of a value that is used more than once, added up."""
        if not _finite(total) and _finite(parts):
            node = next((n for n in trace.nodes if n.slot <= slot < n.slot + max(n.outputs, 1)), None)
            what = "an argument" if node is None else f"the result of {node.op.name}, computed at {node.line}"
            raise FloatingPointError(f"the sum of derivatives from several uses is not finite, of {what}")


def _finite(values: Any) -> bool:
    """Whether all floating-point numbers in an array, or a sequence of arrays and None, are finite."""
    if isinstance(values, (tuple, list)):
        return all(map(_finite, values))
    values = raw(values)
    if values is None or not is_floating(getattr(values, "dtype", np.dtype(float))):
        return True
    return bool(module_of(values).isfinite(values).all())


def user_line() -> str:
    """'file:line: code' of the innermost frame that is neither gradlib's nor NumPy's.

    What a rule of ours computes, recorded one level down, belongs to the line that recorded the rule's op.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OWN):
        if frame.f_code is _Watcher.ruled.__code__:
            return frame.f_locals["node"].line
        frame = frame.f_back
    file, line = frame.f_code.co_filename, frame.f_lineno
    return f"{file}:{line}: {linecache.getline(file, line).strip()}".rstrip(": ")
