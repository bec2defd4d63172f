"""Networks as functions of their parameters: `net = Sequential(...)`, `params = net.init(0)`, `net(params, x)`."""

from .embedding import Embedding
from .initializers import INITIALIZERS
from .layers import (
    ELU,
    GELU,
    Dropout,
    LeakyReLU,
    Linear,
    LogSoftmax,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)
from .module import Module
from .norms import LayerNorm, RMSNorm
from .sequential import Sequential

__all__ = [
    "ELU",
    "GELU",
    "INITIALIZERS",
    "Dropout",
    "Embedding",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "LogSoftmax",
    "Module",
    "RMSNorm",
    "ReLU",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Tanh",
]
