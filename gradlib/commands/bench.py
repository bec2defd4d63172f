"""`gradlib bench`: the benchmarks of the checkout that gradlib was installed from."""

from __future__ import annotations

import subprocess
import sys
from argparse import Namespace
from pathlib import Path


def bench(arguments: Namespace) -> int:
    """Run bench/run.py, or with --gpu bench/gpu/run.py, with the arguments given; they are part of a checkout."""
    root, given = Path(__file__).parents[2], list(arguments.arguments)
    file = root / "bench" / "run.py"
    if "--gpu" in given:
        given.remove("--gpu")
        file = root / "bench" / "gpu" / "run.py"
    if not file.is_file():
        raise FileNotFoundError(
            f'no benchmarks beside {root / "gradlib"}: they come with a checkout; there, pip install -e ".[bench]"'
        )
    return subprocess.call([sys.executable, str(file), *given])
