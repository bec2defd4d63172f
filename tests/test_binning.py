"""np.bincount with weights to differentiate."""

import numpy as np
import pytest
from functioncheck import check
from rulecheck import RuleCheck, randn

import gradlib as gl

IDS, W = np.array([3, 0, 3, 1, 3]), randn(5)
CALLS = {
    "bincount": (lambda w: np.bincount(IDS, weights=w) ** 2, W),
    "bincount minlength": (lambda w: np.bincount(IDS, w, 7), W),
    "bincount list": (lambda w: np.bincount([0, 0, 2, 1, 1], w), W),
    "bincount small ids": (lambda w: np.bincount(IDS.astype(np.uint8), w)[:2] + np.bincount(IDS > 0, w), W),
}
ERRORS = [
    (lambda: gl.grad(lambda w: np.bincount(IDS, w[1:]).sum())(W), ValueError, "bincount: … int64[5] and float64[4]"),
    (lambda: gl.grad(lambda w: np.bincount(-IDS, w).sum())(W), ValueError, "bincount: expected ids of at least 0"),
    (lambda: gl.grad(lambda w: np.bincount(W, w).sum())(W), TypeError, "bincount: expected ids of integers, got float"),
]


class TestErrors(RuleCheck):
    errors = ERRORS


@pytest.mark.parametrize("name", CALLS)
def test_numpy_conventions(name):
    check(*CALLS[name])


def test_no_ids():
    assert not gl.jacobian(lambda w: np.bincount(IDS[:0], w[:0], 3))(W).any()
    assert gl.vjp(lambda w: np.bincount([], w), W[:0])[0].shape == (0,)


def test_ids_of_each_sample():
    """Sums over samples mix them; ids that are the sample's own do not."""
    with pytest.raises(ValueError, match="mixes samples"):
        gl.batch_jacobian(lambda w: np.bincount(IDS * 0, w, 5))(W)
    np.testing.assert_array_equal(gl.jacobian(lambda w: np.bincount(IDS, w))(W), np.arange(4)[:, None] == IDS)


def test_a_replay_sees_ids_that_change_in_place():
    ids = IDS.copy()
    gradient = gl.grad(lambda w: np.sum(np.bincount(ids, w) ** 2))
    captured = gl.capture(gradient)
    captured(W)
    ids[0] = 1
    np.testing.assert_array_equal(captured(W), gradient(W))
    ids[0] = 4
    with pytest.raises(ValueError, match="bincount: expected a largest id of 3"):
        captured(W)
    with pytest.raises(TypeError, match=r"the length of np\.bincount of a value inside gl\.capture"):
        gl.capture(lambda w, ids: np.bincount(ids, w))(W, IDS)
