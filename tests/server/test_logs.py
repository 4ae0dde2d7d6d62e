"""Laws of the log: what clients send begins no line, and no file grows without bound."""

import logging
from pathlib import Path

import pytest

from server import logs


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("puna", logging.WARNING, "file.py", 1, "%s", (text,), None)


def test_a_record_is_one_line_and_steers_no_terminal() -> None:
    formatter = logs.OneLine("%(levelname)s %(message)s")
    assert formatter.format(record("a\nb\r\x1b[31mc\x85d\te é")) == "WARNING a\\x0ab\\x0d\\x1b[31mc\\x85d\te é"


def test_a_log_is_turned_over_before_it_grows_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LARGEST_LOG", 1000)
    with_folder = tmp_path / "deep" / "puna.log"
    handler = logs.rotating(with_folder)
    for _ in range(100):
        handler.handle(record("x" * 90))
    handler.close()
    files = list(with_folder.parent.iterdir())
    assert len(files) == 1 + logs.KEPT_LOGS
    assert all(file.stat().st_size <= 1000 for file in files)
