"""Where kernels run in the tests: on the GPU if there is one that answers, else in the simulator.

The choice is made here, in the environment, because numba reads it once, when it is first imported.
"""

import gc
import importlib.util
import os
import zlib

import pytest


def _gpu_answers():
    if importlib.util.find_spec("cupy") is None:
        return False
    import cupy

    return cupy.is_available()


gc.set_threshold(50_000)  # a simulated thread makes and drops many objects, none of them in a cycle
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")  # what JAX compiles runs once

if "GRADLIB_FAKE_GPU" in os.environ:
    os.environ["NUMBA_ENABLE_CUDASIM"] = "1"  # kernels run in the simulator all the same
if "NUMBA_ENABLE_CUDASIM" not in os.environ:
    os.environ["NUMBA_ENABLE_CUDASIM"] = "0" if _gpu_answers() else "1"


REACHED = "GRADLIB_REACHED" in os.environ and "PYTEST_CURRENT_TEST" not in os.environ  # not where a test runs tests


def pytest_configure():
    """With GRADLIB_FAKE_GPU kernels' tests run as on a GPU, on a stand-in (see fakecuda.py); with GRADLIB_REACHED it is
    noted which kernels run (see reached.py)."""
    if "GRADLIB_FAKE_GPU" in os.environ:
        import fakecuda

        fakecuda.pretend()
    if REACHED:
        import reached

        reached.watch()


def pytest_sessionfinish(session):
    if REACHED:
        import reached

        reached.finish(session, SCHEDULES if OTHERS else ())


SCHEDULES = ("forward", "reverse", "7")
OTHERS = os.environ.get("GRADLIB_SIM_SCHEDULE") == "others"


def _other(item):
    """Of "others": the one that a test is run under, drawn by its name; None for half of the tests."""
    return (*SCHEDULES[1:], None, None)[zlib.crc32(item.nodeid.encode()) % 4]


@pytest.fixture(autouse=OTHERS)
def other_schedule(request, monkeypatch):
    """With GRADLIB_SIM_SCHEDULE=others a test runs backwards or by chance."""
    monkeypatch.setenv("GRADLIB_SIM_SCHEDULE", _other(request.node))


@pytest.fixture(params=SCHEDULES)
def schedule(request, monkeypatch):
    """Run a test under several orders of the simulator's threads; once on a GPU."""
    if os.environ["NUMBA_ENABLE_CUDASIM"] == "0" and request.param != "forward":
        pytest.skip("a GPU has its own schedule")
    monkeypatch.setenv("GRADLIB_SIM_SCHEDULE", request.param)


def pytest_collection_modifyitems(config, items):
    """Tests under another schedule (GRADLIB_SIM_SCHEDULE is set): those that run under each anyway are left out; of
    "others", half of the rest: a kernel has many tests, and reached.py tells if it was run under each schedule."""
    if "GRADLIB_SIM_SCHEDULE" in os.environ:
        chosen = [i for i in items if "schedule" not in i.fixturenames and (not OTHERS or _other(i))]
        config.hook.pytest_deselected(items=[*{*items} - {*chosen}])
        items[:] = chosen
