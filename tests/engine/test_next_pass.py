"""The pass after the one under way is described while that one runs, and is what `plan` would have made of it."""

import itertools

import mlx.core as mx

from engine.batch import Batch
from engine.engine import Engine, Limits
from engine.messages import Delta, Sampling, Submit
from engine.pace import PROBE, Pace
from kvcache.cache import PageCache
from kvcache.pages import PAGE
from models.ops import Ops
from tests.engine.hash_model import VOCAB, Chunks, HashModel, alone, collect, handed
from tests.engine.test_engine_machine import LazyModel

CONTEXT = 1024
LONG = [i * i % VOCAB for i in range(600)]


class Described(LazyModel):
    """Every pass that was described, those that never began too."""

    def __init__(self, of: HashModel) -> None:
        super().__init__(of)
        self.batches: list[Batch] = []

    def forward(self, ops: Ops) -> mx.array:
        self.batches.append(ops.batch)  # type: ignore[attr-defined]
        return super().forward(ops)


def engine_with(pace: Pace) -> tuple[Engine, Described]:
    """A pass takes 10 ms and 4 more for each token."""
    model = Described(HashModel(64))
    cache, limits = PageCache(64, model.of), Limits(CONTEXT, VOCAB, 8)

    def clock() -> float:
        return sum(0.01 + 0.004 * len(batch.tokens) for batch in model.of.passes)

    return Engine(model, handed, cache, limits, pace=pace, lazy=True, clock=clock), model


def answers_and_a_prompt(engine: Engine) -> None:
    for name in range(3):
        engine.submit(Submit(name, [name + 1, 2, 3], Sampling(max_tokens=500, temperature=0)))
    for _ in range(5):
        engine.step()
    engine.submit(Submit(9, LONG, Sampling(max_tokens=3, temperature=0)))


def test_a_pass_is_described_once_with_a_prompt_beside_answers_too() -> None:
    """But where a page of the prompt became whole: the next may be found."""
    engine, model = engine_with(Chunks(5))
    answers_and_a_prompt(engine)
    again = []
    for _ in range(len(LONG) // 5):
        running = engine.start()
        assert running is not None
        engine.prepare(running)
        described, past = len(model.batches), int(running.of.batch.past[-1])
        engine.finish(running)
        following = engine.start()
        assert following is not None
        if len(model.batches) != described:
            again.append(past + 5)
        engine.finish(following)
    assert again
    assert all(past // PAGE > (past - 5) // PAGE for past in again), "it was described again within a page"


def test_one_pass_tells_how_fast_answers_alone_are() -> None:
    """And a prompt goes on in the next, though that is described before it is known how long that one took."""
    engine, _ = engine_with(Pace(0.0))
    answers_and_a_prompt(engine)
    counts: list[int] = []  # the prompt's tokens in each pass
    while any(s.todo > 1 for s in engine._scheduler.running) or not counts:
        running = engine.start()
        assert running is not None
        engine.prepare(running)
        counts.append(sum(work.count for work in running.of.works[3:]))
        engine.finish(running)
    probes = [i for i, count in enumerate(counts) if count == 0]
    assert probes, "a prompt that long has one"
    assert min(b - a for a, b in itertools.pairwise([-1, *probes])) > PROBE
    assert max(b - a for a, b in itertools.pairwise([-1, *probes, len(counts)])) <= PROBE + 2
    assert 1 not in counts[:-1], "a pass with next to nothing of a prompt tells nothing"


def test_where_pages_run_out_no_pass_is_described_for_which_there_are_none() -> None:
    """Two answers fill all pages at the same time, and nobody waits."""
    model = LazyModel(HashModel(5))
    engine = Engine(model, handed, PageCache(5, model.of), Limits(4 * PAGE, VOCAB, 8), pace=Chunks(512), lazy=True)
    asked = [Submit(name, [name + 1] * 40, Sampling(max_tokens=60, temperature=0)) for name in range(2)]
    for submit in asked:
        engine.submit(submit)
    answers: dict[int, list[Delta]] = {}
    while engine.busy:
        running = engine.start()
        assert running is not None
        engine.prepare(running)
        collect(engine.finish(running), answers)
        engine.check()
    for submit in asked:
        wanted = [token for delta in alone(submit.prompt, submit.sampling) for token in delta.tokens]
        assert [token for delta in answers[submit.id] for token in delta.tokens] == wanted
