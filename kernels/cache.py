"""Compiled kernels on disk, so that no process compiles what another one has compiled before.

A file is named by a hash of all that its machine code depends on: the kernel's name and file, every file of this
folder, the architecture, the threads, and the versions and libraries of the compiler. Files are put in place whole, so
that processes may share the folder; one that cannot be used is compiled anew. The folder may be deleted at any time.
"""

import contextlib
import hashlib
import inspect
import json
import os
import sys
import tempfile
from functools import cache
from pathlib import Path

from . import compiler
from .launch import THREADS


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
    source = Path(inspect.getfile(inspect.unwrap(launchable.body))).read_bytes()
    parts = [launchable.name, repr(cc), repr(threads), _sources(), _toolchain(), hashlib.sha256(source).hexdigest()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@cache
def _sources() -> str:
    """A hash of every file in this folder: kernels share device functions and formulas."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


@cache
def _toolchain() -> str:
    """What compiles: versions of Numba, and the NVVM and nvJitLink libraries by place, size and time."""
    import llvmlite
    import numba
    import numba_cuda
    from cuda.pathfinder import load_nvidia_dynamic_lib

    libraries = [Path(load_nvidia_dynamic_lib(name).abs_path) for name in ("nvvm", "nvJitLink")]
    places = [(str(lib), lib.stat().st_size, lib.stat().st_mtime_ns) for lib in libraries]
    return repr((sys.version, numba.__version__, numba_cuda.__version__, llvmlite.__version__, places))


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
