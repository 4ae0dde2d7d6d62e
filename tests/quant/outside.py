"""Data from outside the checkout: found beside it or where PUNA_TEST_DATA points; a test without it is skipped."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def outside(folder: str) -> Path:
    """A folder of shared data; the test that asks is skipped where there is none."""
    found = Path(os.environ.get("PUNA_TEST_DATA", ROOT / ".." / "shared" / "data")) / folder
    if not found.is_dir():
        pytest.skip(f"no test data at {found}")
    return found


def names(folder: str, pattern: str) -> list[str]:
    """File names for parametrisation, at collection time; an absent folder gives one name that is then skipped."""
    found = Path(os.environ.get("PUNA_TEST_DATA", ROOT / ".." / "shared" / "data")) / folder
    return sorted(path.name for path in found.glob(pattern)) or ["absent"]
