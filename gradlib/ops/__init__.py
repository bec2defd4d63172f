"""The ops: one file an op or a tight family, with formula, derivative and Jacobian side by side."""

from . import (  # noqa: F401  (importing registers the handlers of NumPy's functions)
    arithmetic,
    creation,
    cross_entropy,
    csr,
    dropout,
    elementwise,
    index,
    join,
    linear,
    matmul,
    methods,
    nondiff,
    reduce,
    shape,
    softmax,
)
