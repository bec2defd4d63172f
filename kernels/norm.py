"""The 2-norm over any axes, and its derivatives along rows.

    y = sqrt(sum_j x_j^2)           w = x / y, 0 where y is 0           dx = dy w           dy = sum_j dx_j w_j

Access (`reduce_rows`, launched by `reduce_axes`): as a sum, with the squares formed in registers and the root taken as
the last sum is written: x is read once and nothing as large is written. Other orders are left to the rule.
"""

from .launch import Kernel
from .reduce_axes import kept, reduced, slopes_jvp, slopes_vjp


def _forward(xp, x, *, p, axis, keepdims):
    if p != 2:
        return NotImplemented
    return kept(x, reduced(xp, x, axis, True, "sum", square=1, root=1), axis, keepdims)


def _vjp(xp, saved, dy, need, *, p, axis, keepdims):
    return slopes_vjp(xp, "norm", saved, dy, need, axis) if p == 2 else NotImplemented


def _jvp(xp, saved, dx, *, p, axis, keepdims):
    return slopes_jvp(xp, "norm", saved, dx, axis, keepdims) if p == 2 else NotImplemented


p_norm = Kernel(_forward, _vjp, _jvp)
