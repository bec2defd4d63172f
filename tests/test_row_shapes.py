"""Which kernel takes rows of which length: the smallest shape that holds them, no catalogued shape in vain, and none of
rows whose places 32 bits do not number."""

import numpy as np
import pytest

from gradlib.kernels import (
    cross_entropy,
    cross_entropy_rows,
    embedding,
    norm_rows,
    norm_sums,
    norms,
    softmax,
    softmax_masked_rows,
    softmax_rows,
)
from gradlib.kernels.launch import GRID_Z, blocks, dtype_of, vector_width

DTYPES = ("float16", "bfloat16", "float32", "float64")
LENGTHS = [2**k for k in range(15)]
FAMILIES = {  # kernels of ever longer rows
    "softmax": (softmax_rows.held_rows, softmax_rows.long_rows),
    "softmax's derivative": (softmax_rows.held_rows_derivative, softmax_rows.long_rows_derivative),
    "cross entropy": (cross_entropy_rows.held_loss, cross_entropy_rows.long_loss),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_shape_serves_some_length(family):
    kernels = FAMILIES[family]
    reached = set()
    for dtype, *rest in {(dtype, *kind[:-2]) for k in kernels for dtype, *kind in k.instances()}:
        for n in LENGTHS:
            if chosen := softmax_rows.holder(kernels, n, dtype_of(dtype), *rest):
                reached.add(chosen[0].name)
    assert reached == {k.name_of(key) for k in kernels for key in k.instances()}


@pytest.mark.parametrize("dtype", DTYPES)
def test_short_rows_take_few_lanes(dtype):
    """Lanes of a row and elements each: 64 numbers of 16 bits are four rows a warp."""
    kernel, lanes = softmax_rows.holder(FAMILIES["softmax"], 8, dtype_of(dtype), "softmax")
    assert lanes == 8 and kernel.name.endswith("-8-8" if dtype_of(dtype).itemsize == 2 else "-8-1")


@pytest.mark.parametrize(
    ("kernel", "groups"),
    [
        (norm_rows.held_forward, norm_rows.GROUPS),
        (norm_rows.long_forward, norm_rows.LONG),
        (norm_rows.held_derivative, norm_rows.GROUPS),
        (norm_sums.held_sums, norm_sums.GROUPS),
    ],
    ids=lambda x: getattr(x, "name", ""),
)
def test_every_shape_of_norms_serves_some_length(kernel, groups):
    kinds = {key[:-3] for key in kernel.instances()}
    found = {
        (*key, *group)
        for key in kinds
        for n in LENGTHS
        for wide in (False, True)
        if (group := norms._held(kernel, dtype_of(key[0]), key[1:], n, wide, groups))
    }
    assert found == set(kernel.instances())


@pytest.mark.parametrize("dtype", DTYPES)
def test_masked_rows_try_small_shapes_first(dtype):
    sizes = [np.prod(group) for group in softmax_masked_rows.groups_of(dtype)]
    assert sizes == sorted(set(sizes))


def test_rows_that_are_too_long_are_left_to_the_rule():
    """Views of one number."""
    x, label = np.broadcast_to(np.float32(0), (1, 2**30 + 1)), np.zeros(1, int)
    e, static = x[None], {"reduction": "mean", "ignore_index": None, "label_smoothing": 0.0}
    for op in (softmax.softmax, softmax.log_softmax):
        assert op.forward(np, x, axis=1) is NotImplemented
        assert op.vjp(np, (x,), e, (True,), axis=1) is NotImplemented
        assert op.jvp(np, (x,), (e,), axis=1) is NotImplemented
    assert softmax.logsumexp.forward(np, x, axis=1, keepdims=False) is NotImplemented
    assert softmax.masked_softmax.forward(np, x, axis=1, causal=False) is NotImplemented
    assert cross_entropy.cross_entropy.forward(np, x, label, **static) is NotImplemented
    assert cross_entropy.cross_entropy.vjp(np, (x, 2), x[0, :1], (True,), **static) is NotImplemented
    assert cross_entropy.cross_entropy.jvp(np, (x, 2), (e,), **static) is NotImplemented
    assert not norms.serves(x) and not embedding._serves(label, x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_widest_rows_fit_the_grid(dtype):
    assert blocks(norms.LONGEST, norm_sums.LANES * vector_width(dtype)) <= GRID_Z
    assert embedding._width(embedding.WIDEST, dtype_of(dtype), (32, "single")) <= GRID_Z
