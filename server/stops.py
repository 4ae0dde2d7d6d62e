"""Stop strings: text flows through, up to the first of them, and never shows the beginning of one."""

from collections.abc import Sequence


class Stops:
    """Shows what can no longer be part of a stop string. All that it shows does not depend on how text was cut."""

    def __init__(self, stops: Sequence[str]) -> None:
        assert all(stops), "an empty string stops everything"
        self._stops = tuple(stops)
        self._held = ""
        self.met = False
        self.after = ""  # what followed the stop string in the push that completed it

    def push(self, text: str) -> str:
        """The text that may now be shown; nothing after a stop string was met."""
        if self.met:
            return ""
        self._held += text
        found = self._first()
        if found is not None:
            begin, end = found
            self.met = True
            shown, self.after, self._held = self._held[:begin], self._held[end:], ""
            return shown
        keep = len(self._held) - self._beginning()
        shown, self._held = self._held[:keep], self._held[keep:]
        return shown

    def finish(self) -> str:
        """What was held back for a stop string that never came."""
        rest, self._held = self._held, ""
        return rest

    def _first(self) -> tuple[int, int] | None:
        """Begin and end of the stop string that is complete first; of two that end together, the longer."""
        matches = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if not matches:
            return None
        end, begin = min(matches)
        return begin, end

    def _beginning(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:length]):
                    longest = length
                    break
        return longest
