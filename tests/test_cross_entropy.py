"""Cross-entropy: rules, both orders of mean and mask, extreme logits, bad labels."""

import mpmath
import numpy as np
import pytest
from rulecheck import Case, RuleCheck, close, randn
from standin import MODULE, rules_only, to_numpy, to_standin

import gradlib as gl
from gradlib.op import REGISTRY

OP = REGISTRY["cross_entropy"]
LABELS = np.array([2, 0, 1])


def _case(reduction, *, shape=(3, 4), labels=LABELS, ignore=None, smoothing=0.0):
    return Case(OP, (randn(*shape), labels), reduction=reduction, ignore_index=ignore, label_smoothing=smoothing)


CASES = [_case(r, ignore=i, smoothing=s) for r in ("mean", "sum", "none") for i in (None, 0) for s in (0.0, 0.1)]
CASES += [
    _case("none", shape=(3, 1), labels=np.zeros(3, int)),
    _case("mean", shape=(2, 2, 3), labels=np.array([[0, 2], [1, -100]]), ignore=-100),
    _case("none", shape=(3,), labels=np.array(1)),
    _case("mean", shape=(1, 33), labels=np.array([32], np.int32)),
    _case("none", shape=(0, 3), labels=np.zeros(0, int)),
    _case("sum", shape=(0, 3), labels=np.zeros(0, int)),
    _case("none", shape=(2, 3), labels=np.array([1, 1]), ignore=1),
    _case("none", smoothing=1.0),
]
ERRORS = [
    (lambda: _loss(np.arange(3), 0), TypeError, "cross_entropy: expected"),
    (lambda: _loss([[1.0]], [0]), TypeError, "cross_entropy: expected"),
    (lambda: _loss(np.ones((2, 3)), np.array([0.0, 1.0])), TypeError, "cross_entropy: expected … float64[2]"),
    (lambda: _loss(np.ones((2, 3)), np.array(["a", "b"])), TypeError, "cross_entropy: expected … <U1[2]"),
    (
        lambda: _loss(np.ones((2, 3)), np.array([0, 1, 2])),
        ValueError,
        "cross_entropy: expected labels of shape (2,)",
    ),
    (lambda: _loss(np.ones((2, 3)), np.array([0, 3])), ValueError, "label 3 is out of range for 3 classes"),
    (lambda: _loss(np.ones((2, 3)), np.array([0, -1])), ValueError, "label -1 is out of range"),
    (lambda: _loss(np.ones((2, 3)), np.array([0, -1]), ignore_index=-2), ValueError, "label -1 is out of range"),
    (lambda: _loss(np.ones((2, 3)), np.array([1, 1]), ignore_index=1), ValueError, "every label is ignore_index 1"),
    (lambda: _loss(np.ones((0, 3)), np.zeros(0, int)), ValueError, "mean over an empty batch"),
    (lambda: _loss(np.ones((2, 0)), np.zeros(2, int)), ValueError, "at least one class"),
    (lambda: _loss(np.ones((1, 3)), np.array([0]), reduction="max"), ValueError, "reduction … got 'max'"),
    (lambda: _loss(np.ones((1, 3)), np.array([0]), label_smoothing=1.5), ValueError, "label_smoothing … 1.5"),
]


class TestRules(RuleCheck):
    cases = CASES
    errors = ERRORS


def _loss(logits, labels, **how):
    return gl.cross_entropy(logits, labels, **how)


def _exact(x, label, smoothing):
    with mpmath.workdps(30):
        row = [mpmath.mpf(float(v)) for v in x]
        total = mpmath.log(mpmath.fsum(map(mpmath.exp, row)))
        q = [(1 - smoothing) * (c == label) + smoothing / len(row) for c in range(len(row))]
        return float(mpmath.fsum(w * (total - v) for w, v in zip(q, row, strict=True) if w))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_value_against_mpmath(smoothing):
    x = np.array([[1e4, -1e4, 0.5], [0.1, 0.2, 0.3], [-1e4, -1e4, 3]])
    for label in range(3):
        want = [_exact(row, label, smoothing) for row in x]
        for dtype, eps in (("float64", 1e-15), ("float32", 1e-6)):
            got = _loss(x.astype(dtype), np.full(3, label), reduction="none", label_smoothing=smoothing)
            np.testing.assert_allclose(got, want, rtol=4 * eps, atol=4 * eps)


def test_masked_logits():
    x, labels = np.array([[-np.inf, 1.0, 2.0], [3.0, -np.inf, -np.inf]]), np.array([1, 0])
    value, dx = gl.value_and_grad(_loss)(x, labels)
    close(float(value), (np.log1p(np.e) + 0) / 2, 1e-15)
    p = 1 / (1 + np.e)
    close(dx, np.array([[0, p - 1, 1 - p], [0, 0, 0]]) / 2, 1e-15)
    assert _loss(x, np.array([0, 0]), reduction="none").tolist()[0] == np.inf


def test_the_mean_counts_only_rows_that_are_not_ignored():
    x, labels = randn(4, 3), np.array([0, -1, 2, -1])
    rows = _loss(x, labels, reduction="none", ignore_index=-1)
    assert rows[[1, 3]].tolist() == [0, 0]
    close(float(_loss(x, labels, ignore_index=-1)), rows.sum() / 2, 1e-15)
    dx = gl.grad(lambda x: _loss(x, labels, ignore_index=-1))(x)
    assert (dx[[1, 3]] == 0).all() and (dx[[0, 2]] != 0).all()


def test_ignored_rows_may_hold_anything():
    x = np.array([[1.0, 2.0], [np.nan, np.inf]])
    value, dx = gl.value_and_grad(lambda x: _loss(x, np.array([0, 9]), ignore_index=9))(x)
    assert np.isfinite(value) and np.isfinite(dx).all()


def test_it_is_the_composition():
    x = randn(3, 4)

    def composed(x):
        return -np.mean(gl.log_softmax(x)[np.arange(3), LABELS])

    for f in (gl.grad, gl.hessian):
        close(f(lambda x: _loss(x, LABELS))(x), f(composed)(x), 1e-14)


def test_unsigned_labels_and_a_long_text_in_float16():
    logits = np.zeros((3, 4))
    for kind in "bBhHiIlLqQ":
        assert gl.cross_entropy(logits, np.array([0, 3, 1], kind)) == pytest.approx(np.log(4))
    long = gl.cross_entropy(np.zeros((100_000, 4), np.float16), np.zeros(100_000, int))
    assert long.dtype == np.float16 and long == pytest.approx(np.log(4), rel=1e-3)


BAD = np.array([1, 3, -1, 2])  # the middle ones are no classes of three


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("ignore", [None, -1])
def test_on_a_device_a_label_that_is_no_class_gives_nan(reduction, ignore):
    x = randn(4, 3)
    static = {"reduction": reduction, "ignore_index": ignore, "label_smoothing": 0.1}
    good = OP.forward(np, x, np.where((BAD < 0) | (BAD > 2), 0, BAD), **static | {"reduction": "none"})
    wrong = np.array([False, True, ignore is None, False])
    with rules_only():
        y, (g, _) = to_numpy(OP.forward(MODULE, *to_standin((x, BAD)), **static))
    assert np.isnan(g[wrong]).all()
    close(g[[0, 3]], good[1][0][[0, 3]], 1e-15)
    if reduction == "none":
        assert np.isnan(y[wrong]).all()
        close(y[[0, 3]], good[0][[0, 3]], 1e-15)
    else:
        assert np.isnan(y)
    if ignore is not None:
        assert (g[2] == 0).all()


def test_on_a_device_nothing_waits_for_the_labels(monkeypatch):
    x, labels = to_standin((randn(4, 3), BAD))

    def read(self, *args):
        raise AssertionError("waits for the device")

    def both(x):
        first = gl.value_and_grad(_loss)(x, labels, ignore_index=-1)
        return first, gl.grad(lambda x: gl.grad(_loss)(x, labels)[0, 0])(x)

    with rules_only(), monkeypatch.context() as m:
        for name in ("__bool__", "__int__", "__float__", "get", "item"):
            m.setattr(type(x), name, read)
        (value, dx), second = both(x)
    assert np.isnan(value.get()) and np.isnan(dx.get()).any(1).tolist() == [False, True, False, False]
    close(second.get()[0], gl.grad(lambda x: gl.grad(_loss)(x, np.array([1, 0, 0, 2]))[0, 0])(x.get())[0], 1e-15)


def test_on_a_device_detect_anomaly_checks_labels():
    x, labels = to_standin((randn(4, 3), BAD))
    with rules_only(), gl.detect_anomaly(), pytest.raises(ValueError, match="label 3 is out of range for 3 classes"):
        _loss(x, labels)
    with rules_only(), gl.detect_anomaly(), pytest.raises(ValueError, match="every label is ignore_index 3"):
        _loss(x, to_standin(np.full(4, 3)), ignore_index=3)


def test_on_a_device_a_mean_over_no_row_is_nan_with_a_gradient_of_zero():
    x, labels = to_standin((randn(4, 3), np.full(4, 3)))
    with rules_only(), np.errstate(invalid="ignore"):
        value, dx = gl.value_and_grad(_loss)(x, labels, ignore_index=3)
    assert np.isnan(value.get()) and (dx.get() == 0).all()
