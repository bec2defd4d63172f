"""The object that jacobian and batch_jacobian give: plans, results written into arrays, pieces, on any graph."""

import itertools
import types

import numpy as np
import pytest
import standin
from rulecheck import close, randn
from standin import DeviceArray, rules_only, to_numpy, to_standin

import gradlib as gl
from gradlib.jacobian.batched_work import BatchedWork
from gradlib.jacobian.function import JacobianFunction

W, V = randn(6, 6), randn(6, 4)
X = randn(5, 6)
P = {"w": randn(6, 3), "b": randn(3)}
EYE = np.eye(5)


def chain(x):
    return gl.softmax(np.tanh(x @ W) @ V)


def residual(x):
    h = x + np.tanh(x @ W)
    return (h + np.sin(h @ W)) @ V


def model(p, x):
    return {"y": gl.softmax(np.tanh(x @ p["w"]) + p["b"]), "s": x.sum(1)}


def leaves(tree):
    return gl.tree.flatten(tree)[0]


def same(a, b, tolerance=1e-12):
    assert gl.tree.flatten(a)[1] == gl.tree.flatten(b)[1]
    for p, q in zip(leaves(a), leaves(b), strict=True):
        assert p.shape == q.shape
        close(p, q, tolerance)


CALLS = {
    "chain": (gl.batch_jacobian(chain), (X,)),
    "one op": (gl.batch_jacobian(gl.softmax), (X,)),
    "ahead": (gl.batch_jacobian(chain, mode="fwd"), (X,)),
    "residual": (gl.batch_jacobian(residual), (X,)),
    "residual, ahead": (gl.batch_jacobian(residual, mode="fwd", chunk_size=2), (X,)),
    "shared and batched": (gl.batch_jacobian(model, (1, 0), in_axes=(None, 0), chunk_size=2), (P, X)),
    "does not depend": (gl.batch_jacobian(lambda x: np.ones((5, 2))), (X,)),
    "numbers a sample": (gl.batch_jacobian(lambda x: x * x), (X[:, 0].copy(),)),
    "whole": (gl.jacobian(chain), (X,)),
    "whole vector": (gl.jacobian(residual), (X[0],)),
    "whole tree": (gl.jacobian(model, (0, 1), chunk_size=2), (P, X)),
    "rev": (gl.jacrev(residual), (X,)),
    "fwd": (gl.jacfwd(residual), (X,)),
    "hessian": (gl.hessian(lambda x: np.sum(chain(x) ** 2)), (X,)),
    "hessian of a tree": (gl.hessian(lambda p: np.sum(model(p, X)["y"] ** 2)), (P,)),
    "0-d": (gl.jacobian(np.sin), (np.array(0.3),)),
}


def calls(*left_out):
    table = {k: v for k, v in CALLS.items() if k not in left_out}
    return pytest.mark.parametrize(("jacobian", "args"), table.values(), ids=table.keys())


@calls()
def test_into_writes_what_a_call_gives(jacobian, args):
    want = jacobian(*args)
    out = gl.tree.map(lambda a: np.full_like(a, np.nan), want)
    assert jacobian.into(out, *args) is out
    same(out, want, 1e-15)


def joined(pieces, batched, want):
    """The pieces put together as the result: along the batch, or along the flattened outputs."""
    pieces = [piece for _, piece in pieces]
    if batched:
        return gl.tree.map(lambda *parts: np.concatenate(parts), pieces[0], *pieces[1:])
    rows = [np.concatenate(parts) for parts in zip(*map(leaves, pieces), strict=True)]
    found, at = [], 0
    for i, j in enumerate(leaves(want)):
        k = i % len(rows)
        count = j.size // max(rows[k][0].size, 1)
        found.append(rows[k][at : at + count].reshape(j.shape))
        at += count if k == len(rows) - 1 else 0
    return gl.tree.unflatten(gl.tree.flatten(want)[1], found)


@pytest.mark.parametrize("max_bytes", [None, 6000, 20_000])
@calls()
def test_pieces_make_the_result(jacobian, args, max_bytes):
    name, f = jacobian._name, jacobian.__wrapped__
    if max_bytes is not None:
        axes = {"in_axes": (None, 0), "argnums": (1, 0)} if len(args) == 2 and name == "batch_jacobian" else {}
        axes = {"argnums": (0, 1)} if len(args) == 2 and name != "batch_jacobian" else axes
        if name != "hessian":
            jacobian = getattr(gl, name)(f, max_bytes=max_bytes, **axes)
    want, pieces = jacobian(*args), list(jacobian.chunks(*args))
    slices = [s for s, _ in pieces]
    assert slices[0].start == 0 and all(a.stop == b.start for a, b in itertools.pairwise(slices))
    same(joined(pieces, name == "batch_jacobian", want), want)
    for s, piece in pieces:
        assert all(len(a) == s.stop - s.start and a.flags.c_contiguous for a in leaves(piece))
        if max_bytes is not None and len(pieces) > 1 and s.stop - s.start > 1:
            assert sum(a.nbytes for a in leaves(piece)) <= max_bytes


def test_pieces_are_made_when_they_are_asked_for(monkeypatch):
    done = []

    def f(x):
        done.append("f")
        return residual(x)

    write = BatchedWork._write
    monkeypatch.setattr(
        BatchedWork, "_write", lambda self, out, at, limit: (done.append(at), write(self, out, at, limit))
    )
    pieces = gl.batch_jacobian(f, max_bytes=10_000).chunks(X)
    assert done == ["f"]  # at once, and once
    assert next(pieces)[0] == done[1] == slice(0, 5)
    pieces = gl.batch_jacobian(chain, max_bytes=12_000).chunks(np.tile(X, (20, 1)))
    first = next(pieces)[0]
    assert done[2:] == [first] == [slice(0, first.stop)]
    assert len(list(pieces)) == 3


def test_no_samples_have_no_pieces():
    jacobian = gl.batch_jacobian(chain)
    assert list(jacobian.chunks(X[:0])) == []
    assert jacobian.into(np.empty((0, 4, 6)), X[:0]).shape == (0, 4, 6)
    assert jacobian.plan(X[:0]).peak >= 0
    assert list(gl.jacobian(lambda x: x[:0]).chunks(X)) == []


@calls()
def test_plans(jacobian, args):
    plan = jacobian.plan(*args)
    assert plan.mode in ("rev", "fwd", "mixed")
    assert plan.flops >= 0 and plan.bytes >= sum(a.nbytes for a in leaves(jacobian(*args)))
    assert plan.peak >= 0 and plan.rows >= 1
    text = plan.explain()
    assert str(plan) == text and "\n\n" in text and f"* {plan.mode}" in text and "Working memory" in text
    assert max(map(len, text.splitlines())) <= 120
    assert all(block in text for block in plan.blocks)


def test_a_plan_explains_itself():
    ws = [randn(*s) for s in ((64, 64), (64, 4), (4, 64), (64, 64))]

    def f(x):
        for w in ws:
            x = gl.linear(x, w, activation="tanh")
        return x

    plan = gl.batch_jacobian(f).plan(randn(10, 64))
    assert plan.mode == "mixed"
    assert plan.blocks[1] == "shared matrix 64 -> 4"
    by_mode = {o.mode: o for o in plan.options}
    assert by_mode["rev"].how == "(((J4 J3) J2) J1)" and by_mode["fwd"].how == "(J4 (J3 (J2 J1)))"
    assert plan.chosen().how == "((J4 J3) (J2 J1))"
    assert plan.flops < 0.5 * by_mode["rev"].flops
    # ten samples: (J4 J3) and (J2 J1) by 4 rows of 64 x 64 products, then 64 x 4 x 64
    assert plan.flops == pytest.approx(10 * (2 * 4 * 64 * 64 * 2 + 2 * 64 * 4 * 64), rel=0.1)
    text = plan.explain()
    assert "float64[10, 64, 64]" in text and "the cheapest" in text and "328 kB" in text


def test_a_plan_says_what_was_asked_for_and_what_does_not_fit():
    plan = gl.batch_jacobian(residual, mode="fwd").plan(X)
    assert plan.mode == "fwd" and {o.mode for o in plan.options} >= {"rev", "fwd"}
    assert "rev is the only way here" in gl.batch_jacobian(model, in_axes=(None, 0)).plan(P, X).explain()
    ws = [randn(40, 40) for _ in range(2)] + [randn(40, 30), randn(30, 40)]  # products of the middle need memory

    def deep(x):
        for w in ws:
            x = np.sin(x @ w)
        return x

    plan = gl.batch_jacobian(deep).plan(randn(2, 40))
    assert plan.mode == "mixed" and "too much memory" not in plan.explain()
    few = gl.batch_jacobian(deep, max_bytes=9000).plan(randn(2, 40))
    assert few.mode == "rev" and few.peak <= 9000
    assert "mixed" in few.explain() and "(too much memory)" in few.explain()
    assert "the cheapest that fits" in few.explain()
    tall = gl.jacobian(lambda x: x * np.ones((40, 1))).plan(X[0])
    assert tall.mode == "fwd" and "the cheapest" in tall.explain()


def test_operations_of_a_sweep_are_counted():
    w = randn(200, 100)
    plan = gl.jacobian(lambda x: np.sin(x @ w) + x[0], mode="rev").plan(randn(200))
    assert plan.flops == pytest.approx(100 * 2 * 200 * 100, rel=0.1)
    einsum = gl.batch_jacobian(lambda x: np.einsum("bi,ij->bj", x, w) * x[:, :1], mode="rev").plan(randn(8, 200))
    assert einsum.flops == pytest.approx(8 * 100 * 2 * 200 * 100, rel=0.1)


def test_it_looks_like_the_function():
    def named(x):
        """About it."""
        return x

    jacobian = gl.batch_jacobian(named)
    assert isinstance(jacobian, JacobianFunction)
    assert jacobian.__name__ == "named" and jacobian.__doc__ == "About it." and jacobian.__wrapped__ is named
    assert repr(jacobian).startswith("<batch_jacobian of ") and "named" in repr(jacobian)
    assert "sin" in repr(gl.jacobian(np.sin)) and "hessian" in repr(gl.hessian(np.sum))
    assert repr(gl.jacobian(gl.jacobian(np.sin)))


def test_it_can_be_a_method():
    class Model:
        k = 3.0

        @gl.jacobian
        def scaled(self, x):
            return self.k * x

        slope = gl.jacobian(lambda self, x: self.k * x, 1)

    with pytest.raises(TypeError, match="floating-point"):
        Model().scaled(np.ones(2))  # by argument 0, which is the object
    assert Model().slope(np.ones(2)).tolist() == [[3, 0], [0, 3]]
    assert isinstance(Model.slope, JacobianFunction)


BAD_TARGETS = [
    (lambda: np.empty((5, 4, 5)), ValueError, r"expected out as float64\[5, 4, 6\], got float64\[5, 4, 5\]"),
    (lambda: np.empty((5, 4, 6), "f"), ValueError, r"expected out as float64\[5, 4, 6\], got float32\[5, 4, 6\]"),
    (lambda: np.empty((5, 6, 4)).swapaxes(1, 2), ValueError, "expected out C-contiguous and writeable"),
    (lambda: np.broadcast_to(np.zeros(6), (5, 4, 6)), ValueError, "expected out C-contiguous and writeable"),
    (lambda: [np.empty((5, 4, 6))], ValueError, "expected out of structure"),
    (lambda: 3.0, TypeError, r"expected out as an array float64\[5, 4, 6\], got float"),
    (lambda: None, ValueError, "expected out of structure"),
]


@pytest.mark.parametrize(("out", "kind", "words"), BAD_TARGETS)
def test_targets_that_do_not_fit(out, kind, words):
    for f in (chain, residual):
        with pytest.raises(kind, match=f"batch_jacobian.into: {words}"):
            gl.batch_jacobian(f).into(out(), X)


def test_targets_that_share_memory():
    memory = np.zeros(30 + 120)
    x, out = memory[:30].reshape(5, 6), memory[30:].reshape(5, 4, 6)
    gl.batch_jacobian(chain).into(out, x)
    over = memory[:120].reshape(5, 4, 6)
    before = memory.copy()
    with pytest.raises(ValueError, match=r"batch_jacobian.into: out shares memory with an argument"):
        gl.batch_jacobian(chain).into(over, x)
    with pytest.raises(ValueError, match=r"jacobian.into: out\['b'\] shares memory"):
        both = np.empty((3, 3))
        gl.jacobian(lambda x: {"a": x * 2, "b": np.sin(x)}).into({"a": both, "b": both}, np.ones(3))
    assert (memory == before).all()


def test_a_tree_names_the_leaf_that_does_not_fit():
    jacobian = gl.jacobian(model)
    out = jacobian(P, X)
    out["y"]["w"] = out["y"]["w"][:-1].copy()
    with pytest.raises(ValueError, match=r"jacobian.into: expected out\['y'\]\['w'\] as float64\[5, 3, 6, 3\]"):
        jacobian.into(out, P, X)


@pytest.mark.parametrize("jacobian", [gl.jacobian(chain), gl.batch_jacobian(chain), gl.batch_jacobian(residual)])
@pytest.mark.parametrize("what", ["plan", "chunks", "into"])
def test_traced_arrays_are_refused(jacobian, what):
    def call(x):
        args = (np.empty((5, 4, 6)), x) if what == "into" else (x,)
        getattr(jacobian, what)(*args)
        return np.sum(x)

    words = rf"jacobian.{what}: expected plain arrays, got values traced by an outer transform"
    for outer in (gl.grad(call), gl.capture(call), gl.batch_jacobian(call)):
        with pytest.raises(TypeError, match=words):
            outer(X)

    def closure(w):  # traced through what f holds
        held = gl.batch_jacobian(lambda x: np.tanh(x @ w))
        return np.sum(getattr(held, what)(*((np.empty((5, 4, 6)), X) if what == "into" else (X,))))

    with pytest.raises(TypeError, match=words):
        gl.grad(closure)(V)


@pytest.mark.parametrize("f", [chain, residual])
@pytest.mark.parametrize("settings", [{}, {"chunk_size": 3}, {"max_bytes": 9000}])
def test_under_outer_transforms(f, settings):
    jacobian = gl.batch_jacobian(f, **settings)
    loss = lambda x: np.sum(jacobian(x) ** 2)  # noqa: E731
    gl.check_grads(loss, (X,), order=1, rtol=1e-5)
    close(gl.capture(jacobian)(X), jacobian(X), 1e-13)
    captured = gl.capture(jacobian)
    captured(X)
    close(captured(2 * X), jacobian(2 * X), 1e-13)
    close(gl.jacobian(gl.jacobian(f, **settings))(X[0]), gl.jacobian(gl.jacobian(f))(X[0]), 1e-12)


@pytest.fixture
def device(monkeypatch):
    """Device arrays that tell their layout, as CuPy's do."""
    monkeypatch.setattr(DeviceArray, "flags", property(lambda a: a.host.flags), raising=False)
    pointer = property(lambda a: types.SimpleNamespace(ptr=a.host.ctypes.data))
    monkeypatch.setattr(DeviceArray, "data", pointer, raising=False)
    with rules_only():
        yield standin.MODULE


@pytest.mark.parametrize("settings", [{}, {"chunk_size": 2}, {"max_bytes": 4000}, {"mode": "fwd"}])
@pytest.mark.parametrize("f", [chain, residual])
def test_on_device_arrays(device, f, settings):
    if f is chain:
        f = lambda x: gl.softmax(gl.linear(x, w, activation="tanh"))  # noqa: E731
    else:
        f = lambda x: gl.linear(x, w, activation="tanh") * x[:, :1] + gl.tanh(x)[:, :4]  # noqa: E731
    w = V
    want = gl.batch_jacobian(f)(X), gl.jacobian(f)(X)
    w, x = to_standin((V, X))
    for transform, j in zip((gl.batch_jacobian, gl.jacobian), want, strict=True):
        jacobian = transform(f, **settings)
        close(to_numpy(jacobian(x)), j, 1e-12)
        close(to_numpy(jacobian.into(device.asarray(np.zeros(j.shape)), x)), j, 1e-12)
        pieces = np.concatenate([to_numpy(p) for _, p in jacobian.chunks(x)])
        close(pieces.reshape(j.shape), j, 1e-12)
        assert jacobian.plan(x).explain()
        with pytest.raises(TypeError, match=r"into: expected out as an array cupy float64"):
            jacobian.into(np.zeros(j.shape), x)
