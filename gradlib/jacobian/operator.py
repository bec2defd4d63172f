"""The Jacobian as a linear operator, never formed: products with it and with its transpose, a stack at a time."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from .. import tree
from ..op import describe, shape_of
from ..trace import Traced, module_of
from ..transforms import Outputs, Primals, hvp, owned, pull, push, run


class JacobianOperator:
    """∂f/∂x at one point as an operator of shape (M, N): M entries of f(x), N entries of x, pytrees flattened.

    f is run and recorded once; every product is a sweep. Where arrays live, vectors live: NumPy or CuPy.
    `J.matvec(v)` is J v, `J.rmatvec(u)` is Jᵀ u, `J.matmat(V)` takes the columns of V (N, k) in one stacked sweep;
    `J @ v`, `J.T`, `J.to_dense()`, and `J.to_scipy()` for scipy.sparse.linalg (or CuPy's counterpart).

    Raises TypeError for x that is not floating point, ValueError for vectors of another length.

    >>> import gradlib as gl, numpy as np
    >>> J = gl.JacobianOperator(np.sin, np.zeros(3))
    >>> J.shape, J @ np.array([1.0, 2.0, 3.0])
    ((3, 3), array([1., 2., 3.]))
    """

    def __init__(self, f: Callable[..., Any], *x: Any) -> None:
        self._inside: Primals
        self._outputs: Outputs
        self._inside, self._outputs, _ = run("JacobianOperator", f, x)
        ins, outs = self._inside.leaves, self._outputs.values
        if not ins:
            raise ValueError("JacobianOperator: expected at least one array to differentiate by")
        if any(type(v) is Traced for v in (*ins, *outs)):
            raise TypeError("JacobianOperator: expected arrays, not values traced by an outer transform")
        self.shape = (sum(prod(shape_of(y)) for y in outs), sum(prod(v.shape) for v in ins))
        self.dtype = np.result_type(*[v.dtype for v in ins])
        self._xp = module_of(ins[0])
        self._transposed = False

    def __repr__(self) -> str:
        return f"JacobianOperator(shape={self.shape}, dtype={self.dtype})"

    @property
    def T(self) -> JacobianOperator:
        """The transpose, sharing the record."""
        other = object.__new__(JacobianOperator)
        other.__dict__.update(self.__dict__, shape=self.shape[::-1], _transposed=not self._transposed)
        return other

    def matvec(self, v: Any) -> Any:
        """J v: (N,) -> (M,)."""
        return self._apply(self._columns("matvec", v, 1, self.shape[1]), self._transposed)[0]

    def rmatvec(self, u: Any) -> Any:
        """Jᵀ u: (M,) -> (N,)."""
        return self._apply(self._columns("rmatvec", u, 1, self.shape[0]), not self._transposed)[0]

    def matmat(self, v: Any) -> Any:
        """J V: (N, k) -> (M, k), one sweep with a stack of k."""
        return self._apply(self._columns("matmat", v, 2, self.shape[1]), self._transposed).T

    def rmatmat(self, u: Any) -> Any:
        """Jᵀ U: (M, k) -> (N, k), one sweep with a stack of k."""
        return self._apply(self._columns("rmatmat", u, 2, self.shape[0]), not self._transposed).T

    def __matmul__(self, v: Any) -> Any:
        return self.matvec(v) if len(shape_of(v)) == 1 else self.matmat(v)

    def to_dense(self) -> Any:
        """The array (M, N)."""
        m, n = self.shape
        rows = self._xp.eye(min(m, n), dtype=self.dtype)
        return self.matmat(rows) if n <= m else self.rmatmat(rows).T

    def to_scipy(self) -> Any:
        """A scipy.sparse.linalg.LinearOperator, or CuPy's."""
        if self._xp is np:
            from scipy.sparse.linalg import LinearOperator
        else:
            from cupyx.scipy.sparse.linalg import LinearOperator
        return LinearOperator(
            self.shape,
            matvec=lambda v: self.matvec(v.reshape(-1)),
            rmatvec=lambda u: self.rmatvec(u.reshape(-1)),
            matmat=self.matmat,
            rmatmat=self.rmatmat,
            dtype=self.dtype,
        )

    def _columns(self, name: str, v: Any, ndim: int, length: int) -> Any:
        """The columns of v as a stack (k, length)."""
        shape = shape_of(v)
        if len(shape) != ndim or shape[0] != length:
            expected = f"({length},)" if ndim == 1 else f"({length}, k)"
            raise ValueError(f"JacobianOperator.{name}: expected an array of shape {expected}, got {describe(v)}")
        return v[None, :] if ndim == 1 else v.T

    def _apply(self, stack: Any, back: bool) -> Any:
        """J (or, back, Jᵀ) times every row of a stack."""
        leaves = self._outputs.values if back else self._inside.leaves
        parts, at = [], 0
        for x in leaves:
            n = prod(shape_of(x))
            part = stack[:, at : at + n].astype(getattr(x, "dtype", self.dtype))
            parts.append(part.reshape((stack.shape[0], *shape_of(x))))
            at += n
        found = (pull if back else push)(self._inside, self._outputs, parts)
        flat = [d.reshape((stack.shape[0], prod(d.shape[1:]))).astype(self.dtype) for d in found]
        return self._xp.concatenate(flat, axis=1)


def ggnvp(f: Callable[..., Any], loss: Callable[..., Any], params: Any, v: Any) -> Any:
    """Generalised Gauss-Newton matrix times v: Jᵀ H J v, with J = ∂f/∂params and H = ∂²loss/∂f² at f(params).

    f: params -> outputs. loss: outputs -> 0-d array. v: a pytree like params; so is the result. One pass ahead, one
    Hessian-vector product of the loss, one pass back. Source: Schraudolph 2002, "Fast curvature matrix-vector
    products"; Martens 2010.

    >>> import gradlib as gl, numpy as np
    >>> gl.ggnvp(lambda w: 3 * w, lambda y: np.sum(y**2), np.ones(2), np.array([1.0, 0.0]))
    array([18.,  0.])
    """
    inside, outputs, _ = run("ggnvp", f, (params,))
    tangents = [d[None] for d in _like("ggnvp", params, v)]
    y, dy = outputs.rebuilt(), tree.unflatten(outputs.structure, [d[0] for d in push(inside, outputs, tangents)])
    curved = tree.flatten(hvp(loss, (y,), (dy,)))[0]
    found = owned(pull(inside, outputs, [d[None] for d in curved]), [])
    return tree.unflatten(inside.structure, [d[0] for d in found])[0]


def fisher_vp(f: Callable[..., Any], loss: Callable[..., Any], params: Any, v: Any) -> Any:
    """Empirical Fisher matrix times v: mean over samples of g (gᵀ v), with g the gradient of each sample's loss.

    f: params -> outputs, batch first. loss: outputs -> (B,). v: a pytree like params; so is the result. One pass
    ahead (gᵀ v of every sample at once) and one back. Source: Kunstner, Balles & Hennig 2019 (arXiv:1905.12558).

    >>> import gradlib as gl, numpy as np
    >>> x = np.array([[1.0, 0.0], [0.0, 2.0]])
    >>> gl.fisher_vp(lambda w: x @ w, lambda y: y, np.zeros(2), np.ones(2))
    array([0.5, 2. ])
    """
    inside, outputs, _ = run("fisher_vp", lambda p: loss(f(p)), (params,))
    if len(outputs.values) != 1 or len(shape_of(outputs.values[0])) != 1 or not shape_of(outputs.values[0])[0]:
        raise ValueError(f"fisher_vp: expected one loss a sample, (B,), got {', '.join(map(describe, outputs.values))}")
    along = push(inside, outputs, [d[None] for d in _like("fisher_vp", params, v)])[0]
    found = owned(pull(inside, outputs, [along / along.shape[1]]), [])
    return tree.unflatten(inside.structure, [d[0] for d in found])[0]


def _like(name: str, params: Any, v: Any) -> list[Any]:
    leaves, structure = tree.flatten(v)
    wanted, expected = tree.flatten(params)
    if structure != expected or any(shape_of(a) != shape_of(b) for a, b in zip(leaves, wanted, strict=True)):
        raise ValueError(f"{name}: expected v with the structure and shapes of the parameters")
    return leaves
