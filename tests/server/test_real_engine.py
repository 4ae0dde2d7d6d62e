"""The whole program with a real engine process: random weights, real tokens, real deaths."""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionMessageParam

from engine.client import EngineClient
from engine.messages import EngineSpec
from server.cli import CRIA, run
from server.drain import Door
from server.loading import open_models
from server.served import Served
from tests.server.asking import CHAT, serving
from tests.tiny_models import write_gguf
from tests.tiny_tokenizer import END

pytestmark = pytest.mark.anyio

NODE = Path(__file__).parent / "node"
CHECKOUT = Path(__file__).parents[2]
HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "what is the llama on the puna"}]
ENDLESS = {str(END): -100}  # as logit_bias: the answer ends at its limit


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("model"), "llama", kind="q4_k", context=8192)


@contextlib.asynccontextmanager
async def talking(model: Path, max_batch: int = 16) -> AsyncIterator[tuple[openai.AsyncOpenAI, Served]]:
    # A cache for one whole context: sixteen sequences do not fit, and some are put back and computed again.
    like = EngineSpec(path="", device="cpu", context=2048, cache_tokens=2048, max_batch=max_batch)
    store = await open_models([model], like)
    try:
        async with (
            serving(store, Door(capacity=32)) as url,
            openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
        ):
            yield client, store.find(None)
    finally:
        await store.close()


async def said(client: openai.AsyncOpenAI, **asked: Any) -> str:
    """What a stream says."""
    chunks = await client.chat.completions.create(stream=True, **asked)
    return "".join([choice.delta.content or "" async for chunk in chunks for choice in chunk.choices])


async def test_a_conversation_repeats_itself_with_its_seed_streamed_or_not(model: Path) -> None:
    async with talking(model) as (client, served):
        messages = list(HELLO)
        for _ in range(3):
            asked: dict[str, Any] = {"model": served.name, "messages": messages, "seed": 5, "max_tokens": 24}
            whole = await client.chat.completions.create(**asked)
            answer = await said(client, **asked)
            assert answer == whole.choices[0].message.content
            messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "and you"}]


def mixed(number: int) -> dict[str, Any]:
    """A request unlike its neighbours: in length, in sampling, in what it wants to know."""
    return {
        "messages": [{"role": "user", "content": "the llama on the puna " * (1, 40, 3, 150)[number % 4]}],
        "max_tokens": (5, 40, 80)[number % 3],
        "temperature": (0, 0.7, 1.3)[number // 2 % 3],
        "seed": number,
        "logprobs": True,
        "top_logprobs": number % 3,
        "logit_bias": ENDLESS,
        "frequency_penalty": number % 5 / 5,
    }


async def test_sixteen_requests_at_once_are_each_answered_as_if_alone(model: Path) -> None:
    async with talking(model) as (client, served):

        async def answer(number: int) -> list[dict[str, Any]]:
            reply = await client.chat.completions.create(model=served.name, **mixed(number))
            return [choice.model_dump() for choice in reply.choices]

        alone = [await answer(number) for number in range(16)]
        assert await asyncio.gather(*map(answer, range(16))) == alone
        streams = (said(client, model=served.name, **mixed(number)) for number in range(16))
        texts = [choice["message"]["content"] for (choice,) in alone]
        assert await asyncio.gather(*streams) == texts


async def test_the_first_of_many_choices_is_the_only_one(model: Path) -> None:
    async with talking(model) as (client, served):
        asked: dict[str, Any] = {"model": served.name, "prompt": "the llama", "seed": 1, "max_tokens": 20}
        one = await client.completions.create(**asked)
        many = await client.completions.create(**asked, n=4)
        assert many.choices[0].text == one.choices[0].text
        assert len({choice.text for choice in many.choices}) == 4


async def test_an_engine_killed_in_mid_stream_is_an_error_and_the_next_request_works(model: Path) -> None:
    async with talking(model) as (client, served):
        assert isinstance(served.engine, EngineClient)
        chunks = await client.chat.completions.create(
            model=served.name, messages=HELLO, stream=True, logit_bias=ENDLESS
        )
        for _ in range(3):
            await anext(chunks)
        assert served.engine.pid is not None
        os.kill(served.engine.pid, signal.SIGKILL)
        with pytest.raises(openai.APIError, match="signal 9") as death:
            [chunk async for chunk in chunks]
        assert death.value.code == "engine_error"
        again = await client.chat.completions.create(model=served.name, messages=HELLO, max_tokens=4)
        assert again.usage is not None
        assert again.usage.completion_tokens <= 4


TIMED = {"timings": True}


def timings_of(answer: ChatCompletion) -> dict[str, Any]:
    assert answer.model_extra is not None
    timings: dict[str, Any] = answer.model_extra["timings"]
    return timings


async def test_a_conversation_is_found_in_the_cache_and_a_change_of_its_past_is_told(model: Path) -> None:
    async with talking(model) as (client, served):

        async def ask(system: str, *turns: str) -> ChatCompletion:
            messages: list[dict[str, str]] = [{"role": "system", "content": system}]
            roles = ("user", "assistant") * len(turns)
            messages += [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=False)]
            asked: dict[str, Any] = {"model": served.name, "messages": messages, "max_tokens": 8, "seed": 1}
            answer: ChatCompletion = await client.chat.completions.create(**asked, extra_body=TIMED)
            return answer

        kind = "the llama is kind " * 40
        first = await ask(kind, "hello")
        assert timings_of(first)["cached_tokens"] == 0
        said = first.choices[0].message.content or ""
        assert first.usage is not None
        again = await ask(kind, "hello", said, "and the puna")
        assert timings_of(again)["cached_tokens"] >= first.usage.prompt_tokens - 32
        assert "cache_miss" not in timings_of(again)
        changed = timings_of(await ask(kind.replace("kind", "old", 1), "hello", said, "and the puna"))
        miss = changed["cache_miss"]
        assert (miss["kind"], miss["position"]) == ("differs", changed["cached_tokens"])
        assert "kind" in miss["was"]
        assert "old" in miss["now"]


async def test_a_prompt_that_had_to_make_room_is_told_so(model: Path) -> None:
    async with talking(model) as (client, served):

        async def ask(word: str) -> dict[str, Any]:
            asked: dict[str, Any] = {"prompt": f"the {word} on the puna " * 200, "max_tokens": 1}
            answer = await client.completions.create(model=served.name, **asked, extra_body=TIMED)
            assert answer.model_extra is not None
            timings: dict[str, Any] = answer.model_extra["timings"]
            return timings

        for word in ("llama", "grass", "sky"):
            assert "cache_miss" not in await ask(word)
        again = await ask("llama")
        assert again["cached_tokens"] < again["prompt_tokens"] - 64
        miss = again["cache_miss"]
        assert (miss["kind"], miss["position"]) == ("evicted", again["cached_tokens"])


async def test_a_request_whose_turn_does_not_come_is_told_and_listed_while_it_waits(model: Path) -> None:
    async with (
        talking(model, max_batch=1) as (client, served),
        httpx.AsyncClient(base_url=str(client.base_url)) as http,
    ):
        asked: dict[str, Any] = {"model": served.name, "messages": HELLO, "logit_bias": ENDLESS}
        running = await client.chat.completions.create(**asked, stream=True, n=8)  # for longer than this test takes
        await anext(running)
        waiting = asyncio.create_task(client.chat.completions.create(**asked, max_tokens=1, service_tier="flex"))
        states: list[tuple[str, str]] = []
        while ("queued", "flex") not in states:
            listed = (await http.get("puna/requests")).json()["models"][served.name]["requests"]
            states = [(one["state"], one["tier"]) for one in listed]
        assert ("decode", "default") in states
        with pytest.raises(openai.InternalServerError) as late:
            await client.chat.completions.create(**asked, extra_body={"timeout": 0.05})
        assert (late.value.status_code, late.value.code) == (503, "queue_timeout")
        await running.close()
        assert (await waiting).service_tier == "flex"
        cache = (await http.get("puna/cache")).json()["models"][served.name]
        assert cache["free"] + cache["held"] + cache["cached"] == cache["pages"]


def test_one_prompt_is_answered_the_same_each_time(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def answer() -> str:
        asked = ["run", str(model), "hello", "--device", "cpu", "--max-tokens", "8", "--seed", "1"]
        assert run(asked) == 0
        return capsys.readouterr().out

    assert answer() == answer() != "\n"


def test_a_number_out_of_range_is_named(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["run", str(model), "hello", "--temperature", "3"]) == 1
    assert capsys.readouterr().err.startswith("puna: --temperature: ")


def test_a_model_is_inspected(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(model)]) == 0
    out = capsys.readouterr().out
    for words in (
        "llama.block_count",
        "blk.1.ffn_down.weight",
        "16 tensors of q4_k",
        "needs ",
        "8192 tokens of context",
    ):
        assert words in out


def test_a_file_whose_weights_are_missing_is_one_line(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = model.with_name("short.gguf")
    short.write_bytes(model.read_bytes()[:-1000])
    assert run(["serve", str(short), "--port", "0"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"puna: {short}: ")


QUESTIONS = ("Hello!", "What are you?", "What is the capital of France?")


def is_a_conversation(answers: list[str]) -> bool:
    hello, self_portrait, capital = answers
    return bool(hello) and "cria" in self_portrait and "Paris" in capital


async def conversation(client: openai.AsyncOpenAI) -> list[str]:
    messages: list[ChatCompletionMessageParam] = []
    answers = []
    for question in QUESTIONS:
        messages.append({"role": "user", "content": question})
        answers.append(await said(client, model="cria", messages=messages, temperature=0))
        messages.append({"role": "assistant", "content": answers[-1]})
    return answers


async def test_the_demo_model_holds_a_streamed_conversation_with_python() -> None:
    async with talking(CRIA) as (client, _):
        assert is_a_conversation(await conversation(client))


async def test_the_demo_model_holds_conversations_with_prompts_on_the_cpu_beside_mlxs_kernels() -> None:
    """Four at once; the prompts of later turns are found but for the answers before them."""
    with program(CRIA, "--device", "builtin", "--prefill", "cpu") as (_, url):
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            held = await asyncio.gather(*[conversation(client) for _ in range(4)])
            again = await client.chat.completions.create(
                model="cria", messages=[{"role": "user", "content": QUESTIONS[0]}], temperature=0, extra_body=TIMED
            )
    assert is_a_conversation(held[0])
    assert all(answers == held[0] for answers in held)
    assert again.choices[0].message.content == held[0][0]
    assert again.usage is not None
    assert timings_of(again)["cached_tokens"] == again.usage.prompt_tokens - 1
    assert "cache_miss" not in timings_of(again)


@pytest.mark.skipif(not (NODE / "node_modules" / "openai").exists(), reason="npm did not install openai")
def test_the_demo_model_holds_a_streamed_conversation_with_node() -> None:
    with program(CRIA) as (_, url):
        command = ["node", str(NODE / "chat.mjs"), f"{url}/v1", "cria", *QUESTIONS]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert is_a_conversation(json.loads(done.stdout))


@contextlib.contextmanager
def program(model: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    code = "from server.cli import main; main()"
    options = options or ("--device", "cpu")
    command = [sys.executable, "-c", code, "serve", str(model), "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=CHECKOUT) as process:
        assert process.stderr is not None
        found = next(filter(None, (re.search(r"(http://\S+)/v1", line) for line in process.stderr)))
        try:
            yield process, found[1]
        finally:
            process.kill()
            process.stderr.read()


def test_a_server_told_to_leave_in_mid_stream_says_all_and_leaves_with_zero(model: Path) -> None:
    asked = {"messages": HELLO, "stream": True, "logit_bias": ENDLESS, "max_tokens": 300}
    with (
        program(model) as (process, url),
        httpx.stream("POST", url + CHAT, json=asked, timeout=30) as response,
    ):
        lines = filter(None, response.iter_lines())
        next(lines)
        process.send_signal(signal.SIGTERM)
        *_, last, done = lines
        assert json.loads(last.removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        assert done == "data: [DONE]"
        assert process.wait(30) == 0
