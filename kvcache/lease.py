"""What one sequence has of the cache."""

from kvcache.pages import PAGE
from kvcache.tree import Node, Writer


class Lease:
    """Whole pages of the tree that it shares with others, then pages of its own, the first of which it fills.

        tokens  | 0 ....................... | ........ filled |
        pages   | of the tree, down to node | own: writer's   | own, empty ... |
                0                     depth * PAGE

    depth * PAGE <= filled < (depth + 1) * PAGE. Owner: the page cache; others read it.
    """

    __slots__ = ("awaits", "depth", "filled", "node", "open", "pages", "writer")

    def __init__(self, root: Node) -> None:
        self.node = root
        self.depth = 0
        self.filled = 0  # tokens whose keys and values are in the pages
        self.pages: list[int] = []
        self.writer = Writer()
        self.awaits = False  # its next page is on its way from a further tier
        self.open = True

    @property
    def own(self) -> list[int]:
        return self.pages[self.depth :]

    def room(self) -> int:
        """Tokens that its pages have room for."""
        return len(self.pages) * PAGE
