"""One request under way in the engine."""

from engine.messages import Cost, Finish, Sampling, Submit
from kvcache.lease import Lease

MARK = 1 << 30  # beyond any vocabulary


class Sequence:
    """Tokens of a request, and how far they are computed. Owner: the scheduler.

        0 <= computed < len(tokens) <= limit

        tokens  | prompt ............. | answer ....... |
        class   | prompts' .... border | answers' ..... |
        lease   | computed .................. | to do . |

    One that waits has no lease and nothing computed; what it had answered before it was put back, it keeps.

    Where kernels of prompts and of answers round differently, a token's class is a matter of its index alone, and the
    cache knows keys and values by their class: in `keys` tokens of the answers' class are marked.
    """

    def __init__(self, submit: Submit, context: int, now: float = 0.0, decoded: int | None = None) -> None:
        """So many of its prompt's last tokens are of the answers' class. None: one class serves all."""
        self.id = submit.id
        self.sampling: Sampling = submit.sampling
        self.asker = submit.asker
        self.tokens = list(submit.prompt)
        self.prompt = len(submit.prompt)
        self.limit = min(self.prompt + submit.sampling.max_tokens, context)
        self.border = self.limit if decoded is None else self.prompt - decoded
        self.keys = [*self.tokens[: self.border], *(token | MARK for token in self.tokens[self.border :])]
        self.lease: Lease | None = None
        self.rank: float | None = None  # from its first turn on: the higher, the sooner it gives up its pages
        self.worked = 0  # prompt tokens that were computed for it
        self.came = now
        self.turned: float | None = None  # when it had its first turn, and its first token
        self.answered: float | None = None

    @property
    def computed(self) -> int:
        return self.lease.filled if self.lease else 0

    @property
    def todo(self) -> int:
        """Tokens whose keys and values are still to be computed; the last of them gives the next token."""
        return len(self.tokens) - self.computed

    def left(self, ahead: int = 0) -> int:
        """What will be to do when the pass under way has computed so many: one token follows the last."""
        return self.todo - ahead or 1

    def alike(self, ahead: int = 0) -> int:
        """How many of those, from the first on, are of one class."""
        past, left = self.computed + ahead, self.left(ahead)
        return min(left, self.border - past) if past < self.border else left

    def add(self, token: int) -> None:
        """It goes on with this one."""
        self.keys.append(token if len(self.tokens) < self.border else token | MARK)
        self.tokens.append(token)

    @property
    def cached(self) -> int:
        """Prompt tokens that were there already."""
        return max(0, min(self.computed, self.prompt) - self.worked)

    def finish(self) -> Finish | None:
        """Why it is over after its newest token, if it is."""
        if self.tokens[-1] in self.sampling.stop_tokens:
            return "stop"
        return "length" if len(self.tokens) == self.limit else None

    def cost(self, now: float) -> Cost:
        """From its first token on."""
        assert self.turned is not None, "an answer without a turn"
        assert self.answered is not None, "an answer without a first token"
        return Cost(self.cached, self.turned - self.came, self.answered - self.turned, now - self.answered)
