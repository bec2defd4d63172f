"""Stochastic gradient descent, with momentum and Nesterov's."""

from __future__ import annotations

from typing import Any

import numpy as np

from .optimizer import Optimizer, check_range


class SGD(Optimizer):
    """g += λ p; v = μ v + g; p -= lr (g + μ v if nesterov else v), with μ `momentum` and λ `weight_decay`.

    Source: Sutskever et al. 2013, "On the importance of initialization and momentum", in torch's form.

    >>> import gradlib as gl, numpy as np
    >>> params = {"w": np.ones(2)}
    >>> gl.optim.SGD(params, lr=0.5).step({"w": np.ones(2)})
    >>> params["w"]
    array([0.5, 0.5])
    """

    def __init__(
        self, params: Any, lr: float = 1e-2, *, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, lr)
        check_range(self.name, "momentum", momentum, 0, 1)
        check_range(self.name, "weight_decay", weight_decay, 0, np.inf)
        if nesterov and not momentum:
            raise ValueError("SGD: nesterov needs momentum > 0")
        self._settings = {"momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
        self._velocity = self._like() if momentum else []

    def _update(self, grads: list[Any]) -> None:
        self._run("sgd", self._targets, grads, self._velocity, self._lr, **self._settings)
