"""Laws of the page pool: every page is free or held, never both."""

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvcache.pages import PagePool

PAGES = 12


class PoolAgainstCounting(RuleBasedStateMachine):
    """The pool beside a plain count of what was taken, held and dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(PAGES)
        self.held: Counter[int] = Counter()

    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(0, self.pool.free))
        taken = self.pool.take(count)
        assert len(set(taken)) == count, "a page was handed out twice"
        assert not self.held.keys() & set(taken), "a held page was handed out"
        self.held.update(taken)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        page = data.draw(st.sampled_from(sorted(self.held)))
        self.pool.hold(page)
        self.held[page] += 1

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        page = data.draw(st.sampled_from(sorted(self.held)))
        self.pool.drop(page)
        self.held[page] -= 1
        self.held += Counter()  # forgets the zeros

    @invariant()
    def sums_to_the_pool(self) -> None:
        self.pool.check()
        assert self.pool.free + len(self.held) == self.pool.pages == PAGES


TestPoolAgainstCounting = PoolAgainstCounting.TestCase
TestPoolAgainstCounting.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)


def test_a_page_is_not_dropped_twice() -> None:
    pool = PagePool(1)
    (page,) = pool.take(1)
    pool.drop(page)
    with pytest.raises(AssertionError, match="dropped twice"):
        pool.drop(page)


def test_a_free_page_is_not_shared() -> None:
    with pytest.raises(AssertionError, match="free page"):
        PagePool(1).hold(0)


def test_more_than_the_free_pages_are_not_handed_out() -> None:
    pool = PagePool(2)
    pool.take(1)
    with pytest.raises(AssertionError, match="2 pages asked of 1"):
        pool.take(2)


def test_check_finds_a_lost_page() -> None:
    pool = PagePool(2)
    pool._free.pop()
    with pytest.raises(AssertionError, match="neither free nor held"):
        pool.check()
