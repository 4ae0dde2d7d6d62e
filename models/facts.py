"""Facts: named values of a model file's header, read with a type and bounds; nothing in them is believed unchecked."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import NoReturn

from quant.errors import ModelFormatError, UnsupportedModel


@dataclass(frozen=True)
class Facts:
    """The keys of a GGUF's metadata or of a config.json. A JSON null counts as absent."""

    path: Path
    values: Mapping[str, object]

    def has(self, key: str) -> bool:
        return self.values.get(key) is not None

    def count(self, key: str, default: int | None = None, *, most: int = 2**24) -> int:
        """A whole number from 1 to `most`."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            self._wrong(key, value, "is not a whole number")
        if not 1 <= value <= most:
            self._wrong(key, value, f"is not within 1 to {most}")
        return value

    def real(self, key: str, default: float | None = None, *, least: float = 0.0, most: float = 1e12) -> float:
        """A finite number above `least`, and `most` at the most."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self._wrong(key, value, "is not a number")
        if not least < value <= most or not isfinite(value):
            self._wrong(key, value, f"is not above {least:g} and at most {most:g}")
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        value = self._value(key, default)
        if not isinstance(value, bool):
            self._wrong(key, value, "is not true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self._value(key, default)
        if not isinstance(value, str):
            self._wrong(key, value, "is not a text")
        return value

    def inner(self, key: str) -> "Facts":
        """The object under `key`; an absent one is empty."""
        value = self.values.get(key)
        if value is None:
            return Facts(self.path, {})
        if not isinstance(value, Mapping):
            self._wrong(key, value, "is not an object")
        return Facts(self.path, {str(name): inner for name, inner in value.items()})

    def refuse(self, neutral: Mapping[str, object]) -> None:
        """Each of these keys is absent or has the value that changes nothing; any other is something we do not run."""
        for key, harmless in neutral.items():
            value = self.values.get(key)
            # An array has no one truth of being equal, and is never the harmless value.
            if value is not None and not (isinstance(value, bool | int | float | str) and value == harmless):
                raise UnsupportedModel(self.path, f"{key} = {_shown(value)} is not supported")

    def _value(self, key: str, default: object) -> object:
        value = self.values.get(key)
        if value is not None:
            return value
        if default is None:
            raise ModelFormatError(self.path, f"{key} is missing")
        return default

    def _wrong(self, key: str, value: object, fault: str) -> NoReturn:
        raise ModelFormatError(self.path, f"{key} {fault}: {_shown(value)}")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
