"""Compiled kernels on disk: used again, compiled anew when anything they depend on changes or a file is damaged."""

import functools
import os
import subprocess
import sys
from types import ModuleType

import numpy as np
import pytest

from gradlib.kernels import cache, compiler
from gradlib.kernels.launch import Launchable, pointer


def _launchable(name="k"):
    def body(x: pointer(np.float32), n: np.int32):
        pass

    return Launchable(name, body)


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """What was compiled, by a stand-in for the compiler, with an empty cache."""
    log = []

    def compile_cubin(launchable, cc, threads):
        log.append((launchable.name, cc, threads))
        return f"entry_{launchable.name}", b"\x7fELF\n" + repr(log[-1]).encode()

    monkeypatch.setenv("GRADLIB_CACHE_DIR", str(tmp_path / "kernels"))
    monkeypatch.setattr(compiler, "compile_cubin", compile_cubin)
    monkeypatch.setattr(cache, "_toolchain", lambda: "compiler 1")
    monkeypatch.setattr(cache, "_settings", lambda: "as they come")
    return log


def test_a_kernel_is_compiled_once(compiled):
    first = cache.cubin_of(_launchable(), (9, 0))
    assert cache.cubin_of(_launchable(), (9, 0)) == first
    assert first == ("entry_k", b"\x7fELF\n('k', (9, 0), 256)")
    assert compiled == [("k", (9, 0), 256)]
    assert [file.suffix for file in cache.folder().iterdir()] == [".cubin"]  # nothing half written stays


def test_all_it_depends_on_is_in_the_key(compiled, monkeypatch):
    cache.cubin_of(_launchable(), (9, 0))
    cache.cubin_of(_launchable(), (10, 0))
    cache.cubin_of(_launchable(), (9, 0), 128)
    cache.cubin_of(_launchable("other"), (9, 0))
    monkeypatch.setattr(cache, "_toolchain", lambda: "compiler 2")
    cache.cubin_of(_launchable(), (9, 0))
    monkeypatch.setattr(cache, "_sources", lambda: "another intrinsic")
    cache.cubin_of(_launchable(), (9, 0))
    monkeypatch.setattr(cache, "_settings", lambda: "for debugging")
    cache.cubin_of(_launchable(), (9, 0))
    assert len(compiled) == len(list(cache.folder().iterdir())) == 7


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"", lambda b: b"{}\n" + b, lambda b: b"\xff" * 9])
def test_a_damaged_file_is_compiled_anew(compiled, damage):
    good = cache.cubin_of(_launchable(), (9, 0))
    (file,) = cache.folder().iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert cache.cubin_of(_launchable(), (9, 0)) == good
    assert len(compiled) == 2
    assert cache.cubin_of(_launchable(), (9, 0)) == good  # and mended
    assert len(compiled) == 2


def test_a_folder_that_cannot_be_written_costs_time_alone(compiled, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("GRADLIB_CACHE_DIR", str(tmp_path / "file"))
    assert cache.cubin_of(_launchable(), (9, 0)) == cache.cubin_of(_launchable(), (9, 0))
    assert len(compiled) == 2


def test_the_toolchain_is_found():
    pytest.importorskip("numba_cuda")
    pytest.importorskip("cuda.pathfinder")
    assert all(name in cache._toolchain().lower() for name in ("nvvm", "nvjitlink", "libdevice"))


def test_the_settings_are_found(monkeypatch):
    config = pytest.importorskip("numba.cuda.core.config")
    before = cache._settings()
    assert cache._settings() == before
    monkeypatch.setattr(config, "CUDA_DEBUGINFO_DEFAULT", 1)
    assert cache._settings() != before


MODULE = """
import numpy as np

FACTOR, TABLE = {factor}, np.array([{entry}])

def inner(x):
    return x {sign} FACTOR

def outer(x):
    return [inner(y) + TABLE[0] for y in x]
"""


def _of_another_file(by_module=False, own=3, factor="2.0", sign="*", entry="1"):
    """A kernel, made anew, that calls device functions of a module, written anew."""
    other = ModuleType("other")
    exec(MODULE.format(factor=factor, sign=sign, entry=entry), vars(other))
    outer = functools.wraps(other.outer)(lambda x: None)  # as Numba's: it stands for what it wraps

    def named(x: pointer(np.float32)):
        x[0] = outer(x) + own

    def through_the_module(x: pointer(np.float32)):
        x[0] = other.outer(x) + own

    return Launchable("k", through_the_module if by_module else named)


@pytest.mark.parametrize("by_module", [False, True])
def test_what_a_kernel_refers_to_elsewhere_is_in_the_key(by_module, compiled):
    changes = {"factor": "3.0"}, {"factor": "2"}, {"sign": "+"}, {"entry": "2"}, {"own": 4}, {"own": 3.0}
    for count, change in enumerate(({}, *changes), 1):
        for _ in range(2):
            cache.cubin_of(_of_another_file(by_module, **change), (9, 0))
        assert len(compiled) == count, change


def test_the_key_is_the_same_in_another_process():
    """No addresses, no order of a set."""
    ask = "from gradlib.kernels import reached, softmax_rows as s; import hashlib; "
    ask += 'words = reached.words_of(s.held_rows["float32", "softmax", 8, 1].body); '
    ask += "print(len(words), hashlib.sha256(repr(words).encode()).hexdigest())"
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1"}
    answers = [
        subprocess.run([sys.executable, "-c", ask], env=environment | {"PYTHONHASHSEED": seed}, capture_output=True)
        for seed in "12"
    ]
    assert answers[0].stdout == answers[1].stdout != b"" and int(answers[0].stdout.split()[0]) > 20
