"""Pages of the KV cache, as numbers: which are free, and how many hold each of the others."""

# Tokens of one layer's keys and values. At the shape of Llama-3.2-1B a page is 64 KB, a good bite for an L2 cache, and
# a sequence leaves 16 tokens of its last page unused on average.
PAGE = 32


class PagePool:
    """Page ids and their holders. Every id is free or held at least once, never both. Owner: the engine."""

    def __init__(self, pages: int) -> None:
        assert pages > 0, "a pool has pages"
        self._holders = [0] * pages
        self._free = list(range(pages - 1, -1, -1))  # a stack: low ids first, and what was dropped last is still warm

    @property
    def pages(self) -> int:
        return len(self._holders)

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """So many free pages, each held once by the caller."""
        assert count <= self.free, f"{count} pages asked of {self.free} free ones"
        taken = [self._free.pop() for _ in range(count)]
        for page in taken:
            self._holders[page] = 1
        return taken

    def hold(self, page: int) -> None:
        """One more holder of a page that is held already."""
        assert self._holders[page] > 0, "a free page cannot be shared"
        self._holders[page] += 1

    def drop(self, page: int) -> None:
        """One holder less; the page is free with the last one."""
        assert self._holders[page] > 0, "dropped twice"
        self._holders[page] -= 1
        if self._holders[page] == 0:
            self._free.append(page)

    def check(self) -> None:
        """The law of the class holds."""
        free = set(self._free)
        assert len(free) == len(self._free), "a page is free twice"
        held = {page for page, holders in enumerate(self._holders) if holders > 0}
        assert min(self._holders) >= 0, "a page has less than no holder"
        assert not free & held, "a page is both free and held"
        assert len(free) + len(held) == self.pages, "a page is neither free nor held"
