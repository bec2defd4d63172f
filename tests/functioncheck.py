"""Checks of functions written with NumPy, as users write them: values, both modes, second order, against references."""

import numpy as np
import pytest
from rulecheck import TOLERANCE, RuleCheck, close

import gradlib as gl

STEP = 1e-6
FIRST = 5e-7  # central differences in float64, relative to the largest entry


def leaves(y):
    return list(y) if isinstance(y, (tuple, list)) else [y]


def differences(f, args, i):
    """The Jacobians of all results with respect to argument i, by central differences."""
    x = args[i]
    columns = []
    for k in range(x.size):
        d = np.zeros(x.size)
        d[k] = STEP
        ends = [leaves(f(*args[:i], x + s * d.reshape(x.shape), *args[i + 1 :])) for s in (1, -1)]
        columns.append([(np.asarray(a) - np.asarray(b)) / (2 * STEP) for a, b in zip(*ends, strict=True)])
    shapes = [np.shape(y) for y in leaves(f(*args))]
    return [
        np.stack([c[j] for c in columns], -1).reshape(*s, *x.shape) if columns else np.zeros((*s, *x.shape))
        for j, s in enumerate(shapes)
    ]


def check(f, *args, order=2, float32=True):
    """f(*args): NumPy's values and dtypes; jacrev = jacfwd = central differences; the same of its derivatives."""
    want, got = f(*args), gl.vjp(lambda *x: leaves(f(*x)), *args)[0]
    assert len(leaves(want)) == len(got)
    for a, b in zip(got, leaves(want), strict=True):
        assert np.asarray(a).dtype == np.asarray(b).dtype
        close(a, b, 1e-11, "value")
    for i in range(len(args)):
        back, ahead = (leaves(jacobian(lambda *x: leaves(f(*x)), i)(*args)) for jacobian in (gl.jacrev, gl.jacfwd))
        for r, a, d in zip(back, ahead, differences(f, args, i), strict=True):
            close(r, a, 1e-10, "reverse and forward mode")
            close(a, d, FIRST, "central differences")
    if order > 1:
        gl.check_grads(lambda *x: leaves(f(*x)), args, order=order, atol=2e-5, rtol=2e-5)
    if float32:
        check_float32(f, *args)
    strided = [np.repeat(x, 2, axis=-1)[..., ::2] if x.ndim else x for x in args]
    for a, b in zip(gl.vjp(lambda *x: leaves(f(*x)), *strided)[0], leaves(want), strict=True):
        close(a, b, 1e-11, "strided")


def check_product(f, *args):
    """f(*args), NumPy's value and shape; both modes to the last digits; second order."""
    y, want = gl.vjp(f, *args)[0], f(*args)
    assert y.shape == np.shape(want)
    np.testing.assert_allclose(y, want, rtol=1e-13)
    gl.check_grads(f, tuple(args), order=2)
    for argnum in range(len(args)):
        fwd, rev = (gl.jacobian(f, argnum, mode=m)(*args) for m in ("fwd", "rev"))
        assert fwd.shape == (*np.shape(want), *args[argnum].shape)
        np.testing.assert_allclose(fwd, rev, atol=1e-13)


def check_float32(f, *args):
    """The results have NumPy's dtype, the derivatives that of the arguments."""
    small = [x.astype(np.float32) for x in args]
    y, pullback = gl.vjp(lambda *x: leaves(f(*x)), *small)
    for a, b in zip(y, leaves(f(*small)), strict=True):
        assert np.asarray(a).dtype == np.asarray(b).dtype, f"{a.dtype}, NumPy gives {b.dtype}"
    ones = [np.ones_like(a) for a in y]
    exact = gl.vjp(lambda *x: leaves(f(*x)), *[x.astype(np.float64) for x in small])[1]
    wide = exact([np.ones(a.shape) for a in y])
    for d, w in zip(pullback(ones), wide, strict=True):
        assert d.dtype == np.float32
        close(d, w, 2e-3, "float32")


def against_jax(functions, x, tolerance=1e-8):
    """Scalar f(np, x): values, gradients and Hessians in both modes are JAX's in float64, all compiled as one."""
    import jax

    jax.config.update("jax_enable_x64", True)

    def theirs(x):
        return jax.numpy.stack([f(jax.numpy, x) for f in functions.values()])

    compiled = jax.jit(lambda x: (theirs(x), jax.jacrev(theirs)(x), jax.hessian(theirs)(x)))
    values, gradients, hessians = map(np.asarray, compiled(x))
    for i, (name, f) in enumerate(functions.items()):
        gradient = gl.grad(lambda x, f=f: f(np, x))
        close(np.asarray(f(np, x)), values[i], tolerance, name)
        close(gradient(x), gradients[i], tolerance, f"{name}: gradient")
        for jacobian in (gl.jacrev, gl.jacfwd):
            close(jacobian(gradient)(x), hessians[i], 10 * tolerance, f"{name}: Hessian")


class OneResult:
    """An op of several results seen as one of its i-th alone, so that RuleCheck can check it."""

    kernel = block = keep = None

    def __init__(self, op, i):
        self.op, self.i, self.name, self.batch, self.module = op, i, op.name, op.batch, op.module

    def __call__(self, *args, **static):
        return self.op(*args, **static)[self.i]

    def forward(self, xp, *args, **static):
        y, saved = self.op.forward(xp, *args, **static)
        return y[self.i], (y, *saved)

    def vjp(self, xp, saved, dy, need, **static):
        y, *rest = saved
        dys = [dy if j == self.i else xp.zeros((dy.shape[0], *p.shape), p.dtype) for j, p in enumerate(y)]
        return self.op.vjp(xp, tuple(rest), tuple(dys), need, **static)

    def jvp(self, xp, saved, dx, **static):
        return self.op.jvp(xp, tuple(saved[1:]), dx, **static)[self.i]


@pytest.mark.parametrize("dtype", ["float32"])
def float32_is_kept(self, case, dtype, monkeypatch):
    """RuleCheck's test of dtypes for ops on matrices: LAPACK takes float32 and float64 only."""
    monkeypatch.setitem(TOLERANCE, dtype, 5e-5)  # a few steps of rounding, times the condition number
    RuleCheck.test_dtype_is_kept(self, case, dtype)
