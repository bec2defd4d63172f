"""gl.capture on a GPU, here on a stand-in for it: a CUDA graph, whose launches equal the function to the bit."""

import gc
import threading
import warnings
import weakref
from types import SimpleNamespace

import fakecuda
import numpy as np
import pytest
from standin import MODULE, rules_only

import gradlib as gl
from gradlib.cuda_graph import GraphReplay, graphed
from gradlib.kernels.launch import SIMULATED

RNG = np.random.default_rng(0)
NET = gl.nn.Sequential(gl.nn.Linear(6, 5), gl.nn.ReLU(), gl.nn.Dropout(0.3), gl.nn.Linear(5, 3))
kernels = pytest.mark.skipif(not SIMULATED, reason="kernels run in the simulator here")


@pytest.fixture
def gpu(monkeypatch):
    """`cupy.cuda`'s stand-in; a replay that makes no graph is an error."""
    cuda, cuda.cublas = fakecuda.install(monkeypatch)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="gl.capture")
        yield cuda
    assert not any(stream.is_capturing() for stream in cuda.all_streams) and len(cuda.streams) == 1


@pytest.fixture
def rules():
    with rules_only():
        yield


def on_gpu(tree, module=MODULE):
    leaves, structure = gl.tree.flatten(tree)
    return gl.tree.unflatten(structure, [module.asarray(x) if isinstance(x, np.ndarray) else x for x in leaves])


def host(tree):
    return [x.get() if hasattr(x, "get") else x for x in gl.tree.flatten(tree)[0]]


def same(a, b):
    for x, y in zip(host(a), host(b), strict=True):
        assert np.asarray(x).dtype == np.asarray(y).dtype
        assert np.array_equal(x, y)


def launches(cuda):
    return [entry for entry in cuda.log if entry[0] == "launch"]


def data(n, dtype=np.float32, module=MODULE):
    return on_gpu((RNG.standard_normal((n, 6)).astype(dtype), RNG.integers(0, 3, n)), module)


FUNCTIONS = {
    "plain": lambda x: np.tanh(x) @ x.T + x.sum(),
    "grad": gl.grad(lambda x: np.sum(np.sin(x @ x.T) ** 2)),
    "hessian": gl.hessian(lambda x: np.sum(np.exp(0.1 * x)) * x[0, 0]),
    "batch_jacobian": gl.batch_jacobian(lambda x: gl.softmax(np.tanh(x))),
    "jvp": lambda x: gl.jvp(gl.gelu, (x,), (x,)),
    "fancy": lambda x: gl.grad(lambda z: z[0].sum() * z[1:3, 2].sum())(x),
    "no op, a number, nothing": lambda x: {"a": x, "b": (x + 1, 2.5, None)},
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_launches_equal_to_the_bit(gpu, rules, name, dtype):
    f = FUNCTIONS[name]
    captured = gl.capture(f)
    for call in range(4):
        x = data(4, dtype)[0]
        before = x.get()
        same(captured(x), f(x))
        assert np.array_equal(x.get(), before)
        assert len(launches(gpu)) == call


def step_of(captured, params, clip, module=MODULE):
    params, rng = on_gpu(params, module), gl.Generator(3, like=module.ones(1))
    opt = gl.optim.AdamW(params, lr=1e-2)

    def step(x, y):
        loss = lambda p: gl.cross_entropy(NET(p, x, rng=rng), y)  # noqa: E731
        value, grads = gl.value_and_grad(loss)(params)
        opt.step(gl.optim.clip_by_global_norm(grads, 0.1)[0] if clip else grads)
        return value

    return (gl.capture(step) if captured else step), params, opt, rng


def train_twice(clip, module):
    batches, start, results = [data(3, module=module) for _ in range(4)], NET.init(0), []
    for captured in (False, True):
        step, params, opt, rng = step_of(captured, start, clip, module)
        losses = []
        for i, (x, y) in enumerate(batches):
            opt.lr = 0.1 / (i + 1)
            losses.append(step(x, y))
        results.append((losses, params, opt.steps, int(rng.counter)))
    same(results[0][:2], results[1][:2])
    assert results[0][2:] == results[1][2:] == (4, 4)
    assert not np.array_equal(host(params)[0], start[0]["b"])


@kernels
@pytest.mark.parametrize("clip", [False, True])
def test_a_training_step_of_kernels(gpu, clip):
    """Adam's step count and learning rate, and dropout's counter, change from launch to launch."""
    train_twice(clip, MODULE)
    assert len(launches(gpu)) == 3
    made = gpu.log.index(launches(gpu)[0])
    assert not [entry for entry in gpu.log[made:] if entry[0] == "kernel"]  # after that no kernel is launched by itself


@kernels
def test_a_training_step_with_words(gpu):
    """Nothing waits for ids or labels: the table's gradient is sorted sums of as many pieces as there are ids."""
    net = gl.nn.Sequential(gl.nn.Embedding(9, 4), gl.nn.Linear(4, 3))
    batches = [(RNG.integers(0, 9, (2, 4)), RNG.integers(0, 3, 2)) for _ in range(4)]
    results, start = [], net.init(0)
    for captured in (False, True):
        params = on_gpu(start)
        opt = gl.optim.SGD(params, lr=0.1)

        def step(ids, y, params=params, opt=opt):
            loss, grads = gl.value_and_grad(lambda p: gl.cross_entropy(net(p, ids).mean(1), y))(params)
            opt.step(grads)
            return loss

        run = gl.capture(step) if captured else step
        results.append(([run(*on_gpu(batch)) for batch in batches], params))
    same(*results)
    assert len(launches(gpu)) == 3 and not np.array_equal(host(params)[0], start[0]["table"])


@kernels
def test_a_jacobian_of_kernels(gpu):
    w, b = on_gpu((RNG.standard_normal((6, 4)).astype("f"), RNG.standard_normal(4).astype("f")))
    jacobian = gl.batch_jacobian(lambda x: gl.softmax(gl.linear(gl.linear(x, w, b, activation="relu"), w[:4], None)))
    captured = gl.capture(jacobian)
    for _ in range(3):
        x = data(3)[0]
        same(captured(x), jacobian(x))
    assert len(launches(gpu)) == 2


def test_dropout_draws_anew_at_every_launch(gpu, rules):
    rng = gl.Generator(0, like=MODULE.ones(1))
    drawn = gl.capture(lambda x: gl.dropout(x, 0.5, rng))
    masks = [drawn(MODULE.ones(64)).get() for _ in range(4)]
    assert len({m.tobytes() for m in masks}) == 4
    again = gl.Generator(0, like=MODULE.ones(1))
    same(masks, [gl.dropout(MODULE.ones(64), 0.5, again) for _ in range(4)])


def test_results_are_not_overwritten_by_the_next_launch(gpu, rules):
    captured = gl.capture(lambda x: np.exp(x))
    results = [captured(MODULE.asarray(np.full(2, float(i)))) for i in range(4)]
    for i, y in enumerate(results):
        same(y, np.exp(np.full(2, float(i))))


def test_new_shapes_and_settings_make_a_new_graph(gpu, rules):
    calls = []

    def f(x, scale=1.0):
        calls.append(x.shape)
        return x * scale

    captured = gl.capture(f)
    for n in (3, 3, 3, 4, 4, 3):
        same(captured(MODULE.ones(n)), np.ones(n))
    for _ in range(3):
        same(captured(MODULE.ones(3), scale=2.0), np.full(3, 2.0))
    assert len(calls) == 3 and len(gpu.pools) == 3 and len(launches(gpu)) == 6


def test_strided_and_empty_arguments(gpu, rules):
    captured = gl.capture(lambda x, e: (x * 2, e + 1))
    for _ in range(3):
        x = MODULE.asarray(RNG.standard_normal((4, 6)))
        same(captured(x.T[::2], MODULE.ones((0, 2))), (2 * x.get().T[::2], np.ones((0, 2))))
    assert len(launches(gpu)) == 2


def test_arrays_from_outside_are_read_where_they_lie(gpu, rules):
    w = MODULE.ones(3)
    captured = gl.capture(lambda x: gl.grad(lambda v: np.sum(v * v * x))(w))
    for scale in (1.0, 2.0, 3.0):
        w[...] = scale
        same(captured(MODULE.ones(3)), np.full(3, 2 * scale))
    assert len(launches(gpu)) == 2


def test_a_function_without_arguments(gpu, rules):
    count = MODULE.zeros(())
    opt = gl.optim.SGD([count], lr=1.0)
    step = gl.capture(lambda: opt.step([-MODULE.ones(())]))
    for i in range(4):
        step()
        assert float(count) == i + 1


def test_launches_go_to_the_current_stream_one_after_the_other(gpu, rules):
    captured = gl.capture(lambda x: x + 1)
    x = MODULE.ones(3)
    captured(x)
    streams = [gpu.get_current_stream(), gpu.Stream(True), gpu.Stream(True)]
    for stream in streams:
        with stream:
            same(captured(x), np.full(3, 2.0))
    assert [entry[1] for entry in launches(gpu)] == streams
    waits = [entry[1:] for entry in gpu.log if entry[0] == "wait"]
    assert waits == [(streams[0], None), (streams[1], streams[0]), (streams[2], streams[1])]


def test_inside_the_callers_own_capture_it_becomes_a_part_of_it(gpu, rules):
    captured, x = gl.capture(lambda x: x + 1), MODULE.ones(3)
    captured(x), captured(x)
    with gpu.Stream(True) as stream:
        stream.begin_capture()
        y = captured(x)
        graph = stream.end_capture()
    x[...] = 5.0
    graph.launch(stream)
    same(y, np.full(3, 6.0))


def test_the_graphs_memory_is_its_own_and_is_freed_with_it(gpu, rules):
    inside = []
    run = gl.capture(lambda x: np.exp(np.sin(x)))
    malloc = gpu.using_allocator
    gpu.using_allocator = lambda m: (inside.append(m), malloc(m))[1]
    for _ in range(3):
        run(MODULE.ones(3))
    (pool,) = gpu.pools
    assert inside == [pool.malloc] and not gpu.allocators and not pool.freed and gpu.common.freed == 1
    del run
    gc.collect()
    assert pool.freed


def test_short_of_memory_the_pool_gives_none_of_the_graphs_back(gpu, rules):
    """CuPy's pool then lets go of what is free while the graph is made; the graph's launches use it again."""
    run = gl.capture(lambda x: np.exp(np.sin(x)))
    for _ in range(2):
        run(MODULE.ones(3))
    pool = gpu.pools[0]
    block = weakref.ref(pool.allocator(512).mem)  # all that the pool itself held of it is gone
    gc.collect()
    assert block().size == 512
    del run
    gc.collect()
    assert block() is None


def test_on_another_device_it_is_replayed_call_by_call(gpu, rules):
    captured, x = gl.capture(lambda x: x + 1), MODULE.ones(3)
    captured(x), captured(x)
    with gpu.Device(1):
        same(captured(x), np.full(3, 2.0))
    assert len(launches(gpu)) == 1


def test_an_array_of_another_device_is_named(gpu, rules, monkeypatch):
    captured, x = gl.capture(lambda x: x + 1), MODULE.ones(3)
    captured(x), captured(x)
    monkeypatch.setattr(fakecuda.Data, "device_id", 1, raising=False)
    monkeypatch.setattr(fakecuda.Data, "__init__", lambda self, host: None)
    with pytest.raises(ValueError, match=r"float64\[3\] lies on device 1, the captured function works on device 0"):
        captured(x)


def test_what_asks_for_a_value_is_replayed_call_by_call(gpu, rules):
    def rows(x, i):
        return gl.grad(lambda x: np.sum(x[i] ** 2))(x)  # how many different ones there are

    captured, i = gl.capture(rows), MODULE.asarray(np.array([1, 0, 1]))
    x = data(4)[0]
    captured(x, i)
    with pytest.warns(RuntimeWarning, match=r"gl.capture: rows is replayed call by call.*D2H transfers are disallowed"):
        same(captured(x, i), rows(x, i))
    y = data(4)[0]
    same(captured(y, i), rows(y, i))  # and no other warning, which would be an error here


def test_a_failure_leaves_nothing_done(gpu, rules):
    """The step is taken once, though it was tried as a graph first."""
    table = MODULE.ones((3, 2))
    opt = gl.optim.SGD([table], lr=1.0)

    def step(i):
        opt.step([gl.grad(lambda t: np.sum(gl.embedding(i, t)))(table)])

    captured, i = gl.capture(step), MODULE.asarray(np.array([1, 1]))
    with pytest.warns(RuntimeWarning):
        for _ in range(3):
            captured(i)
    same(table, np.array([[1.0, 1.0], [-5.0, -5.0], [1.0, 1.0]]))


def test_numpy_arrays_make_no_graph(gpu, rules):
    x = MODULE.ones(3)
    captured = gl.capture(lambda x, s: x * s)
    captured(x, np.float64(2))
    with pytest.warns(RuntimeWarning, match=r"given a NumPy float64\[\]: gl.to_device"):
        same(captured(x, np.float64(3)), np.full(3, 3.0))
    same(captured(x, np.float64(4)), np.full(3, 4.0))


def test_a_record_with_numpy_arrays_makes_no_graph(gpu):
    call = SimpleNamespace(args=(MODULE, (np.ones(2),)))
    record = SimpleNamespace(known={0: SimpleNamespace(module=MODULE)}, calls=[call])
    with pytest.warns(RuntimeWarning, match="f is replayed.*uses a NumPy array, which could change"):
        assert graphed("f", lambda x: (x,), record).refused
    record = SimpleNamespace(known={0: SimpleNamespace(module=np)}, calls=[call])
    assert graphed("f", replay := lambda x: (x,), record) is replay


def test_threads_share_a_graph(gpu, rules):
    captured = gl.capture(gl.grad(lambda x: np.sum(np.cos(x))))
    failures = []

    def work(seed):
        x = MODULE.asarray(np.random.default_rng(seed).standard_normal(5))
        for _ in range(20):
            if not np.array_equal(captured(x).get(), -np.sin(x.get())):
                failures.append(seed)

    captured(MODULE.ones(5))
    captured(MODULE.ones(5))
    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not failures


def test_a_thread_that_waited_for_a_refusal_does_not_try_again(gpu, rules):
    """It would warn again: here an error."""
    captured = GraphReplay("f", lambda x: (x + 1,), MODULE)

    class Lock:
        def __enter__(self):
            captured.refused = True  # what another thread found out meanwhile

        def __exit__(self, *error):
            pass

    captured.lock = Lock()
    same(captured(MODULE.ones(3))[0], np.full(3, 2.0))
    assert not gpu.pools


@pytest.mark.skipif(SIMULATED, reason="needs a GPU")
@pytest.mark.filterwarnings("error:gl.capture")
def test_on_a_real_gpu():
    cupy = pytest.importorskip("cupy")
    for clip in (False, True):
        train_twice(clip, cupy)
    for f in FUNCTIONS.values():
        captured = gl.capture(f)
        for _ in range(3):
            x = data(4, module=cupy)[0]
            same(captured(x), f(x))


def test_cupys_api_is_what_the_stand_in_shows():
    cuda = pytest.importorskip("cupy").cuda
    for name in ("Stream", "Event", "MemoryPool", "using_allocator", "get_current_stream", "Device", "Graph"):
        assert hasattr(cuda, name)
    for name in ("begin_capture", "end_capture", "is_capturing", "wait_event", "synchronize"):
        assert hasattr(cuda.Stream, name)
    assert hasattr(cuda.Graph, "launch") and hasattr(cuda.MemoryPool, "free_all_blocks")
    assert hasattr(cuda.MemoryPointer, "copy_from_device_async") and hasattr(cuda.Event, "record")
    assert hasattr(cuda.Memory, "device")
