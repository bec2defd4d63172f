"""layer_norm over the last axis, its derivatives, and those of its weight and bias.

    m = mean x, r = 1 / sqrt(mean (x - m)^2 + eps), h = (x - m) r, y = h w + b
    dx = r (t - mean t - h mean(t h)), t = dy w      dw = sum of dy h, db = sum of dy over rows

Access: rows in registers, each number read and written once (`norm_rows`, `norm_streams`); parameter gradients by
blocks that stay, in the pass that writes dx (`norm_sums`).
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


layer_norm = Kernel(_forward, _vjp, _jvp)
