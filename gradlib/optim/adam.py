"""Adam, and AdamW with decoupled weight decay."""

from __future__ import annotations

from typing import Any

import numpy as np

from .optimizer import Optimizer, check_range


class Adam(Optimizer):
    """p -= lr m̂ / (√v̂ + eps), with running means of g and g² corrected for their start at 0.

    `weight_decay` λ adds λ p to the gradient. Source: Kingma & Ba 2015 (arXiv:1412.6980).

    >>> import gradlib as gl, numpy as np
    >>> params = [np.zeros(2)]
    >>> gl.optim.Adam(params, lr=0.1).step([np.array([3.0, -3.0])])
    >>> params[0].round(6)
    array([-0.1,  0.1])
    """

    _decoupled = False

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr)
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise ValueError(f"{self.name}: expected two betas, got {betas!r}")
        for name, value in (("betas[0]", betas[0]), ("betas[1]", betas[1])):
            check_range(self.name, name, value, 0, 1)
        check_range(self.name, "eps", eps, 0, np.inf)
        check_range(self.name, "weight_decay", weight_decay, 0, np.inf)
        self._settings = {
            "beta1": betas[0],
            "beta2": betas[1],
            "eps": eps,
            "weight_decay": weight_decay,
            "decoupled": self._decoupled,
        }
        self._m, self._v = self._like(), self._like()

    def _update(self, grads: list[Any]) -> None:
        self._run("adam", self._targets, grads, self._m, self._v, self._step, self._lr, **self._settings)


class AdamW(Adam):
    """Adam with decoupled weight decay: p -= lr λ p besides Adam's step.

    Source: Loshchilov & Hutter 2019 (arXiv:1711.05101).

    >>> import gradlib as gl, numpy as np
    >>> params = [np.ones(1)]
    >>> gl.optim.AdamW(params, lr=0.1, weight_decay=0.5).step([np.zeros(1)])
    >>> params[0]
    array([0.95])
    """

    _decoupled = True

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, lr, betas=betas, eps=eps, weight_decay=weight_decay)
