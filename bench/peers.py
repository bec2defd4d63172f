"""The contenders' processes: one worker each, because in one process their thread pools spoil each other.

Every peer runs in the interpreter that runs the benchmark, or in the one that the environment names, since their wheels
do not always fit into one environment: GRADLIB_BENCH_TORCH, GRADLIB_BENCH_JAX, GRADLIB_BENCH_AUTOGRAD =
/path/to/python. That interpreter needs NumPy and the peer, not gradlib.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from threading import Timer
from typing import Any

WORKER = Path(__file__).resolve().with_name("worker.py")
PEERS = ("torch", "jax", "autograd")


def peer_of(contender: str) -> str:
    """The library a contender needs: "torch" of "torch.func" and "torch fused"."""
    return re.split(r"[ .]", contender)[0]


def variable_of(peer: str) -> str:
    """The environment variable that names a peer's interpreter."""
    return f"GRADLIB_BENCH_{peer.upper()}"


def interpreter(contender: str) -> str:
    """The Python that runs a contender."""
    return os.environ.get(variable_of(peer_of(contender))) or sys.executable


def advice(contender: str, reason: str) -> str:
    """Why a contender is skipped and how to get it."""
    where = variable_of(peer_of(contender))
    return f'{reason}; pip install "gradlib[bench]", or name a Python that has it in {where}'


class Worker:
    """A running contender. `state` is what it first said (see ``worker.py``), "failed" when it died."""

    def __init__(self, file: Path, case: str, contender: str, device: str, tiny: bool, limit: float = 600) -> None:
        self.contender, self.limit = contender, limit
        command = [interpreter(contender), str(WORKER), str(file), case, contender, device, "tiny" if tiny else "full"]
        env = {k: v for k, v in os.environ.items() if k != "NUMBA_ENABLE_CUDASIM"}
        self.process = None
        try:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        except OSError as error:
            self.state: dict[str, Any] = {"missing": f"{command[0]} does not start ({error.strerror})"}
        else:
            self.state = self._hear()
        if "missing" in self.state:  # ours and NumPy's may not be skipped
            reason, peer = self.state["missing"], peer_of(contender) in PEERS
            self.state = {"missing": advice(contender, reason)} if peer else {"failed": reason}

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: Any) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()

    @property
    def status(self) -> str:
        """ "ready", "skipped", "failed" or, when its values are not the reference's, "wrong"."""
        if "missing" in self.state:
            return "skipped"
        if "failed" in self.state:
            return "failed"
        return "ready" if self.state["error"] <= self.state["tolerance"] else "wrong"

    @property
    def message(self) -> str:
        """Why it is not ready, '' if it is."""
        if self.status == "wrong":
            return (
                f"off by {self.state['error']:.1e} of the reference, allowed {self.state['tolerance']:.0e}: not timed"
            )
        return self.state.get("missing") or self.state.get("failed") or ""

    def time(self, seconds: float) -> dict[str, Any] | None:
        """One round of about so long; None when the process dies, which `state` then tells."""
        assert self.process is not None and self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            print(seconds, file=self.process.stdin, flush=True)
        answer = self._hear()
        if "failed" not in answer:
            return answer
        self.state = answer
        return None

    def _hear(self) -> dict[str, Any]:
        """The next answer; the process is ended when it takes longer than the limit."""
        assert self.process is not None and self.process.stdout is not None
        timer = Timer(self.limit, self.process.kill)
        timer.start()
        line = self.process.stdout.readline()
        timer.cancel()
        if line:
            return json.loads(line)
        return {"failed": f"its process ended with code {self.process.wait()} (limit {self.limit:g} s)"}
