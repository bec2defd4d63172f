"""Functions that NumPy computes in other steps than our rules: values differ in the last bit, or the dtype does.

Where `gl.capture` records a function that no transform differentiates, it records NumPy's own function for these.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

import numpy as np

from ..trace import HANDLERS, NUMPYS
from ..traced import numpys
from .products import vecdot

_ALWAYS = (
    np.average, np.dot, np.einsum, np.geomspace, np.gradient, np.i0, np.inner, np.linspace, np.logspace, np.median,
    np.nanmean, np.nanstd, np.nanvar, np.percentile, np.polyval, np.quantile, np.std, np.trapezoid, np.var, np.vecdot,
    np.linalg.eigh, np.linalg.eigvalsh, np.linalg.matrix_norm, np.linalg.matrix_power, np.linalg.multi_dot,
    np.linalg.norm, np.linalg.pinv, np.linalg.qr, np.linalg.svd, np.linalg.svdvals, np.linalg.vecdot,
    np.linalg.vector_norm,
)  # fmt: skip
_MASKED = (np.amax, np.amin, np.max, np.mean, np.min, np.prod, np.sum)

NUMPYS.update(dict.fromkeys(_ALWAYS))
NUMPYS.update(dict.fromkeys(_MASKED, frozenset({"where", "initial", "dtype"})))


@wraps(vecdot)
def _vecdot(*args: Any, **kwargs: Any) -> Any:
    """np.vecdot is a ufunc, which dispatches to its handler at once."""
    y = numpys(np.vecdot, args, kwargs)
    return vecdot(*args, **kwargs) if y is NotImplemented else y


HANDLERS[np.vecdot] = _vecdot
