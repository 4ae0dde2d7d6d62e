"""Pages of the KV cache, as numbers: which are free, and which somebody has."""

# Tokens of one layer's keys and values. At the shape of Llama-3.2-1B a page is 64 KB, a good bite for an L2 cache, and
# a sequence leaves 16 tokens of its last page unused on average.
PAGE = 32


class PagePool:
    """Page ids. Every id is free or taken, never both. Owner: the page cache."""

    def __init__(self, pages: int) -> None:
        assert pages > 0, "a pool has pages"
        self._taken = bytearray(pages)
        self._free = list(range(pages - 1, -1, -1))  # a stack: low ids first, and what came back last is still warm

    @property
    def pages(self) -> int:
        return len(self._taken)

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self) -> int:
        """A free page, the caller's from now on."""
        page = self._free.pop()
        self._taken[page] = 1
        return page

    def give(self, page: int) -> None:
        assert self._taken[page], "a page is given back twice"
        self._taken[page] = 0
        self._free.append(page)

    def check(self, owned: list[int]) -> None:
        """The law of the class holds, and the pages that have owners are those that were taken."""
        free = set(self._free)
        assert len(free) == len(self._free), "a page is free twice"
        assert len(set(owned)) == len(owned), "a page has two owners"
        assert not free & set(owned), "a page is both free and owned"
        assert len(free) + len(owned) == self.pages, "a page is neither free nor owned"
        assert sum(self._taken) == len(owned), "a page is taken by nobody"
