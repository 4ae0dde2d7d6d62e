"""Prompts on the CPU while answers are computed elsewhere: nobody waits for the other, and no answer hangs on it.

MLX's own kernels on MLX's CPU device stand in for a GPU.
"""

from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from engine import away as engine_away
from engine.away import Away
from engine.batch import Batch
from engine.beside import Beside
from engine.engine import Engine, Limits
from engine.load import load
from engine.messages import Asker, Delta, EngineSpec, Sampled, Sampling, Submit
from engine.pace import PIECE
from kvcache.cache import PageCache
from kvcache.pages import PAGE
from models.ops import Ops
from tests.engine.hash_model import (
    Chunks,
    HashModel,
    HashPasses,
    alone,
    away_of,
    collect,
    engine_of,
    finish_all,
    handed,
)
from tests.engine.test_engine_machine import LazyModel
from tests.engine.test_metal_ops import Side
from tests.tiny_models import write_gguf

GREEDY = Sampling(max_tokens=12, temperature=0.0)
LONG = [3] * 100
CONTEXT = 512
COMMON = np.random.default_rng(0).integers(5, 300, 70).tolist()


class Held:
    """An engine without weights, whose CPU can be held up, and its answers."""

    def __init__(self, pages: int = 64, max_batch: int = 16) -> None:
        self.engine, self.model = engine_of(pages, max_batch, decoded=1)
        assert self.engine._away is not None
        passes = self.engine._away._passes
        assert isinstance(passes, HashPasses)
        self.cpu = passes
        self.answers: dict[int, list[Delta]] = {}

    def submit(self, name: int, prompt: list[int], sampling: Sampling = GREEDY) -> None:
        self.engine.submit(Submit(name, prompt, sampling))

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            collect(self.engine.step(), self.answers)
            self.engine.check()

    def finish(self) -> None:
        finish_all(self.engine, self.answers)

    def tokens(self, name: int) -> list[Sampled]:
        return [token for delta in self.answers.get(name, []) for token in delta.tokens]


def whole(prompt: list[int], sampling: Sampling = GREEDY) -> list[Sampled]:
    return [token for delta in alone(prompt, sampling, decoded=1) for token in delta.tokens]


def test_answers_go_on_while_the_cpu_is_held_up() -> None:
    held = Held()
    held.submit(1, [5, 6, 7], Sampling(max_tokens=40, temperature=0.0))
    held.step(3)
    held.cpu.late = True
    held.submit(2, LONG)
    before = len(held.tokens(1))
    held.step(20)
    assert len(held.tokens(1)) == before + 20
    assert held.tokens(2) == []
    held.cpu.late = False
    held.finish()
    assert held.tokens(2) == whole(LONG)


def test_the_pass_that_follows_is_described_ahead_while_the_cpu_computes() -> None:
    model = HashModel(16)
    limits, cache, away = Limits(CONTEXT, 96, 4), PageCache(16, model), away_of(model, CONTEXT, 1)
    made: list[Batch] = []

    class Counting(LazyModel):
        def forward(self, ops: Ops) -> mx.array:
            made.append(ops.batch)  # type: ignore[attr-defined]
            return super().forward(ops)

    engine = Engine(Counting(model), handed, cache, limits, pace=Chunks(64), lazy=True, decoded=1, away=away)
    engine.submit(Submit(1, [5, 6, 7], GREEDY))
    engine.step()
    engine.step()
    assert away is not None
    away._passes.late = True  # type: ignore[attr-defined]
    engine.submit(Submit(2, LONG, GREEDY))
    running = engine.start()
    for _ in range(3):
        assert running is not None
        engine.prepare(running)
        described = len(made)
        engine.finish(running)
        running = engine.start()
        assert len(made) == described, "it was described again"


def test_tokens_before_the_last_of_a_prompt_are_the_cpus_and_no_others() -> None:
    held = Held()
    held.submit(1, LONG)
    held.submit(2, [9])
    held.finish()
    assert [[(span.past, len(span.tokens)) for span in spans] for spans in held.cpu.asked] == [[(0, 99)]]
    assert all(batch.decodes.all() for batch in held.model.passes)
    assert min(int(batch.positions.min()) for batch in held.model.passes) == 0, "a prompt of one token has none"


def test_prompts_share_a_pass_and_what_is_common_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_away, "PIECE", 70)
    held = Held()
    for name, prompt in ((1, LONG), (2, LONG), (3, [4] * 50)):
        held.submit(name, prompt)
    held.finish()
    asked = [[(span.tokens[0], span.past, len(span.tokens)) for span in spans] for spans in held.cpu.asked]
    assert asked == [[(3, 0, 47), (4, 0, 23)], [(3, 47, 47), (4, 23, 23)], [(3, 94, 5), (4, 46, 3)]]
    assert [held.tokens(name) for name in (1, 2, 3)] == [whole(LONG), whole(LONG), whole([4] * 50)]


def test_one_clients_long_prompts_leave_half_a_pass_to_anothers() -> None:
    held = Held(pages=200)
    for name in range(3):
        held.engine.submit(Submit(name, [10 + name] * 1000, GREEDY, asker=Asker(client="many")))
    held.engine.submit(Submit(9, [9] * 1000, GREEDY, asker=Asker(client="one")))
    held.step()
    (spans,) = held.cpu.asked
    counts = {span.tokens[0]: len(span.tokens) for span in spans}
    assert counts[9] == PIECE // 2
    assert sum(counts.values()) == PIECE


def test_who_leaves_is_waited_for_by_nobody() -> None:
    held = Held()
    held.cpu.late = True
    held.submit(1, LONG)
    held.step()
    held.engine.cancel(1)
    held.engine.check()
    assert held.cpu.abandoned == 1
    assert not held.engine.busy
    held.cpu.late = False
    held.submit(2, LONG)
    held.finish()
    assert held.tokens(2) == whole(LONG)


def test_of_a_pass_whose_other_sequence_left_the_rest_is_taken() -> None:
    held = Held()
    held.cpu.late = True
    held.submit(1, LONG)
    held.submit(2, [4] * 50)
    held.step()
    held.engine.cancel(1)
    held.cpu.late = False
    held.finish()
    assert (held.cpu.abandoned, len(held.cpu.asked)) == (0, 1)
    assert held.tokens(2) == whole([4] * 50)


def test_what_was_made_for_one_who_left_is_not_written_into_pages_that_are_anothers_by_now() -> None:
    held, long = Held(pages=9), Sampling(max_tokens=220, temperature=0.0)
    held.submit(1, [5, 6, 7], long)
    held.step(2)
    held.cpu.late = True
    held.submit(2, LONG)
    held.submit(3, [4] * 20)
    held.step()
    held.engine.cancel(2)
    held.step(200)
    held.cpu.late = False
    held.finish()
    assert (held.cpu.abandoned, [len(spans) for spans in held.cpu.asked]) == (0, [1, 2])
    assert [held.tokens(name) for name in (1, 3)] == [whole([5, 6, 7], long), whole([4] * 20)]


def test_one_who_was_put_back_is_computed_again() -> None:
    held = Held(pages=12)
    held.submit(1, [5, 6, 7], Sampling(max_tokens=200, temperature=0.0))
    held.step(2)
    held.cpu.late = True
    held.submit(2, LONG)
    held.step(2)
    scheduler = held.engine._scheduler
    scheduler._put_back(scheduler.running[-1])
    held.submit(3, [8] * 200)
    held.cpu.late = False
    held.finish()
    assert [held.tokens(name) for name in (2, 3)] == [whole(LONG), whole([8] * 200)]


def test_a_fault_on_the_cpu_is_the_engines() -> None:
    class Failing(HashPasses):
        def take(self) -> list[list[mx.array]]:
            raise RuntimeError("the CPU is tired")

    model = HashModel(8)
    away = Away(Failing(128), model)
    limits, cache = Limits(128, 96, 4), PageCache(8, model)
    engine = Engine(model, handed, cache, limits, decoded=1, away=away)
    engine.submit(Submit(1, LONG, GREEDY))
    engine.step()
    with pytest.raises(RuntimeError, match="tired"):
        engine.step()


# Whole, over a tiny model.


def prompt(i: int) -> list[int]:
    own: list[int] = np.random.default_rng(i + 1).integers(5, 300, 3 + 17 * i % 120).tolist()
    return COMMON + own if i % 2 else own


ASKED = [Submit(i, prompt(i), Sampling(max_tokens=40, temperature=0.0), Asker(f"client {i % 3}")) for i in range(16)]


def opened(path: Path, cache: int = 4096, disk: Path | None = None) -> Engine:
    folder = None if disk is None else str(disk)
    spec = EngineSpec(
        path=str(path), device="builtin", prefill="cpu", kv="f32", context=CONTEXT, cache_tokens=cache, kv_disk=folder
    )
    loaded = load(spec)
    assert loaded.device.endswith("+cpu-prefill")
    assert (loaded.placement.where, loaded.placement.beside) == ("cpu", True)
    return loaded.engine


def answers(engine: Engine, asked: list[Submit], steps: int = 0) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {submit.id: [] for submit in asked}

    def step() -> None:
        running = engine.start()
        if running is None:
            engine.linger()
            return
        engine.prepare(running)
        for delta in engine.finish(running):
            assert delta.fault is None
            found[delta.id] += [sampled.token for sampled in delta.tokens]
        engine.check()

    for submit in asked:
        engine.submit(submit)
        for _ in range(steps):
            step()
    while engine.busy:
        step()
    return found


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("model"), "llama", context=CONTEXT)


@pytest.fixture(scope="module")
def by_itself(path: Path) -> Iterator[dict[int, list[int]]]:
    """Each answered by an engine that nobody else asks anything, and whose cache has nothing of others."""
    engine = opened(path)
    found: dict[int, list[int]] = {}
    for submit in ASKED:
        asker = Asker(salt=str(submit.id))
        found |= answers(engine, [Submit(submit.id, submit.prompt, submit.sampling, asker)])
    yield found
    engine.close()


def test_sixteen_at_once_have_the_tokens_of_each_alone(path: Path, by_itself: dict[int, list[int]]) -> None:
    engine = opened(path)
    assert answers(engine, ASKED) == by_itself
    assert answers(engine, ASKED, steps=2) == by_itself, "found in the cache"
    engine.close()


def test_with_few_pages_sequences_are_put_back_and_answered_alike(path: Path, by_itself: dict[int, list[int]]) -> None:
    engine = opened(path, cache=CONTEXT)
    assert answers(engine, ASKED) == by_itself
    assert engine.report().cache.preempted > 0
    engine.close()


@pytest.mark.parametrize("piece", [7, 33, 100])
def test_prompts_in_pieces_of_any_size_have_one_answer(
    path: Path, by_itself: dict[int, list[int]], piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_away, "PIECE", piece)
    engine = opened(path)
    assert answers(engine, ASKED) == by_itself
    engine.close()


def test_pages_come_back_from_the_disk(path: Path, by_itself: dict[int, list[int]], tmp_path: Path) -> None:
    before = opened(path, disk=tmp_path)
    answers(before, ASKED[3:4])
    before.close()
    after = opened(path, disk=tmp_path)
    assert answers(after, ASKED[3:4]) == {3: by_itself[3]}
    state = after.cache.tier_state()
    assert state is not None
    assert state.restored >= len(prompt(3)) // PAGE
    after.close()


def test_a_cancel_in_the_middle_of_a_pass_leaves_nothing_behind(path: Path, by_itself: dict[int, list[int]]) -> None:
    engine = opened(path)
    for _ in range(5):
        engine.submit(Submit(99, [7] * 400, GREEDY))
        engine.start()
        engine.cancel(99)
    assert not engine.busy
    assert answers(engine, ASKED[:4]) == {i: by_itself[i] for i in range(4)}
    cache = engine.report().cache
    assert cache.held == 0
    engine.close()


def test_with_our_own_kernels_for_answers_every_bit_is_the_same(tmp_path: Path) -> None:
    """Those for Apple's GPU, run on the host, beside the CPU's: in any pieces and company, with logprobs."""
    side = Side(write_gguf(tmp_path, "llama", kind="q4_k", layers=1), "blocks")
    how = Sampling(max_tokens=4, temperature=1.0, seed=3, logprobs=2)
    asked = [Submit(i, COMMON[i : i + 34 + i], how) for i in range(3)]

    def all_of(submits: list[Submit]) -> list[list[Sampled]]:
        passes = Beside(side.model, 256, mx.float32)
        limits = Limits(context=256, vocab=side.config.vocab, max_batch=4)
        away, cache = Away(passes, side.pool), PageCache(16, side.pool)
        engine = Engine(side.model, side.ops_of, cache, limits, decoded=1, away=away)
        found: dict[int, list[Sampled]] = {submit.id: [] for submit in submits}
        for submit in submits:
            engine.submit(submit)
        while engine.busy:
            for delta in engine.step():
                found[delta.id] += delta.tokens
            engine.check()
        engine.close()
        return [found[submit.id] for submit in submits]

    assert all_of(asked) == [all_of([submit])[0] for submit in asked]
