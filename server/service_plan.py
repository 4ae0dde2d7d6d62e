"""What a service manager has to know, whichever it is."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quant.errors import PunaError

NAME = "puna"
LAST_SECONDS = 15  # after the grace is over: error events, connections, engines and what they store


@dataclass(frozen=True)
class Service:
    """One command with its log; `top` is where the manager's paths begin: the home folder, unless a root was given."""

    command: list[str]
    top: Path
    log: Path
    patience: int  # seconds from SIGTERM to SIGKILL

    @classmethod
    def of(cls, arguments: Sequence[str], grace: float, root: Path | None) -> "Service":
        top = Path.home() if root is None else root.resolve()
        log = top / _LOGS / f"{NAME}.log"
        command = [_program(), "serve", *arguments, "--log-file", str(log)]
        return cls(command, top, log, int(grace) + LAST_SECONDS)


_LOGS = Path("Library/Logs/puna") if sys.platform == "darwin" else Path(".local/state/puna")


def _program() -> str:
    """The console script beside this interpreter, else the one on the path: a manager wants it absolute."""
    beside = Path(sys.executable).with_name(NAME)
    found = str(beside) if beside.exists() else shutil.which(NAME)
    if found is None:
        raise PunaError(f"the command {NAME} is not installed beside {sys.executable}, nor on the path")
    return found


def told(command: Sequence[str]) -> str:
    """What the command printed; raises PunaError with what it complained of."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PunaError(f"{' '.join(command)}: {error}") from error
    if done.returncode != 0:
        raise PunaError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip() or f'exit {done.returncode}'}")
    return done.stdout
