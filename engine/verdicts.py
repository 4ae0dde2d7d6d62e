"""What was found out about candidates on this machine, and the file that remembers it."""

import hashlib
import json
import logging
import os
import platform
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)

_TITLE = "puna kernels 1"
_LARGEST = 2**22  # bytes; a file beyond is none of ours


class Fate(Enum):
    """Why a candidate is what computes an operation, or why not."""

    CHOSEN = "chosen"
    SLOWER = "slower"  # or not clearly faster
    UNCOMPILED = "does not compile"
    THROWS = "throws"
    DIFFERS = "differs"
    VARIES = "a row's bits hang on its batch"
    UNTRIED = "could not be tried"
    LOST = "the process ended while it was tried"


@dataclass(frozen=True)
class Verdict:
    """Of one candidate, with the medians of its timed trials in seconds if it came that far."""

    candidate: str
    source: str  # hash
    fate: Fate
    reason: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """Of an operation: a verdict on each candidate, the baseline's first. Exactly one is chosen."""

    verdicts: tuple[Verdict, ...]

    def __post_init__(self) -> None:
        assert [v.fate for v in self.verdicts].count(Fate.CHOSEN) == 1, "one candidate computes an operation"

    @property
    def chosen(self) -> str:
        return next(v.candidate for v in self.verdicts if v.fate is Fate.CHOSEN)

    @property
    def sources(self) -> dict[str, str]:
        return {v.candidate: v.source for v in self.verdicts}

    def without_chosen(self, fate: Fate, reason: str) -> "Finding":
        """The chosen one is out, and the baseline computes."""
        first, *others = self.verdicts
        assert first.fate is not Fate.CHOSEN, "the baseline is what remains"
        out = [replace(v, fate=fate, reason=reason) if v.fate is Fate.CHOSEN else v for v in others]
        return Finding((replace(first, fate=Fate.CHOSEN), *out))


@dataclass(frozen=True)
class Machine:
    """What verdicts hold for: the compiler of kernels is part of the system."""

    chip: str
    mlx: str
    system: str

    @classmethod
    def here(cls, chip: str, mlx: str) -> "Machine":
        return cls(chip, mlx, f"{platform.system()} {platform.release()}")

    @property
    def file_name(self) -> str:
        return f"kernels-{hashed('|'.join((self.chip, self.mlx, self.system)))[:16]}.json"


@dataclass(frozen=True)
class Known:
    """All that is known on a machine, and of each unfinished operation what it was trying when last heard of."""

    findings: Mapping[str, Finding] = field(default_factory=dict)
    trying: Mapping[str, str] = field(default_factory=dict)


class VerdictFile:
    """One file for each machine. It is whole or counts as absent: nothing that it holds, or lacks, is an error.

    A file that cannot be written is no error either: then the verdicts are found anew the next time.
    """

    def __init__(self, folder: Path | None, machine: Machine) -> None:
        self.machine = machine
        self.path = None if folder is None else folder / machine.file_name

    def read(self) -> Known:
        try:
            return self._parsed(self._text())
        except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError, RecursionError):
            return Known()

    def found(self, operation: str, finding: Finding) -> None:
        known = self.read()  # another process may have written meanwhile
        trying = {key: name for key, name in known.trying.items() if key != operation}
        self._write(Known({**known.findings, operation: finding}, trying))

    def tries(self, operation: str, candidate: str) -> None:
        known = self.read()
        self._write(Known(known.findings, {**known.trying, operation: candidate}))

    def forget(self) -> None:
        self._write(Known())

    def _text(self) -> str:
        if self.path is None or not self.path.is_file() or self.path.stat().st_size > _LARGEST:
            raise ValueError("no file of verdicts")
        return self.path.read_text("utf-8")

    def _parsed(self, text: str) -> Known:
        head, _, body = text.partition("\n")
        if head != f"{_TITLE} {hashed(body)}":
            raise ValueError("not what was written")
        whole = json.loads(body)
        if whole["machine"] != vars(self.machine):
            raise ValueError("of another machine")
        findings = {key: _finding(raw) for key, raw in whole["findings"].items()}
        return Known(findings, {str(key): str(name) for key, name in whole["trying"].items()})

    def _write(self, known: Known) -> None:
        if self.path is None:
            return
        findings = {key: [_raw(v) for v in finding.verdicts] for key, finding in known.findings.items()}
        body = json.dumps({"machine": vars(self.machine), "findings": findings, "trying": dict(known.trying)}, indent=1)
        try:
            _replace(self.path, f"{_TITLE} {hashed(body)}\n{body}")
        except OSError as fault:
            _log.warning("%s: cannot be written (%s); kernels will be tried again next time", self.path, fault.strerror)


def cache_folder() -> Path | None:
    """Where this system keeps what can be made again; None for a user without a home."""
    try:
        given = Path(os.environ.get("XDG_CACHE_HOME") or "")
        usual = "Library/Caches" if sys.platform == "darwin" else ".cache"
        return (given if given.is_absolute() else Path.home() / usual) / "puna"
    except RuntimeError:
        return None


def hashed(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _replace(path: Path, text: str) -> None:
    """The file holds this text or what it held before, whenever the process stops. What a power cut tears is a miss."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _raw(verdict: Verdict) -> dict[str, Any]:
    return {**vars(verdict), "fate": verdict.fate.name, "seconds": dict(verdict.seconds)}


def _finding(raw: list[dict[str, Any]]) -> Finding:
    return Finding(tuple(_verdict(**one) for one in raw))


def _verdict(candidate: str, source: str, fate: str, reason: str, seconds: dict[str, float]) -> Verdict:
    times = {str(name): float(value) for name, value in seconds.items()}
    return Verdict(str(candidate), str(source), Fate[fate], str(reason), times)
