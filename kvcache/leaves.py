"""Which kept page goes first when pages are wanted."""

import heapq
from itertools import count

from kvcache.pages import PAGE
from kvcache.tree import WHOLE, Node


class Leaves:
    """Leaves of the tree that nobody holds, by worth. Owner: the page cache.

    Worth is GreedyDual's (Young 1994; Cao and Irani 1997): what a page would cost to compute again, on top of a clock
    that goes up to the worth of whatever went last, so that old worth fades. Of equals, the one used longest ago goes.
    """

    def __init__(self, steep: float) -> None:
        """`steep` is how much more a token costs for each one before it, the first one's cost being 1."""
        self._steep = steep
        self._clock = 0.0
        self._uses = 0
        self._heap: list[tuple[float, int, int, Node]] = []  # and what no longer is a kept leaf, or is worth more now
        self._ticket = count()

    def tick(self) -> None:
        """What is used from now on was used later than all before."""
        self._uses += 1

    def value(self, node: Node) -> None:
        """It was of use just now."""
        part = len(node.tokens) / WHOLE
        node.worth = (self._clock + part * (1 + self._steep * node.depth * PAGE), self._uses)
        self.add(node)

    def add(self, node: Node) -> None:
        """It may have become a kept leaf."""
        if not _is_kept_leaf(node):
            return
        heapq.heappush(self._heap, (*node.worth, next(self._ticket), node))

    def least(self) -> Node:
        """The leaf that goes; there is one."""
        while True:
            *worth, _, node = heapq.heappop(self._heap)
            if _is_kept_leaf(node) and node.worth == tuple(worth):
                self._clock = node.worth[0]
                return node

    def shrink(self, kept: int) -> None:
        """With so many pages kept, most entries may be of the past."""
        if len(self._heap) > 2 * kept + 64:
            self._heap = [entry for entry in self._heap if _is_kept_leaf(entry[-1]) and entry[-1].worth == entry[:2]]
            heapq.heapify(self._heap)


def _is_kept_leaf(node: Node) -> bool:
    return node.page >= 0 and node.holders == 0 and node.is_leaf
