"""Where log lines go: standard error, or a file that is turned over before it grows large."""

import logging
import sys
from logging.handlers import RotatingFileHandler
from pathlib import Path

LARGEST_LOG = 10 * 2**20  # bytes; launchd and systemd's own redirections never turn a file over
KEPT_LOGS = 3

# What a client sends may end up in a line; it must not begin another, or steer a terminal.
_CONTROL = {code: f"\\x{code:02x}" for code in [*range(0x20), *range(0x7F, 0xA0)] if code not in (0x09,)}


class OneLine(logging.Formatter):
    """A record is one line, and its traceback, if there is one, the lines after it."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # the library's name
        return one_line(super().formatMessage(record))


def one_line(text: str) -> str:
    """The text with its control characters spelled out."""
    return text.translate(_CONTROL)


def log_to(file: Path | None) -> None:
    """Every record of the process goes there from now on."""
    handler = logging.StreamHandler(sys.stderr) if file is None else rotating(file)
    handler.setFormatter(OneLine("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def rotating(file: Path) -> RotatingFileHandler:
    file.parent.mkdir(parents=True, exist_ok=True)
    return RotatingFileHandler(file, maxBytes=LARGEST_LOG, backupCount=KEPT_LOGS, encoding="utf-8")
