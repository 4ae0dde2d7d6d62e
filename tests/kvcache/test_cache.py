"""Laws of the page cache: no page is lost or has two owners, and what a lease finds is what its tokens make."""

from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvcache.cache import PageCache
from kvcache.lease import Lease
from kvcache.pages import PAGE
from tests.kvcache.written import MemoryTier, WrittenPages, compute

PAGES = 14

# Few prompts that share beginnings of every length, whole pages and parts of one.
_ROOT = [1] * 40
PROMPTS = st.builds(
    lambda shared, own, length: (_ROOT[:shared] + [own] * length)[: 6 * PAGE],
    shared=st.sampled_from([0, 5, 31, 32, 33, 40]),
    own=st.integers(1, 4),
    length=st.sampled_from([1, 2, 20, 31, 32, 33, 64, 90, 150]),
)


@dataclass
class Holder:
    lease: Lease
    tokens: list[int]


class CacheAgainstContent(RuleBasedStateMachine):
    """Sequences come, look, are computed in chunks, grow by answers, leave in any state; the tier loses and keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.store = WrittenPages(PAGES)
        self.tier = MemoryTier()
        self.cache = PageCache(PAGES, self.store, self.tier, b"model", steep=0.01)
        self.holders: list[Holder] = []

    def any_of(self, data: st.DataObject) -> Holder:
        return data.draw(st.sampled_from(self.holders))

    @precondition(lambda self: len(self.holders) < 5)
    @rule(tokens=PROMPTS, salt=st.sampled_from(["", "", "", "other"]))
    def admit(self, tokens: list[int], salt: str) -> None:
        self.holders.append(Holder(self.cache.open(salt), tokens))

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def look(self, data: st.DataObject) -> None:
        holder = self.any_of(data)
        before = holder.lease.filled
        self.cache.find(holder.lease, holder.tokens)
        assert holder.lease.filled >= before
        assert holder.lease.filled < len(holder.tokens) or holder.lease.filled == before

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def look_within_a_page(self, data: st.DataObject) -> None:
        holder = self.any_of(data)
        before = holder.lease.filled
        self.cache.find_part(holder.lease, holder.tokens)
        assert holder.lease.filled >= before

    @precondition(lambda self: self.holders)
    @rule(data=st.data(), chunk=st.sampled_from([1, 3, 31, 32, 33, 70]))
    def go_on(self, data: st.DataObject, chunk: int) -> None:
        """A chunk of the prompt, or the next token of an answer, as far as pages are to be had."""
        holder = self.any_of(data)
        if holder.lease.filled == len(holder.tokens) < 6 * PAGE:
            holder.tokens.append(chunk)
        end = min(holder.lease.filled + chunk, len(holder.tokens))
        if self.cache.missing(holder.lease, end) <= self.cache.available:
            compute(self.cache, self.store, holder.lease, holder.tokens, end)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        """Finished, cancelled and put back are the same to the cache."""
        holder = self.any_of(data)
        self.holders.remove(holder)
        self.cache.close(holder.lease)

    @precondition(lambda self: self.cache.available)
    @rule()
    def evict(self) -> None:
        """Somebody takes all that is to be had, and leaves no trace."""
        lease = self.cache.open("greedy")
        self.cache.grow(lease, self.cache.available * PAGE)
        assert self.cache.available == 0
        self.cache.close(lease)

    @rule(most=st.integers(0, 3), full=st.booleans(), lossy=st.sampled_from([False, False, False, True]))
    def settle(self, most: int, full: bool, lossy: bool) -> None:
        self.tier.full, self.tier.lossy = full, lossy
        self.cache.settle(0, most)

    @invariant()
    def no_page_is_lost_and_every_page_holds_what_its_tokens_make(self) -> None:
        self.cache.check()
        for holder in self.holders:
            assert self.store.holds(holder.lease, holder.tokens)

    def teardown(self) -> None:
        for holder in self.holders:
            self.cache.close(holder.lease)
        self.cache.settle(0, 0)
        self.cache.settle(0, 0)
        self.cache.check()
        assert self.cache.available == PAGES


TestCacheAgainstContent = CacheAgainstContent.TestCase
TestCacheAgainstContent.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)


def cache_of(pages: int, tier: MemoryTier | None = None, steep: float = 0) -> tuple[PageCache, WrittenPages]:
    store = WrittenPages(pages)
    return PageCache(pages, store, tier, b"model", steep), store


def left_behind(cache: PageCache, store: WrittenPages, tokens: list[int], salt: str = "") -> None:
    """Somebody computed these tokens and left."""
    lease = cache.open(salt)
    cache.find(lease, tokens)
    compute(cache, store, lease, tokens, len(tokens))
    cache.close(lease)


def found(cache: PageCache, tokens: list[int], salt: str = "") -> int:
    """Tokens that a newcomer need not compute."""
    lease = cache.open(salt)
    cache.find(lease, tokens)
    cache.find_part(lease, tokens)
    filled = lease.filled
    cache.close(lease)
    return filled


def whole_pages(cache: PageCache, tokens: list[int]) -> int:
    """That are there for them; looking takes none."""
    lease = cache.open("")
    cache.find(lease, tokens)
    cache.close(lease)
    return lease.depth


def test_a_conversation_that_goes_on_is_found_to_the_last_token() -> None:
    cache, store = cache_of(20)
    turn = list(range(100))
    left_behind(cache, store, turn)
    assert found(cache, [*turn, 7, 7, 7]) == 100


def test_the_last_token_is_always_left_to_compute() -> None:
    for length in (1, 31, 32, 33, 64):
        cache, store = cache_of(20)
        tokens = list(range(length))
        left_behind(cache, store, tokens)
        assert found(cache, tokens) == length - 1


def test_a_prompt_that_parts_within_a_page_is_found_up_to_there() -> None:
    cache, store = cache_of(20)
    left_behind(cache, store, list(range(200)))
    assert found(cache, [*range(75), 999, *range(76, 200)]) == 75
    assert cache.counts.copied == 1


def test_salts_share_nothing() -> None:
    cache, store = cache_of(20)
    left_behind(cache, store, list(range(100)), "alice")
    assert found(cache, list(range(100)), "bob") == 0
    assert found(cache, list(range(100)), "alice") == 99


def test_shared_pages_take_memory_once() -> None:
    cache, store = cache_of(10)
    tokens = list(range(6 * PAGE))
    left_behind(cache, store, tokens)
    leases = [cache.open("") for _ in range(50)]
    for lease in leases:
        cache.find(lease, tokens)
    cache.check()
    assert (cache.available, cache.shared) == (10 - 5, 5)
    for lease in leases:
        cache.close(lease)


def test_a_page_that_comes_back_for_nobody_in_place_of_all_there_was_is_kept() -> None:
    """Who asked for it is gone, and all of that salt was an end, which says nothing that the page does not."""
    tier = MemoryTier()
    cache, store = cache_of(4, tier)
    tokens = list(range(PAGE + 1))
    left_behind(cache, store, tokens, "salt")
    cache.settle(0, 9)
    left_behind(cache, store, list(range(900, 900 + 4 * PAGE)))
    left_behind(cache, store, tokens[:20], "salt")
    lease = cache.open("salt")
    cache.find(lease, tokens)
    assert lease.awaits
    cache.close(lease)
    cache.settle(0, 0)
    cache.check()
    assert found(cache, tokens, "salt") == PAGE


def test_a_page_that_two_computed_at_once_is_kept_once() -> None:
    cache, store = cache_of(10)
    tokens = list(range(PAGE))
    both = [cache.open(""), cache.open("")]
    for lease in both:
        compute(cache, store, lease, tokens, PAGE)
    assert both[0].pages == both[1].pages
    assert cache.pool.free == 9


def test_what_was_of_use_longest_ago_makes_room_first() -> None:
    cache, store = cache_of(9)
    for name in (1, 2, 3):
        left_behind(cache, store, [name] * 3 * PAGE)
    assert whole_pages(cache, [1] * 3 * PAGE + [0]) == 3
    left_behind(cache, store, [4] * 3 * PAGE)
    assert [whole_pages(cache, [name] * 3 * PAGE + [0]) for name in (1, 2, 3, 4)] == [3, 0, 3, 3]


def test_pages_that_cost_more_to_compute_again_stay_longer() -> None:
    cache, store = cache_of(12, steep=1.0)
    long, short = [1] * 8 * PAGE, [2] * 3 * PAGE
    left_behind(cache, store, long)
    left_behind(cache, store, short)
    left_behind(cache, store, [3] * 3 * PAGE)
    assert found(cache, [*long, 0]) == 8 * PAGE, "though it is the oldest"
    assert found(cache, [*short, 0]) < 3 * PAGE


def test_pages_that_went_cold_come_back_from_the_tier_after_a_restart() -> None:
    tier = MemoryTier()
    cache, store = cache_of(10, tier)
    tokens = list(range(5 * PAGE))
    left_behind(cache, store, tokens)
    cache.settle(0, 100)
    assert len(tier.kept) == 5
    cache, store = cache_of(10, tier)
    lease = cache.open("")
    cache.find(lease, [*tokens, 1])
    assert (lease.awaits, lease.filled) == (True, 0)
    cache.settle(0, 0)
    cache.find(lease, [*tokens, 1])
    assert (lease.awaits, lease.filled) == (False, 5 * PAGE)
    assert store.holds(lease, tokens)
    cache.check()


def test_the_tier_is_asked_for_pages_of_the_same_model_and_salt_only() -> None:
    tier = MemoryTier()
    cache, store = cache_of(10, tier)
    left_behind(cache, store, list(range(100)), "alice")
    cache.settle(0, 100)
    for identity, salt in ((b"model", "bob"), (b"other", "alice")):
        other = PageCache(10, WrittenPages(10), tier, identity)
        lease = other.open(salt)
        other.find(lease, list(range(100)))
        assert not lease.awaits
        assert not tier.asked


def test_the_tier_hears_of_pages_that_are_of_use_in_memory_and_takes_again_what_it_lost() -> None:
    tier = MemoryTier()
    cache, store = cache_of(10, tier)
    tokens = list(range(5 * PAGE))
    left_behind(cache, store, tokens)
    cache.settle(0, 100)
    kept, tier.kept = tier.kept, {}
    assert whole_pages(cache, [*tokens, 0]) == 5
    assert tier.used[-1] == list(kept)[-1], "the first page goes there first, the deepest last"
    left_behind(cache, store, [7] * 9 * PAGE)
    assert len(tier.kept.keys() & kept.keys()) == 4, "those that had to go"


def test_a_lease_is_not_closed_twice() -> None:
    cache, _ = cache_of(2)
    lease = cache.open("")
    cache.close(lease)
    with pytest.raises(AssertionError, match="closed twice"):
        cache.close(lease)
