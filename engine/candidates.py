"""Operations of a device, and who may compute them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


class Trial(Protocol):
    """Inputs of one shape, and what is right for them."""

    @property
    def name(self) -> str: ...
    @property
    def exact(self) -> Doubles:
        """(rows, ...) in float64."""
        ...

    def alone(self, row: int) -> Self:
        """The same row in a batch of its own."""
        ...


T = TypeVar("T", bound=Trial)
T_contra = TypeVar("T_contra", bound=Trial, contravariant=True)


class Candidate(Protocol[T_contra]):
    """Somebody who may compute an operation. Everything may throw."""

    @property
    def name(self) -> str: ...
    @property
    def source(self) -> str:
        """All that its results hang on beside the machine: another text is another candidate."""
        ...

    def compile(self, trial: T_contra) -> None: ...
    def result(self, trial: T_contra) -> Floats: ...
    def bound(self, trial: T_contra) -> Doubles:
        """How far each number may be from the exact one, by the roundings that its arithmetic has."""
        ...

    def promises(self, trial: T_contra) -> bool:
        """A row has the same bits alone."""
        ...

    def burst(self, trial: T_contra, times: int) -> None:
        """Computes it so often, and is done when it returns."""
        ...


@dataclass(frozen=True)
class Operation(Generic[T]):
    """What is to be computed, and who could; the first is the baseline. Trials are made when they are wanted."""

    key: str
    candidates: Sequence[Candidate[T]]
    trials: Callable[[], Iterable[T]]  # to be right on, edge cases among them
    timed: Callable[[], Sequence[T]]
    spot: Callable[[], Iterable[T]]  # small ones
