"""`pytest bench/ --benchmark-only`: our own contenders, in this process; ``run.py`` is for comparisons with peers."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))


def pytest_collect_file(file_path, parent):
    """Files are named bench_<area>.py here; one named on the command line is collected anyway."""
    if file_path.match("bench_*.py") and not parent.session.isinitpath(file_path):
        return pytest.Module.from_parent(parent, path=file_path)
    return None
