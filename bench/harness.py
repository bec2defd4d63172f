"""What a benchmark case is, how cases are found, and how a contender's values are compared with the reference.

An area's file ``bench_<area>.py`` holds `CASES`, a list of `Case`. A case makes its inputs from a seed, has a
reference in float64 NumPy, and names its contenders: "gradlib" and the peers ("torch", "torch.func", "torch fused",
"jax", "autograd", "numpy"). A contender is a function

    build(inputs, device) -> run, values

`run()` is what is timed, and returns when the device is done. `values()` gives the named arrays to compare with the
reference; it is called once, first, on the fresh state. Peers are imported inside `build` alone, because every
contender runs in a process of its own, maybe of another interpreter, which has NumPy and that one peer.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
OURS = "gradlib"

Run = Callable[[], Any]
Build = Callable[[Any, str], tuple[Run, Callable[[], dict[str, Any]]]]


@dataclass(frozen=True)
class Case:
    """One benchmark. `tolerance` bounds max|value - reference| / max|reference| of every array; keep it below 1%."""

    name: str
    about: str
    inputs: Callable[..., Any]
    reference: Callable[[Any], dict[str, Any]]
    contenders: dict[str, Build]
    sizes: dict[str, Any]
    tiny: dict[str, Any]
    tolerance: float = 1e-3

    def make(self, tiny: bool = False, seed: int = 0) -> Any:
        """The inputs, the same in every process."""
        return self.inputs(np.random.default_rng(seed), **(self.tiny if tiny else self.sizes))


def load(folder: Path = HERE) -> dict[str, tuple[Case, Path]]:
    """Every case in the ``bench_*.py`` of a folder, by name, with the file it stands in."""
    found: dict[str, tuple[Case, Path]] = {}
    for path in sorted(folder.glob("bench_*.py")):
        for case in load_file(path):
            if case.name in found:
                raise ValueError(f"two benchmark cases are named {case.name!r}: {found[case.name][1]} and {path}")
            found[case.name] = case, path
    return found


def load_file(path: Path) -> list[Case]:
    """The cases of one file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.CASES


def leaves(tree: Any) -> list[np.ndarray]:
    """The arrays of nested dicts, lists and tuples, in order of keys and positions, as NumPy arrays."""
    if isinstance(tree, dict):
        return [x for key in sorted(tree) for x in leaves(tree[key])]
    if isinstance(tree, (list, tuple)):
        return [x for part in tree for x in leaves(part)]
    if hasattr(tree, "detach"):  # torch
        tree = tree.detach().cpu()
    elif hasattr(tree, "get"):  # CuPy
        tree = tree.get()
    return [np.asarray(tree)]


def deviation(values: dict[str, Any], reference: dict[str, Any]) -> float:
    """Largest max|a - b| / max|b| over the arrays a of `values` and b of `reference`; infinite for a NaN.

    ValueError where names, the number of arrays or a shape differ.
    """
    if set(values) != set(reference):
        raise ValueError(f"expected values {sorted(reference)}, got {sorted(values)}")
    worst = 0.0
    for name in reference:
        got, want = leaves(values[name]), leaves(reference[name])
        if [a.shape for a in got] != [b.shape for b in want]:
            raise ValueError(f"{name}: expected shapes {[b.shape for b in want]}, got {[a.shape for a in got]}")
        worst = max([worst, *map(_deviation, got, want)])
    return worst


def _deviation(a: np.ndarray, b: np.ndarray) -> float:
    if not b.size:
        return 0.0
    error = float(np.abs(a - b).max())
    scale = float(np.abs(b).max())
    if not np.isfinite(error):
        return float("inf")
    return error / scale if scale else error


def done(device: str) -> Callable[[], None]:
    """A function that waits until our own kernels on `device` have finished."""
    if device == "cpu":
        return lambda: None
    import cupy

    return lambda: cupy.cuda.get_current_stream().synchronize()


def torch_done(device: str) -> Callable[[], None]:
    """The same for torch's."""
    if device == "cpu":
        return lambda: None
    import torch

    return torch.cuda.synchronize


def compiled(function: Run) -> Run:
    """torch.compile of a function; ModuleNotFoundError, which skips the contender, where it has no C++ compiler."""
    import torch

    if not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
        raise ModuleNotFoundError("torch.compile needs a C++ compiler (g++ or clang++)")
    return torch.compile(function)


def check_in_process(benchmark: Any, case: Case) -> None:
    """Our own contender under pytest-benchmark: validated, then timed, in this process."""
    inputs = case.make()
    run, values = case.contenders[OURS](inputs, "cpu")
    error = deviation(values(), case.reference(inputs))
    assert error <= case.tolerance, f"{case.name}: off by {error:.2e}, allowed {case.tolerance:.0e}"
    benchmark(run)
