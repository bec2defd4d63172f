"""Compiled kernels on disk: used again, compiled anew when anything they depend on changes or a file is damaged."""

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
    assert len(compiled) == len(list(cache.folder().iterdir())) == 6


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
    assert "nvvm" in cache._toolchain().lower()
