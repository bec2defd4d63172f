"""What holds across files: every op is tested, rules and kernels have the same signatures, rules run on any device."""

import ast
import importlib
import inspect
import pathlib
import subprocess
import sys
import tomllib

import numpy as np
import pytest
from kernel_device import call as on_device
from rulecheck import Case, RuleCheck, close, is_float, randn
from standin import MODULE, DeviceArray, rules_only, to, to_numpy, to_standin

import gradlib as gl
from gradlib.op import REGISTRY
from gradlib.trace import namespace

ROOT = pathlib.Path(__file__).parent.parent
RULES = ("forward", "vjp", "jvp")


def _test_modules():
    """The test files beside this one that hold cases."""
    names = sorted(p.stem for p in (ROOT / "tests").glob("test_*.py") if "(RuleCheck)" in p.read_text())
    return [importlib.import_module(n) for n in names if n != "test_contract"]


CASES = [case for module in _test_modules() for case in getattr(module, "CASES", ())]
KERNELS = {name: op for name, op in REGISTRY.items() if op.kernel is not None}


def test_every_op_has_cases():
    ours = {name for name, op in REGISTRY.items() if op.vjp and op.forward.__module__.startswith("gradlib")}
    missing = sorted(ours - {case.op.name for case in CASES})
    assert not missing, f"no case in any tests/test_*.py for {missing}"


def test_every_test_file_belongs_to_an_ops_file():
    for path in (ROOT / "gradlib" / "ops").glob("*.py"):
        defines = [op for op in REGISTRY.values() if op.module == path.stem]
        if defines:
            assert (ROOT / "tests" / f"test_{path.stem}.py").exists(), path.name


def _parameters(function):
    """Names of the parameters, those behind * or ** as such."""
    return [str(p).partition(":")[0].partition("=")[0].strip() for p in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_have_the_signatures_of_their_rules(name):
    op = REGISTRY[name]
    for rule in RULES:
        kernel = getattr(op.kernel, rule)
        if kernel is None:
            continue
        ours, theirs = _parameters(getattr(op, rule)), _parameters(kernel)
        for generic in ("**static", "**_"):
            if generic in ours or generic in theirs:  # one side spells the keywords out: compare what comes before
                n = min(p.index(g) for p, g in ((ours, generic), (theirs, generic)) if g in p)
                ours, theirs = ours[:n], theirs[:n]
        if "*x" in ours or "*x" in theirs:
            ours, theirs = ours[:1], theirs[:1]
        assert ours == theirs, f"{name}.{rule}"


def _takes(case, rule):
    """Whether a kernel serves this rule of a case, in float32."""
    args = [a.astype("float32") if is_float(a) else a for a in case.args]
    y, saved = case.forward(*args)
    dx, dy = case.stacks(2, y, "float32")
    given = {"forward": args, "vjp": (saved, dy, tuple(map(is_float, args))), "jvp": (saved, dx)}[rule]
    return on_device(getattr(case.op.kernel, rule), *given, **case.static) is not NotImplemented


@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel_is_compared_with_its_rule(name):
    """The harness's kernel test is empty where a kernel declines: some case must be one that it takes."""
    cases = [case for case in CASES if case.op.name == name]
    for rule in RULES:
        if getattr(REGISTRY[name].kernel, rule) is not None:
            assert any(_takes(case, rule) for case in cases), f"no case of {name} that its {rule} kernel takes"


def test_kernel_files_are_named_for_ops_files():
    exported = {}
    for path in (ROOT / "kernels").glob("*.py"):
        if path.stem == "intrinsics_hardware":  # exports no Kernel, and needs numba-cuda, which the simulator does not
            continue
        module = importlib.import_module(f"gradlib.kernels.{path.stem}")
        found = [n for n, v in vars(module).items() if type(v).__name__ == "Kernel" and not n.startswith("_")]
        exported |= dict.fromkeys(found, path.stem) if found else {}
    for name, file in exported.items():
        if name in REGISTRY:
            assert REGISTRY[name].module == file, (
                f"kernels/{file}.py exports {name}, an op of {REGISTRY[name].module}.py"
            )
    assert set(KERNELS) <= set(exported)


def test_packages_are_the_folders():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {"gradlib." + ".".join(p.parent.relative_to(ROOT / "gradlib").parts) for p in
               (ROOT / "gradlib").rglob("__init__.py")}  # fmt: skip
    assert set(listed) == {f.rstrip(".") for f in folders} | {"gradlib.kernels"}


def _names_used(tree):
    """The attributes `xp.…` of a file."""
    return {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and getattr(n.value, "id", "") == "xp"}


@pytest.mark.parametrize(
    "folder", ["gradlib/ops", "gradlib/jacobian", "gradlib/optim", "gradlib/nn", "gradlib", "kernels"]
)
def test_every_array_function_used_exists_in_cupy(folder):
    cupy = pytest.importorskip("cupy")
    own = {"module", "special", "run"}  # of our own namespaces, and of a stand-in
    for path in (ROOT / folder).glob("*.py"):
        missing = {n for n in _names_used(ast.parse(path.read_text())) - own if not hasattr(cupy, n)}
        assert not missing, f"{path.name} uses xp.{missing}"


@pytest.fixture
def without_kernels():
    with rules_only():
        yield


def _devices():
    """The stand-in, and CuPy where a GPU answers."""
    cupy = sys.modules.get("cupy")  # conftest has asked it for a GPU
    return [MODULE, cupy] if cupy is not None and cupy.is_available() else [MODULE]


@pytest.mark.parametrize("module", _devices(), ids=lambda m: m.__name__)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_rules_run_on_device_arrays(case, module, without_kernels):
    """Forward, vjp and jvp on device arrays, plain and traced, give what they give on NumPy arrays."""
    y, saved = case.forward()
    dx, dy = case.stacks(2, y)
    need = tuple(map(is_float, case.args))
    args = to(module, case.args)
    y2, saved2 = case.op.forward(module, *args, **case.static)
    close(to_numpy(y2), y, 1e-12)
    back = case.op.vjp(module, saved2, to(module, dy), need, **case.static)
    for got, want in zip(back, case.vjp(saved, dy), strict=True):
        assert (got is None) == (want is None)
        if want is not None:
            close(to_numpy(got), want, 1e-12)
    close(to_numpy(case.op.jvp(module, saved2, to(module, dx), **case.static)), case.jvp(saved, dx), 1e-12)
    if case.order > 1:
        _second_order(case, module, args, need, dx, dy)


def _second_order(case, module, args, need, dx, dy):
    def f(*x):
        found = iter(x)
        return case.op(*[next(found) if n else a for a, n in zip(args, need, strict=True)], **case.static)

    def gradient(*x):
        return gl.vjp(f, *x)[1](module.asarray(dy[0]))

    primals = tuple(a for a, n in zip(args, need, strict=True) if n)
    tangents = [module.asarray(d[0]) for d in dx if d is not None]
    got = gl.jvp(gradient, primals, tuple(tangents))[1]
    for g, x in zip(got, primals, strict=True):
        assert type(g) is type(x) and g.shape == x.shape


def test_the_stand_in_is_strict():
    x = MODULE.asarray(np.ones(3))
    for bad in (
        lambda: np.asarray(x),
        lambda: x + np.ones(3),
        lambda: MODULE.add(x, np.ones(3)),
        lambda: MODULE.nansum2(x),
    ):
        with pytest.raises((TypeError, AttributeError)):
            bad()
    assert isinstance(np.float64(2) * x, DeviceArray)
    assert isinstance(MODULE.sum(x), DeviceArray)


def test_transforms_run_on_device_arrays(without_kernels):
    x, w = randn(4, 3), randn(3, 2)

    def f(x, w):
        return np.sum(np.tanh(x @ w) ** 2)

    for transform in (gl.grad(f, (0, 1)), gl.hessian(f, 1), gl.jacfwd(gl.grad(f))):
        got, want = transform(*to_standin((x, w))), transform(x, w)
        for a, b in zip(got, want, strict=True) if isinstance(want, tuple) else [(got, want)]:
            assert isinstance(a, DeviceArray)
            close(to_numpy(a), b, 1e-12)
    rows = gl.batch_jacobian(lambda x, w: np.tanh(x @ w), (0, 1), in_axes=(0, None))
    for a, b in zip(rows(*to_standin((x, w))), rows(x, w), strict=True):
        close(to_numpy(a), b, 1e-12)
    labels = np.array([0, 1, 1, 0])
    each = gl.per_sample_grad(lambda w, x, t: gl.cross_entropy(x @ w, t, reduction="none"))
    close(to_numpy(each(*to_standin((w, x, labels)))), each(w, x, labels), 1e-12)


def test_the_namespace_is_one_per_module():
    assert namespace(np) is namespace(np) is not namespace(MODULE)


def test_import_is_light():
    heavy = {"cupy", "numba", "sklearn", "matplotlib", "jax", "torch"}
    code = f"import gradlib, sys; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"


class TestHarness:
    """The harness must see a derivative that is 1% wrong, a wrong shape and a changed input."""

    check = RuleCheck()

    @pytest.fixture
    def broken(self):
        def make(**rules):
            good = REGISTRY["sin"]
            op = type("Broken", (), {"name": "broken", "block": None, "kernel": None, "vjp_each": None})()
            for rule in RULES:
                setattr(op, rule, staticmethod(rules.get(rule, getattr(good, rule))))
            case = Case(op, (randn(3),))
            case.function = lambda x: np.sin(x)
            return case

        return make

    def test_one_percent_in_vjp(self, broken):
        sin = REGISTRY["sin"]
        case = broken(vjp=lambda xp, s, dy, need: (1.01 * sin.vjp(xp, s, dy, need)[0],))
        with pytest.raises(AssertionError):
            self.check.test_vjp_is_the_transpose_of_jvp(case)

    def test_one_percent_in_jvp(self, broken):
        sin = REGISTRY["sin"]
        with pytest.raises(AssertionError):
            self.check.test_jvp_is_the_central_difference(broken(jvp=lambda xp, s, dx: 1.01 * sin.jvp(xp, s, dx)))

    def test_a_lost_stack_axis(self, broken):
        sin = REGISTRY["sin"]
        with pytest.raises(AssertionError):
            self.check.test_jvp_is_the_central_difference(broken(jvp=lambda xp, s, dx: sin.jvp(xp, s, dx).sum(0)))

    def test_an_overwritten_input(self, broken):
        def vjp(xp, saved, dy, need):
            saved[0][:] = 0
            return (dy,)

        with pytest.raises(AssertionError):
            self.check.test_nothing_given_is_modified_or_given_away(broken(vjp=vjp))

    def test_a_view_of_saved(self, broken):
        with pytest.raises(AssertionError):
            self.check.test_nothing_given_is_modified_or_given_away(broken(vjp=lambda xp, s, dy, need: (s[0][None],)))
