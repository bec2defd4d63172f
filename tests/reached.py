"""Which kernels the tests run in the simulator: with GRADLIB_REACHED=FILE the suite fails if one is left out.

Every process of pytest-xdist writes down the names of those that it ran, and the schedules; the one that leads them
compares them with the catalogue at the end. A later run under other schedules adds to the file, and fails if a kernel,
in whichever of its variants, was not run under all.
"""

import os
from pathlib import Path

from gradlib.kernels import simulator

FILE = os.environ.get("GRADLIB_REACHED")
_runs: set[tuple[str, str]] = set()  # of a kernel under a schedule


def watch():
    """Note what is run from now on."""
    run = simulator.run_grid

    def noted(name, *args, **keywords):
        _runs.add((name, os.environ.get("GRADLIB_SIM_SCHEDULE", "forward")))
        return run(name, *args, **keywords)

    simulator.run_grid = noted


def finish(session, schedules):
    """Write the runs down; where this process leads, fail the session if the catalogue has more, or a kernel was not
    run under each of the schedules."""
    with Path(FILE).open("a") as file:
        file.writelines(f"{name} {schedule}\n" for name, schedule in sorted(_runs))
    if hasattr(session.config, "workerinput"):
        return
    runs = {tuple(line.split()) for line in Path(FILE).read_text().splitlines()}
    left_out = sorted(_instances() - {name for name, _ in runs})
    every = {(_kernel(name), schedule) for name in _instances() for schedule in schedules}
    missing = every - {(_kernel(name), schedule) for name, schedule in runs}
    left_out += [f"{kernel} under the schedule {schedule}" for kernel, schedule in sorted(missing)]
    if left_out:
        print(f"\n{len(left_out)} kernels were not run by any test:", *left_out, sep="\n  ")
        session.exitstatus = 1


def _kernel(name):
    """The kernel of an instance: "softmax_rows.held_rows" of "softmax_rows.held_rows-float32-8-4"."""
    return name.partition("-")[0]


def _instances():
    """The names of all kernels."""
    from gradlib.kernels.inspection import load_catalogue
    from gradlib.kernels.launch import CATALOGUE

    load_catalogue()
    return {kernel.name_of(key) for kernel in CATALOGUE.values() for key in kernel.instances()}
