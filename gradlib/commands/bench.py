"""`gradlib bench`: the benchmarks of the checkout that gradlib was installed from."""

from __future__ import annotations

import subprocess
import sys
from argparse import Namespace
from pathlib import Path


def bench(arguments: Namespace) -> int:
    """Run bench/run.py with the arguments given; it is part of a checkout, not of the installed package."""
    root = Path(__file__).parents[2]
    file = root / "bench" / "run.py"
    if not file.is_file():
        raise FileNotFoundError(
            f'no benchmarks beside {root / "gradlib"}: they come with a checkout; there, pip install -e ".[bench]"'
        )
    return subprocess.call([sys.executable, str(file), *arguments.arguments])
