"""Laws of the plan: who runs next, with how much, in which order."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.messages import Asker, Sampling, Submit, Tier
from engine.pace import PREFILL
from engine.scheduler import Scheduler
from engine.sequence import Sequence
from engine.turns import WEIGHTS
from kvcache.cache import PageCache
from kvcache.pages import PAGE
from tests.engine.hash_model import Chunks
from tests.kvcache.written import MemoryTier, WrittenPages


def sequence(name: int, prompt: int, answer: int = 50, *, own: bool = True, **asker: str | float) -> Sequence:
    """Its prompt is its own from the first token on, or all zeros."""
    tokens = [name if own else 0] * prompt
    return Sequence(Submit(name, tokens, Sampling(max_tokens=answer), Asker(**asker)), context=10_000)  # type: ignore[arg-type]


class Passes:
    """A scheduler, and passes whose tokens do not matter."""

    def __init__(self, pages: int, max_batch: int, *sequences: Sequence, chunk: int = PREFILL) -> None:
        self.cache = PageCache(pages, WrittenPages(pages), MemoryTier())
        self.scheduler = Scheduler(self.cache, max_batch, Chunks(chunk))
        for member in sequences:
            self.scheduler.add(member)

    def next(self) -> list[tuple[int, int]]:
        """(sequence, tokens) of the next pass, after which each that reached its end has one token more."""
        work = [(w, w.sequence, w.count, w.reaches_end) for w in self.scheduler.plan(0.0)]
        for item, member, _, reaches_end in work:
            self.scheduler.accept(item)
            if reaches_end:
                member.answered = 0.0
                member.add(1_000_000 + member.id)
                self.scheduler.answered(member)
            if member.finish() is not None:
                self.scheduler.remove(member.id)
        return [(member.id, count) for _, member, count, _ in work]

    def all(self) -> Counter[int]:
        """Tokens computed for each, until nobody is left."""
        computed: Counter[int] = Counter()
        while self.scheduler.busy:
            computed.update(dict(self.next()))
            self.scheduler.check()
        return computed

    @property
    def running(self) -> list[int]:
        return [s.id for s in self.scheduler.running]

    @property
    def waiting(self) -> list[int]:
        return [s.id for s in self.scheduler.waiting]


def test_prompts_share_a_pass_and_leave_it_to_each_other() -> None:
    passes = Passes(1000, 16, sequence(1, 5000), sequence(2, 20), sequence(3, 5000))
    first = dict(passes.next())
    assert first[2] == 20
    assert abs(first[1] - first[3]) <= 1
    assert sum(first.values()) == PREFILL


def test_a_lone_prompt_fills_up_the_rows_that_kernels_take_at_once() -> None:
    passes = Passes(1000, 16, sequence(1, 1), sequence(2, 5000), chunk=100)
    passes.next()
    assert passes.next() == [(1, 1), (2, 95)]


@pytest.mark.parametrize("chunk", [1, 3, 4, 5, 9])
@pytest.mark.parametrize("answering", range(1, 25))
def test_a_prompt_goes_on_beside_however_many_answers(answering: int, chunk: int) -> None:
    streams = [sequence(i, 1, answer=100) for i in range(answering)]
    passes = Passes(1000, 32, *streams, sequence(99, 5000), chunk=chunk)
    passes.next()
    assert 1 <= dict(passes.next())[99] <= chunk


def test_no_more_run_than_a_pass_has_room_for_and_the_first_come_first() -> None:
    passes = Passes(1000, 2, *(sequence(i, 10, answer=1 + i) for i in range(5)))
    assert [name for name, _ in passes.next()] == [0, 1]
    assert [name for name, _ in passes.next()] == [1, 2]


def test_a_long_prompt_that_waits_for_pages_is_not_overtaken() -> None:
    passes = Passes(10, 16, sequence(1, 5 * PAGE), sequence(2, 6 * PAGE), sequence(3, 1))
    passes.next()
    assert (passes.running, passes.waiting) == ([1], [2, 3])


def test_the_youngest_gives_its_pages_to_the_oldest_and_is_next_to_run() -> None:
    passes = Passes(5, 16, sequence(1, PAGE - 1), sequence(2, PAGE - 1), sequence(3, 1))
    for _ in range(PAGE + 3):
        passes.next()
        passes.scheduler.check()
    assert (passes.running, passes.waiting) == ([1, 2], [3])
    assert len(passes.scheduler.waiting[0].tokens) > 1, "what it had answered it keeps"


TIERS: list[Tier] = ["flex", "default", "priority"]


@given(
    pages=st.integers(8, 40),
    max_batch=st.integers(1, 6),
    requests=st.lists(
        st.tuples(
            st.integers(1, 200), st.integers(1, 56), st.booleans(), st.sampled_from("ab"), st.sampled_from(TIERS)
        ),
        min_size=1,
        max_size=12,
    ),
)
@settings(max_examples=100, deadline=None)
def test_everybody_finishes(pages: int, max_batch: int, requests: list[tuple[int, int, bool, str, Tier]]) -> None:
    """Whatever the pool, as long as each alone fits: the oldest is in every pass, or waits for its pages from disk."""
    sequences = [
        sequence(i, prompt, answer, own=own, client=client, tier=tier)
        for i, (prompt, answer, own, client, tier) in enumerate(requests)
    ]
    passes = Passes(pages, max_batch, *sequences)
    while passes.scheduler.busy:
        before = passes.scheduler.running[:1]
        worked = dict(passes.next())
        for oldest in before:
            assert oldest.id in worked or (oldest.lease is not None and oldest.lease.awaits)
        passes.scheduler.check()
    while passes.cache.unsettled:
        passes.cache.settle(0, 100)
    assert passes.cache.available == pages


def test_what_prompts_have_in_common_is_computed_once() -> None:
    """Several at once, and n choices of one request: all but the first compute the last token alone."""
    for length in (5, 31, 32, 33, 100, 3000):
        passes = Passes(1000, 16, *(sequence(i, length, answer=1, own=False) for i in range(4)))
        assert sorted(passes.all().values()) == [1, 1, 1, length]


def test_prompts_that_part_late_wait_for_the_common_pages_and_no_longer() -> None:
    common = [0] * 10 * PAGE
    members = [
        Sequence(Submit(i, [*common, *[i] * 5 * PAGE], Sampling(max_tokens=1)), context=10_000) for i in range(1, 5)
    ]
    passes = Passes(1000, 16, *members)
    assert sum(passes.all().values()) == 10 * PAGE + 4 * 5 * PAGE


def test_a_prompt_whose_client_left_goes_on_where_it_was_when_it_comes_again() -> None:
    passes = Passes(1000, 16, sequence(1, 3000, own=False))
    computed = sum(count for _ in range(3) for _, count in passes.next())
    passes.scheduler.remove(1)
    passes.scheduler.add(sequence(2, 3000, answer=1, own=False))
    assert passes.all()[2] == 3000 - computed


def test_a_client_with_many_requests_leaves_a_turn_to_another() -> None:
    passes = Passes(1000, 4, *(sequence(i, 10, answer=1000, client="many") for i in range(10)))
    passes.next()
    passes.scheduler.add(sequence(10, 10, client="one"))
    passes.next()
    passes.next()
    assert passes.running == [0, 1, 2, 10]
    assert 3 in passes.waiting


def test_tiers_share_a_pass_by_their_weights() -> None:
    members = [sequence(i, 5000, client=tier, tier=tier) for i, tier in enumerate(TIERS)]
    passes = Passes(1000, 16, *members, chunk=210)
    counts = dict(passes.next())
    total = sum(WEIGHTS.values())
    for i, tier in enumerate(TIERS):
        assert counts[i] == pytest.approx(210 * WEIGHTS[tier] / total, abs=1)


def test_many_prompts_of_one_client_have_one_clients_part() -> None:
    passes = Passes(1000, 16, sequence(0, 3000, client="one"), *(sequence(i, 3000, client="b") for i in range(1, 5)))
    counts = dict(passes.next())
    assert counts[0] == pytest.approx(PREFILL / 2, abs=1)


def test_who_runs_keeps_a_page_to_grow_into_before_another_is_let_in() -> None:
    """Else the new one would be put back at the first page that anybody fills."""
    passes = Passes(4, 16, sequence(1, PAGE), sequence(2, 3 * PAGE), sequence(3, PAGE))
    passes.next()
    assert passes.running == [1]
    passes = Passes(5, 16, sequence(1, PAGE), sequence(2, 3 * PAGE))
    passes.next()
    assert passes.running == [1, 2]


def test_who_waited_as_long_as_it_cared_to_is_over_unless_it_had_a_turn() -> None:
    passes = Passes(1000, 1, sequence(1, 10, patience=5.0), sequence(2, 10, patience=5.0), sequence(3, 10))
    passes.next()
    assert passes.scheduler.expired(4.9) == []
    assert [s.id for s in passes.scheduler.expired(5.0)] == [2]
    assert (passes.running, passes.waiting) == ([1], [3])


def test_who_waits_for_pages_from_a_further_tier_holds_nobody_up() -> None:
    passes = Passes(100, 16, sequence(1, 10 * PAGE, answer=1, own=False))
    passes.all()
    passes.cache.settle(0, 100)
    tier = MemoryTier()
    tier.kept = dict.fromkeys(_kept(passes), bytes(8 * PAGE))
    again = Passes(100, 16, sequence(2, 10 * PAGE, own=False), sequence(3, 40))
    again.cache._tier = tier  # the pages of the first one's life
    assert dict(again.next()) == {3: 40}
    assert dict(again.next()) == {2: PAGE, 3: 1}


def _kept(passes: Passes) -> dict[bytes, bytes]:
    tier = passes.cache._tier
    assert isinstance(tier, MemoryTier)
    return tier.kept
