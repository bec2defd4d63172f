"""sum, mean, max and min over any axes, and the derivatives of max and min.

    sum      y = sum_j x_j           mean = sum / n           dy = the same of dx
    max      y = max_j x_j           w_j = [x_j = y] / (how many are)           dx = dy w, dy = sum_j dx_j w_j

Access (`reduce_rows`, launched by `reduce_axes`): every number is read once, 16 bytes a load, four loads of a thread in
flight. Rows are reduced by 8 or 32 lanes or a block each; columns by blocks that stride down the rows with their lanes
along the columns. What is long is cut into spans, whose results are reduced in turn: no atomics, the same bits from run
to run, and a float32 sum has few addends that follow each other. NaN wins over every number, as in NumPy.
The derivative of sum and mean is a copy: the rule serves.
"""

import math

from .launch import Kernel
from .reduce_axes import kept, reduced, slopes_jvp, slopes_vjp


def _total(factor_of):
    """The Kernel of a sum times factor_of(how many)."""

    def forward(xp, x, *, axis, keepdims):
        y = reduced(xp, x, axis, keepdims, "sum", factor_of(math.prod(x.shape[a] for a in axis)))
        return y if y is NotImplemented else (y, (x,))

    def jvp(xp, saved, dx, *, axis, keepdims):
        count = math.prod(saved[0].shape[a] for a in axis)
        return reduced(xp, dx[0], tuple(a + 1 for a in axis), keepdims, "sum", factor_of(count))

    return Kernel(forward, None, jvp)


def _extremum(sign):
    """The Kernel of max (1) or min (-1)."""

    def forward(xp, x, *, axis, keepdims):
        return kept(x, reduced(xp, x, axis, True, "max", sign), axis, keepdims)

    def vjp(xp, saved, dy, need, *, axis, keepdims):
        return slopes_vjp(xp, "max", saved, dy, need, axis)

    def jvp(xp, saved, dx, *, axis, keepdims):
        return slopes_jvp(xp, "max", saved, dx, axis, keepdims)

    return Kernel(forward, vjp, jvp)


# Named as the ops are, and so out of the way of Python's own: no code below uses those.
sum = _total(lambda n: 1.0)
mean = _total(lambda n: 1.0 / n if n else 0.0)
max, min = _extremum(1.0), _extremum(-1.0)
