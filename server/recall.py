"""Why a prompt was not found in the cache: what a conversation said before is remembered, and compared.

remembered  | prompt ............ | its answer ... |
new prompt  | the same ....... | others ............. |      "differs", at the first of the others
cached      | ................ |

remembered  | prompt ............ | its answer ... |
new prompt  | the same .......................... | more |   "evicted", when much less of it was cached
cached      | ..... |
"""

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from time import time

import numpy as np
from numpy.typing import NDArray

from models.tokenizer import Tokenizer

MOST_TOKENS = 2**21  # of a model: 8 MiB
MOST_CONVERSATIONS = 256
MOST_PROMPTS = 4  # of a conversation; one that goes on where an earlier one ended takes its place
MOST_MISSES = 16
LEAST_LOSS = 64  # tokens; pages have 32, and what ends within one may be computed again
LEAST_COMMON = 32  # tokens; conversations of one template begin alike, and are not one for that
AROUND = 8  # tokens of text before the difference
AFTER = 16  # and from it on

Ids = NDArray[np.int32]
Conversation = tuple[str, str, str]  # salt, client, name: of another's words nobody gets to see any


@dataclass(frozen=True)
class Miss:
    """`position` is the first token that was not found for that reason."""

    kind: str
    conversation: Conversation
    at: float  # when, in seconds since 1970
    position: int
    lost: int  # tokens computed again
    message: str
    words: dict[str, str]  # the text around a difference

    @property
    def wire(self) -> dict[str, object]:
        return {"kind": self.kind, "position": self.position, **self.words, "message": self.message}


class Memory:
    """The last prompts of each conversation, with their answers if those serve prompts too, and the last misses.

    When there are too many tokens, or conversations, the one that was silent for longest is forgotten.
    """

    def __init__(self, tokenizer: Tokenizer, most_tokens: int = MOST_TOKENS, *, answers: bool = True) -> None:
        self.misses: deque[Miss] = deque(maxlen=MOST_MISSES)
        self.tokens = 0
        self.answers = answers
        self._tokenizer = tokenizer
        self._most = most_tokens
        self._said: OrderedDict[Conversation, list[Ids]] = OrderedDict()

    def recall(self, conversation: Conversation, prompt: Sequence[int]) -> "Recollection":
        """The prompt beside the likest of what is remembered now; of equals the newest."""
        ids = np.asarray(prompt, np.int32)
        earlier, common = None, 0
        for said in self._said.get(conversation, ()):
            alike = _common(said, ids)
            if alike > 0 and alike >= common:
                earlier, common = said, alike
        return Recollection(self, conversation, ids, earlier, common)

    def remember(self, conversation: Conversation, said: Ids, instead: Ids | None) -> None:
        """`instead` of what it goes on from, if that is still remembered."""
        before = self._said.pop(conversation, [])
        after = [*(one for one in before if one is not instead), said][-MOST_PROMPTS:]
        self._said[conversation] = after
        self.tokens += sum(map(len, after)) - sum(map(len, before))
        while self.tokens > self._most or len(self._said) > MOST_CONVERSATIONS:
            _, oldest = self._said.popitem(last=False)
            self.tokens -= sum(map(len, oldest))

    def text(self, ids: Ids) -> str:
        """As it reads, control tokens by their names."""
        tokens = self._tokenizer
        pieces = [
            tokens.spelling(token).encode() if token in tokens.control else tokens.piece(token)
            for token in ids.tolist()
        ]
        return b"".join(pieces).decode("utf-8", "replace")


class Recollection:
    """A prompt, and what the conversation had said that is likest to it."""

    def __init__(self, memory: Memory, conversation: Conversation, ids: Ids, earlier: Ids | None, common: int) -> None:
        self.miss: Miss | None = None
        self._memory = memory
        self._conversation = conversation
        self._ids = ids
        self._earlier = earlier
        self._common = common
        self._computed = False

    def computed(self, cached: int) -> None:
        """The prompt is in the cache now, and so many of its tokens were before. Only the first time counts."""
        if self._computed:
            return
        self._computed = True
        self.miss = self._diagnose(cached)
        if self.miss is not None:
            self._memory.misses.append(self.miss)
        goes_on = self._earlier is not None and self._common == len(self._earlier)
        self._memory.remember(self._conversation, self._ids, self._earlier if goes_on else None)

    def answered(self, tokens: Sequence[int]) -> None:
        """What followed is in the cache, too, where a prompt finds it."""
        if self._computed and tokens and self._memory.answers:
            prompt = self._ids
            self._ids = np.concatenate((prompt, np.asarray(tokens, np.int32)))
            self._memory.remember(self._conversation, self._ids, prompt)

    def _diagnose(self, cached: int) -> Miss | None:
        """The greater of the two losses, if either is worth a word."""
        if self._earlier is None:
            return None
        common = self._common
        follows = common >= LEAST_COMMON or _resumes(self._earlier[common:], self._ids[common:])
        differs = follows and common < min(len(self._earlier), len(self._ids))
        changed = len(self._earlier) - common if differs and cached < common + LEAST_LOSS else 0
        evicted = min(common, len(self._ids) - 1) - cached
        if max(changed, evicted) < LEAST_LOSS:
            return None
        return self._evicted(cached, evicted) if evicted >= changed else self._differs(changed)

    def _evicted(self, cached: int, lost: int) -> Miss:
        message = (
            f"the first {cached + lost} tokens are as in an earlier request, and only {cached} of them were still in "
            f"the cache: others took the room of the rest, or the engine was started anew"
        )
        return Miss("evicted", self._conversation, time(), cached, lost, message, {})

    def _differs(self, lost: int) -> Miss:
        assert self._earlier is not None, "something differs from nothing"
        at, text = self._common, self._memory.text
        after = text(self._ids[max(0, at - AROUND) : at])
        was, now = text(self._earlier[at : at + AFTER]), text(self._ids[at : at + AFTER])
        message = (
            f"the prompt is as in an earlier request up to token {at}, where {_shown(was)} became {_shown(now)}; from "
            f"there on the cache, which had {lost} more tokens of that request, is of no use"
        )
        return Miss("differs", self._conversation, time(), at, lost, message, {"after": after, "was": was, "now": now})


def _common(a: Ids, b: Ids) -> int:
    """How many tokens both begin with."""
    length = min(len(a), len(b))
    differing = np.flatnonzero(a[:length] != b[:length])
    return int(differing[0]) if len(differing) else length


def _resumes(was: Ids, now: Ids) -> bool:
    """Soon after they part, both say the same again: a word was changed, and it is no other conversation."""
    views = np.lib.stride_tricks.sliding_window_view(now[:512], 16) if len(now) >= 16 else np.empty((0, 16), np.int32)
    looked_for = [was[at : at + 16] for at in (16, 48, 112) if at + 16 <= len(was)]
    return any(bool((views == window).all(axis=1).any()) for window in looked_for)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")
