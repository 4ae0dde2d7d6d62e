"""Engine, scheduler, cache and tier together: whatever happens in whatever order, each request has its answer."""

from dataclasses import dataclass, field
from functools import cache
from typing import Any, cast

import mlx.core as mx
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.away import Away
from engine.engine import Engine, Limits
from engine.messages import Asker, Delta, Sampled, Sampling, Submit, Tier
from kvcache.cache import PageCache
from kvcache.pages import PAGE
from kvcache.tier import Fetched
from models.ops import Ops
from tests.engine.hash_model import VOCAB, Chunks, HashModel, HashPasses, alone, away_of, handed
from tests.kvcache.written import MemoryTier

CONTEXT = 8 * PAGE
EXAMPLES, STEPS = 200, 50  # 10,000 in all
ENOUGH = 5000  # steps in which everything that is left is over

# Few prompts that share beginnings of every length, whole pages and parts of one; few others, so that most are known.
_ROOT = [1] * 40
PROMPTS = st.builds(
    lambda shared, own, length: (*_ROOT[:shared], *[own] * length),
    shared=st.sampled_from([0, 5, 31, 32, 33, 40]),
    own=st.integers(1, 3),
    length=st.sampled_from([1, 20, 31, 32, 33, 64, 150]),
)
SAMPLINGS = st.builds(
    lambda tokens, seed: Sampling(max_tokens=tokens, seed=seed, temperature=float(seed > 0), stop_tokens=(7,)),
    tokens=st.sampled_from([1, 2, 5, 34]),
    seed=st.integers(0, 2),
)
ASKERS = st.builds(
    Asker,
    client=st.sampled_from(["a", "b", "c"]),
    tier=cast(st.SearchStrategy[Tier], st.sampled_from(["flex", "default", "priority"])),
    salt=st.sampled_from(["", "", "", "other"]),
    patience=st.sampled_from([None, None, None, 1.0]),
)


class Later:
    """Logits that are computed when somebody looks, as MLX computes them, and never if nobody does."""

    def __init__(self, model: HashModel, ops: Ops) -> None:
        self._model, self._ops = model, ops

    def astype(self, kind: mx.Dtype) -> mx.array:
        return self._model.forward(self._ops).astype(kind)


@dataclass
class LazyModel:
    of: HashModel

    def forward(self, ops: Ops) -> mx.array:
        return cast(mx.array, Later(self.of, ops))


class LateTier(MemoryTier):
    """What it was asked for arrives when it is let through."""

    def __init__(self) -> None:
        super().__init__()
        self.late = False

    def fetched(self, wait: float = 0) -> list[Fetched]:
        return [] if self.late else super().fetched(wait)


@dataclass
class Asked:
    submit: Submit
    decoded: int | None
    tokens: list[Sampled] = field(default_factory=list)

    @property
    def whole(self) -> list[Sampled]:
        sampling = self.submit.sampling
        return answer(tuple(self.submit.prompt), sampling.max_tokens, sampling.seed, self.decoded)


@cache
def answer(prompt: tuple[int, ...], tokens: int, seed: int, decoded: int | None) -> list[Sampled]:
    sampling = Sampling(max_tokens=tokens, seed=seed, temperature=float(seed > 0), stop_tokens=(7,))
    return [token for delta in alone(list(prompt), sampling, decoded=decoded) for token in delta.tokens]


class EngineAgainstAlone(RuleBasedStateMachine):
    """Requests come, are computed, wait, expire, leave in any state; the engine is started anew; the tier fails."""

    def __init__(self) -> None:
        super().__init__()
        self.tier = LateTier()
        self.open: dict[int, Asked] = {}
        self.submitted = 0
        self.away: Away | None = None
        self.now = 0.0

    @initialize(
        pages=st.sampled_from([8, 9, 12, 20]),
        max_batch=st.sampled_from([1, 2, 3, 8]),
        chunk=st.sampled_from([1, 7, 33, 512]),
        decoded=st.sampled_from([None, 0, 1]),
    )
    def begin(self, pages: int, max_batch: int, chunk: int, decoded: int | None) -> None:
        self.pages, self.max_batch, self.chunk, self.decoded = pages, max_batch, chunk, decoded
        self.engine = self.started()

    def started(self) -> Engine:
        model = HashModel(self.pages)
        self.away = away_of(model, CONTEXT, self.decoded)
        return Engine(
            LazyModel(model),
            handed,
            PageCache(self.pages, model, self.tier, b"hash", steep=0.01),
            Limits(CONTEXT, VOCAB, self.max_batch),
            pace=Chunks(self.chunk),
            lazy=True,
            decoded=self.decoded,
            away=self.away,
            clock=lambda: self.now,
        )

    @rule(prompt=PROMPTS, sampling=SAMPLINGS, asker=ASKERS)
    def submit(self, prompt: tuple[int, ...], sampling: Sampling, asker: Asker) -> None:
        self.submitted += 1
        submit = Submit(self.submitted, list(prompt), sampling, asker)
        self.open[self.submitted] = Asked(submit, self.decoded)
        self.engine.submit(submit)

    @rule(times=st.sampled_from([1, 1, 2, 5, 40]))
    def step(self, times: int) -> None:
        """As the engine's process takes them, where no message comes between."""
        for _ in range(times):
            self.now += 0.01
            self.hear(self.engine.expire())
            running = self.engine.start()
            if running is None:
                self.engine.check()
                return
            self.engine.prepare(running)
            self.hear(self.engine.finish(running))
            self.engine.check()

    @precondition(lambda self: self.submitted)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """One that is over, too: news cross."""
        name = data.draw(st.sampled_from([*self.open, self.submitted]))
        self.open.pop(name, None)
        self.engine.cancel(name)

    @rule(seconds=st.sampled_from([0.5, 2.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(full=st.booleans(), late=st.booleans(), lossy=st.sampled_from([False, False, False, True]))
    def tier_becomes(self, full: bool, late: bool, lossy: bool) -> None:
        self.tier.full, self.tier.late, self.tier.lossy = full, late, lossy

    @precondition(lambda self: self.away)
    @rule(late=st.booleans())
    def cpu_becomes(self, late: bool) -> None:
        cast(HashPasses, self.away._passes).late = late  # type: ignore[union-attr]

    @rule()
    def settle(self) -> None:
        self.engine.settle()

    @rule()
    def restart(self) -> None:
        """The tier stays; who is open is told and comes no more."""
        self.engine.close()
        self.open.clear()
        self.tier.asked.clear()
        self.engine = self.started()

    @invariant()
    def holds(self) -> None:
        if "engine" in vars(self):
            self.engine.check()
            assert self.engine.busy == bool(self.open)

    def teardown(self) -> None:
        if "engine" not in vars(self):
            return
        self.tier_becomes(full=False, late=False, lossy=False)
        if self.away is not None:
            self.cpu_becomes(late=False)
        for _ in range(ENOUGH):
            self.step(1)
            if not self.open:
                break
        assert not self.open, "a request is stuck"
        self.idle()
        cache = self.engine.report().cache
        assert (cache.held, cache.free + cache.cached) == (0, self.pages)

    def idle(self) -> None:
        """As the engine's process spends its time when nobody asks: a page that came for nobody is let go."""
        for _ in range(self.pages + 1):
            if self.engine.cache.unsettled:
                self.engine.settle()
        assert not self.engine.cache.unsettled

    def hear(self, deltas: tuple[Delta, ...]) -> None:
        for delta in deltas:
            assert delta.id in self.open, "news of one that is over"
            asked = self.open[delta.id]
            asked.tokens += delta.tokens
            assert delta.fault is None
            if delta.finish == "expired":
                assert asked.tokens == []
                assert asked.submit.asker.patience is not None
            elif delta.finish is not None:
                assert asked.tokens == asked.whole
            if delta.finish is not None:
                del self.open[delta.id]


TestEngineAgainstAlone: Any = EngineAgainstAlone.TestCase
TestEngineAgainstAlone.settings = settings(max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None)


def test_page_that_came_for_nobody_is_let_go() -> None:
    """It arrives with the last step of the only request that is left."""
    machine = EngineAgainstAlone()
    machine.begin(pages=8, max_batch=1, chunk=1, decoded=1)
    patient, asker, one = Asker("a", "flex"), Asker("a"), sampling(1)
    for prompt in ((1,) * 64, (1,), (1,)):
        machine.submit(prompt=prompt, sampling=one, asker=patient)
    machine.submit(prompt=(3,) * 150, sampling=sampling(34), asker=asker)
    machine.submit(prompt=(1,) * 33, sampling=one, asker=patient)
    machine.teardown()


def sampling(tokens: int) -> Sampling:
    return Sampling(max_tokens=tokens, seed=0, temperature=0.0, stop_tokens=(7,))
