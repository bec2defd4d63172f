"""What the compiler is given: in an order of its own, and a copy of the kernel, which keeps its signature."""

from itertools import permutations
from types import SimpleNamespace

from gradlib.kernels.compiler import _ordered, _plain
from gradlib.kernels.launch import Launchable
from gradlib.kernels.network_jacobian import _sized, tiles_of_samples


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


def test_a_kernel_that_was_compiled_keeps_its_signature():
    """Each size of shared memory makes a `Launchable` of the same function, those after the first compilation too."""
    kernel = tiles_of_samples["float32", "computed"]
    plain = _plain(kernel.body)
    assert plain.__annotations__ == {} and plain.__qualname__ == kernel.body.__qualname__
    assert (plain.__code__, plain.__closure__) == (kernel.body.__code__, kernel.body.__closure__)
    for again in (_sized("float32", "computed", 12_345), Launchable("again", kernel.body)):
        assert again.parameters == kernel.parameters and len(again.parameters) == 28
