"""Laws of the index of pages on a disk: sizes add up, and what goes first is the oldest that no page continues."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvcache.page_index import Entry, PageIndex

# A forest: each page continues one of a smaller number, or a root that is no page.
KEYS = [bytes([number]) for number in range(12)]
PARENTS = {key: KEYS[(number - 1) // 2] if number else b"root" for number, key in enumerate(KEYS)}


class IndexAgainstSearching(RuleBasedStateMachine):
    """The index beside a plain dictionary that is searched."""

    def __init__(self) -> None:
        super().__init__()
        self.index = PageIndex()
        self.plain: dict[bytes, Entry] = {}
        self.now = 0

    @rule(key=st.sampled_from(KEYS), size=st.integers(1, 9))
    def add(self, key: bytes, size: int) -> None:
        self.now += 1
        self.plain[key] = Entry(PARENTS[key], size, self.now)
        self.index.add(key, self.plain[key])

    @rule(key=st.sampled_from(KEYS), times=st.integers(1, 40))
    def use(self, key: bytes, times: int) -> None:
        for _ in range(times):
            self.now += 1
            self.index.use(key, self.now)
        if key in self.plain:
            self.plain[key] = Entry(PARENTS[key], self.plain[key].size, self.now)

    @rule(key=st.sampled_from(KEYS))
    def forget(self, key: bytes) -> None:
        self.plain.pop(key, None)
        self.index.forget(key)

    @rule()
    def let_go(self) -> None:
        first = self.index.first_to_go()
        if first is not None:
            self.forget(first[0])

    @rule()
    def look_anew(self) -> None:
        self.index = PageIndex(self.plain.items())

    @invariant()
    def agrees(self) -> None:
        self.index.check()
        assert len(self.index) == len(self.plain)
        assert self.index.bytes == sum(entry.size for entry in self.plain.values())
        continued = {entry.parent for entry in self.plain.values()}
        leaves = [(entry.used, key) for key, entry in self.plain.items() if key not in continued]
        due = min(leaves)[1] if leaves else None
        first = self.index.first_to_go()
        assert first == (None if due is None else (due, self.plain[due]))


TestIndexAgainstSearching = IndexAgainstSearching.TestCase
TestIndexAgainstSearching.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_circle_of_made_up_parents_can_leave() -> None:
    index = PageIndex({b"a": Entry(b"b", 1, 1), b"b": Entry(b"a", 1, 2)}.items())
    for left in (1, 0):
        first = index.first_to_go()
        assert first is not None
        index.forget(first[0])
        assert len(index) == left
        index.check()
    assert index.first_to_go() is None


def test_uses_do_not_pile_up() -> None:
    index = PageIndex([(b"a", Entry(b"", 1, 0))])
    for now in range(10_000):
        index.use(b"a", now)
    assert len(index._order) < 100


def test_check_finds_bytes_that_are_not_the_sum() -> None:
    index = PageIndex([(b"a", Entry(b"", 1, 0))])
    index.bytes += 1
    with pytest.raises(AssertionError, match="not the sum"):
        index.check()
