"""The whole program with a real engine process: random weights, real tokens, real deaths."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from engine.client import EngineClient
from engine.messages import EngineSpec
from server.cli import CRIA, run
from server.loading import open_models
from server.served import Store
from tests.server.asking import serving
from tests.tiny_models import write_gguf
from tests.tiny_tokenizer import END

pytestmark = pytest.mark.anyio

CHECKOUT = Path(__file__).parents[2]
HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "what is the llama on the puna"}]
ENDLESS = {str(END): -100}  # as logit_bias: the answer ends at its limit


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("model"), "llama", context=8192)


@contextlib.asynccontextmanager
async def talking(model: Path) -> AsyncIterator[tuple[openai.AsyncOpenAI, Store]]:
    store = await open_models([model], EngineSpec(path="", device="builtin"))
    try:
        async with (
            serving(store) as url,
            openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
        ):
            yield client, store
    finally:
        await store.close()


async def test_a_conversation_repeats_itself_with_its_seed_streamed_or_not(model: Path) -> None:
    async with talking(model) as (client, store):
        name = next(iter(store.models))
        messages = list(HELLO)
        for _ in range(2):
            whole = await client.chat.completions.create(model=name, messages=messages, seed=5, max_tokens=24)
            said = ""
            async for chunk in await client.chat.completions.create(
                model=name, messages=messages, seed=5, max_tokens=24, stream=True
            ):
                said += chunk.choices[0].delta.content or ""
            assert said == whole.choices[0].message.content
            messages += [{"role": "assistant", "content": said}, {"role": "user", "content": "and you"}]


async def test_the_first_of_many_choices_is_the_only_one(model: Path) -> None:
    async with talking(model) as (client, store):
        name = next(iter(store.models))
        one = await client.completions.create(model=name, prompt="the llama", seed=1, max_tokens=20)
        many = await client.completions.create(model=name, prompt="the llama", seed=1, max_tokens=20, n=4)
        assert many.choices[0].text == one.choices[0].text
        assert len({choice.text for choice in many.choices}) == 4


async def test_an_engine_killed_in_mid_stream_is_an_error_and_the_next_request_works(model: Path) -> None:
    async with talking(model) as (client, store):
        (served,) = store.models.values()
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


def test_one_prompt_is_answered_the_same_each_time(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def answer() -> str:
        asked = ["run", str(model), "hello", "--device", "builtin", "--max-tokens", "8", "--seed", "1"]
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
        "21 tensors of f32",
        "needs ",
        "8192 tokens of context",
    ):
        assert words in out


def test_a_file_whose_weights_are_missing_is_one_line(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = model.with_name("short.gguf")
    short.write_bytes(model.read_bytes()[:-1000])
    assert run(["serve", str(short), "--port", "0"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"puna: {short}: ")


@pytest.mark.skipif(not CRIA.exists(), reason="models/cria/cria.gguf is not here")
def test_the_demo_model_answers_and_ends_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["run", str(CRIA), "Hello!", "--temperature", "0", "--device", "builtin"]) == 0
    assert 0 < len(capsys.readouterr().out.strip()) < 2000


@contextlib.contextmanager
def program(model: Path) -> Iterator[tuple[subprocess.Popen[str], openai.OpenAI]]:
    code = "from server.cli import main; main()"
    command = [sys.executable, "-c", code, "serve", str(model), "--port", "0", "--device", "builtin"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=CHECKOUT) as process:
        assert process.stderr is not None
        found = next(filter(None, (re.search(r"http://\S+/v1", line) for line in process.stderr)))
        try:
            with openai.OpenAI(base_url=found[0], api_key="none", max_retries=0) as client:
                yield process, client
        finally:
            process.kill()
            process.stderr.read()


def test_a_server_told_to_leave_in_mid_stream_says_all_and_leaves_with_zero(model: Path) -> None:
    with program(model) as (process, client):
        chunks = client.chat.completions.create(
            model=model.stem, messages=HELLO, stream=True, logit_bias=ENDLESS, max_tokens=300
        )
        next(chunks)
        process.send_signal(signal.SIGTERM)
        *_, last = chunks
        assert last.choices[0].finish_reason == "length"
        assert process.wait(30) == 0
