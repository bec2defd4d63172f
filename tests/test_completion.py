"""Completing orthonormal columns: the rule, and that the completed matrix stays orthogonal."""

import numpy as np
import pytest
from rulecheck import close, randn

import gradlib as gl
from gradlib.ops.completion import _complement

FULL = np.linalg.qr(randn(4, 4))[0]


def test_the_rule_is_its_transpose():
    op, q, rest = _complement, FULL[:, :2], FULL[:, 2:]
    y, saved = op.forward(np, q, rest)
    rng = np.random.default_rng(0)
    for v in (0, 1, 3):
        dq, dy = rng.standard_normal((v, 4, 2)), rng.standard_normal((v, 4, 2))
        ahead, (back, none) = op.jvp(np, saved, (dq, None)), op.vjp(np, saved, dy, (True, False))
        assert ahead.shape == back.shape == (v, 4, 2) and none is None
        close(np.einsum("vij,vij->v", dy, ahead), np.einsum("vij,vij->v", back, dq), 1e-12)


@pytest.mark.parametrize("f", [lambda a: np.linalg.qr(a, "complete")[0], lambda a: np.linalg.svd(a)[0]])
def test_completed_matrices_stay_orthogonal(f):
    a, tangent = randn(4, 2), randn(4, 2, seed=1)

    def gram(a):
        q = f(a)
        return q.T @ q

    zero = np.zeros((4, 4))
    close(gl.jvp(gram, (a,), (tangent,))[1], zero, 1e-12)
    close(gl.jvp(lambda a: gl.jvp(gram, (a,), (tangent,))[1], (a,), (tangent,))[1], zero, 1e-10)
