"""One request under way in the engine."""

from engine.messages import Finish, Sampling, Submit
from kvcache.pages import PAGE


class Sequence:
    """Tokens of a request, and how far they are computed. Owner: the scheduler.

        0 <= computed <= len(tokens) <= limit

        tokens  | prompt ............. | answer ....... |
        pages   | computed .................. | to do . |   cover `computed` and what the next pass adds

    A waiting sequence holds no page and has nothing computed; what it had answered before it was put back, it keeps.
    """

    def __init__(self, submit: Submit, context: int) -> None:
        self.id = submit.id
        self.sampling: Sampling = submit.sampling
        self.tokens = list(submit.prompt)
        self.prompt = len(submit.prompt)
        self.limit = min(self.prompt + submit.sampling.max_tokens, context)
        self.computed = 0
        self.pages: list[int] = []

    @property
    def todo(self) -> int:
        """Tokens whose keys and values are still to be computed; the last of them gives the next token."""
        return len(self.tokens) - self.computed

    @property
    def pages_short(self) -> int:
        """Pages it has to take before all its tokens can be computed."""
        return max(0, -(-len(self.tokens) // PAGE) - len(self.pages))

    def finish(self) -> Finish | None:
        """Why it is over after its newest token, if it is."""
        if self.tokens[-1] in self.sampling.stop_tokens:
            return "stop"
        return "length" if len(self.tokens) == self.limit else None
