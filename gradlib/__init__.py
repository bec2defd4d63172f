"""gradlib: partial derivatives and batched Jacobians of NLP models on NumPy and CuPy arrays.

import gradlib as gl
gl.grad(f)(x)               gradient of a scalar function
gl.batch_jacobian(f)(x)     (B, *in) -> (B, *out) becomes (B, *out, *in)
"""

from importlib import import_module as _import_module
from typing import Any as _Any

from . import nn, optim
from .anomaly import detect_anomaly
from .capture import capture
from .check import check_grads
from .device import device_info, to_device
from .jacobian.batched import batch_jacobian, per_sample_grad
from .jacobian.dense import hessian, jacfwd, jacobian, jacrev
from .jacobian.divergence import divergence
from .jacobian.gramian import gramian
from .jacobian.jacobian_norm import jacobian_norm
from .jacobian.jacobian_svd import jacobian_svd
from .jacobian.logabsdet import logabsdet
from .jacobian.norms import per_sample_norms
from .jacobian.operator import JacobianOperator, fisher_vp, ggnvp
from .ops.bias_dropout_add import bias_dropout_add
from .ops.cross_entropy import cross_entropy
from .ops.csr import CSR
from .ops.dropout import Generator, dropout
from .ops.elementwise import elu, erf, gelu, leaky_relu, relu, sigmoid, silu, softplus
from .ops.elementwise import tanh_ as tanh
from .ops.embedding import embedding
from .ops.layer_norm import layer_norm
from .ops.linear import linear
from .ops.rms_norm import rms_norm
from .ops.softmax import log_softmax, logsumexp, softmax
from .rules import checkpoint, custom_rules
from .show import trace
from .transforms import grad, hvp, jvp, linearize, stop_gradient, value_and_grad, vjp

__all__ = [
    "CSR",
    "Generator",
    "JacobianOperator",
    "batch_jacobian",
    "bias_dropout_add",
    "capture",
    "check_grads",
    "checkpoint",
    "cross_entropy",
    "custom_rules",
    "detect_anomaly",
    "device_info",
    "divergence",
    "dropout",
    "elu",
    "embedding",
    "erf",
    "fisher_vp",
    "gelu",
    "ggnvp",
    "grad",
    "gramian",
    "hessian",
    "hvp",
    "jacfwd",
    "jacobian",
    "jacobian_norm",
    "jacobian_svd",
    "jacrev",
    "jvp",
    "layer_norm",
    "leaky_relu",
    "linear",
    "linearize",
    "log_softmax",
    "logabsdet",
    "logsumexp",
    "nn",
    "optim",
    "per_sample_grad",
    "per_sample_norms",
    "relu",
    "rms_norm",
    "sigmoid",
    "silu",
    "softmax",
    "softplus",
    "stop_gradient",
    "tanh",
    "text",
    "to_device",
    "trace",
    "value_and_grad",
    "vjp",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> _Any:
    if name == "text":  # needs scikit-learn, which takes longer to import than all the rest
        return _import_module("gradlib.text")
    raise AttributeError(f"module 'gradlib' has no attribute {name!r}")
