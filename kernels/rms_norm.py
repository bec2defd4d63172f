"""rms_norm over the last axis, its derivatives, and those of its weight.

    r = 1 / sqrt(mean x^2 + eps), h = x r, y = h w
    dx = r (t - h mean(t h)), t = dy w      dw = sum of dy h over rows

Access: rows in registers, each number read and written once (`norm_rows`, `norm_streams`); parameter gradients by
blocks that stay, in the pass that writes dx (`norm_sums`).
"""

from . import norms
from .launch import Kernel


def _forward(xp, x, w=None, *, eps):
    if not norms.serves(x, w):
        return NotImplemented
    y, _, r = norms.forward(xp, "rms_norm", x, w, None, eps)
    return y, (x, r, w)


def _vjp(xp, saved, dy, need, *, eps):
    x, r, w = saved
    if not norms.serves(x, w, dy, statistics=(r,)):
        return NotImplemented
    return tuple(norms.cotangents(xp, "rms_norm", x, None, r, w, dy, need))


def _jvp(xp, saved, dx, *, eps):
    x, r, w = saved
    if not norms.serves(x, w, *dx, statistics=(r,)):
        return NotImplemented
    return norms.derivative(xp, "rms_norm", "jvp", x, None, r, w, *dx)


rms_norm = Kernel(_forward, _vjp, _jvp)
