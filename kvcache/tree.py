"""The prefix tree: pages by the tokens before and in them."""

from array import array
from collections.abc import Iterator, Sequence

from kvcache.pages import PAGE

_TOKEN = 4  # bytes
WHOLE = PAGE * _TOKEN


class Node:
    """A page whose tokens follow those of `parent`: a whole one in `parent.children`, one with fewer in `parent.ends`.

    Tokens are bytes (int32), and are the dictionaries' keys: equal hashes of other tokens cannot be confused. A page of
    the tree is written no more. Who holds a node holds its ancestors too. A root has no page and stands for a salt.
    """

    __slots__ = (
        "children",
        "depth",
        "ends",
        "holders",
        "key",
        "page",
        "parent",
        "stored",
        "tokens",
        "worth",
        "writers",
    )

    def __init__(self, parent: "Node | None", tokens: bytes, page: int, key: bytes) -> None:
        self.parent = parent
        self.depth: int = parent.depth + 1 if parent else 0
        self.tokens = tokens  # a root's are its salt
        self.page = page
        self.key = key  # names the page on further tiers; an end has none
        self.children: dict[bytes, Node] = {}
        self.ends: dict[bytes, Node] = {}
        self.holders = 0
        self.worth = (0.0, 0)  # the least goes first when pages are wanted, of equals the one used longest ago
        self.stored = False  # a further tier took it; it may have lost it since
        self.writers: list[Writer] = []  # who fills a page that follows this one

    @property
    def whole(self) -> bool:
        return len(self.tokens) == WHOLE

    @property
    def is_root(self) -> bool:
        return self.parent is None

    @property
    def is_leaf(self) -> bool:
        return not self.children and not self.ends

    def path(self) -> Iterator["Node"]:
        """This one and those above it, the root last."""
        node: Node | None = self
        while node is not None:
            yield node
            node = node.parent

    def below(self) -> Iterator["Node"]:
        """All nodes under this one."""
        rest = [*self.children.values(), *self.ends.values()]
        while rest:
            node = rest.pop()
            rest += [*node.children.values(), *node.ends.values()]
            yield node

    def attach(self, child: "Node") -> None:
        (self.children if child.whole else self.ends)[child.tokens] = child

    def detach(self, child: "Node") -> None:
        del (self.children if child.whole else self.ends)[child.tokens]

    def covered(self, tokens: bytes) -> list["Node"]:
        """Ends that say nothing which these tokens do not."""
        return [end for end in self.ends.values() if tokens.startswith(end.tokens)]

    def covers(self, tokens: bytes) -> bool:
        """Some page after this one begins with all of these tokens."""
        return any(other.startswith(tokens) for other in (*self.children, *self.ends))

    def nearest(self, tokens: bytes) -> tuple[int, int]:
        """A page after this one that begins like `tokens`, and for how many of them; (-1, 0) if there is none."""
        best, most = -1, 0
        first = tokens[:_TOKEN]
        for other, page in self._pages():
            if other[:_TOKEN] == first and (count := common(other, tokens)) > most:
                best, most = page, count
        return best, most

    def _pages(self) -> Iterator[tuple[bytes, int]]:
        for tokens, node in (*self.children.items(), *self.ends.items()):
            yield tokens, node.page
        for writer in self.writers:
            if writer.tail:
                yield writer.tail, writer.page


class Writer:
    """The page that a lease fills after its last node, and the tokens in it so far."""

    __slots__ = ("page", "tail")

    def __init__(self) -> None:
        self.page = -1
        self.tail = b""


def as_bytes(tokens: Sequence[int]) -> bytes:
    return array("i", tokens).tobytes()


def common(a: bytes, b: bytes) -> int:
    """How many tokens both begin with."""
    size = min(len(a), len(b))
    differs = int.from_bytes(a[:size], "little") ^ int.from_bytes(b[:size], "little")
    if not differs:
        return size // _TOKEN
    return ((differs & -differs).bit_length() - 1) // (8 * _TOKEN)
