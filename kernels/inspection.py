"""Compile every catalogued kernel with no GPU and read its machine code; hold it to the rules of the house.

The kernels are dealt out to processes of their own, in which the simulator must be off, whatever it is here: to each
kernels of few dtypes, since those of one dtype share device functions, which a process compiles once. The disassembler
takes longer to start than to read a kernel, so a process has it read all its code at once.
"""

import gc
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
from bisect import bisect
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path

ARCHITECTURES = ("sm_80", "sm_90", "sm_90a", "sm_100")
INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", re.M)
FLOAT_ATOMICS = r"^(ATOM|ATOMG|ATOMS|RED|REDG)\.(.*\.)?(F16|F16x2|BF16|BF16x2|F32|F64|CAS|CAST)(\.|$)"  # CAS: in a loop
FLOAT64 = re.compile(r"^(DADD|DMUL|DFMA|DSETP|DMNMX|MUFU\.\w+64H)")  # arithmetic; conversions are free to be
REGISTERS = {"float16": 64, "bfloat16": 64, "float32": 64, "float64": 128}  # ceilings, unless a kernel states its own
REGISTERS_USED, FRAME = 0x2F, 0x11  # attributes in the section .nv.info
WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}
RULES = ("registers", "local memory", "float64", "call", "generic access", "vector access", "atomics")
MISSING = 'cannot compile kernels here ({}): pip install "gradlib[check]"'


def inspect_all(archs=ARCHITECTURES, only="", processes=2) -> list[dict]:
    """Compile and disassemble the catalogue.

    archs: names such as "sm_90a"; only: a regular expression that the kernels' names must contain.
    -> one row a kernel, dtype, variant and architecture: name, arch, dtype, registers, spill_bytes, stack_bytes,
    shared_bytes, instructions, load_bytes and store_bytes (a loop's body once), vector_loads, vector_stores,
    generic_accesses, calls, float64_ops, float_atomics, and what was promised: register_limit, vector_promised (of
    "loads" and "stores"), excepted.
    Raises RuntimeError where the compiler or the disassembler is missing, or a kernel does not compile.

    >>> rows = inspect_all(["sm_90"], only="softmax")       # doctest: +SKIP
    """
    for arch in archs:
        _capability(arch)
    with ThreadPoolExecutor(processes) as pool:
        parts = pool.map(lambda part: _inspect_in_process(part, processes, archs, only), range(processes))
    order = {arch: i for i, arch in enumerate(archs)}
    return sorted((row for rows in parts for row in rows), key=lambda row: (row["name"], order[row["arch"]]))


def gate(rows) -> list[str]:
    """The violations in rows of `inspect_all`, one line each; empty when all is well."""
    return [f"{row['name']} {row['arch']}: {fault}" for row in rows for fault in _faults(row)]


def _faults(row):
    narrow = [kind for kind in row["vector_promised"] if not row[f"vector_{kind}"]]
    found = {
        "registers": (row["registers"] > row["register_limit"], f"{row['registers']} registers"),
        "local memory": (row["spill_bytes"] or row["stack_bytes"], f"{row['stack_bytes']} bytes of stack"),
        "float64": (row["dtype"] != "float64" and row["float64_ops"], f"{row['float64_ops']} float64 operations"),
        "call": (row["dtype"] != "float64" and row["calls"], f"{row['calls']} calls"),
        "generic access": (row["generic_accesses"], f"{row['generic_accesses']} generic loads or stores"),
        "vector access": (narrow, f"no 16-byte {' and no 16-byte '.join(narrow)}, though promised"),
        "atomics": (row["float_atomics"], f"{row['float_atomics']} atomic operations on floats"),
    }
    return [f"{rule}: {text}" for rule, (broken, text) in found.items() if broken and rule not in row["excepted"]]


def _inspect_in_process(part, parts, archs, only):
    command = [sys.executable, "-m", "gradlib.kernels.inspection", str(part), str(parts), only, *archs]
    done = subprocess.run(command, env=os.environ | {"NUMBA_ENABLE_CUDASIM": "0"}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-2000:] or "the compiling process ended")
    return json.loads(done.stdout)


def inspect_catalogue(part, parts, only, *archs) -> list[dict]:
    """The rows of one of `parts` parts of the kernels, in order of their dtypes, compiled in this process."""
    from .launch import CATALOGUE

    nvdisasm = _disassembler()
    load_catalogue()
    keys = [(kernel, key) for kernel in CATALOGUE.values() for key in kernel.instances()]
    chosen = [(kernel, key) for kernel, key in keys if re.search(only, kernel.name_of(key))]
    chosen.sort(key=lambda pair: pair[1][0])
    first, end = (len(chosen) * (int(part) + i) // int(parts) for i in (0, 1))
    compiled = [pair for kernel, key in chosen[first:end] for pair in _compile(kernel, key, archs)]
    codes = {_code(cubin): row["arch"] for row, cubin in reversed(compiled)}  # two architectures often have the same
    counts = _count(codes, nvdisasm)
    return [row | _figures(counts[_code(cubin)], _resources(cubin)) for row, cubin in compiled]


def load_catalogue():
    """Import every file of kernels, which puts its kernels into the catalogue."""
    import importlib

    house = {"__init__", "launch", "compiler", "cache", "reached", "simulator", "inspection", "ratchet", "cpu"}
    for file in sorted(Path(__file__).parent.glob("*.py")):
        if file.stem not in house and not file.stem.startswith("intrinsics"):
            importlib.import_module(f"gradlib.kernels.{file.stem}")


def _disassembler():
    """Where nvdisasm is."""
    try:
        import numba_cuda  # noqa: F401
        from cuda.pathfinder import find_nvidia_binary_utility

        found = find_nvidia_binary_utility("nvdisasm")
    except ImportError as error:
        raise RuntimeError(MISSING.format(error)) from error
    if found is None:
        raise RuntimeError(MISSING.format("nvdisasm not found"))
    return found


def _compile(kernel, key, archs):
    """A pair (what the kernel promises, its cubin) for each architecture."""
    from .compiler import Lowered

    promise = kernel.expect.get("vector", lambda *key: False)
    excepted = kernel.expect.get("except_for", lambda *key: ())
    promised = {
        "name": kernel.name_of(key),
        "dtype": key[0],
        "register_limit": kernel.expect.get("registers", REGISTERS[key[0]]),
        "vector_promised": [kind for kind in ("loads", "stores") if promise(*key) in (True, kind)],
        "excepted": list(excepted(*key)),
    }
    try:
        lowered = Lowered(kernel[key])
        return [(promised | {"arch": arch}, lowered.link(_capability(arch))) for arch in archs]
    except Exception as error:
        raise RuntimeError(f"{kernel.name_of(key)} does not compile: {error}") from error


def _count(codes, nvdisasm) -> dict[bytes, Counter]:
    """How often each instruction stands in each machine code. codes: {code: architecture}."""
    counts: dict[bytes, Counter[str]] = {code: Counter() for code in codes}
    for arch in set(codes.values()):
        own = [code for code in codes if codes[code] == arch]
        listing = _on_file(b"".join(own), nvdisasm, "-ndf", "-b", arch.replace("sm_", "SM"))  # -ndf: no data flow
        ends = list(accumulate(map(len, own)))
        for address, name in INSTRUCTION.findall(listing):
            counts[own[bisect(ends, int(address, 16))]][name] += 1
    if any(16 * count.total() != len(code) for code, count in counts.items()):
        raise RuntimeError("nvdisasm's listing does not hold every instruction (of 16 bytes each)")
    return counts


def _resources(cubin):
    """(registers, bytes of stack, bytes of shared memory) of a cubin, as cuobjdump -res-usage gives them.

    .nv.info lists attributes: format, number, size; where the format is 4 as many bytes follow, here a function and the
    figure. Shared memory is what has sections of its own."""
    found, shared = {REGISTERS_USED: [], FRAME: []}, 0
    for name, start, size in _sections(cubin):
        if name == ".nv.info":
            at = start
            while at < start + size:
                form, attribute, follow = struct.unpack_from("<BBH", cubin, at)
                if attribute in found:
                    found[attribute].append(struct.unpack_from("<II", cubin, at + 4)[1])
                at += 4 + (follow if form == 4 else 0)
        elif name.startswith(".nv.shared.") and not name.startswith(".nv.shared.reserved."):
            shared += size
    return max(found[REGISTERS_USED]), max(found[FRAME]), shared


def _code(cubin) -> bytes:
    """The machine code in a cubin."""
    return b"".join(cubin[start : start + size] for name, start, size in _sections(cubin) if name.startswith(".text"))


def _sections(cubin):
    """(name, start, size) of each section of an ELF file of 64 bits."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    heads = [struct.unpack_from("<IIQQQQ", cubin, table + i * size) for i in range(count)]  # name, …, start, size
    name_at = [heads[names][4] + head[0] for head in heads]
    return [(cubin[at : cubin.index(0, at)].decode(), *head[4:]) for at, head in zip(name_at, heads, strict=True)]


def _capability(arch):
    """ "sm_90a" -> (9, 0, "a")."""
    parts = re.fullmatch(r"sm_(\d+)(\d)(a?)", arch)
    if parts is None:
        raise ValueError(f"inspect_all: an architecture is written sm_90 or sm_90a, got {arch!r}")
    major, minor, suffix = parts.groups()
    return (int(major), int(minor), suffix) if suffix else (int(major), int(minor))


def _figures(count, resources):
    """The figures of a row, from how often each instruction stands in the code and from `_resources`."""
    registers, stack, shared = resources
    return {
        "registers": registers,
        "stack_bytes": stack,
        "shared_bytes": shared,
        "spill_bytes": sum(n * _width(name) for name, n in count.items() if name.startswith(("STL", "LDL"))),
        "instructions": sum(n for name, n in count.items() if name != "NOP"),
        "load_bytes": sum(n * _width(name) for name, n in count.items() if name.startswith("LDG")),
        "store_bytes": sum(n * _width(name) for name, n in count.items() if name.startswith("STG")),
        "vector_loads": _matching(count, r"^LDG.*\.128"),
        "vector_stores": _matching(count, r"^STG.*\.128"),
        "generic_accesses": _matching(count, r"^(LD|ST)(\.|$)"),
        # Counted by the routines that return: ptxas also writes CALL for a jump out of a loop.
        "calls": _matching(count, r"^RET"),
        "float64_ops": _matching(count, FLOAT64),
        "float_atomics": _matching(count, FLOAT_ATOMICS),
    }


def _width(name):
    return next((size for suffix, size in WIDTHS.items() if suffix in name.split(".")), 4)


def _matching(count, pattern):
    return sum(n for name, n in count.items() if re.search(pattern, name))


def _on_file(data, *command) -> str:
    """What a tool prints about a file of `data`."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "code")
        file.write_bytes(data)
        return subprocess.run([*command, str(file)], check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    gc.set_threshold(100_000)  # what the compiler makes stays: to look through it again and again takes a tenth longer
    try:
        print(json.dumps(inspect_catalogue(*sys.argv[1:])))
    except RuntimeError as error:
        sys.exit(str(error))
