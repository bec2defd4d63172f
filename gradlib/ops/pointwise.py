"""The builder of elementwise ops: from f and its partials alone, all rules.

y = f(x_0, x_1, …)      dx_i = Σ_broadcast dy ∂_i      dy = Σ_i dx_i ∂_i      Jacobian: diagonal
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..jacobian.blocks import Diagonal, Identity, Spread
from ..jacobian.factors import Rows, by_sample
from ..kept import places_read
from ..op import Op, check_broadcast, lift, shape_of, unbroadcast
from ..precision import narrow, wide
from ..trace import Namespace
from .batching import elementwise_batch

Formula = Callable[..., Any]
Partial = Formula | int | None


def repeated_for_samples(shapes: tuple, need: tuple, axis: int, static: dict) -> bool:
    """Whether broadcasting repeats the inputs `need` for every sample: none has a row for each."""
    return all([not n or len(s) < -axis or s[axis] == 1 for n, s in zip(need, shapes, strict=True)])


def elementwise(name: str, f: Formula, *dfs: Partial, module: str = "elementwise") -> Op:
    """Op of n arguments that broadcast; `dfs[i](xp, *x, y, **static)` is ∂y/∂x_i, None a partial that is zero.

    A partial of 1 or -1 may be given as that number. `module` is the file that holds the op. What no partial reads of
    its arguments is not kept once the op is recorded: see ``gradlib.kept``.
    """

    def forward_one(xp: Any, x: Any, **static: Any) -> Any:
        if type(xp) is Namespace:  # as below
            y = op(x, **static)
        else:
            y = f(xp, x, **static) if static else f(xp, x)  # the second is quicker
        return y, (x, y)

    def forward_many(xp: Any, *x: Any, **static: Any) -> Any:
        if type(xp) is Namespace:  # recorded one level down as itself, so that its conventions hold at every order
            y = op(*x, **static)
        else:
            try:
                y = f(xp, *x, **static) if static else f(xp, *x)
            except ValueError:
                check_broadcast(name, *x)
                raise
        return y, (*x, y)

    def scale(xp: Any, i: int, d: Any, saved: tuple, static: dict) -> Any:
        df = dfs[i]
        if df.__class__ is int:
            return d if df == 1 else -d
        if d.dtype.itemsize == 2:
            return scale_wide(xp, df, d, saved, static)
        return d * (df(xp, *saved, **static) if static else df(xp, *saved))  # type: ignore[operator,misc]

    def scale_wide(xp: Any, df: Any, d: Any, saved: tuple, static: dict) -> Any:
        """The same with one rounding, where d is float16 or bfloat16."""
        return narrow(wide(d) * df(xp, *map(wide, saved), **static), d.dtype)

    def vjp_one(xp: Any, saved: tuple, dy: Any, need: tuple[bool, ...], **static: Any) -> tuple:
        if formula is None or dy.dtype.itemsize == 2:
            return (scale(xp, 0, dy, saved, static),)
        x, y = saved
        return (dy * (formula(xp, x, y, **static) if static else formula(xp, x, y)),)

    def vjp_many(xp: Any, saved: tuple, dy: Any, need: tuple[bool, ...], **static: Any) -> list:
        dx: list[Any] = []
        for i, df in enumerate(dfs):
            if not need[i] or df is None:
                dx.append(None)
                continue
            d, shape = scale(xp, i, dy, saved, static), saved[i].shape
            dx.append(d if d.shape[1:] == shape else unbroadcast(xp, d, shape))
        return dx

    def vjp_each(xp: Any, saved: tuple, dy: Any, need: tuple[bool, ...], axis: int, **static: Any) -> tuple:
        """Per-sample cotangents of parameters that broadcasting repeats for every sample."""
        dx: list[Any] = [None] * len(dfs)
        for i, n in enumerate(need):
            if n and dfs[i] is not None:
                shape = shape_of(saved[i])
                at = max(len(shape) + axis, -1)
                d = by_sample(scale(xp, i, dy, saved, static), axis, 1)
                v, samples = d.shape[:2]
                one = shape[: max(at, 0)] + shape[at + 1 :]  # without the batch axis, as d
                d = unbroadcast(xp, d.reshape((v * samples, *d.shape[2:])), one)
                dx[i] = Rows(d.reshape((v, samples, *shape)))
        return tuple(dx)

    def jvp_one(xp: Any, saved: tuple, dx: tuple, **static: Any) -> Any:
        return vjp_one(xp, saved, dx[0], (True,), **static)[0]  # the Jacobian is symmetric

    def jvp_many(xp: Any, saved: tuple, dx: tuple, **static: Any) -> Any:
        y, dy = saved[-1], None
        v = next(d.shape[0] for d in dx if d is not None)
        for i, d in enumerate(dx):
            if d is not None and dfs[i] is not None:
                part = scale(xp, i, lift(xp, d, y.ndim), saved, static)
                dy = part if dy is None else dy + part
        shape = (v, *y.shape)
        if dy is None:
            return xp.zeros(shape, y.dtype)
        return dy if dy.shape == shape else xp.broadcast_to(dy, shape)

    def block(xp: Any, saved: tuple, i: int, **static: Any) -> Any:
        y, shape = saved[-1], shape_of(saved[i])
        if dfs[i] is None or len(shape) != len(y.shape):
            return None
        if dfs[i] == 1 and shape == y.shape:
            return Identity(xp.empty((), y.dtype), shape)
        d = scale(xp, i, xp.ones((1, *y.shape), y.dtype), saved, static)[0]
        return Diagonal(d) if shape == y.shape else Spread(d, shape)

    formula: Any = dfs[0] if callable(dfs[0]) else None
    one, many = (forward_one, vjp_one, jvp_one), (forward_many, vjp_many, jvp_many)
    forward, vjp, jvp = one if len(dfs) == 1 else many
    rules: dict[str, Any] = {"forward": forward, "vjp": vjp, "jvp": jvp, "block": block}
    rules |= {"vjp_each": vjp_each, "each_takes": repeated_for_samples}

    def reads() -> tuple:
        return tuple([places_read(df, len(dfs)) for df in dfs])

    op = Op(name, **rules, batch=elementwise_batch, partials=dfs, reads=reads, module=module)
    return op
