"""Servers to measure: `puna serve` and llama-server on the same file, each alone on the machine and on a free port.

They listen on loopback and are gone when their block ends, or when this process does, however that happens. Linux only.
"""

import argparse
import contextlib
import ctypes
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import IO, Any

from engine.bench import Probe

CHECKOUT = Path(__file__).parents[2]
PUNA = [sys.executable, "-c", "from server.cli import main; main()"]
SLOWEST_START = 120  # seconds
SLOWEST_STOP = 60
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Server:
    """One that answers."""

    name: str
    port: int
    process: subprocess.Popen[bytes]

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
            return json.load(answer)


def arguments(said: str | None) -> argparse.ArgumentParser:
    """What every measurement takes."""
    parser = argparse.ArgumentParser(description=said, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--threads", type=int, default=2)
    return parser


def puna(file: Path, threads: int, context: int, *options: str) -> contextlib.AbstractContextManager[Server]:
    """With its own defaults but for what is said here."""
    limits = ["--threads", str(threads), "--ctx", str(context)]
    return _serving("Puna", [*PUNA, "serve", str(file), *limits, *options])


def llama_server(
    folder: Path, file: Path, threads: int, context: int, slots: int
) -> contextlib.AbstractContextManager[Server]:
    """With its own defaults (its prompt cache among them) but for what is said here; each slot has the context."""
    limits = ["-t", str(threads), "-np", str(slots), "-c", str(slots * context)]
    return _serving("llama-server", [str(folder / "llama-server"), "-m", str(file), *limits, "--host", "127.0.0.1"])


@contextlib.contextmanager
def _serving(name: str, command: Sequence[str]) -> Iterator[Server]:
    port = _free_port()
    print(f"{name}: {_shown(command)}\n  memory reads at {_memory():.0f} GB/s before it starts", flush=True)
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*command, "--port", str(port)], stdout=log, stderr=log, cwd=CHECKOUT, preexec_fn=_leave_with_parent
        )
        try:
            server = Server(name, port, process)
            _until_healthy(server, log)
            yield server
        finally:
            _stop(process)
    print(f"  and at {_memory():.0f} GB/s after it left", flush=True)


def _memory() -> float:
    """GB/s. Decoding goes with it, and it drifts where others share the machine: compare runs where it is alike."""
    probe = Probe("cpu", None)
    return median(rate for _ in range(3) for rate in probe.read()) / 1e9


def _shown(command: Sequence[str]) -> str:
    """The options, and of paths their last part."""
    words = ["puna", *command[len(PUNA) :]] if list(command[: len(PUNA)]) == PUNA else command
    return " ".join(Path(word).name if "/" in word else word for word in words)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def _leave_with_parent() -> None:
    """Runs in the child: a measurement that is killed leaves no server behind."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _until_healthy(server: Server, log: IO[bytes]) -> None:
    until = time.monotonic() + SLOWEST_START
    while time.monotonic() < until and server.process.poll() is None:
        try:
            server.get("/health")
            return
        except OSError:  # nobody listens yet, or it is still loading
            time.sleep(0.02)
    log.seek(0)
    raise SystemExit(f"{server.name} does not answer:\n{log.read().decode(errors='replace')[-2000:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(SLOWEST_STOP)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
