"""The crash-loop breaker: how long to stay down after a death."""

from collections import deque


class Breaker:
    """No more than `deaths` deaths in any `window` seconds: the last of so many is answered when the first is old.

    Times are monotonic. Owner: the client.
    """

    def __init__(self, deaths: int = 3, window: float = 60.0) -> None:
        self._window = window
        self._last: deque[float] = deque(maxlen=deaths)
        self._deaths = deaths

    def died(self, now: float) -> float:
        """Seconds to wait before the next try; 0 is at once."""
        self._last.append(now)
        if len(self._last) < self._deaths:
            return 0.0
        return max(0.0, self._last[0] + self._window - now)
