"""The Jacobian as a linear operator, never formed: products with it and with its transpose, a stack at a time."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from .. import tree
from ..device import adopt, array_module
from ..op import describe, shape_of
from ..precision import is_real, wide
from ..trace import Traced, module_of, raw
from ..transforms import Outputs, Primals, hvp, owned, pull, push, run
from ..transforms import _stack_of_one as stack_of_one
from .budget import budget
from .sides import WholeSide, entries, flat, join


class JacobianOperator:
    """∂f/∂x at one point as an operator of shape (M, N): M entries of f(x), N entries of x, pytrees flattened.

    f is run and recorded once; every product is a sweep. Where arrays live, vectors live: NumPy or CuPy.
    `J.matvec(v)` is J v, `J.rmatvec(u)` is Jᵀ u, `J.matmat(V)` takes the columns of V (N, k) in one stacked sweep;
    `J @ v`, `J.T`, `J.to_dense()`, and `J.to_scipy()` for scipy.sparse.linalg (or CuPy's counterpart). Its solvers take
    J itself too; `jac` of scipy.optimize.least_squares has to return `J.to_scipy()`, since SciPy asks for the class.
    `J.dtype` is that of x and of every product, `J.module` the module of the arrays. Products can be differentiated by
    their vector.

    Raises TypeError for x that is not floating point, for vectors that are complex or live elsewhere; ValueError for
    vectors of another length.

    >>> import gradlib as gl, numpy as np
    >>> J = gl.JacobianOperator(np.sin, np.zeros(3))
    >>> J.shape, J @ np.array([1.0, 2.0, 3.0])
    ((3, 3), array([1., 2., 3.]))
    """

    def __init__(self, f: Callable[..., Any], *x: Any) -> None:
        if not tree.flatten(x)[0]:
            raise ValueError("JacobianOperator: expected at least one array to differentiate by")
        self._set(*run("JacobianOperator", f, x)[:2])
        if is_traced(self._inside, self._outputs):
            raise TypeError("JacobianOperator: expected arrays, not values traced by an outer transform")

    @classmethod
    def over(cls, inside: Primals, outputs: Outputs) -> JacobianOperator:
        """The operator over what `run` has recorded."""
        self = object.__new__(cls)
        self._set(inside, outputs)
        return self

    def _set(self, inside: Primals, outputs: Outputs) -> None:
        self._inside, self._outputs, self._transposed = inside, outputs, False
        self.shape = (entries(outputs.values), entries(inside.leaves))
        self.dtype = np.result_type(*[x.dtype for x in inside.leaves])
        self.module = module_of(inside.leaves[0])

    def __repr__(self) -> str:
        return f"JacobianOperator(shape={self.shape}, dtype={self.dtype})"

    @property
    def T(self) -> JacobianOperator:
        """The transpose, sharing the record."""
        other = object.__new__(JacobianOperator)
        other.__dict__.update(self.__dict__, shape=self.shape[::-1], _transposed=not self._transposed)
        return other

    def matvec(self, v: Any) -> Any:
        """J v: (N,) -> (M,), or (N, 1) -> (M, 1).

        >>> import gradlib as gl, numpy as np
        >>> gl.JacobianOperator(np.square, np.array([1.0, 2.0])).matvec(np.ones(2))
        array([2., 4.])
        """
        return self._of_vector("matvec", v, self.shape[1], self._transposed)

    def rmatvec(self, u: Any) -> Any:
        """Jᵀ u: (M,) -> (N,), or (M, 1) -> (N, 1).

        >>> import gradlib as gl, numpy as np
        >>> gl.JacobianOperator(lambda x: x[:1] * x[1:], np.array([1.0, 2.0])).rmatvec(np.ones(1))
        array([2., 1.])
        """
        return self._of_vector("rmatvec", u, self.shape[0], not self._transposed)

    def matmat(self, v: Any) -> Any:
        """J V: (N, k) -> (M, k), one sweep with a stack of k.

        >>> import gradlib as gl, numpy as np
        >>> gl.JacobianOperator(np.square, np.array([1.0, 2.0])).matmat(np.eye(2))
        array([[2., 0.],
               [0., 4.]])
        """
        return self._apply(self._columns("matmat", v, 2, self.shape[1]), self._transposed).T

    def rmatmat(self, u: Any) -> Any:
        """Jᵀ U: (M, k) -> (N, k), one sweep with a stack of k.

        >>> import gradlib as gl, numpy as np
        >>> gl.JacobianOperator(lambda x: x[:1] * x[1:], np.array([1.0, 2.0])).rmatmat(np.ones((1, 2)))
        array([[2., 2.],
               [1., 1.]])
        """
        return self._apply(self._columns("rmatmat", u, 2, self.shape[0]), not self._transposed).T

    def __matmul__(self, v: Any) -> Any:
        return self.matvec(v) if len(shape_of(v)) == 1 else self.matmat(v)

    def to_dense(self, *, chunk_size: int | None = None, max_bytes: int | str | None = None) -> Any:
        """The array (M, N), swept from the side with fewer entries.

        `chunk_size` and `max_bytes` bound the rows (or columns) at once and the working memory, as for `gl.jacobian`.

        >>> import gradlib as gl, numpy as np
        >>> gl.JacobianOperator(lambda x: x[:1] * x[1:], np.array([1.0, 2.0])).to_dense()
        array([[2., 1.]])
        """
        allowed = budget("JacobianOperator.to_dense", chunk_size, max_bytes)
        if self._transposed:
            return self.T.to_dense(chunk_size=chunk_size, max_bytes=max_bytes).T
        side, dense, at = WholeSide(self._inside, self._outputs), self.module.empty(self.shape, self.dtype), 0
        for stack in side.flat_sweeps(allowed, result=prod(self.shape) * self.dtype.itemsize):
            where = slice(at, at + stack.shape[0])
            if side.forward:
                dense[:, where] = stack.T
            else:
                dense[where] = stack
            at = where.stop
        return dense

    def to_scipy(self) -> Any:
        """A scipy.sparse.linalg.LinearOperator, or CuPy's; in float32 where x is float16, which no solver takes.

        >>> import gradlib as gl, numpy as np
        >>> from scipy.optimize import least_squares
        >>> residuals = lambda p: np.exp(p) - np.array([1.0, np.e])
        >>> fit = least_squares(residuals, np.zeros(2), jac=lambda p: gl.JacobianOperator(residuals, p).to_scipy())
        >>> np.round(fit.x, 6)
        array([0., 1.])
        """
        if self.module is np:
            from scipy.sparse.linalg import LinearOperator
        else:
            from cupyx.scipy.sparse.linalg import LinearOperator
        return LinearOperator(
            self.shape,
            matvec=lambda v: wide(self.matvec(v.reshape(-1))),
            rmatvec=lambda u: wide(self.rmatvec(u.reshape(-1))),
            matmat=lambda v: wide(self.matmat(v)),
            rmatmat=lambda u: wide(self.rmatmat(u)),
            dtype=np.promote_types(self.dtype, np.float32),
        )

    def _of_vector(self, name: str, v: Any, length: int, back: bool) -> Any:
        """J (or, back, Jᵀ) times a vector, or times a matrix of one column, which solvers have too."""
        column = len(shape_of(v)) == 2 and v.shape[1] == 1
        found = self._apply(self._columns(name, v, 2 if column else 1, length), back)
        return found.T if column else found[0]

    def _columns(self, name: str, v: Any, ndim: int, length: int) -> Any:
        """The columns of v as a stack (k, length)."""
        v = adopt(v)
        shape = shape_of(v)
        if len(shape) != ndim or shape[0] != length:
            expected = f"({length},)" if ndim == 1 else f"({length}, k)"
            raise ValueError(f"JacobianOperator.{name}: expected an array of shape {expected}, got {describe(v)}")
        if array_module(raw(v)) is not self.module or not is_real(v.dtype):
            where = self.module.__name__
            raise TypeError(f"JacobianOperator.{name}: expected real numbers in an array of {where}, got {describe(v)}")
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
        return join([flat(d, 1) for d in found], axis=1).astype(self.dtype)


def is_traced(inside: Primals, outputs: Outputs) -> bool:
    """Whether a record is of values that an outer transform follows."""
    return any(type(v) is Traced for v in (*inside.leaves, *outputs.values))


def ggnvp(f: Callable[..., Any], loss: Callable[..., Any], params: Any, v: Any) -> Any:
    """Generalised Gauss-Newton matrix times v: Jᵀ H J v, with J = ∂f/∂params and H = ∂²loss/∂f² at f(params).

    f: params -> outputs. loss: outputs -> 0-d array. v: a pytree like params; so is the result. One pass ahead, one
    Hessian-vector product of the loss, one pass back. Where the loss is convex in the outputs the matrix has no
    negative eigenvalue. Raises ValueError for v of another structure or shape, TypeError for one of another device.

    Source: Schraudolph 2002, "Fast curvature matrix-vector products"; Martens 2010, "Deep learning via Hessian-free
    optimization".

    >>> import gradlib as gl, numpy as np
    >>> gl.ggnvp(lambda w: 3 * w, lambda y: np.sum(y**2), np.ones(2), np.array([1.0, 0.0]))
    array([18.,  0.])
    """
    inside, outputs, _ = run("ggnvp", f, (params,))
    tangents = _along("ggnvp", inside, params, v)
    y, dy = outputs.rebuilt(), tree.unflatten(outputs.structure, [d[0] for d in push(inside, outputs, tangents)])
    curved = tree.flatten(hvp(loss, (y,), (dy,)))[0]
    found = owned(pull(inside, outputs, [d[None] for d in curved]), [])
    return tree.unflatten(inside.structure, [d[0] for d in found])[0]


def fisher_vp(f: Callable[..., Any], loss: Callable[..., Any], params: Any, v: Any) -> Any:
    """Empirical Fisher matrix times v: mean over samples of g (gᵀ v), with g the gradient of each sample's loss.

    f: params -> outputs, batch first. loss: outputs -> (B,). v: a pytree like params; so is the result. One pass
    ahead (gᵀ v of every sample at once) and one back. Raises ValueError for v of another structure or shape and for
    losses that are not (B,), B > 0; TypeError for v of another device.

    Source: Kunstner, Balles & Hennig 2019, "Limitations of the empirical Fisher approximation" (arXiv:1905.12558).

    >>> import gradlib as gl, numpy as np
    >>> x = np.array([[1.0, 0.0], [0.0, 2.0]])
    >>> gl.fisher_vp(lambda w: x @ w, lambda y: y, np.zeros(2), np.ones(2))
    array([0.5, 2. ])
    """
    inside, outputs, _ = run("fisher_vp", lambda p: loss(f(p)), (params,))
    if len(outputs.values) != 1 or len(shape_of(outputs.values[0])) != 1 or not shape_of(outputs.values[0])[0]:
        raise ValueError(f"fisher_vp: expected one loss a sample, (B,), got {', '.join(map(describe, outputs.values))}")
    along = push(inside, outputs, _along("fisher_vp", inside, params, v))[0]
    found = owned(pull(inside, outputs, [along / along.shape[1]]), [])
    return tree.unflatten(inside.structure, [d[0] for d in found])[0]


def _along(name: str, inside: Primals, params: Any, v: Any) -> list[Any]:
    """The leaves of v as stacks of one, checked to be like those of the parameters."""
    leaves, structure = tree.flatten(v)
    if structure != tree.flatten(params)[1]:
        raise ValueError(f"{name}: expected v with the structure of the parameters, got {structure}")
    return [stack_of_one(name, "v", d, x) for d, x in zip(leaves, inside.leaves, strict=True)]
