"""The tests that every op inherits: its rules against each other and against finite differences.

A test file lists cases and errors; a class of it gets all tests by inheriting:

    CASES = [Case(REGISTRY["softmax"], (randn(2, 3),), axis=1)]
    ERRORS = [(lambda: gl.softmax(3), TypeError, "softmax: expected … got int")]  # … separates the parts looked for

    class TestRules(RuleCheck):
        cases = CASES
        errors = ERRORS

Arrays of float64 among a case's arguments are differentiated, all others are data. Shapes: V stack of the rule, W
stack of the derivative of the rule.
"""

import numpy as np
import pytest
from kernel_device import call as on_device

from gradlib import check_grads
from gradlib.kept import Form, form_of
from gradlib.transforms import pull, push, run

STACKS = (0, 1, 3)
#: Largest error relative to max(1, |reference|), by dtype: rounding, not a percent.
TOLERANCE = {"float64": 1e-12, "float32": 3e-6, "float16": 5e-3}
DIFFERENCES = 2e-7  # what central differences reach in float64
STEP = 1e-6
LAYOUTS = {
    "fortran": lambda a: np.asfortranarray(a) if a.ndim > 1 else a,
    "strided": lambda a: np.repeat(a, 2, axis=-1)[..., ::2] if a.ndim else a,
    "reversed": lambda a: np.flip(np.flip(a).copy()),
}


def randn(*shape, seed=0, scale=1.0, shift=0.0):
    """Normal float64 numbers of a shape."""
    return np.asarray(shift + scale * np.random.default_rng(seed + 7 * len(shape) + sum(shape)).standard_normal(shape))


def uniform(*shape, low, high, seed=0):
    return np.asarray(np.random.default_rng(seed + sum(shape)).uniform(low, high, shape))


class Case:
    """One op at one point. `order`: the highest derivative that is compared with differences."""

    def __init__(self, op, args, *, order=3, **static):
        self.op, self.args, self.static, self.order = op, tuple(args), static, order

    def __str__(self):
        shapes = [str(np.shape(a)).replace(" ", "").replace(",)", ")") for a in self.args]
        statics = [f"{k}={v}".replace(" ", "") for k, v in self.static.items()]
        return "-".join([self.op.name, *shapes, *statics])

    @property
    def differentiated(self):
        """Positions of the arguments that have derivatives."""
        return [i for i, a in enumerate(self.args) if is_float(a)]

    @property
    def primals(self):
        return [self.args[i] for i in self.differentiated]

    def filled(self, primals):
        """All arguments, with other primals."""
        args = list(self.args)
        for i, x in zip(self.differentiated, primals, strict=True):
            args[i] = x
        return args

    def function(self, *primals):
        """The op of the differentiated arguments alone, as users call it."""
        return self.op(*self.filled(primals), **self.static)

    def forward(self, *args):
        return self.op.forward(np, *(args or self.args), **self.static)

    def vjp(self, saved, dy, need=None):
        return self.op.vjp(np, saved, dy, need or tuple(map(is_float, self.args)), **self.static)

    def jvp(self, saved, dx):
        return self.op.jvp(np, saved, dx, **self.static)

    def recorded(self, args, y, saved, need):
        """What a recorded op keeps of `saved` where the inputs that are needed are differentiated."""
        if self.op.keep is None:
            return saved
        slots = [i if n else -1 for i, n in enumerate(need)]
        return self.op.keep(saved, slots, list(map(form_of, args)), Form(y.shape, y.dtype))

    def stacks(self, v, y, dtype=None):
        """Random tangents [V, *x] (None for data) and cotangents [V, *y]."""
        rng = np.random.default_rng(v)
        dx = tuple(
            rng.standard_normal((v, *a.shape)).astype(dtype or a.dtype) if is_float(a) else None for a in self.args
        )
        return dx, rng.standard_normal((v, *np.shape(y))).astype(dtype or y.dtype)


def is_float(a):
    return isinstance(a, np.ndarray) and a.dtype.kind == "f"


def arrays_in(tree):
    if isinstance(tree, (tuple, list)):
        return [a for branch in tree for a in arrays_in(branch)]
    return [tree] if isinstance(tree, np.ndarray) else []


def close(got, want, tolerance, what=""):
    """Equal shape, and equal within tolerance · max(1, |want|)."""
    assert np.shape(got) == np.shape(want), f"{what}: shape {np.shape(got)}, expected {np.shape(want)}"
    scale = max(1.0, float(np.max(np.abs(want), initial=0.0, where=np.isfinite(want))))
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * scale, err_msg=what)


def dot(a, b):
    return float(np.sum(np.asarray(a, float) * np.asarray(b, float)))


def difference(f, x, dx):
    """(f(x + ε dx) - f(x - ε dx)) / 2ε for lists x and dx."""
    ahead, behind = (f(*[a + s * STEP * d for a, d in zip(x, dx, strict=True)]) for s in (1, -1))
    return (np.asarray(ahead) - np.asarray(behind)) / (2 * STEP)


class ErrorCheck:
    """Inherit, and give `errors`: (call, type, parts of the message with … between)."""

    errors = ()

    def pytest_generate_tests(self, metafunc):
        if "case" in metafunc.fixturenames:
            metafunc.parametrize("case", self.cases, ids=str)
        if "error" in metafunc.fixturenames:
            metafunc.parametrize("error", self.errors, ids=lambda e: e[2].replace(" ", "_")[:50])

    def test_bad_input(self, error):
        call, kind, words = error
        with pytest.raises(kind) as caught:
            call()
        for word in words.split(" … "):
            assert word in str(caught.value), f"{word!r} is not in {caught.value}"


class RuleCheck(ErrorCheck):
    """Inherit, and give `cases` and `errors`."""

    cases = ()

    def test_jvp_is_the_central_difference(self, case):
        y, saved = case.forward()
        for v in STACKS:
            dx, _ = case.stacks(v, y)
            got = case.jvp(saved, dx)
            assert got.shape == (v, *y.shape)
            for n in range(v):
                close(got[n], difference(case.function, case.primals, [d[n] for d in dx if d is not None]), DIFFERENCES)

    def test_vjp_is_the_transpose_of_jvp(self, case):
        y, saved = case.forward()
        for v in STACKS:
            dx, dy = case.stacks(v, y)
            back, ahead = case.vjp(saved, dy), case.jvp(saved, dx)
            assert len(back) == len(case.args)
            for d, b, a in zip(dx, back, case.args, strict=True):
                assert (b is None) if d is None else b.shape == (v, *a.shape)
            for n in range(v):
                want = sum(dot(b[n], d[n]) for b, d in zip(back, dx, strict=True) if d is not None)
                close(dot(dy[n], ahead[n]), want, 1e-11)

    def test_one_argument_at_a_time(self, case):
        """Only what is needed is computed, and one tangent alone is enough; the parts add up to the whole."""
        y, saved = case.forward()
        dx, dy = case.stacks(2, y)
        whole, total = case.vjp(saved, dy), 0
        for i in case.differentiated:
            need = tuple(j == i for j in range(len(case.args)))
            part = case.vjp(saved, dy, need)
            close(part[i], whole[i], 1e-13)
            assert all(p is None for j, p in enumerate(part) if j != i)
            one = case.jvp(saved, tuple(d if n else None for d, n in zip(dx, need, strict=True)))
            assert one.shape == (2, *y.shape)
            total = total + one
        close(total, case.jvp(saved, dx), 1e-12)

    @pytest.mark.parametrize("dtype", ["float64", "float16"])
    def test_what_is_recorded_is_enough(self, case, dtype):
        """For the inputs that are differentiated: equal to the bit to what all that was saved gives."""
        args = [a.astype(dtype) if is_float(a) else a for a in case.args]
        if dtype == "float16" and case.op.module in ("linalg", "decompositions", "svd"):
            pytest.skip("LAPACK knows no float16")
        y, saved = case.forward(*args)
        dx, dy = case.stacks(2, y, dtype)
        every = [[j == i for j in range(len(args))] for i in case.differentiated]
        for need in [*map(tuple, every), tuple(map(is_float, args))]:
            kept = case.recorded(args, y, saved, need)
            assert sum(a.nbytes for a in arrays_in(kept)) <= sum(a.nbytes for a in arrays_in(saved))
            tangents = tuple(d if n else None for d, n in zip(dx, need, strict=True))
            got = [*case.vjp(kept, dy, need), case.jvp(kept, tangents)]
            want = [*case.vjp(saved, dy, need), case.jvp(saved, tangents)]
            for i in np.flatnonzero(need) if case.op.block and dtype == "float64" else ():
                blocks = [case.op.block(np, s, int(i), **case.static) for s in (kept, saved)]
                assert (blocks[0] is None) == (blocks[1] is None)
                got, want = ([*d, b and b.to_dense()] for d, b in zip((got, want), blocks, strict=True))
            for a, b in zip(got, want, strict=True):
                assert (a is None) == (b is None)
                if a is not None:
                    assert a.dtype == b.dtype
                    np.testing.assert_array_equal(a, b)

    def test_block_is_the_jacobian(self, case):
        if case.op.block is None:
            return
        y, saved = case.forward()
        dx, dy = case.stacks(3, y)
        for i in case.differentiated:
            block = case.op.block(np, saved, i, **case.static)
            if block is None:
                continue
            need = tuple(j == i for j in range(len(case.args)))
            alone = tuple(d if n else None for d, n in zip(dx, need, strict=True))
            assert (block.x_shape, block.y_shape) == (case.args[i].shape, y.shape)
            close(block.jvp(dx[i]), case.jvp(saved, alone), 1e-12, "block.jvp")
            close(block.vjp(dy), case.vjp(saved, dy, need)[i], 1e-12, "block.vjp")
            dense = block.to_dense()
            assert dense.shape == (*y.shape, *case.args[i].shape)
            close(
                np.tensordot(dx[i], dense, (range(1, dx[i].ndim), range(y.ndim, dense.ndim))), block.jvp(dx[i]), 1e-12
            )

    def test_nothing_given_is_modified_or_given_away(self, case):
        y, saved = case.forward()
        dx, dy = case.stacks(3, y)
        given = arrays_in([case.args, saved, dx, dy])
        before = [a.copy() for a in given]
        results = arrays_in([case.vjp(saved, dy), case.jvp(saved, dx)])
        for a, b in zip(given, before, strict=True):
            assert a.tobytes() == b.tobytes(), "a rule changed what it was given"
        for r in results:
            assert not any(np.shares_memory(r, s) for s in arrays_in(saved)), "a derivative is a view of what was saved"

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_any_layout(self, case, layout):
        y, saved = case.forward()
        dx, dy = case.stacks(3, y)
        lay = LAYOUTS[layout]
        again, saved_again = case.forward(*[lay(a) if isinstance(a, np.ndarray) else a for a in case.args])
        close(again, y, 1e-13)
        for a, b in zip(case.vjp(saved_again, lay(dy)), case.vjp(saved, dy), strict=True):
            if a is not None:
                close(a, b, 1e-13)
        close(case.jvp(saved_again, tuple(None if d is None else lay(d) for d in dx)), case.jvp(saved, dx), 1e-13)
        repeated = np.broadcast_to(dy[:1], dy.shape)  # read-only, stride 0
        for a, b in zip(case.vjp(saved, repeated), case.vjp(saved, dy[:1]), strict=True):
            if a is not None:
                close(a, np.broadcast_to(b, a.shape), 1e-13)

    @pytest.mark.parametrize("dtype", ["float32", "float16"])
    def test_dtype_is_kept(self, case, dtype):
        args = [a.astype(dtype) if is_float(a) else a for a in case.args]
        exact = [a.astype(float) if is_float(a) else a for a in args]
        (y, saved), (y64, saved64) = case.forward(*args), case.forward(*exact)
        if "dtype" in case.static:
            return
        assert y.dtype == dtype
        close(y, y64, TOLERANCE[dtype])
        dx, dy = case.stacks(2, y, dtype)
        ahead = case.jvp(saved, dx)
        assert ahead.dtype == dtype
        wide = tuple(None if d is None else d.astype(float) for d in dx)
        close(ahead, case.jvp(saved64, wide), TOLERANCE[dtype], "jvp")
        for got, want in zip(case.vjp(saved, dy), case.vjp(saved64, dy.astype(float)), strict=True):
            if got is not None:
                assert got.dtype == dtype
                close(got, want, TOLERANCE[dtype], "vjp")

    def test_higher_orders(self, case):
        if case.order > 1:
            check_grads(case.function, tuple(case.primals), order=case.order, atol=1e-5)

    @pytest.mark.parametrize("mode", ["vjp", "jvp"])
    def test_stacks_of_stacks(self, case, mode):
        """The rule itself differentiated, for a stack W, in its inputs and in the stack V that it was given."""
        if case.order < 2:
            return
        n = len(case.differentiated)

        def rule(*primals):
            inside, outputs, _ = run("rule", case.function, primals[:n])
            return (pull if mode == "vjp" else push)(inside, outputs, list(primals[n:]))

        y, _ = case.forward()
        dx, dy = case.stacks(2, y)
        given = [dy] if mode == "vjp" else [d for d in dx if d is not None]
        primals = [*case.primals, *given]
        inside, outputs, _ = run("outer", rule, tuple(primals))
        rng = np.random.default_rng(5)
        tangents = [rng.standard_normal((3, *np.shape(x))) for x in primals]
        ahead = push(inside, outputs, tangents)
        cotangents = [rng.standard_normal(a.shape) for a in ahead]
        back = pull(inside, outputs, cotangents)
        for b, x in zip(back, primals, strict=True):
            assert b.shape == (3, *np.shape(x))
        for i, a in enumerate(ahead):
            assert a.shape == (3, 2, *np.shape(case.primals[i] if mode == "vjp" else y))
            for w in range(3):
                want = difference(lambda *x, i=i: rule(*x)[i], primals, [t[w] for t in tangents])
                close(a[w], want, 10 * DIFFERENCES)
        for w in range(3):
            left = sum(dot(a[w], c[w]) for a, c in zip(ahead, cotangents, strict=True))
            close(left, sum(dot(b[w], t[w]) for b, t in zip(back, tangents, strict=True)), 1e-10)

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_kernel_is_the_rule(self, case, dtype):
        """The kernel's results are the rule's, and each takes what the other saved."""
        kernel = case.op.kernel
        if kernel is None:
            return
        args = [a.astype(dtype) if is_float(a) else a for a in case.args]
        y, saved = case.forward(*args)
        dx, dy = case.stacks(3, y, dtype)
        need = tuple(map(is_float, args))
        tolerance = TOLERANCE[dtype]
        kept = saved
        if kernel.forward and (result := on_device(kernel.forward, *args, **case.static)) is not NotImplemented:
            close(result[0], y, tolerance, "kernel forward")
            kept = result[1]
            assert len(kept) == len(saved)
            for a, b in zip(case.vjp(kept, dy), case.vjp(saved, dy), strict=True):
                if a is not None:
                    close(a, b, tolerance, "rule vjp of what the kernel saved")
        different = {id(s): s for s in (saved, kept, case.recorded(args, y, saved, need))}
        for s in different.values():
            if kernel.vjp and (result := on_device(kernel.vjp, s, dy, need, **case.static)) is not NotImplemented:
                for a, b in zip(result, case.vjp(saved, dy), strict=True):
                    if b is not None:
                        close(a, b, tolerance, "kernel vjp")
                        assert a.dtype == b.dtype
            if kernel.jvp and (result := on_device(kernel.jvp, s, dx, **case.static)) is not NotImplemented:
                close(result, case.jvp(saved, dx), tolerance, "kernel jvp")
