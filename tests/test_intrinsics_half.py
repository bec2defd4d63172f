"""How hardware reads float16 and bfloat16: the same LLVM code, compiled for this machine's CPU, on all 65,536 numbers.

In a process of its own, since the simulator takes the place of these intrinsics. How two numbers are rounded and packed
is an instruction of the GPU, `cvt.rn`, which tests on a GPU show.
"""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes
import ml_dtypes, numpy as np
from llvmlite import binding, ir
import gradlib.kernels.intrinsics
from gradlib.kernels.intrinsics_half import FLOAT, WORD, _widened

binding.initialize_native_target()
binding.initialize_native_asmprinter()
host = {"cpu": binding.get_host_cpu_name(), "features": binding.get_host_cpu_features().flatten()}
for name in ("float16", "bfloat16"):
    module = ir.Module()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [WORD, FLOAT.as_pointer()]), "widen")
    builder = ir.IRBuilder(function.append_basic_block())
    for k, value in enumerate(_widened(builder, name, function.args[0])):
        builder.store(value, builder.gep(function.args[1], [ir.Constant(WORD, k)]))
    builder.ret_void()
    machine = binding.Target.from_default_triple().create_target_machine(**host)
    engine = binding.create_mcjit_compiler(binding.parse_assembly(str(module)), machine)
    engine.finalize_object()
    widen = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_void_p)(engine.get_function_address("widen"))

    got = np.empty((65536, 2), np.float32)
    for low in range(65536):
        widen(low | (65535 - low) << 16, got.ctypes.data + 8 * low)
    numbers = np.arange(65536, dtype=np.uint16).view(np.dtype(name)).astype(np.float32)
    want = np.stack([numbers, numbers[::-1]], axis=1)
    nan = np.isnan(want)
    assert np.array_equal(np.isnan(got), nan), name
    assert np.array_equal(got[~nan].view(np.uint32), want[~nan].view(np.uint32)), name  # -0 too
"""


def test_all_numbers_are_widened_exactly():
    for package in ("ml_dtypes", "numba_cuda"):
        pytest.importorskip(package)
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=os.environ | {"NUMBA_ENABLE_CUDASIM": "0"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
