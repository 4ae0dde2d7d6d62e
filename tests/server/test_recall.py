"""Laws of the diagnosis: a prompt that was not found in the cache is told where it parts from an earlier one, or that
what it shares with it is gone; other prompts are told nothing."""

from typing import Any

import pytest

from server.recall import LEAST_LOSS, MOST_CONVERSATIONS, MOST_MISSES, MOST_PROMPTS, Memory, Miss
from tests.server.asking import CHAT, client_of, complete, stream
from tests.server.fakes import BOS, FakeEngine, byte_tokenizer, says

pytestmark = pytest.mark.anyio

ME = ("", "key-1", "")
TEXT = "a prompt that is long enough to be worth a word when it is not found in the cache. " * 4
PROMPT = list(TEXT.encode())


def memory() -> Memory:
    return Memory(byte_tokenizer())


def asked(memory: Memory, prompt: list[int], cached: int, answer: list[int] | None = None) -> Miss | None:
    """One request from beginning to end."""
    recollection = memory.recall(ME, prompt)
    recollection.computed(cached)
    recollection.answered(answer or [])
    return recollection.miss


@pytest.mark.parametrize("at", [1, 5, 100, 200])
def test_a_prompt_that_parts_from_an_earlier_one_is_told_where_and_how(at: int) -> None:
    mine = memory()
    assert asked(mine, PROMPT, 0) is None
    changed = [*PROMPT[:at], *b"NEW", *PROMPT[at + 3 :]]
    miss = asked(mine, changed, at)
    assert miss is not None
    assert (miss.kind, miss.position, miss.lost) == ("differs", at, len(PROMPT) - at)
    assert miss.words["was"] == TEXT[at : at + 16]
    assert miss.words["now"] == ("NEW" + TEXT[at + 3 :])[:16]
    assert miss.words["after"] == TEXT[max(0, at - 8) : at]
    assert str(at) in miss.message
    assert repr(miss.words["was"]) in miss.message


def test_an_answer_that_comes_back_changed_is_a_difference_in_the_answer() -> None:
    """Templates that drop or rewrite what a model thought cost their users the rest of the cache."""
    mine = memory()
    thought = [*b"<think>" * 20, *b"yes"]
    asked(mine, PROMPT, 0, thought)
    miss = asked(mine, [*PROMPT, *b"yes, and now?"], len(PROMPT))
    assert miss is not None
    assert (miss.kind, miss.position, miss.words["now"]) == ("differs", len(PROMPT), "yes, and now?")
    assert miss.words["was"].startswith("<think>")


def test_where_answers_serve_no_prompt_nobody_misses_them() -> None:
    mine, long = Memory(byte_tokenizer(), answers=False), [*b"an answer of many words, " * 8]
    assert asked(mine, PROMPT, 0, long) is None
    assert asked(mine, [*PROMPT, *long, *b"and now?"], len(PROMPT)) is None


def test_a_conversation_that_goes_on_is_told_nothing() -> None:
    mine, said = memory(), list(PROMPT)
    for turn in range(5):
        answer = [*f"answer {turn}".encode()]
        assert asked(mine, said, len(said) // 32 * 32 if turn else 0, answer) is None
        said = [*said, *answer, *b"and then? " * 10]
    assert not mine.misses
    assert len(mine._said[ME]) == 1, "one that goes on takes the place of what it goes on from"


def test_a_conversation_that_goes_on_and_is_not_in_the_cache_was_evicted() -> None:
    mine = memory()
    asked(mine, PROMPT, 0)
    miss = asked(mine, [*PROMPT, *b"more"], 32)
    assert miss is not None
    assert (miss.kind, miss.position, miss.lost) == ("evicted", 32, len(PROMPT) - 32)
    assert (str(len(PROMPT)) in miss.message, " 32 " in miss.message) == (True, True)


def test_the_greater_loss_is_the_one_that_is_told() -> None:
    for at, kind in ((250, "evicted"), (80, "differs")):
        mine = memory()
        asked(mine, PROMPT, 0)
        miss = asked(mine, [*PROMPT[:at], *b"#" * 200], 0)
        assert miss is not None
        assert miss.kind == kind


def test_a_loss_of_a_few_tokens_is_not_worth_a_word() -> None:
    mine = memory()
    asked(mine, PROMPT, 0)
    end = len(PROMPT) - LEAST_LOSS + 1
    assert asked(mine, [*PROMPT[:end], *b"#" * 200], end) is None
    assert asked(mine, PROMPT, len(PROMPT) - LEAST_LOSS) is None


def test_a_difference_that_another_requests_pages_made_up_for_is_none() -> None:
    mine = memory()
    asked(mine, PROMPT, 0)
    assert asked(mine, [*PROMPT[:50], *b"#" * 300], 300) is None


def test_a_prompt_unlike_all_others_is_told_nothing() -> None:
    mine = memory()
    asked(mine, PROMPT, 0)
    assert asked(mine, [*b"#" * 300], 0) is None


def test_another_conversation_that_begins_alike_is_told_nothing() -> None:
    mine = memory()
    asked(mine, [*b"user: ", *PROMPT], 0)
    assert asked(mine, [*b"user: ", *b"#1" * 200], 6) is None


@pytest.mark.parametrize("header", [b"v=2.", b"version=12345."])
def test_a_changed_word_at_the_very_beginning_is_a_difference(header: bytes) -> None:
    mine = memory()
    asked(mine, [*b"v=1.", *PROMPT], 0)
    miss = asked(mine, [*header, *PROMPT], 0)
    assert miss is not None
    assert (miss.kind, miss.lost) == ("differs", len(PROMPT) + 4 - miss.position)


def test_a_prompt_is_compared_with_the_likest() -> None:
    mine = memory()
    for at in (200, 20, 100):
        asked(mine, [*PROMPT[:at], *b"#" * 200], 10**6)
    miss = asked(mine, PROMPT, 200)
    assert miss is not None
    assert miss.position == 200


def test_what_was_never_computed_is_not_remembered() -> None:
    mine = memory()
    mine.recall(ME, PROMPT).answered([1])
    assert asked(mine, PROMPT, 0) is None


def test_the_words_of_another_client_or_salt_are_never_looked_at() -> None:
    for other in (("salt", "key-1", ""), ("", "key-2", ""), ("", "key-1", "name")):
        mine = memory()
        asked(mine, PROMPT, 0)
        recollection = mine.recall(other, [*PROMPT[:50], *b"#" * 300])
        recollection.computed(50)
        assert recollection.miss is None


def test_memory_is_bounded_in_every_way() -> None:
    mine = Memory(byte_tokenizer(), most_tokens=1000)
    for number in range(3 * MOST_CONVERSATIONS):
        for other in range(6):
            mine.recall(("", str(number), ""), [other] * 60).computed(0)
            held = mine._said.values()
            assert mine.tokens == sum(len(one) for prompts in held for one in prompts) <= 1000
            assert max(map(len, held)) <= MOST_PROMPTS
    assert list(mine._said)[-1] == ("", str(3 * MOST_CONVERSATIONS - 1), "")
    small = memory()
    for number in range(2 * MOST_CONVERSATIONS):
        small.recall(("", str(number), ""), [1]).computed(0)
    assert len(small._said) == MOST_CONVERSATIONS
    for at in range(2 * MOST_MISSES):
        asked(small, [*PROMPT[:50], at, *b"#" * 300], 50)
    assert len(small.misses) == MOST_MISSES


def test_control_tokens_are_shown_by_name() -> None:
    mine = memory()
    asked(mine, [BOS, *PROMPT], 0)
    miss = asked(mine, PROMPT, 0)
    assert miss is None, "nothing was followed"
    miss = asked(mine, [BOS, BOS, *PROMPT], 1)
    assert miss is not None
    assert (miss.words["after"], miss.words["now"][:7]) == ("<|bos|>", "<|bos|>")


async def test_a_miss_is_told_in_the_timings_of_its_request_and_no_other() -> None:
    engine = FakeEngine(says("yes"))
    async with client_of(engine) as client:

        async def timings(prompt: str, cached: int, **body: Any) -> Any:
            engine.cached = cached
            asked = {"prompt": prompt, "timings": True, "max_tokens": 4, **body}
            return (await client.post("/v1/completions", json=asked)).json()["timings"]

        assert "cache_miss" not in await timings(TEXT, 0)
        miss = (await timings(TEXT[:100] + "#" * 100, 101))["cache_miss"]
        assert (miss["kind"], miss["position"], miss["now"]) == ("differs", 101, "#" * 16)
        assert "cache_miss" not in await timings(TEXT[:100] + "#" * 100, 200)
        assert "cache_miss" not in await timings(TEXT[:50] + "#" * 100, 51, prompt_cache_key="another")


def test_a_stream_tells_the_miss_too_also_for_many_choices() -> None:
    engine = FakeEngine(says("yes"))
    assert "cache_miss" not in complete(engine, timings=True, n=3)["timings"]
    assert "timings" in stream(CHAT, engine, timings=True, n=2)[-1]
