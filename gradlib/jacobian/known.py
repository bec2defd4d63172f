"""What is known of a recorded call from an earlier one that did the same to other numbers.

Two calls do the same where their ops, settings, shapes and dtypes agree: their signatures are equal. Then batch axes go
the same way, and the chain of blocks is made of what the ops saved by the same array code, recorded when it first ran.
So a Jacobian that is asked for again costs what its numbers cost.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from ..capture import Recorder, compile_program, tree_of
from ..device import SIMULATING, array_module
from ..kept import Form
from ..op import Dispatching
from ..trace import RECORDER, Node
from .chain import chain_of
from .cost import PLANS
from .fused import looped
from .plan import Link, links_of
from .segments import Segment

if TYPE_CHECKING:
    from .batched import Batched


class Known:
    """What a signature tells: `tags` of the slots, `sizes` of the result, `links` and `plans` of the chain, and its
    segments over a call's own arrays."""

    def __init__(self, call: Batched, segments: list[Segment], sizes: tuple) -> None:
        self.tags: list[Any] = call.tags
        self.sizes = sizes
        self.plans: dict[Any, Any] = {}  # what a call asked for -> its schedule, and whether it spares BLAS
        self.steps: dict[Any, int] = {}  # what a call asked for -> how many samples are worked on at once
        self.links: tuple[Link, ...] = links_of(segments)
        self._recipe = _recipe(call, len(segments))
        # without their arrays, which would stay alive
        forms = [s.with_arrays(tree_of(s.arrays(), _placeholder)) for s in segments]
        self._forms = looped(forms, call.leaves[0]) if array_module(call.leaves[0]) is np else forms

    def segments(self, call: Batched) -> list[Segment]:
        """The chain of a call with this signature."""
        arrays = self._recipe(*_saved(call))
        return [form.with_arrays(a) for form, a in zip(self._forms, arrays, strict=True)]


_known: dict[Any, Known] = {}
_lock = Lock()


def known(signature: Any) -> Known | None:
    """What is known of calls with a signature."""
    return None if signature is None else _known.get(signature)


def remember(signature: Any, call: Batched, segments: list[Segment] | None, sizes: tuple) -> None:
    """Keep what a checked call tells; nothing where its chain has parts that take the whole batch, or there is none."""
    if signature is None or segments is None or any(s.whole_batch for s in segments):
        return
    found = Known(call, segments, sizes)
    with _lock:
        while len(_known) >= PLANS:
            del _known[next(iter(_known))]
        _known[signature] = found


def _recipe(call: Batched, count: int) -> Callable[..., tuple]:
    """The function of all that the ops saved which gives the arrays of the segments."""
    recorder = Recorder()
    inputs: list[int] = []

    def wrapped(x: Any) -> Any:
        if array_module(x) is None:
            return x
        value = recorder.wrap(x[...])  # an array of its own, though one may be saved in two places
        inputs.append(value.slot)
        return value

    same = copy(call)
    same.trace = copy(call.trace)
    same.trace.nodes = [n._replace(xp=recorder.unit, saved=tree_of(n.saved, wrapped)) for n in call.trace.nodes]
    token = RECORDER.set(recorder)
    try:
        segments = chain_of(same) or []
    finally:
        RECORDER.reset(token)
        recorder.alive = False
    assert len(segments) == count, "the chain of recorded values differs from that of plain ones"
    return compile_program(recorder, inputs, recorder.template(tuple([s.arrays() for s in segments])))


def _saved(call: Batched) -> list[Any]:
    """All arrays that the ops saved."""
    found: list[Any] = []
    for node in call.trace.nodes:
        _collect(node.saved, found)
    return found


def _collect(saved: tuple, found: list[Any]) -> None:
    for x in saved:
        if type(x) is np.ndarray:
            found.append(x)
        elif type(x) in (tuple, list):
            _collect(x, found)
        elif x is not None and array_module(x) is not None:
            found.append(x)


def _placeholder(x: Any) -> Any:
    """An array's shape and dtype without its memory."""
    return x if array_module(x) is None else np.broadcast_to(np.zeros((), x.dtype), x.shape)


def signature_of(call: Batched, tags: dict[int, Any]) -> Any:
    """What two calls have to agree in, hashable; None where it cannot be told, or values are traced.

    tags: those of the call's inputs.
    """
    if call.trace.watcher is not None or SIMULATING.get():
        return None
    try:
        nodes = tuple([_form_of(node) for node in call.trace.nodes])
    except _Untold:
        return None
    ends = tuple(call.outputs.slots), tuple(call.slots), tuple(call.shared), tuple(tags.items())
    return call.samples, nodes, tuple(call.trace.outs), ends


class _Untold(Exception):
    """Raised for what has no signature."""


def _form_of(node: Node) -> tuple:
    op, xp, static, kept, _, _, outputs, inputs, shapes, _ = node
    if isinstance(xp, Dispatching):
        raise _Untold
    settings = tuple([(k, _setting(v)) for k, v in static.items()])
    saved = tuple([(x.shape, x.dtype) if type(x) is np.ndarray else _kept(x) for x in kept])
    return op, xp, settings, saved, tuple(inputs), shapes, outputs


def _kept(x: Any) -> Any:
    """What the recipe of a saved value depends on: an array's form, a number's value."""
    if x is None:
        return None
    if type(x) in (tuple, list):
        return tuple(map(_kept, x))
    if type(x) is Form:
        return Form, *x
    module = array_module(x)
    return _setting(x) if module is None else (module.__name__, type(x), x.shape, x.dtype)


def _setting(x: Any) -> Any:
    """A setting as something that equals another only if it is the same: 1, 1.0, True, 0.0 and -0.0 all differ."""
    kind = type(x)
    if x is None or kind is str:
        return x
    if kind in (int, bool, slice):
        return kind, str(x)
    if kind is float:
        return x.hex()
    if kind in (tuple, list):
        return kind, *map(_setting, x)
    if isinstance(x, np.dtype) or kind is type or x is Ellipsis:
        return x
    raise _Untold
