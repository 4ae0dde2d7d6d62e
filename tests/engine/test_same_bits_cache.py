"""Law 1 where cache, scheduler and disk have a hand in it: in every situation, a request has one answer."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from engine import scheduler
from engine.engine import Engine, Limits
from engine.load import bring
from engine.messages import Asker, Delta, EngineSpec, Sampled, Sampling, Submit
from engine.pace import PREFILL
from kvcache.cache import PageCache
from kvcache.disk import DiskTier
from kvcache.pages import PAGE
from quant.open import open_checkpoint
from tests.engine.hash_model import Chunks
from tests.tiny_models import write_gguf, write_mlx

CONTEXT = 4096
LARGEST = 2048  # tokens of a chunk
MODELS: dict[str, Callable[[Path], Path]] = {
    "gguf, q4_k": lambda folder: write_gguf(folder, "llama", kind="q4_k", context=CONTEXT),
    "mlx, 4 bits": lambda folder: write_mlx(folder, "qwen3", bits=4, context=CONTEXT),
}
PROMPT = np.random.default_rng(5).integers(5, 300, 300).tolist()
ASKED = Submit(0, PROMPT, Sampling(max_tokens=40, temperature=1.0, seed=11, logprobs=2))


@pytest.fixture(scope="module", params=MODELS.values(), ids=[*MODELS])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    make: Callable[[Path], Path] = request.param
    return make(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def answer(path: Path) -> list[Sampled]:
    """Of the request alone, in an engine that never saw another."""
    return Setting(path).answers([ASKED])[0].tokens


@dataclass
class Answered:
    tokens: list[Sampled] = field(default_factory=list)
    cached: int = -1


class Setting:
    """An engine with its cache, and what it makes of requests."""

    def __init__(
        self, path: Path, *, pages: int = 256, chunk: int = PREFILL, max_batch: int = 40, disk: Path | None = None
    ) -> None:
        spec = EngineSpec(path=str(path), context=min(CONTEXT, pages * PAGE), cache_tokens=pages * PAGE, device="cpu")
        with open_checkpoint(path) as checkpoint:
            brought = bring(spec, checkpoint)
        self.tier = DiskTier.open(disk, 2**30, brought.pages.page_bytes) if disk else None
        self.cache = PageCache(pages, brought.pages, self.tier, b"tiny")
        limits = Limits(brought.room.context, brought.config.vocab, max_batch)
        pace = Chunks(chunk)
        self.engine = Engine(brought.model, brought.ops_of, self.cache, limits, pace=pace, lazy=True)
        self.largest = 0  # tokens of a pass

    def answers(self, asked: list[Submit], *, steps: int = 0) -> list[Answered]:
        """Of requests that come with so many steps between them."""
        answered = {submit.id: Answered() for submit in asked}
        for submit in asked:
            self.engine.submit(submit)
            for _ in range(steps):
                self._step(answered)
        while self.engine.busy:
            self._step(answered)
        return [answered[submit.id] for submit in asked]

    def _step(self, answered: dict[int, Answered]) -> None:
        for delta in self._deltas():
            assert delta.fault is None
            answered[delta.id].tokens += delta.tokens
            if delta.cost is not None:
                answered[delta.id].cached = delta.cost.cached
        self.engine.check()

    def _deltas(self) -> tuple[Delta, ...]:
        """A step as the engine's process takes it: the next pass is prepared while this one runs."""
        running = self.engine.start()
        if running is None:
            return ()
        self.largest = max(self.largest, len(running.of.batch.tokens))
        self.engine.prepare(running)
        return self.engine.finish(running)


def other(name: int, prompt: int = 90, tokens: int = 30) -> Submit:
    rng = np.random.default_rng(name)
    sampling = Sampling(max_tokens=tokens, temperature=float(name % 2), seed=name)
    return Submit(name, rng.integers(5, 300, prompt).tolist(), sampling, Asker(client=f"client {name % 3}"))


@pytest.mark.parametrize("others", [1, 2, 5, 12, 32])
def test_beside_others(path: Path, answer: list[Sampled], others: int) -> None:
    crowd = [other(i, 40 + 13 * i) for i in range(1, others + 1)]
    crowd.insert(others // 2, ASKED)
    found = Setting(path).answers(crowd, steps=1)
    assert found[others // 2].tokens == answer


@pytest.mark.parametrize("sizes", [range(1, PREFILL + 1), range(PREFILL + 1, LARGEST + 1)], ids=["taken", "larger"])
def test_with_chunks_of_every_size(path: Path, sizes: range, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of those that the engine would cut, or round to whole strips. The cache forgets between two: each is another
    salt's."""
    monkeypatch.setattr(scheduler, "MOST", LARGEST)
    monkeypatch.setattr(scheduler, "_filling_strips", lambda count, alike, answering: count)
    prompt, how = (PROMPT * 7)[: sizes[-1] + 8], Sampling(max_tokens=4, temperature=1.0, seed=11, logprobs=2)
    setting = Setting(path, chunk=100)
    answer = setting.answers([Submit(0, prompt, how)])[0].tokens
    for chunk in sizes:
        setting.engine._scheduler._pace = Chunks(chunk)
        setting.largest = 0
        found = setting.answers([Submit(0, prompt, how, Asker(salt=str(chunk)))])[0]
        assert (found.tokens, found.cached, setting.largest) == (answer, 0, chunk), chunk


def test_with_a_warm_cache_of_any_part_of_the_prompt(path: Path, answer: list[Sampled]) -> None:
    setting = Setting(path)
    for known in (1, 31, 32, 33, 64, 100, 159, 160, 299, 300):
        salt = Asker(salt=str(known))
        setting.answers([Submit(1, [*PROMPT[:known], 301, 302], Sampling(max_tokens=1, temperature=0), salt)])
        found = setting.answers([Submit(0, PROMPT, ASKED.sampling, salt)])[0]
        assert (found.tokens, found.cached) == (answer, min(known, len(PROMPT) - 1))


def test_after_its_own_answer_went_into_the_cache(path: Path, answer: list[Sampled]) -> None:
    """The next turn of a conversation: the answer is part of the prompt now."""
    setting = Setting(path)
    setting.answers([ASKED])
    longer = [*PROMPT, *(sampled.token for sampled in answer), 7, 8, 9]
    turn = Submit(1, longer, Sampling(max_tokens=20, temperature=1.0, seed=3, logprobs=1))
    warm = setting.answers([turn])[0]
    assert warm.cached == len(PROMPT) + len(answer) - 1, "the last token of an answer was never computed"
    assert warm.tokens == Setting(path).answers([turn])[0].tokens


def test_evicted_and_computed_again(path: Path, answer: list[Sampled]) -> None:
    setting = Setting(path, pages=16)
    setting.answers([ASKED])
    for name in range(1, 4):
        setting.answers([other(name, 400)])
    assert setting.cache.counts.evicted > 0
    found = setting.answers([ASKED])[0]
    assert (found.tokens, found.cached) == (answer, 0)


def test_restored_from_disk_after_a_restart(path: Path, answer: list[Sampled], tmp_path: Path) -> None:
    before = Setting(path, disk=tmp_path)
    assert before.tier is not None
    before.answers([ASKED])
    while before.cache.unsettled:
        before.engine.settle()
    before.tier.close()
    after = Setting(path, disk=tmp_path)
    assert after.tier is not None
    found = after.answers([ASKED])[0]
    assert (found.tokens, found.cached) == (answer, (len(PROMPT) - 1) // PAGE * PAGE)
    after.tier.close()


def test_put_back_and_resumed(path: Path, answer: list[Sampled]) -> None:
    """The pool has no room for all: the youngest goes back, again and again, and is computed or found again."""
    setting = Setting(path, pages=14)
    crowd = [other(1, 100, 200), other(2, 30, 200), ASKED]
    found = setting.answers(crowd, steps=2)
    assert setting.engine.report().cache.preempted > 0
    assert found[2].tokens == answer


def test_as_one_of_several_choices(path: Path, answer: list[Sampled]) -> None:
    """n = 4: the prompt is computed once."""
    choices = [Submit(i, PROMPT, Sampling(max_tokens=40, temperature=1.0, seed=11 + i, logprobs=2)) for i in range(4)]
    found = Setting(path).answers(choices)
    assert found[0].tokens == answer
    assert [choice.cached for choice in found] == [0, 299, 299, 299]
    alone = [Setting(path).answers([choice])[0].tokens for choice in choices]
    assert [choice.tokens for choice in found] == alone
