"""SciPy's special functions, or CuPy's twins, loaded when first used."""

from __future__ import annotations

from functools import cache
from typing import Any

from ..trace import Namespace


@cache
def special(xp: Any) -> Any:
    """The module with erf and friends that takes the arrays of `xp`."""
    if isinstance(xp, Namespace):
        xp = xp.module
    if hasattr(xp, "special"):  # a stand-in array module brings its own
        return xp.special
    if xp.__name__ == "cupy":
        import cupyx.scipy.special

        return cupyx.scipy.special
    import scipy.special

    return scipy.special
