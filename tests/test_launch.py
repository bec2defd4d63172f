"""Declaring and launching kernels: the catalogue, the arguments, the GPU path against a stand-in for CuPy."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from gradlib.kernels import launch, launchers
from gradlib.kernels.launch import SIMULATED, CudaKernel, Launchable, aligned, blocks, empty, pointer, simulate, takes

simulated = pytest.mark.skipif(not SIMULATED, reason="needs the simulator")


def _kernel():
    """A kernel outside the catalogue: y = factor * x."""
    from gradlib.kernels.intrinsics import cuda, int64

    def scaled(T, factor):
        def body(x: pointer(T), y: pointer(T), n: int64):
            i = int64(cuda.blockIdx.x) * int64(cuda.blockDim.x) + int64(cuda.threadIdx.x)
            if i < n:
                y[i] = T(factor) * x[i]

        return body

    return CudaKernel(scaled, ("float32", "float64"), ((2,), (3,)), {})


def test_instances_are_made_once_and_only_as_declared():
    kernel = _kernel()
    assert kernel["float32", 2] is kernel["float32", 2]
    assert kernel[np.dtype("float64"), 3].name == "test_launch.scaled-float64-3"
    assert kernel.instances() == [("float32", 2), ("float32", 3), ("float64", 2), ("float64", 3)]
    with pytest.raises(KeyError, match=r"scaled.*float16"):
        kernel["float16", 2]
    with pytest.raises(KeyError, match="scaled"):
        kernel["float32", 4]


def test_catalogue_refuses_a_name_twice(monkeypatch):
    monkeypatch.setattr(launch, "CATALOGUE", {})

    def declare():
        @launch.cuda_kernel()
        def twice(T):
            raise AssertionError("made too early")

    declare()
    with pytest.raises(ValueError, match="twice"):
        declare()


@simulated
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_simulated_launch(dtype):
    x, y = np.arange(5, dtype=dtype), np.full(5, np.nan, dtype)
    with simulate():
        _kernel()[dtype, 3](blocks(5, 2), 2, x, y, 5)
    np.testing.assert_array_equal(y, 3 * x)


@simulated
def test_empty_grid_is_no_launch():
    nothing = np.ones(0, "float32")
    with simulate():
        _kernel()["float32", 2](blocks(0, 32), 32, nothing, nothing, 0)


@simulated
def test_bad_arguments_name_kernel_and_parameter():
    kernel, x = _kernel()["float32", 2], np.ones(4, "float32")
    with simulate():
        with pytest.raises(TypeError, match=r"scaled.*x must be contiguous float32, got float64"):
            kernel(1, 32, x.astype(float), x, 4)
        with pytest.raises(TypeError, match=r"y must be contiguous"):
            kernel(1, 32, x, x[::2], 2)
        with pytest.raises(TypeError, match="3 arguments expected, got 2"):
            kernel(1, 32, x, x)


@simulated
def test_simulate_is_switched_off_again():
    assert not launch.simulating()
    with pytest.raises(ZeroDivisionError), simulate():
        assert launch.simulating()
        raise ZeroDivisionError
    assert not launch.simulating()


def test_simulate_without_the_simulator_says_what_to_do(monkeypatch):
    monkeypatch.setattr(launch, "SIMULATED", False)
    with pytest.raises(RuntimeError, match="NUMBA_ENABLE_CUDASIM=1"), simulate():
        pass


class DeviceArray:
    """What the launcher asks of a CuPy array."""

    def __init__(self, n, dtype, address, device=0):
        self.dtype, self.flags, self.strides = np.dtype(dtype), SimpleNamespace(c_contiguous=True), (1,)
        self.size, self.data = n, SimpleNamespace(ptr=address, device_id=device)


@pytest.fixture
def cupy(monkeypatch):
    """A stand-in for CuPy on a machine with two devices; `log` is what it was asked to do."""
    log, device = [], SimpleNamespace(id=0, compute_capability="90")

    class Module:
        def load(self, cubin):
            log.append(("load", cubin))

        def get_function(self, entry):
            return lambda grid, block, args: log.append((entry, grid, block, args))

    runtime = SimpleNamespace(getDevice=lambda: device.id)
    cuda = SimpleNamespace(Device=lambda number: device, Module=Module, runtime=runtime)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda))
    monkeypatch.setattr("gradlib.kernels.cache.cubin_of", lambda k, cc: (f"entry{cc}", f"{k.name}{cc}".encode()))
    return SimpleNamespace(log=log, device=device)


def test_gpu_launch_compiles_once_a_device(cupy):
    kernel, x, y = _kernel()["float32", 2], DeviceArray(4, "float32", 512), DeviceArray(4, "float32", 1024)
    kernel(3, 64, x, y, 4)
    kernel((5, 2), 64, x, y, 4)
    cupy.device.id, cupy.device.compute_capability = 1, "100"
    kernel(1, 64, *[DeviceArray(4, "float32", 512, device=1)] * 2, 4)
    loads = [cubin for what, cubin, *_ in cupy.log if what == "load"]
    assert loads == [b"test_launch.scaled-float32-2(9, 0)", b"test_launch.scaled-float32-2(10, 0)"]
    launches = [entry for entry in cupy.log if entry[0] != "load"]
    assert [(entry, grid, block) for entry, grid, block, _ in launches] == [
        ("entry(9, 0)", (3,), (64,)),
        ("entry(9, 0)", (5, 2), (64,)),
        ("entry(10, 0)", (1,), (64,)),
    ]
    assert launches[0][3][:2] == (x, y)
    assert isinstance(launches[0][3][2], np.int64)


def test_gpu_launch_checks_arguments_first(cupy):
    x = DeviceArray(4, "float64", 512)
    with pytest.raises(TypeError, match="float32"):
        _kernel()["float32", 2](1, 32, x, x, 4)
    assert cupy.log == []


def test_an_array_on_another_device_is_named(cupy):
    x, y = DeviceArray(4, "float32", 512), DeviceArray(4, "float32", 512, device=1)
    with pytest.raises(ValueError, match=r"scaled.*y lies on device 1, the current one is 0"):
        _kernel()["float32", 2](1, 32, x, y, 4)
    assert [what for what, *_ in cupy.log if what != "load"] == []


def test_a_driver_that_refuses_a_kernel_is_named(cupy):
    def load(self, cubin):
        raise RuntimeError("CUDA_ERROR_UNSUPPORTED_PTX_VERSION")

    sys.modules["cupy"].cuda.Module.load = load
    sys.modules["cupy"].cuda.runtime.driverGetVersion = lambda: 12040
    x = DeviceArray(4, "float32", 512)
    with pytest.raises(RuntimeError, match=r"scaled.*knows CUDA 12\.4,.*compute capability 9\.0: CUDA_ERROR.*update"):
        _kernel()["float32", 2](1, 32, x, x, 4)


@pytest.fixture
def core(cupy, monkeypatch):
    """A stand-in for cuda.core beside CuPy's, chosen; `log` is what it was asked to do."""
    log = []
    kernel = SimpleNamespace(handle="handle")
    code = SimpleNamespace(get_kernel=lambda entry: log.append(("kernel", entry)) or kernel)
    module = SimpleNamespace(
        Device=lambda number: SimpleNamespace(set_current=lambda: log.append(("current", number))),
        LaunchConfig=lambda **config: config,
        ObjectCode=SimpleNamespace(from_cubin=lambda cubin: log.append(("load", cubin)) or code),
        Stream=SimpleNamespace(from_handle=lambda ptr: ("stream", ptr)),
        launch=lambda *what: log.append(("launch", *what)),
    )
    driver = SimpleNamespace(
        CUfunction_attribute=SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES="most"),
        cuKernelSetAttribute=lambda *what: log.append(("set", *what)) or (int(what[1] > 1 << 18),),
    )
    sys.modules["cupy"].cuda.get_current_stream = lambda: SimpleNamespace(ptr=77)
    monkeypatch.setitem(sys.modules, "cuda.core", module)
    monkeypatch.setitem(sys.modules, "cuda.bindings", SimpleNamespace(driver=driver))
    monkeypatch.setattr(launchers, "LAUNCHER", "cuda.core")
    monkeypatch.setattr(launchers, "_thread", SimpleNamespace())
    return SimpleNamespace(log=log, kernel=kernel)


def test_cuda_core_launches_on_cupys_stream(core, cupy):
    launch, x, y = _kernel()["float32", 2], DeviceArray(4, "float32", 512), DeviceArray(4, "float32", 1024)
    launch((5, 2), 64, x, y, 4)
    launch((5, 2), 64, x, y, 4)
    once = {"grid": (5, 2), "block": (64,), "shmem_size": 0}
    assert core.log[:3] == [("current", 0), ("load", b"test_launch.scaled-float32-2(9, 0)"), ("kernel", "entry(9, 0)")]
    assert core.log[3:] == [("launch", ("stream", 77), once, core.kernel, 512, 1024, 4)] * 2
    assert isinstance(core.log[3][-1], np.int64) and cupy.log == []


def test_cuda_core_launches_with_shared_memory(core, monkeypatch):
    from gradlib.kernels import network_jacobian

    monkeypatch.setattr(network_jacobian, "device_machine", lambda device: SimpleNamespace(block_bytes=200_000))
    x = DeviceArray(4, "float32", 512)
    sized = network_jacobian._Sized(_kernel()["float32", 2], 60_000)
    for _ in range(2):
        sized(3, 64, x, x, 4)
    assert [entry for entry in core.log if entry[0] == "set"] == [("set", "most", 200_000, "handle", 0)]
    assert [entry[2]["shmem_size"] for entry in core.log if entry[0] == "launch"] == [60_000] * 2
    with pytest.raises(RuntimeError, match="300000 bytes of shared memory are refused"):
        launchers.allow_shared(sized.plain._function()[1], 300_000)


def test_the_launcher_can_change_and_must_be_known(core, cupy, monkeypatch):
    launch, x = _kernel()["float32", 2], DeviceArray(4, "float32", 512)
    for name in ("cuda.core", "cupy", "cuda.core"):
        monkeypatch.setattr(launchers, "LAUNCHER", name)
        launch(1, 32, x, x, 4)
    assert [what for what, *_ in core.log].count("launch") == 2
    assert [what for what, *_ in cupy.log] == ["load", "entry(9, 0)"]
    monkeypatch.setattr(launchers, "LAUNCHER", "numba")
    with pytest.raises(ValueError, match=r"GRADLIB_LAUNCHER: expected one of cupy, cuda\.core, got 'numba'"):
        launch(1, 32, x, x, 4)
    monkeypatch.setattr(launchers, "LAUNCHER", "cuda.core")
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    with pytest.raises(RuntimeError, match=r"GRADLIB_LAUNCHER=cuda\.core needs that package"):
        _kernel()["float32", 3](1, 32, x, x, 4)


def test_cuda_cores_api_is_what_the_stand_in_shows():
    core = pytest.importorskip("cuda.core")
    driver = pytest.importorskip("cuda.bindings.driver")
    handler = pytest.importorskip("cuda.core._kernel_arg_handler")
    config = core.LaunchConfig(grid=(5, 2), block=(64,), shmem_size=60_000)
    assert config.grid == (5, 2, 1) and config.block == (64, 1, 1) and config.shmem_size == 60_000
    assert [int(core.Stream.from_handle(ptr).handle) for ptr in (0, 77)] == [0, 77]
    handler.ParamHolder([2**40, np.int32(1), np.int64(1), np.float32(1), np.float64(1), np.uint8(1), np.uint32(1)])
    assert callable(core.ObjectCode.from_cubin) and callable(core.ObjectCode.get_kernel) and callable(core.launch)
    assert hasattr(core.Kernel, "handle") and callable(core.Device.set_current)
    assert driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES == 8
    assert callable(driver.cuKernelSetAttribute)


def test_a_table_goes_to_the_device_as_a_graph_wants_it():
    device = SimpleNamespace(asarray=lambda x: ("at once", x))
    assert launch.upload(device, 3) == ("at once", 3)
    token = launch.UPLOAD.set(lambda x: ("for good", x))
    assert launch.upload(device, 3) == ("for good", 3)
    launch.UPLOAD.reset(token)


def test_no_room_says_what_was_asked_and_what_is_free():
    def full(shape, dtype):
        raise MemoryError("out of memory")

    pool = SimpleNamespace(free_bytes=lambda: 500)
    cuda = SimpleNamespace(runtime=SimpleNamespace(memGetInfo=lambda: (1500, 10_000)))
    device = SimpleNamespace(empty=full, cuda=cuda, get_default_memory_pool=lambda: pool)
    with pytest.raises(
        MemoryError, match=r"float32\[1000, 3\] of 12,000 bytes: of the GPU's 10,000 bytes 2,000 are free"
    ):
        empty(device, (1000, 3), "float32")
    with pytest.raises(MemoryError, match=r"no room for a result float64\[2\] of 16 bytes$"):
        empty(SimpleNamespace(empty=full), (2,), float)


def test_alignment_and_takes():
    x = np.empty(64, np.uint8)
    first = -x.ctypes.data % 16
    assert aligned(x[first:], None)
    assert not aligned(x[first:], x[first + 4 :])
    assert aligned(DeviceArray(1, "float32", 512)) and not aligned(DeviceArray(1, "float32", 520))
    a, b = np.ones(2, "float32"), np.ones(2)
    assert takes(a, None, a) and takes(b)
    assert not takes(a, b) and not takes(np.ones(2, "float16")) and not takes(2.0) and not takes(np.float32(2))


@simulated
def test_empty_is_poisoned_in_the_simulator():
    with simulate():
        assert np.isnan(empty(np, 3, "float32")).all()


def test_blocks():
    assert [blocks(n, 4) for n in (0, 1, 4, 5, 2**40)] == [0, 1, 1, 2, 2**38]


def test_importing_gradlib_loads_no_gpu_stack():
    code = "import gradlib, gradlib.kernels.launch, sys; print({'numba', 'cupy', 'greenlet'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_launchable_reads_its_signature_from_annotations():
    def body(x: pointer(np.float32), n: np.int32):
        pass

    launchable = Launchable("k", body)
    assert [name for name, _ in launchable.parameters] == ["x", "n"]
