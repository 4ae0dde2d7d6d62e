"""The tree of errors that a user or a file can cause; whatever is not in it is a defect of ours.

PunaError
├── ModelFileError            the message begins with the file
│   ├── ModelFormatError      bytes that break the format
│   └── UnsupportedModel      well formed, and not something we run
├── TemplateError             a chat template that fails, or takes too much time or memory
├── UntokenisableText         a text on which a tokenizer gives up (models/library.py)
├── EngineError               the engine child failed, died, or was never well
│   └── NotEnoughMemory       refused before loading, with the numbers
└── RequestError              an HTTP status and the parameter at fault (server/errors.py)
"""

from pathlib import Path


class PunaError(Exception):
    """Something that a user or a file caused; its text is one line meant for that user."""


class ModelFileError(PunaError):
    """A model file that cannot be used: FILE: FAULT."""

    LONGEST = 500  # characters: a fault may quote names, which a hostile file can make as long as it likes

    def __init__(self, path: Path | str, fault: str) -> None:
        fault = fault if len(fault) <= self.LONGEST else fault[: self.LONGEST] + "..."
        super().__init__(f"{path}: {fault}")
        self.path = Path(path)
        self.fault = fault


class ModelFormatError(ModelFileError):
    """The bytes of the file break its format."""


class UnsupportedModel(ModelFileError):
    """The file is well formed and holds something that Puna does not run."""


class TemplateError(PunaError):
    """A chat template failed, or asked for more time or memory than it is given."""


class EngineError(PunaError):
    """The engine child failed."""


class NotEnoughMemory(EngineError):
    """The model and its cache do not fit; said before anything is loaded."""
