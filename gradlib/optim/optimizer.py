"""What all optimisers share: the checks, the state on the parameters' device, and where the update runs."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import tree
from ..capture import effect
from ..device import SIMULATING, array_module
from ..op import describe
from ..ops import optim as rules
from ..precision import is_floating, working
from ..trace import raw


class Optimizer:
    """Base of SGD, Adam and AdamW. `step(grads)` updates the arrays of `params` in place.

    params: a pytree of writable floating-point arrays, all on one device. Step count and learning rate are 0-d arrays
    on that device: `opt.lr` reads as a float and can be assigned between steps.
    """

    def __init__(self, params: Any, lr: float) -> None:
        self.name = type(self).__name__
        leaves, self._structure = tree.flatten(params)
        self._paths = tree.paths(params)
        self._params = leaves
        for p, path in zip(leaves, self._paths, strict=True):
            _check_parameter(self.name, p, path)
        if len({id(p) for p in leaves}) != len(leaves):
            raise ValueError(
                f"{self.name}: one array stands at two places in the parameters; it would be updated twice"
            )
        # contiguous parameters are updated through flat views, which the compiled loops and the kernels take
        self._flat = all(p.flags.c_contiguous for p in leaves)
        self._targets = [p.reshape(-1) for p in leaves] if self._flat else leaves
        modules = {array_module(p) for p in leaves}
        if len(modules) > 1:
            raise TypeError(f"{self.name}: parameters live on different devices; move them with gl.to_device")
        self._xp = modules.pop() if modules else np
        self._lr = self._xp.zeros((), np.float64)
        self._step = self._xp.zeros((), np.int64)
        self.lr = lr

    @property
    def lr(self) -> float:
        """The learning rate."""
        return float(self._lr)

    @lr.setter
    def lr(self, value: float) -> None:
        check_range(self.name, "lr", value, 0, np.inf)
        self._lr[...] = value

    @property
    def steps(self) -> int:
        """How many steps were taken."""
        return int(self._step)

    def _like(self) -> list[Any]:
        return [self._xp.zeros(p.shape, working(p.dtype)) for p in self._targets]

    def step(self, grads: Any) -> None:
        """Update the parameters in place. grads: a pytree of the parameters' structure, shapes and dtypes.

        Raises ValueError or TypeError naming the first leaf that does not fit, before anything is changed.
        """
        leaves, structure = tree.flatten(grads)
        if structure != self._structure:
            raise ValueError(f"{self.name}.step: expected gradients of structure {self._structure}, got {structure}")
        for p, g, path in zip(self._params, leaves, self._paths, strict=True):
            if type(g) is type(p) and g.shape == p.shape and g.dtype == p.dtype:
                continue
            if array_module(raw(g)) is not self._xp:
                raise TypeError(f"{self.name}.step: expected a {self._xp.__name__} array at {path}, got {describe(g)}")
            if g.shape != p.shape or g.dtype != p.dtype:
                raise ValueError(f"{self.name}.step: expected {describe(p)} at {path}, got {describe(g)}")
        effect(self._advance, leaves)

    def _advance(self, grads: Any) -> None:
        self._step += 1
        self._update([g.reshape(-1) for g in grads] if self._flat else list(grads))

    def _update(self, grads: list[Any]) -> None:
        raise NotImplementedError

    def _run(self, name: str, *lists: Any, **settings: Any) -> None:
        """The update on the GPU's kernel, the CPU's compiled loop, or in array code."""
        if self._flat:
            if self._xp is not np or SIMULATING.get():
                from ..kernels import optim as kernels

                if getattr(kernels, name)(*lists, **settings) is not NotImplemented:
                    return
            elif all([x.dtype.itemsize >= 4 for x in self._targets]):
                from ..kernels import cpu

                getattr(cpu, name)(*lists, **settings)
                return
        getattr(rules, name)(*lists, **settings)


def _check_parameter(name: str, p: Any, path: str) -> None:
    if array_module(p) is None or not hasattr(p, "flags") or not is_floating(p.dtype) or isinstance(p, np.generic):
        raise TypeError(
            f"{name}: expected floating-point arrays as parameters, got {describe(p)} at {path or 'params'}"
        )
    if not getattr(p.flags, "writeable", True):
        raise ValueError(f"{name}: the parameter at {path or 'params'} is read-only, so it cannot be updated in place")


def check_range(name: str, what: str, value: float, low: float, high: float) -> None:
    """ValueError unless low <= value < high."""
    if not isinstance(value, (int, float, np.number)) or not low <= value < high:
        raise ValueError(f"{name}: expected {low} <= {what} < {high}, got {value!r}")
