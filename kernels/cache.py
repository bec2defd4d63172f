"""Compiled kernels on disk, so that no process compiles what another one has compiled before.

A file is named by a hash of all that its machine code depends on: the kernel's name, its code and all that this refers
to, every file of this folder, the architecture, the threads, and the compiler's settings, versions and libraries. Files
are put in place whole, so that processes may share the folder; one that cannot be used is compiled anew. The folder may
be deleted at any time.
"""

import contextlib
import hashlib
import json
import os
import sys
import tempfile
from functools import cache
from pathlib import Path

from . import compiler
from .launch import THREADS
from .reached import words_of


def folder() -> Path:
    """Where compiled kernels are kept: $GRADLIB_CACHE_DIR, or `gradlib` in the user's folder for caches."""
    own = os.environ.get("GRADLIB_CACHE_DIR")
    if own:
        return Path(own)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "gradlib"


def cubin_of(launchable, cc, threads=THREADS):
    """-> (entry name, cubin bytes) as `compile_cubin` gives them, from the disk where they lie there."""
    file = folder() / f"{_key(launchable, cc, threads)}.cubin"
    found = _read(file)
    if found is None:
        found = compiler.compile_cubin(launchable, cc, threads)
        with contextlib.suppress(OSError):  # a folder that cannot be written costs time alone
            _write(file, *found)
    return found


def _key(launchable, cc, threads) -> str:
    parts = [launchable.name, repr(cc), repr(threads), _sources(), _toolchain(), _settings()]
    parts += words_of(launchable.body)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@cache
def _sources() -> str:
    """A hash of every file in this folder: the way from a kernel to its machine code is laid there too."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


@cache
def _toolchain() -> str:
    """What compiles: versions of Numba, and NVVM, nvJitLink and libdevice by place, size and time."""
    import llvmlite
    import numba
    import numba_cuda
    from cuda.pathfinder import load_nvidia_dynamic_lib
    from numba.cuda.cuda_paths import get_cuda_paths

    libraries = [load_nvidia_dynamic_lib(name).abs_path for name in ("nvvm", "nvJitLink")]
    files = [Path(file) for file in (*libraries, get_cuda_paths()["libdevice"].info)]
    places = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return repr((sys.version, numba.__version__, numba_cuda.__version__, llvmlite.__version__, places))


def _settings() -> str:
    """Numba's settings for CUDA, e.g. by NUMBA_CUDA_DEBUGINFO=1: they are part of what compiles."""
    from numba.cuda.core import config

    names = [name for name in dir(config) if name.startswith("CUDA_") or name in ("OPT", "DEBUGINFO_DEFAULT")]
    return repr([(name, getattr(config, name)) for name in names])


def _read(file):
    """(entry name, cubin bytes) of a whole file, else None."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        head, _, cubin = file.read_bytes().partition(b"\n")
        about = json.loads(head)
        if hashlib.sha256(cubin).hexdigest() == about["sha256"]:
            return about["entry"], cubin
    return None


def _write(file, entry, cubin):
    head = json.dumps({"entry": entry, "sha256": hashlib.sha256(cubin).hexdigest()})
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as part:
        part.write(head.encode() + b"\n" + cubin)
    os.replace(part.name, file)
