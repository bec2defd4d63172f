"""gl.capture: replays equal the uncaptured function to the last bit, and refuse what they would freeze."""

import gc
import threading
import weakref

import numpy as np
import pytest
from scipy import special

import gradlib as gl
from gradlib.memory import keep_freed_memory

RNG = np.random.default_rng(0)
NET = gl.nn.Sequential(gl.nn.Linear(6, 5), gl.nn.ReLU(), gl.nn.Dropout(0.3), gl.nn.Linear(5, 3))


def data(n, dtype=np.float32):
    return RNG.standard_normal((n, 6)).astype(dtype), RNG.integers(0, 3, n)


def same(a, b):
    for x, y in zip(gl.tree.flatten(a)[0], gl.tree.flatten(b)[0], strict=True):
        assert np.asarray(x).dtype == np.asarray(y).dtype
        assert np.array_equal(x, y, equal_nan=True)


FUNCTIONS = {
    "plain": lambda x: np.tanh(x) @ x.T + x.sum(),
    "grad": gl.grad(lambda x: np.sum(np.sin(x) ** 2)),
    "hessian": gl.hessian(lambda x: np.sum(np.exp(0.1 * x)) * x[0, 0]),
    "batch_jacobian": gl.batch_jacobian(lambda x: gl.softmax(np.tanh(x))),
    "jvp": lambda x: gl.jvp(gl.gelu, (x,), (x,)),
    "mask": lambda x: np.where(x > x.mean(), x, 0.0),
    "fancy": lambda x: gl.grad(lambda z: z[np.array([0, 0, 1])].sum() * z[1, 2])(x),
    "product with zeros": gl.grad(lambda x: np.prod(np.where(x > 0, x, 0.0), axis=1).sum()),
    "two results, one the input": lambda x: {"a": x, "b": (x + 1, 2.5, None)},
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_replays_equal_to_the_bit(name, dtype):
    f = FUNCTIONS[name]
    captured = gl.capture(f)
    for _ in range(3):
        x = data(4, dtype)[0]
        before = x.copy()
        same(captured(x), f(x))
        assert np.array_equal(x, before)


M = RNG.standard_normal((7, 33))
SQUARE = RNG.standard_normal((13, 13))
UNTRANSFORMED = {
    "var": (lambda x: np.var(x, ddof=1), M),
    "std": (lambda x: x.std(axis=1, ddof=1), M),
    "sum": (lambda x: np.sum(x, axis=1, where=x > 0), M),
    "method sum": (lambda x: x.sum(axis=1, where=x > 0, initial=2.5), M),
    "mean": (lambda x: np.mean(x, where=x > 0), M),
    "mean of a mask held": (lambda x: x.mean(where=M > 0), M),
    "gradient": (lambda x: np.gradient(x, 0.3, axis=1), M),
    "gradient of places": (lambda x: np.gradient(x[0], np.linspace(0, 1, 33) ** 2), M),
    "quantile": (lambda x: np.quantile(x, [0.1, 0.33], axis=1), M),
    "median": (lambda x: np.median(x, axis=0), M),
    "average": (lambda x: np.average(x, axis=1, weights=np.exp(x[0])), M),
    "linspace": (lambda x: np.linspace(x[0], 2 * x[1], 17), M),
    "einsum": (lambda x: np.einsum("ij,kj,lj->ikl", x, x, x), M),
    "einsum to one": (lambda x: np.einsum("ij,ij->", x, M), M),
    "logspace": (lambda x: np.logspace(x[0], x[1], 5), M),
    "polyval": (lambda x: np.polyval(x[:, 0], 1), M),
    "inner with a number": (lambda x: np.inner(x, 2), M),
    "logaddexp.reduce": (lambda x: np.logaddexp.reduce(x, axis=1), M),
    "add.outer": (lambda x: np.add.outer(x, 2), M),
    "vecdot": (lambda x: np.vecdot(x, x), M),
    "trapezoid": (lambda x: np.trapezoid(x, dx=0.3), M),
    "nanvar": (lambda x: np.nanvar(x, axis=1), M),
    "i0": (lambda x: np.i0(x), M),
    "norm": (lambda x: np.linalg.norm(x, 3, axis=1), M),
    "norm 2": (lambda x: np.linalg.norm(x, 2), M),
    "norm nuc": (lambda x: np.linalg.norm(x, "nuc"), SQUARE),
    "singular values": (lambda x: np.linalg.svd(x, compute_uv=False), M),
    "svd": (lambda x: np.linalg.svd(x).Vh, M),
    "qr": (lambda x: tuple(np.linalg.qr(x)), M),
    "complete qr": (lambda x: np.linalg.qr(x.T, mode="complete").Q, M),
    "eigvalsh": (lambda x: np.linalg.eigvalsh(x @ x.T), M),
    "matrix_power": (lambda x: np.linalg.matrix_power(x, 5), SQUARE),
    **{
        f"special.{name}": (lambda x, name=name: getattr(special, name)(np.abs(x) + 0.1), M)
        for name in ("expm1", "log1p", "exp2", "cbrt", "erf", "gammaln", "expit")
    },
}


@pytest.mark.parametrize("name", UNTRANSFORMED)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_replays_of_plain_code_equal_numpys_values_to_the_bit(name, dtype):
    f, x = UNTRANSFORMED[name]
    captured = gl.capture(f)
    for scale in (1, 2, 3):
        y = (x / scale).astype(dtype)
        same(captured(y), f(y))


def test_gradients_beside_plain_code_keep_their_rules():
    """A function of NumPy's is recorded whole only where no transform differentiates it."""

    def f(x):
        spread = np.var(x, axis=1, ddof=1)
        return spread, gl.value_and_grad(lambda z: np.sum(np.var(z, axis=1, ddof=1) * spread))(x)

    captured = gl.capture(f)
    for scale in (1, 2):
        same(captured(M / scale), f(M / scale))


@pytest.mark.parametrize("transform", [gl.grad, gl.batch_jacobian])
def test_what_the_record_computed_is_gone_at_once(transform):
    """A GPU's memory cannot wait for Python to look for circles of references."""
    inside = []

    def f(x):
        y = np.tanh(x)
        value = y
        while type(value) is not np.ndarray:
            value = value.value
        inside.append(weakref.ref(value))
        return np.sum(y * y) if transform is gl.grad else y * y

    captured = gl.capture(transform(f))
    gc.disable()
    try:
        result = weakref.ref(captured(np.ones((3, 4))))
        assert inside and not any(value() is not None for value in inside) and result() is None
    finally:
        gc.enable()


def training_step(captured):
    params = NET.init(0)
    rng = gl.Generator(3, like=None)
    opt = gl.optim.AdamW(params, lr=1e-2)

    def loss(p, x, y):
        penalty = sum(np.sum(layer["w"] ** 2) for layer in p if layer)
        return gl.cross_entropy(NET(p, x, rng=rng), y) + 1e-3 * penalty

    def step(x, y):
        value, grads = gl.value_and_grad(loss)(params, x, y)
        opt.step(grads)
        return value

    return (gl.capture(step) if captured else step), params, opt, rng


def test_a_training_step_with_dropout_and_adam():
    batches = [data(8) for _ in range(6)]
    results = []
    for captured in (False, True):
        step, params, opt, rng = training_step(captured)
        losses = [float(step(x, y)) for x, y in batches]
        results.append((losses, params, opt.steps, int(rng.counter)))
    assert results[0][0] == results[1][0]
    same(results[0][1], results[1][1])
    assert results[0][2:] == results[1][2:] == (6, 6)


def test_the_learning_rate_is_read_at_every_replay():
    results = []
    for captured in (False, True):
        step, params, opt, _ = training_step(captured)
        for i, (x, y) in enumerate([(np.ones((2, 6), np.float32), np.array([0, 1]))] * 4):
            opt.lr = 0.1 / (i + 1)
            step(x, y)
        results.append(params)
    same(*results)


def test_new_shapes_dtypes_and_settings_record_anew():
    calls = []

    def f(x, scale=1.0):
        calls.append(x.shape)
        return x * scale

    captured = gl.capture(f)
    for n in (3, 3, 4, 3):
        captured(np.ones(n))
    captured(np.ones(3, np.float32))
    captured(np.ones(3), scale=2.0)
    same(captured(np.ones(3), scale=2.0), np.full(3, 2.0))
    assert len(calls) == 4


def test_numbers_are_told_apart_to_the_last_bit():
    calls = []

    def f(x, n):
        calls.append(n)
        return np.copysign(1.0, n) * x if n == 0 else x * n

    captured = gl.capture(f)
    x = np.ones(2)
    for n in (0.0, -0.0, 0.0, -0.0, float("nan"), float("nan"), True, 1, 1.0):
        same(captured(x, n), f(x, n))
    assert len(calls) == 9 + 6


def test_the_programs_of_a_function_are_bounded():
    calls = []

    def f(x, n):
        calls.append(n)
        return x * n

    captured = gl.capture(f)
    x = np.ones(2)
    for n in range(200):
        captured(x, n)
        captured(x, 0)  # the one used most stays
    assert calls == [*range(200)]
    captured(x, 199)
    captured(x, 1)
    assert calls == [*range(200), 1]


@pytest.mark.parametrize("make", [lambda x: gl.vjp(np.sin, x)[1], lambda x: (x, gl.linearize(np.sin, x)[1])])
def test_functions_as_results_are_refused(make):
    with pytest.raises(TypeError, match=r"capture: the function returns a function.*pullback"):
        gl.capture(make)(np.ones(2))


def test_a_pullback_kept_from_a_recording_is_refused():
    kept = []
    gl.capture(lambda x: kept.append(gl.vjp(np.sin, x)) or kept[0][0])(np.ones(2))
    with pytest.raises(RuntimeError, match="capture: a value of the captured function is used outside of it"):
        kept[0][1](np.ones(2))


def test_arrays_from_outside_are_held_by_reference():
    w = np.ones(3)
    captured = gl.capture(lambda x: gl.grad(lambda v: np.sum(v * v * x))(w))
    same(captured(np.ones(3)), 2 * np.ones(3))
    w[:] = 3
    same(captured(np.ones(3)), 6 * np.ones(3))


def test_the_same_array_given_twice_is_two_arguments():
    captured = gl.capture(lambda a, b: a - 2 * b)
    x = np.ones(2)
    same(captured(x, x), -x)
    same(captured(np.full(2, 5.0), x), np.full(2, 3.0))


def test_results_are_not_overwritten_by_the_next_replay():
    captured = gl.capture(lambda x: np.exp(x))
    captured(np.zeros(2))
    first = captured(np.zeros(2))
    captured(np.ones(2))
    same(first, np.ones(2))


def test_inside_a_transform_the_function_itself_runs():
    captured = gl.capture(lambda x: np.sum(x**3))
    same(gl.grad(captured)(np.array([2.0])), np.array([12.0]))


def test_labels_are_checked_at_every_replay():
    captured = gl.capture(lambda x, y: gl.grad(lambda z: gl.cross_entropy(z, y))(x))
    captured(np.zeros((2, 3)), np.array([0, 2]))
    with pytest.raises(ValueError, match="label 3 is out of range for 3 classes"):
        captured(np.zeros((2, 3)), np.array([0, 3]))


@pytest.mark.parametrize(
    "f",
    [
        lambda x: x if x.sum() > 0 else -x,
        lambda x: x * float(x[0]),
        lambda x: x[int(x[0])],
        lambda x: np.full(2, x[0].item()),
        lambda x: gl.grad(lambda z: z.sum() if z[0] > 0 else -z.sum())(x),
        lambda x: x[x > 0],
        lambda x: gl.grad(lambda z: z[z > 0].sum())(x),
        lambda x: x if np.allclose(x, 1) else -x,
    ],
    ids=["if", "float", "int", "item", "if inside grad", "mask", "mask inside grad", "allclose"],
)
def test_what_depends_on_a_value_raises(f):
    with pytest.raises(TypeError, match=r"gl\.capture would freeze it"):
        gl.capture(f)(np.ones(3))


def test_unhashable_arguments_are_named():
    with pytest.raises(TypeError, match="capture: expected arrays and hashable settings"):
        gl.capture(lambda x, y: x)(np.ones(2), {1, 2})


def test_threads_share_a_capture():
    captured = gl.capture(gl.grad(lambda x: np.sum(np.cos(x))))
    failures = []

    def work(seed):
        x = np.random.default_rng(seed).standard_normal(50)
        for _ in range(50):
            if not np.array_equal(captured(x), -np.sin(x)):
                failures.append(seed)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not failures


def test_results_that_no_op_made_are_new_at_every_replay():
    captured = gl.capture(gl.grad(lambda p: np.sum(p[0] ** 2)))
    params = [np.ones(2), np.ones(3)]
    for _ in range(3):
        grads = captured(params)
        same(grads, [2 * np.ones(2), np.zeros(3)])
        grads[1] += 5


def test_a_traced_array_from_outside_is_refused():
    with pytest.raises(TypeError, match="capture: the function uses a traced array from outside"):
        gl.grad(lambda w: np.sum(gl.capture(lambda x: x * w)(np.ones(2))))(np.ones(2))


def test_keyword_arguments_are_arguments():
    captured = gl.capture(lambda x, n=1: x**n)
    x = np.array([2, 3])
    for n in (2, 2.0, np.array([1, 2]), np.array([2, 1])):
        same(captured(x, n=n), x**n)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("wrap", [lambda f: f, gl.checkpoint], ids=["plain", "checkpoint"])
def test_dropout_draws_anew_at_every_replay_and_order(wrap, order):
    results = []
    for capture in (lambda f: f, gl.capture):
        rng = gl.Generator(0)
        f = wrap(lambda x: gl.dropout(x**4, 0.5, rng))  # noqa: B023
        for _ in range(order):
            f = (lambda g: gl.grad(lambda x: np.sum(g(x))))(f)
        step = capture(f)
        results.append([step(np.arange(1.0, 9.0)) for _ in range(3)])
    same(*results)
    assert not np.array_equal(*results[0][:2])


def test_replays_are_looked_at_by_detect_anomaly():
    captured = gl.capture(gl.grad(lambda x: np.sum(np.log(x))))
    captured(np.ones(2))
    with gl.detect_anomaly(), pytest.raises(FloatingPointError, match="log"):
        captured(np.zeros(2))


def test_replays_use_memory_again():
    resource = pytest.importorskip("resource")
    if not keep_freed_memory():
        pytest.skip("only glibc can be told to keep memory")

    def f(x):
        for _ in range(10):
            x = np.sin(x) * 2
        return x.sum()

    x = np.ones(100_000)
    captured = gl.capture(gl.grad(f))
    for _ in range(3):
        captured(x)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        captured(x)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    fresh = 5 * 30 * x.nbytes / resource.getpagesize()  # about thirty results of x's size a replay
    assert faults < 0.1 * fresh
