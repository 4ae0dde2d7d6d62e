"""What a pass does for a sequence."""

from dataclasses import dataclass

from engine.batch import Span
from engine.sequence import Sequence


@dataclass(frozen=True)
class Work:
    """The next `count` tokens of a sequence, all of one class."""

    sequence: Sequence
    count: int

    @property
    def reaches_end(self) -> bool:
        return self.count == self.sequence.todo

    @property
    def answers(self) -> bool:
        """It is the one token that follows an answer's last, and no prompt."""
        return self.sequence.todo == 1

    @property
    def decodes(self) -> bool:
        """Its tokens are of the answers' class."""
        return self.sequence.computed >= self.sequence.border

    @property
    def pages(self) -> list[int]:
        return self.sequence.lease.pages if self.sequence.lease else []

    def span(self, ahead: int = 0) -> Span:
        """As it will be when the pass under way has computed so many of its tokens.

        If those are all there are, one token follows of which nothing is known yet.
        """
        s, past = self.sequence, self.sequence.computed + ahead
        tokens = s.tokens[past : past + self.count] or [0]
        return Span(tokens, past, self.pages, self.count == s.left(ahead), past >= s.border)
