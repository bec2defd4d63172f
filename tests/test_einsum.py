"""einsum: rules of any letters, NumPy's conventions, and what is recorded as a product of matrices."""

import numpy as np
import pytest
from functioncheck import check_product
from rulecheck import Case, RuleCheck, randn

import gradlib as gl
from gradlib.op import REGISTRY

EINSUM = REGISTRY["einsum"]
EINSUMS = [
    (("ij", "jk"), "ik", ((2, 3), (3, 2))),
    (("ij", "ij"), "ij", ((2, 3), (2, 3))),
    (("bij", "bjk"), "kbi", ((2, 2, 3), (2, 3, 1))),
    (("a", "b", "c"), "cab", ((2,), (3,), (2,))),
    (("ij",), "ji", ((2, 3),)),
    (("i", "i"), "", ((3,), (3,))),
    (("ij", "jk"), "ik", ((0, 3), (3, 2))),
    (("VW", "WX"), "VX", ((2, 2), (2, 2))),
]


CASES = [
    Case(EINSUM, [randn(*s, seed=i) for i, s in enumerate(shapes)], terms=terms, out=out)
    for terms, out, shapes in EINSUMS
]
ERRORS = [
    (lambda: gl.grad(lambda x: np.einsum("ij->i", x).sum())(np.ones(3)), ValueError, "einsum: term 'ij'"),
    (lambda: gl.grad(lambda x: np.einsum("i,j", x))(np.ones(3)), ValueError, "einsum: 2 terms … 1 arguments"),
    (
        lambda: gl.grad(lambda x: np.einsum("i,i", x, np.ones(4)))(np.ones(3)),
        ValueError,
        "einsum: letter 'i' of 'i,i' has sizes 3 and 4",
    ),
]


class TestRules(RuleCheck):
    cases = CASES
    errors = ERRORS


A, B, U, T = randn(3, 4), randn(4, 2), randn(4), randn(2, 3, 4)
CALLS = {
    "implicit": (lambda a, b: np.einsum("ij,jk", a, b), A, B),
    "trace": (lambda t: np.einsum("iij->j", t[:, :2]), T),
    "diagonal": (lambda t: np.einsum("ii->i", t[0][:, :3]), T),
    "lone letters": (lambda t, a: np.einsum("bij,ik->b", t, a), T, A),
    "dots": (lambda t, b: np.einsum("...j,jk->...k", t, b), T, B),
    "dots both": (lambda t, a: np.einsum("...j,...j", t, a), T, A),
    "dots summed": (lambda t: np.einsum("i...->...", t), T),
    "one broadcast": (lambda a, c: np.einsum("ij,ij->j", a, c[:1]), A, A),
    "three": (lambda a, b, u: np.einsum("ij,jk,j->ki", a, b, u), A, B, U),
    "of two letters": (lambda t, a: np.einsum("bij,ij->b", t, a), T, A),
    "into two letters": (lambda b, t: np.einsum("ik,hdi->khd", b, t), B, T),
    "weights first": (lambda b, t: np.einsum("ik,bji->bjk", b, t), B, T),
    "in another order": (lambda t, b: np.einsum("bji,ik->kjb", t, b), T, B),
    "beside each other": (lambda t, a: np.einsum("bji,jik->bjk", t, a[:, :, None] * np.ones(2)), T, A),
    "of no entries": (lambda t, b: np.einsum("bji,ik->bjk", t, b), T[:0], B),
}


@pytest.mark.parametrize("name", CALLS)
def test_numpy_conventions(name):
    check_product(*CALLS[name])


PRODUCTS = {
    "btd,dhk->bthk": ((5, 3, 4), (4, 2, 3)),
    "dhk,btd->bthk": ((4, 2, 3), (5, 3, 4)),
    "bthk,hkd->btd": ((5, 3, 2, 4), (2, 4, 3)),
    "bi,oi->bo": ((5, 4), (3, 4)),
    "...i,i": ((5, 3, 4), (4,)),
}
SIDE_BY_SIDE = {"bthd,hde->bthe": ((5, 3, 2, 4), (2, 4, 3)), "bi,i->bi": ((5, 4), (4,)), "bi,j->bij": ((5, 4), (3,))}


@pytest.mark.parametrize("letters", [*PRODUCTS, *SIDE_BY_SIDE])
def test_weights_of_a_sum_over_letters(letters):
    """Gradients and their norms of every sample, by the weights; of products without the work for all samples."""
    shapes = (PRODUCTS | SIDE_BY_SIDE)[letters]
    first = shapes[0][0] == 5
    x, w = (randn(*s, seed=k) for k, s in enumerate(shapes if first else shapes[::-1]))

    def loss(w, x):
        y = np.einsum(letters, *((x, w) if first else (w, x)))
        return np.sum(np.sin(y).reshape(len(x), -1), axis=1)

    got = gl.per_sample_grad(loss)(w, x)
    want = np.stack([gl.grad(lambda w, b=b: np.sum(loss(w, x[b : b + 1])))(w) for b in range(5)])
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-13)
    norms = np.linalg.norm(want.reshape(5, -1), axis=1)
    np.testing.assert_allclose(gl.per_sample_norms(loss)(w, x), norms, rtol=1e-12)
    names = {op for op in ("einsum", "matmul") if f" {op}" in str(gl.trace(loss, w, x))}
    assert names == ({"matmul"} if letters in PRODUCTS else {"einsum"})


def test_a_layer_of_letters_is_part_of_a_chain():
    w, v, x = randn(4, 2, 3), randn(2, 3, 5), randn(6, 4)

    def f(x):
        return np.tanh(np.einsum("bhk,hkd->bd", np.tanh(np.einsum("bd,dhk->bhk", x, w)), v))

    got, plan = gl.batch_jacobian(f)(x), gl.batch_jacobian(f).plan(x)
    want = np.stack([gl.jacobian(lambda row: f(row[None])[0])(row) for row in x])
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-14)
    assert sum("shared matrix" in block for block in plan.blocks) == 2, plan.blocks
