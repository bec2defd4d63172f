"""A stand-in for device arrays: NumPy arrays in a wrapper that refuses silent conversion, with a module of functions.

It is as strict as CuPy: functions of the module take its own arrays, Python numbers and NumPy scalars, never NumPy
arrays; every result, a single number too, is a device array; `np.asarray` of one raises.
"""

import contextlib
from types import SimpleNamespace
from unittest import mock

import numpy as np

from gradlib.op import REGISTRY, register_array_type

try:
    import cupy
except ImportError:
    cupy = None


def run(f, args, kwargs):
    """What the device does for a result; with the two below what fakecuda.py puts itself in the place of."""
    return f(*args, **kwargs)


def change(f, *args):
    """What it does to change an array."""
    f(*args)


def read(host):
    """The host asks for a value."""
    return host


class DeviceArray:
    """Wraps a NumPy array as CuPy's ndarray wraps device memory."""

    __array_priority__ = 100

    def __init__(self, host):
        self.host = np.asarray(host)

    shape, dtype, ndim, size, nbytes, itemsize, strides, flags = (
        property(lambda self, n=n: getattr(self.host, n))
        for n in ("shape", "dtype", "ndim", "size", "nbytes", "itemsize", "strides", "flags")
    )
    T = property(lambda self: DeviceArray(self.host.T))

    data = property(lambda self: SimpleNamespace(ptr=self.host.ctypes.data, device_id=0))

    def get(self):
        return read(self.host).copy()

    def view(self, dtype):
        return DeviceArray(self.host.view(dtype))

    def fill(self, value):
        change(self.host.fill, value)

    def __array__(self, *args, **kwargs):
        raise TypeError("Implicit conversion to a NumPy array is not allowed; use .get()")

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        known = (DeviceArray, np.ndarray, np.generic, bool, int, float)
        if method != "__call__" or not all(isinstance(x, known) for x in inputs):
            return NotImplemented
        return getattr(MODULE, ufunc.__name__)(*inputs, **kwargs)

    def __len__(self):
        return len(self.host)

    def __bool__(self):
        return bool(read(self.host))

    def __float__(self):
        return float(read(self.host))

    def __int__(self):
        return int(read(self.host))

    def __index__(self):
        return read(self.host).__index__()

    def item(self):
        return read(self.host).item()

    def __getitem__(self, index):
        return _compute(np.ndarray.__getitem__, self, index)

    def __setitem__(self, index, value):
        change(self.host.__setitem__, _host(index), _host(value))


def _host(x):
    """Device arrays as NumPy's, in tuples and lists too; a NumPy array is refused."""
    if isinstance(x, DeviceArray):
        return x.host
    if isinstance(x, np.ndarray):
        raise TypeError(f"Unsupported type {type(x)}: a NumPy array reached the device")
    if isinstance(x, (tuple, list)):
        return type(x)(map(_host, x))
    return x


def _device(x):
    if isinstance(x, (np.ndarray, np.generic)):
        return DeviceArray(x)
    return (list if isinstance(x, list) else tuple)(map(_device, x)) if isinstance(x, (tuple, list)) else x


def _compute(f, *args, **kwargs):
    """f of the arrays inside, on the device."""
    return _device(run(f, tuple(map(_host, args)), {k: _host(v) for k, v in kwargs.items()}))


def _wrapped(f):
    return lambda *args, **kwargs: _compute(f, *args, **kwargs)


class Ufunc:
    """A function that may have methods (`add.reduceat`)."""

    def __init__(self, f):
        self._f = f

    def __call__(self, *args, **kwargs):
        return _wrapped(self._f)(*args, **kwargs)

    def __getattr__(self, name):
        return _wrapped(getattr(self._f, name))


class Module:
    """NumPy's functions over device arrays; only names that CuPy has too, where it is installed."""

    def __init__(self, name, source, twin):
        self.__name__, self._source, self._twin = name, source, twin

    def __getattr__(self, name):
        if self._twin is not None and not hasattr(self._twin, name):
            raise AttributeError(f"CuPy has no {name}")
        found = getattr(self._source, name)
        if isinstance(found, type) or not callable(found):
            return found
        found = Ufunc(found)
        setattr(self, name, found)
        return found


def _special():
    import scipy.special

    return scipy.special


MODULE = Module("standin", np, cupy)
MODULE.linalg = Module("standin.linalg", np.linalg, cupy and cupy.linalg)
MODULE.special = Module("standin.special", _special(), None)
MODULE.lib = SimpleNamespace(
    stride_tricks=Module("standin.lib.stride_tricks", np.lib.stride_tricks, cupy and cupy.lib.stride_tricks)
)
MODULE.ndarray = DeviceArray


def upload(x, dtype):
    """What lies on the host, on the device."""
    return np.array(x, dtype)


MODULE.asarray = MODULE.array = lambda x, dtype=None: (
    _compute(np.array, x, dtype) if isinstance(x, DeviceArray) else DeviceArray(upload(x, dtype))
)


def _operator(name):
    def call(a, b):
        if getattr(b, "__array_priority__", 0) > a.__array_priority__:
            return NotImplemented  # a traced array answers, as with CuPy
        return _compute(getattr(np.ndarray, name), a, b)

    return call


_OPERATORS = "add sub mul truediv floordiv mod pow matmul and or xor lshift rshift eq ne lt le gt ge".split()  # noqa: SIM905
for _name in _OPERATORS:
    for _full in (f"__{_name}__", f"__r{_name}__"):
        if hasattr(np.ndarray, _full):
            setattr(DeviceArray, _full, _operator(_full))
for _name in ("__neg__", "__pos__", "__abs__", "__invert__"):
    setattr(DeviceArray, _name, _wrapped(getattr(np.ndarray, _name)))
for _name in ("iadd", "isub", "imul"):
    setattr(DeviceArray, f"__{_name}__", lambda a, b, f=f"__{_name}__": (change(getattr(a.host, f), _host(b)), a)[1])
_METHODS = "all any argmax argmin argsort astype copy cumsum max mean min prod ravel repeat reshape squeeze sum"
for _name in [*_METHODS.split(), "swapaxes", "take", "transpose"]:
    setattr(DeviceArray, _name, _wrapped(getattr(np.ndarray, _name)))

register_array_type(DeviceArray, MODULE)


@contextlib.contextmanager
def rules_only():
    """No kernels inside: the stand-in's memory is not a GPU's."""
    with contextlib.ExitStack() as stack:
        for op in REGISTRY.values():
            stack.enter_context(mock.patch.object(op, "_kernel", None))
        yield


def to(module, tree):
    """A tree of tuples and lists with arrays of `module` in place of NumPy's."""
    if isinstance(tree, (tuple, list)):
        return type(tree)(to(module, branch) for branch in tree)
    return module.asarray(tree) if isinstance(tree, np.ndarray) else tree


def to_standin(tree):
    return to(MODULE, tree)


def to_numpy(tree):
    """The way back, from any device; asserts that no NumPy array is among the results."""
    if isinstance(tree, (tuple, list)):
        return type(tree)(map(to_numpy, tree))
    assert not isinstance(tree, np.ndarray), "a rule on device arrays gave a NumPy array"
    return tree.get() if hasattr(tree, "get") else tree
