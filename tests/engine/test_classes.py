"""Where prompts and answers are computed in classes that round differently, a token's class is a matter of its index.

So law 1 holds within our own kernels on a GPU, run here on the host: no chunk, no preemption, no cache changes a bit.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from engine.engine import Engine, Limits
from engine.messages import Asker, Sampled, Sampling, Submit
from engine.sequence import MARK, Sequence
from kvcache.cache import PageCache
from kvcache.pages import PAGE
from tests.engine.hash_model import Chunks
from tests.engine.test_metal_ops import Side
from tests.tiny_models import write_gguf

PROMPT = np.random.default_rng(2).integers(5, 300, 35).tolist()
HOW = Sampling(max_tokens=6, temperature=1.0, seed=3, logprobs=1)
ASKED = Submit(0, PROMPT, HOW)
DECODED = st.sampled_from([None, 0, 1])


class Setting:
    """A tiny model that is computed by our kernels for Apple's GPU, and what its engine makes of requests."""

    def __init__(self, side: Side, *, pages: int = 16, chunk: int = 512, decoded: int = 0) -> None:
        limits = Limits(context=pages * PAGE, vocab=side.config.vocab, max_batch=4)
        cache = PageCache(pages, side.pool)
        self.engine = Engine(side.model, side.ops_of, cache, limits, pace=Chunks(chunk), decoded=decoded)
        self.tokens: dict[int, list[Sampled]] = {}
        self.cached: dict[int, int] = {}

    def answers(self, *asked: Submit) -> list[list[Sampled]]:
        for submit in asked:
            self.engine.submit(submit)
            self.tokens[submit.id] = []
        while self.engine.busy:
            self.step()
        return [self.tokens[submit.id] for submit in asked]

    def step(self) -> None:
        for delta in self.engine.step():
            assert delta.fault is None
            self.tokens[delta.id] += delta.tokens
            if delta.cost is not None:
                self.cached[delta.id] = delta.cost.cached
        self.engine.check()

    def put_back(self) -> None:
        """Who runs gives its turn back, and others take its pages."""
        scheduler, cache = self.engine._scheduler, self.engine.cache
        scheduler._put_back(scheduler.running[0])
        while cache.kept:
            cache._evict()


@pytest.fixture(scope="module")
def side(tmp_path_factory: pytest.TempPathFactory) -> Side:
    path: Path = write_gguf(tmp_path_factory.mktemp("model"), "llama", kind="q4_k", layers=1)
    return Side(path, "blocks")


@pytest.fixture(scope="module", params=[0, 1])
def decoded(request: pytest.FixtureRequest) -> int:
    found: int = request.param
    return found


@pytest.fixture(scope="module")
def answer(side: Side, decoded: int) -> list[Sampled]:
    return Setting(side, decoded=decoded).answers(ASKED)[0]


@pytest.mark.parametrize("chunk", [3, 17, 34])
def test_a_prompt_in_chunks_of_any_size_has_one_answer(
    side: Side, decoded: int, answer: list[Sampled], chunk: int
) -> None:
    """Of chunks of 17 and of 34 the last one is one token."""
    assert Setting(side, chunk=chunk, decoded=decoded).answers(ASKED)[0] == answer


def test_an_answer_that_was_put_back_goes_on_with_the_same_bits(
    side: Side, decoded: int, answer: list[Sampled]
) -> None:
    """All its tokens are computed again, those of the answer several at once."""
    setting = Setting(side, decoded=decoded)
    setting.tokens[0] = []
    setting.engine.submit(ASKED)
    while len(setting.tokens[0]) < 4:
        setting.step()
    setting.put_back()
    assert setting.answers() == []
    assert setting.tokens[0] == answer
    assert setting.cached[0] == 0


def test_a_turn_that_follows_finds_the_prompt_and_computes_the_answer_as_its_prompt(
    side: Side, decoded: int, answer: list[Sampled]
) -> None:
    longer = [*PROMPT, *(sampled.token for sampled in answer), 7, 8, 9]
    turn, fresh = Submit(1, longer, HOW), Submit(2, longer, HOW, Asker(salt="another's"))
    setting = Setting(side, decoded=decoded)
    setting.answers(ASKED)
    found = [setting.answers(each)[0] for each in (turn, fresh)]
    assert found[0] == found[1]
    assert setting.cached == {0: 0, 1: len(PROMPT) - decoded, 2: 0}


def test_a_prompt_that_is_asked_again_is_found(side: Side, decoded: int, answer: list[Sampled]) -> None:
    setting = Setting(side, decoded=decoded)
    assert setting.answers(ASKED)[0] == setting.answers(Submit(1, PROMPT, HOW))[0] == answer
    assert setting.cached[1] == len(PROMPT) - 1


def spans(sequence: Sequence, chunk: int) -> Iterator[range]:
    """What passes bring of a sequence that begins anew."""
    at = 0
    while at < len(sequence.tokens):
        sequence.lease = _At(at)  # type: ignore[assignment]
        yield range(at, at + min(chunk, sequence.alike()))
        at += min(chunk, sequence.alike())


class _At:
    def __init__(self, filled: int) -> None:
        self.filled = filled


@given(prompt=st.integers(1, 40), answered=st.integers(0, 40), chunk=st.integers(1, 50), decoded=DECODED)
def test_a_span_never_crosses_the_border_and_keys_tell_the_classes(
    prompt: int, answered: int, chunk: int, decoded: int | None
) -> None:
    sequence = Sequence(Submit(1, [5] * prompt, Sampling(max_tokens=50)), 1000, decoded=decoded)
    for _ in range(answered):
        sequence.add(5)
    border = len(sequence.tokens) if decoded is None else prompt - decoded
    covered = [*spans(sequence, chunk)]
    assert [i for span in covered for i in span] == [*range(prompt + answered)]
    assert all(span.stop <= border or span.start >= border for span in covered)
    assert sequence.keys == [5 if i < border else 5 | MARK for i in range(prompt + answered)]


@given(prompt=st.integers(1, 40), answered=st.integers(0, 40), at=st.integers(0, 79), ahead=st.integers(1, 79))
@pytest.mark.parametrize("decoded", [None, 0, 1])
def test_what_will_be_alike_is_what_is_then(
    prompt: int, answered: int, at: int, ahead: int, decoded: int | None
) -> None:
    sequence = Sequence(Submit(1, [5] * prompt, Sampling(max_tokens=50)), 1000, decoded=decoded)
    for _ in range(answered):
        sequence.add(5)
    assume(at + ahead < len(sequence.tokens))
    sequence.lease = _At(at)  # type: ignore[assignment]
    foreseen = sequence.left(ahead), sequence.alike(ahead)
    sequence.lease = _At(at + ahead)  # type: ignore[assignment]
    assert foreseen == (sequence.todo, sequence.alike())
