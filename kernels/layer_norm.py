"""layer_norm over the last axis, its derivatives, those of its weight and bias, and its Jacobian.

    m = mean x, r = 1 / sqrt(mean (x - m)^2 + eps), h = (x - m) r, y = h w + b
    dx = r (t - mean t - h mean(t h)), t = dy w      dw = sum of dy h, db = sum of dy over rows
    J_ij = w_i r (delta_ij - 1/n - h_i h_j / n)

Access: rows in registers, each number read and written once (`norm_rows`, `norm_streams`); parameter gradients by
blocks that stay, in the pass that writes dx (`norm_sums`). The Jacobian is written at the cost of its own size.
"""

from . import norms
from .launch import Kernel


def _forward(xp, x, w=None, b=None, *, eps):
    if not norms.serves(x, w, b):
        return NotImplemented
    y, mean, r = norms.forward(xp, "layer_norm", x, w, b, eps)
    return y, (x, mean, r, w)


def _vjp(xp, saved, dy, need, *, eps):
    x, mean, r, w = saved
    if not norms.serves(x, w, dy, statistics=(mean, r)):
        return NotImplemented
    return tuple(norms.cotangents(xp, "layer_norm", x, mean, r, w, dy, need))


def _jvp(xp, saved, dx, *, eps):
    x, mean, r, w = saved
    if not norms.serves(x, w, *dx, statistics=(mean, r)):
        return NotImplemented
    return norms.derivative(xp, "layer_norm", "jvp", x, mean, r, w, *dx)


def _jacobian(xp, saved, *, eps):
    """dense (..., D, D)."""
    x, mean, r, w = saved
    return (
        norms.jacobian(xp, "layer_norm", x, mean, r, w) if norms.serves(x, w, statistics=(mean, r)) else NotImplemented
    )


layer_norm = Kernel(_forward, _vjp, _jvp, _jacobian)
