"""Products while a CUDA graph is made: cuBLAS gets operands as they lie, and CuPy gets its own functions back."""

import threading

import fakecuda
import numpy as np
import pytest
from standin import MODULE, DeviceArray

import gradlib as gl
from gradlib import cublas
from gradlib.kernels.launch import SIMULATED

RNG = np.random.default_rng(0)


@pytest.fixture
def gpu(monkeypatch):
    """`cupy.cuda`'s stand-in, with its cuBLAS."""
    cuda, cuda.cublas = fakecuda.install(monkeypatch)
    return cuda


SHAPES = [((2, 3), (3, 4)), ((2, 3), (3, 1)), ((1, 3), (3, 2)), ((5, 2, 3), (5, 3, 4)), ((5, 2, 3), (3, 4)),
          ((2, 3), (5, 3, 4)), ((2, 1, 2, 3), (1, 5, 3, 4)), ((1, 2, 3), (1, 3, 1))]  # fmt: skip
LAYOUTS = {
    "rows": lambda x: x.copy(),
    "columns": lambda x: x.swapaxes(-1, -2).copy().swapaxes(-1, -2),
    "strided": lambda x: np.repeat(x, 2, -1)[..., ::2],
}


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_products_go_to_cublas_as_they_lie(gpu, layout, dtype):
    with gpu.Stream(True) as stream, cublas.products_of_ours(MODULE, stream, kept := []):
        for a, b in SHAPES:
            a, b = (LAYOUTS[layout](RNG.standard_normal(s).astype(dtype)) for s in (a, b))
            x, y = DeviceArray(a), DeviceArray(b)
            out = MODULE.empty(np.matmul(a, b).shape, dtype)
            stream.begin_capture()
            results = MODULE.matmul(x, y), x @ y, MODULE.matmul(x, y, out)
            graph = stream.end_capture()
            before = len(gpu.cublas.calls)
            graph.launch(stream)
            for got in (*results, out):
                np.testing.assert_allclose(got.get(), np.matmul(a, b), rtol=16 * np.finfo(dtype).eps, atol=1e-3)
            assert results[2] is out and len(gpu.cublas.calls) == before
    assert len(kept) == 1 and kept[0].size == gpu.cublas.workspace[1] == 32 << 20
    transposed = {call[:2] for call in gpu.cublas.calls if call[-1] == 1}
    assert (1, 1) in transposed if layout == "columns" else (0, 0) in transposed


@pytest.mark.parametrize("shape", [(3, 3), (2, 3, 3)])
def test_a_product_may_be_written_over_its_factors(gpu, shape):
    """As with NumPy and CuPy: cuBLAS would read what it wrote."""
    a, b = RNG.standard_normal(shape), RNG.standard_normal(shape)
    x, y = DeviceArray(a.copy()), DeviceArray(b)
    with gpu.Stream(True) as stream, cublas.products_of_ours(MODULE, stream, []):
        stream.begin_capture()
        assert MODULE.matmul(x, y, x) is x
        graph = stream.end_capture()
    assert gpu.cublas.results[-1] != x.data.ptr
    graph.launch(stream)
    np.testing.assert_allclose(x.get(), a @ b, rtol=1e-14, atol=1e-14)


def test_our_product_is_gone_after_the_capture_even_if_kept(gpu):
    x, stream = MODULE.ones((2, 2)), gpu.Stream(True)
    with cublas.products_of_ours(MODULE, stream, []):
        kept = MODULE.matmul
    assert MODULE.matmul is not kept
    for f in (kept, MODULE.matmul, lambda a, b: a @ b):
        assert (f(x, x).get() == 2).all()
    assert not gpu.cublas.calls


def test_other_threads_products_stay_cupys(gpu):
    x, results = MODULE.ones((2, 2)), []
    with cublas.products_of_ours(MODULE, gpu.get_current_stream(), []):
        thread = threading.Thread(target=lambda: results.append((MODULE.matmul(x, x), x @ x)))
        thread.start()
        thread.join()
    assert [(y.get() == 2).all() for y in results[0]] == [True, True]
    assert not gpu.cublas.calls


def test_what_needs_no_cublas_stays_with_cupy(gpu):
    product = cublas.Product(MODULE, None, [])
    one = MODULE.ones
    for a, b in ((one((2, 2), int), one((2, 2), int)), (one((0, 3)), one((3, 2))), (one((1, 3)), one((3, 1))),
                 (one(3), one((3, 2))), (one((2, 3)), one((2, 3)))):  # fmt: skip
        assert product(a, b, None) is NotImplemented


def test_cupys_own_class_and_function_are_put_back():
    cupy = pytest.importorskip("cupy")
    matmul, operator = cupy.matmul, cupy.ndarray.__matmul__
    with cublas._set(cupy, "matmul", 1), cublas._set(cupy.ndarray, "__matmul__", 2):
        assert cupy.matmul == 1 and cupy.ndarray.__matmul__ == 2
    assert cupy.matmul is matmul and cupy.ndarray.__matmul__ == operator
    assert "__matmul__" not in vars(cupy.ndarray)


@pytest.mark.skipif(SIMULATED, reason="needs a GPU")
@pytest.mark.filterwarnings("error:gl.capture")
def test_on_a_real_gpu():
    cupy = pytest.importorskip("cupy")
    for a, b in SHAPES:
        a, b = (cupy.asarray(RNG.standard_normal(s)) for s in (a, b))
        product = gl.capture(np.matmul)
        for _ in range(3):
            np.testing.assert_allclose(product(a, b).get(), a.get() @ b.get(), rtol=1e-12, atol=1e-12)
