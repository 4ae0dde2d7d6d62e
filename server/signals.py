"""SIGTERM and SIGINT as events: the first asks the server to leave, the second to hurry."""

import asyncio
import contextlib
import signal
from collections.abc import Iterator

STOPPING = (signal.SIGTERM, signal.SIGINT)


class Signals:
    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()

    def arrive(self) -> None:
        (self.second if self.first.is_set() else self.first).set()


@contextlib.contextmanager
def watched_signals() -> Iterator[Signals]:
    """While inside, signals do nothing but to set the events."""
    signals = Signals()
    loop = asyncio.get_running_loop()
    for number in STOPPING:
        loop.add_signal_handler(number, signals.arrive)
    try:
        yield signals
    finally:
        for number in STOPPING:
            loop.remove_signal_handler(number)
