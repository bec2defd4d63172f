"""Some of the kernels' tests as they run on a GPU: device arrays of their own, strided and misaligned like the host's.

All of them, which takes minutes: `GRADLIB_FAKE_GPU=1 pytest tests/test_kernel_*.py`.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gradlib.kernels.launch import SIMULATED

TESTS = Path(__file__).resolve().parent
CHOSEN = [
    "test_kernel_bias_dropout_add.py::test_what_is_left_to_the_rule",
    "test_kernel_embedding.py::test_forward_and_jvp[33-float32]",
    "test_kernel_half.py::test_strided_and_misaligned_input[bfloat16]",
    "test_kernel_half.py::test_ties_are_rounded_to_even",
    "test_kernel_jacobian_rows.py::test_strided_repeated_and_misaligned_factors",
    "test_kernel_layer_norm.py::test_forward[layer_norm-33-float32]",
    "test_kernel_linear.py::test_many_rows_are_added_block_by_block",
    "test_kernel_masked_softmax.py::test_forward[33-float32-True]",
    "test_kernel_network_jacobian.py::test_the_launch_asks_for_its_shared_memory",
    "test_kernel_reduce.py::test_forward[sum-shape0-axis0-float32]",
    "test_kernel_softmax.py::test_forward[33-float32]",
]


@pytest.mark.skipif(not SIMULATED, reason="a GPU is no stand-in")
def test_tests_pass_where_arrays_lie_on_a_device():
    command = [sys.executable, "-m", "pytest", "--import-mode=importlib", "-q", *CHOSEN]
    env = os.environ | {"GRADLIB_FAKE_GPU": "1"}
    done = subprocess.run(command, cwd=TESTS, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]


def test_identity_and_layout_are_kept(monkeypatch):
    import fakecuda
    import kernel_device

    fakecuda.install(monkeypatch)
    monkeypatch.setattr(kernel_device, "SIMULATED", False)
    x = np.arange(48, dtype="float32").reshape(6, 8)
    for a in (x, x[::-1, ::2], x.T, x.reshape(-1)[3:], x[1:, 1], np.broadcast_to(x[0], (3, 8)), x[:0]):
        twin = kernel_device.to(a)
        assert np.array_equal(twin.get(), a)
        assert not a.size or twin.strides == a.strides
        assert not a.size or twin.host.ctypes.data % 16 == a.ctypes.data % 16

    def rule(xp, x, y):
        total = x + y
        return x, [y, total], total

    y = x[:, :1]
    first, (second, total), again = kernel_device.call(rule, x, y)
    assert first is x and second is y and total is again
    np.testing.assert_array_equal(total, x + y)

    def spoils(xp, x):
        x.fill(0)

    with pytest.raises(AssertionError, match="an input was changed"):
        kernel_device.call(spoils, x)
