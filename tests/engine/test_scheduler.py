"""Laws of the plan: who runs next, with how much, in which order."""

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.messages import Sampling, Submit
from engine.scheduler import PREFILL, PREFILL_BESIDE_DECODE, Scheduler
from engine.sequence import Sequence
from kvcache.pages import PAGE, PagePool


def sequence(name: int, prompt: int, answer: int = 50) -> Sequence:
    return Sequence(Submit(name, [0] * prompt, Sampling(max_tokens=answer)), context=10_000)


def pass_over(scheduler: Scheduler) -> list[tuple[int, int]]:
    """(sequence, tokens) of the next pass, after which each that reached its end has one token more."""
    work = [(w.sequence, w.count, w.reaches_end) for w in scheduler.plan()]
    for member, count, reaches_end in work:
        member.computed += count
        if reaches_end:
            member.tokens.append(0)
        if member.finish() is not None:
            scheduler.remove(member.id)
    return [(member.id, count) for member, count, _ in work]


def scheduler_of(pages: int, max_batch: int, *sequences: Sequence) -> Scheduler:
    scheduler = Scheduler(PagePool(pages), max_batch)
    for member in sequences:
        scheduler.add(member)
    return scheduler


def test_prompts_share_a_pass_and_leave_it_to_each_other() -> None:
    scheduler = scheduler_of(1000, 16, sequence(1, 5000), sequence(2, 20), sequence(3, 5000))
    first = dict(pass_over(scheduler))
    assert first[2] == 20
    assert abs(first[1] - first[3]) <= 1
    assert sum(first.values()) == PREFILL


def test_a_prefill_is_shorter_when_somebody_waits_for_a_token() -> None:
    scheduler = scheduler_of(1000, 16, sequence(1, 1), sequence(2, 5000))
    pass_over(scheduler)
    assert pass_over(scheduler) == [(1, 1), (2, PREFILL_BESIDE_DECODE)]


def test_no_more_run_than_a_pass_has_room_for_and_the_first_come_first() -> None:
    scheduler = scheduler_of(1000, 2, *(sequence(i, 10, answer=1 + i) for i in range(5)))
    assert [name for name, _ in pass_over(scheduler)] == [0, 1]
    assert [name for name, _ in pass_over(scheduler)] == [1, 2]


def test_a_long_prompt_that_waits_for_pages_is_not_overtaken() -> None:
    scheduler = scheduler_of(10, 16, sequence(1, 5 * PAGE), sequence(2, 6 * PAGE), sequence(3, 1))
    pass_over(scheduler)
    assert [s.id for s in scheduler.running] == [1]
    assert [s.id for s in scheduler.waiting] == [2, 3]


def test_the_youngest_gives_its_pages_to_the_oldest_and_is_next_to_run() -> None:
    scheduler = scheduler_of(5, 16, sequence(1, PAGE - 1), sequence(2, PAGE - 1), sequence(3, 1))
    for _ in range(PAGE + 1):
        pass_over(scheduler)
        scheduler.check()
    assert [s.id for s in scheduler.running] == [1, 2]
    assert scheduler.waiting[0].id == 3
    assert len(scheduler.waiting[0].tokens) > 1, "what it had answered it keeps"


@given(
    pages=st.integers(8, 40),
    max_batch=st.integers(1, 6),
    lengths=st.lists(st.tuples(st.integers(1, 200), st.integers(1, 56)), min_size=1, max_size=12),
)
@settings(max_examples=60, deadline=None)
def test_everybody_finishes(pages: int, max_batch: int, lengths: list[tuple[int, int]]) -> None:
    """Whatever the pool, as long as each alone fits: every pass has work, and the oldest is in it."""
    scheduler = scheduler_of(pages, max_batch, *(sequence(i, p, a) for i, (p, a) in enumerate(lengths)))
    while scheduler.busy:
        oldest = min(s.id for s in (*scheduler.running, *scheduler.waiting))
        assert oldest in dict(pass_over(scheduler))
        scheduler.check()
        order = [s.id for s in (*scheduler.running, *scheduler.waiting)]
        assert order == sorted(order), "arrival is kept"


def test_more_prompts_than_a_pass_has_tokens_run_in_the_order_of_their_arrival() -> None:
    others = [sequence(i, 5 + i) for i in range(1, 2 * PREFILL_BESIDE_DECODE)]
    scheduler = scheduler_of(1000, 1000, sequence(0, 1), *others)
    assert pass_over(scheduler)[0] == (0, 1)
    for _ in range(4):
        work = dict(pass_over(scheduler))
        assert sorted(work) == list(range(1 + PREFILL_BESIDE_DECODE))
        assert set(work.values()) == {1}


def test_who_runs_keeps_a_page_to_grow_into_before_another_is_let_in() -> None:
    """Else the new one would be put back at the first page that anybody fills, and computed once more for nothing."""
    scheduler = scheduler_of(4, 16, sequence(1, PAGE), sequence(2, 3 * PAGE), sequence(3, PAGE))
    pass_over(scheduler)
    assert [s.id for s in scheduler.running] == [1]
    scheduler = scheduler_of(5, 16, sequence(1, PAGE), sequence(2, 3 * PAGE))
    pass_over(scheduler)
    assert [s.id for s in scheduler.running] == [1, 2]
