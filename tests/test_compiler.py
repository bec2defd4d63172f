"""What the compiler is given does not depend on the order in which Numba happens to keep it."""

from itertools import permutations
from types import SimpleNamespace

from gradlib.kernels.compiler import _ordered


def module(name, *calls):
    functions = [SimpleNamespace(name=name, is_declaration=False)]
    functions += [SimpleNamespace(name=c, is_declaration=True) for c in calls]
    return SimpleNamespace(name=f"{name}$1", functions=functions)


def test_device_functions_come_in_the_order_of_their_calls():
    kernel = module("kernel", "sum", "__nv_expf", "load")
    called = [module("load", "tile"), module("sum", "add", "shuffle"), module("tile"), module("add"), module("shuffle")]
    for order in permutations(called):
        names = [m.name for m in _ordered([kernel, *order])]
        assert names == ["kernel$1", "sum$1", "add$1", "shuffle$1", "load$1", "tile$1"]
