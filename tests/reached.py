"""Which kernels the tests run in the simulator: with GRADLIB_REACHED=FILE the suite fails if one is left out.

Every process of pytest-xdist writes down the names of those that it ran; the one that leads them compares them with the
catalogue at the end.
"""

import os
from pathlib import Path

from gradlib.kernels import simulator

FILE = os.environ.get("GRADLIB_REACHED")
_names: set[str] = set()


def watch():
    """Note what is run from now on."""
    run = simulator.run_grid

    def noted(name, *args, **keywords):
        _names.add(name)
        return run(name, *args, **keywords)

    simulator.run_grid = noted


def finish(session):
    """Write the names down; where this process leads, fail the session if the catalogue has more."""
    with Path(FILE).open("a") as file:
        file.writelines(f"{name}\n" for name in sorted(_names))
    if hasattr(session.config, "workerinput"):
        return
    left_out = sorted(_instances() - set(Path(FILE).read_text().splitlines()))
    if left_out:
        print(f"\n{len(left_out)} kernels were not run by any test:", *left_out, sep="\n  ")
        session.exitstatus = 1


def _instances():
    """The names of all kernels."""
    from gradlib.kernels.inspection import load_catalogue
    from gradlib.kernels.launch import CATALOGUE

    load_catalogue()
    return {kernel.name_of(key) for kernel in CATALOGUE.values() for key in kernel.instances()}
