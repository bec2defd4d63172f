"""What `jacobian` and `batch_jacobian` return: a function with a plan, that can write into arrays and make pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import update_wrapper
from math import prod
from types import MethodType
from typing import Any

import numpy as np

from .. import memory, tree
from ..device import array_module
from ..op import Dispatching, describe
from ..threads import one_blas_thread
from ..trace import Trace, Traced
from .budget import Budget, readable
from .explain import Plan

PIECE_BYTES = 64_000_000  # of the result, that `chunks` gives at a time without a budget
CACHE = 4 << 20  # bytes of cotangents and tangents to work on at a time: 2-3 times faster than 16 MB


class Work:
    """One recorded call whose Jacobian is to be made: what `JacobianFunction` asks of each kind.

    The leaves of the result are in the order of `tree.flatten`; `specs` has (shape, dtype, array module) of each.
    """

    budget: Budget
    specs: list[tuple[tuple[int, ...], Any, Any]]
    spares_blas = False  # whether it had better be done with BLAS on one thread, known once it has been
    concrete: bool  # whether all arrays are plain: none belongs to an outer transform or a capture

    def whole(self) -> list[Any]:
        """The leaves of the result."""
        raise NotImplementedError

    def write(self, out: list[Any]) -> None:
        """Write the result into C-contiguous arrays like `specs`."""
        raise NotImplementedError

    def pieces(self) -> Iterator[tuple[slice, Any]]:
        """The result in pieces."""
        raise NotImplementedError

    def rebuild(self, leaves: list[Any]) -> Any:
        """The leaves as the tree that is returned."""
        raise NotImplementedError

    def plan(self) -> Plan:
        raise NotImplementedError

    def empty(self) -> list[Any]:
        return [memory.empty(xp, shape, dtype) for shape, dtype, xp in self.specs]

    def result_bytes(self) -> int:
        return sum(prod(shape) * dtype.itemsize for shape, dtype, _ in self.specs)

    def result_text(self) -> str:
        """The result as titles name it: float32[64, 10, 100], 256 kB."""
        arrays = [f"{dtype}[{', '.join(map(str, shape))}]" for shape, dtype, _ in self.specs]
        text = ", ".join(arrays) if len(arrays) < 3 else f"{len(arrays)} arrays"
        return f"{text}, {readable(self.result_bytes())}"

    def limit(self) -> int:
        """Bytes of working memory that a call may take."""
        return self.budget.limit(self.result_bytes(), self.specs[0][2] if self.specs else np)

    def limits(self, limit: int) -> tuple[int, int]:
        """That limit, and what a sweep should take of it: on the CPU what the cache holds."""
        return limit, min(limit, CACHE) if not self.specs or self.specs[0][2] is np else limit

    def piece_limit(self) -> int:
        """Bytes that a piece of the result and the memory to make it may take together."""
        return 2 * PIECE_BYTES if self.budget.max_bytes is None else self.limit()


class JacobianFunction:
    """A function that gives a Jacobian: `J(*args)`, and

    J.plan(*args)       how it would be made: `.mode`, `.flops`, `.bytes`, `.peak`, and `.explain()`, a text to print
    J.into(out, *args)  write it into C-contiguous arrays of yours (a tree of them where the result is one); gives out
    J.chunks(*args)     iterate over (slice, piece of the result), for results larger than memory

    The last three run f once, and take plain arrays: not those of an outer transform or of gl.capture.
    """

    def __init__(self, name: str, f: Callable[..., Any], record: Callable[[tuple, dict], Work]) -> None:
        self._name, self._record = name, record
        self._spares_blas = False  # as the last call told
        update_wrapper(self, f, updated=())

    def __repr__(self) -> str:
        inner = getattr(self, "__qualname__", None) or repr(getattr(self, "__wrapped__", "?"))
        return f"<{self._name} of {inner}>"

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else MethodType(self, instance)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with one_blas_thread(self._spares_blas):
            work = self._record(args, kwargs)
            result = work.rebuild(work.whole())
        self._spares_blas = work.spares_blas
        return result

    def plan(self, *args: Any, **kwargs: Any) -> Plan:
        """How the Jacobian at these arguments would be made; f is run, the Jacobian is not computed.

        >>> import gradlib as gl, numpy as np
        >>> gl.batch_jacobian(np.tanh, mode="rev").plan(np.ones((5, 3))).mode
        'rev'
        """
        return self._concrete("plan", args, kwargs).plan()

    def into(self, out: Any, *args: Any, **kwargs: Any) -> Any:
        """Write the Jacobian into `out`, C-contiguous arrays of its shapes and dtypes; gives `out` back.

        Raises ValueError or TypeError, before anything is written, for arrays that do not fit, that are read-only or
        not contiguous, or that share memory with an argument or with each other.

        >>> import gradlib as gl, numpy as np
        >>> out = np.empty((1, 2, 2))
        >>> gl.batch_jacobian(np.square).into(out, np.array([[1.0, 2.0]])) is out
        True
        >>> out
        array([[[2., 0.],
                [0., 4.]]])
        """
        with one_blas_thread(self._spares_blas):
            work = self._concrete("into", args, kwargs)
            leaves = _targets(f"{self._name}.into", out, work, tree.flatten((args, kwargs))[0])
            work.write(leaves)
        self._spares_blas = work.spares_blas
        return out

    def chunks(self, *args: Any, **kwargs: Any) -> Iterator[tuple[slice, Any]]:
        """An iterator over (slice, piece): samples of the batch for `batch_jacobian`, rows of the flattened outputs for
        `jacobian`. f is run now, each piece is made when it is asked for.

        A piece and the memory to make it stay within `max_bytes`; without it pieces have at most 64 MB. Where an
        operation of f cannot be cut over the batch (see `batch_jacobian`), each piece costs a sweep over the whole
        batch: take few and large ones.

        >>> import gradlib as gl, numpy as np
        >>> for samples, piece in gl.batch_jacobian(np.square).chunks(np.array([[1.0], [2.0]])):
        ...     print(samples, piece.shape)
        slice(0, 2, None) (2, 1, 1)
        """
        with one_blas_thread(self._spares_blas):
            return self._concrete("chunks", args, kwargs).pieces()

    def _concrete(self, what: str, args: tuple, kwargs: dict) -> Work:
        traced = any(type(x) is Traced for x in tree.flatten((args, kwargs))[0])
        work = None if traced else self._record(args, kwargs)
        if work is None or not work.concrete:
            raise TypeError(
                f"{self._name}.{what}: expected plain arrays, got values traced by an outer transform or a capture; "
                "call the function itself there"
            )
        return work


def is_concrete(trace: Trace, values: list[Any]) -> bool:
    """Whether a recorded call has plain arrays alone."""
    return not any(type(x) is Traced for x in values) and not any(isinstance(n.xp, Dispatching) for n in trace.nodes)


def _targets(name: str, out: Any, work: Work, given: list[Any]) -> list[Any]:
    """The leaves of `out`, checked."""
    leaves, structure = tree.flatten(out)
    expected = tree.flatten(work.rebuild(list(range(len(work.specs)))))[1]
    if structure != expected:
        raise ValueError(f"{name}: expected out of structure {expected}, got {structure}")
    arrays = [x for x in given if array_module(x) is not None]
    for i, (x, (shape, dtype, xp)) in enumerate(zip(leaves, work.specs, strict=True)):
        which = f"out{tree.paths(out)[i]}"
        wanted = f"{'' if xp is np else 'cupy '}{dtype}[{', '.join(map(str, shape))}]"
        if array_module(x) is not xp or isinstance(x, np.generic):
            raise TypeError(f"{name}: expected {which} as an array {wanted}, got {describe(x)}")
        if x.shape != shape or x.dtype != dtype:
            raise ValueError(f"{name}: expected {which} as {wanted}, got {describe(x)}")
        if not x.flags.c_contiguous or not getattr(x.flags, "writeable", True):
            raise ValueError(f"{name}: expected {which} C-contiguous and writeable, got flags\n{x.flags}")
        for other in (*arrays, *leaves[:i]):
            if array_module(other) is xp and xp.may_share_memory(x, other):
                raise ValueError(f"{name}: {which} shares memory with an argument or another array of out")
    return leaves
