"""Optimisers: `opt = Adam(params)`, then `opt.step(grads)` updates the parameters' arrays in place.

Gradients are clipped on the way: `opt.step(clip_by_global_norm(grads, 1.0)[0])`.
"""

from .adam import Adam, AdamW
from .clipping import clip_by_global_norm
from .sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "clip_by_global_norm"]
