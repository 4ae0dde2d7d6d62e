"""Laws of the page pool: every page is free or taken, never both."""

import pytest

from kvcache.pages import PagePool


def test_every_page_is_handed_out_once_and_comes_back() -> None:
    pool = PagePool(5)
    taken = [pool.take() for _ in range(5)]
    assert sorted(taken) == [0, 1, 2, 3, 4]
    pool.check(taken)
    for page in taken[:2]:
        pool.give(page)
    pool.check(taken[2:])
    assert pool.free == 2
    assert pool.take() == taken[1], "what came back last is still warm"


def test_a_page_is_not_given_back_twice() -> None:
    pool = PagePool(1)
    page = pool.take()
    pool.give(page)
    with pytest.raises(AssertionError, match="given back twice"):
        pool.give(page)


@pytest.mark.parametrize("owned", [[0], [0, 1, 1], [0, 1, 2]])
def test_a_check_sees_pages_without_owners_and_owners_without_pages(owned: list[int]) -> None:
    pool = PagePool(3)
    for _ in range(2):
        pool.take()
    pool.check([0, 1])
    with pytest.raises(AssertionError):
        pool.check(owned)
