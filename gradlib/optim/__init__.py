"""Optimisers: `opt = Adam(params)`, then `opt.step(grads)` updates the parameters' arrays in place."""

from .adam import Adam, AdamW
from .sgd import SGD

__all__ = ["SGD", "Adam", "AdamW"]
