"""The `openai` package of Python, as people use it, against a server on a loopback port."""

import contextlib
from collections.abc import AsyncIterator

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from quant.errors import EngineError
from tests.server.asking import listening
from tests.server.fakes import CONTEXT, FakeEngine, says

pytestmark = pytest.mark.anyio

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]


@contextlib.asynccontextmanager
async def talking(engine: FakeEngine) -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        listening(engine) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


async def test_a_conversation_of_two_turns() -> None:
    async with talking(FakeEngine()) as client:
        messages = list(HELLO)
        first = await client.chat.completions.create(model="fake", messages=messages)
        said = first.choices[0].message.content
        assert said == "user: hello"
        messages += [{"role": "assistant", "content": said}, {"role": "user", "content": "again"}]
        second = await client.chat.completions.create(model="fake", messages=messages)
        assert second.choices[0].message.content == "user: helloassistant: user: hellouser: again"


async def test_a_stream_with_usage() -> None:
    async with talking(FakeEngine(says("Grüße 🦙"))) as client:
        chunks = [
            chunk
            async for chunk in await client.chat.completions.create(
                model="fake", messages=HELLO, stream=True, stream_options={"include_usage": True}
            )
        ]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == "Grüße 🦙"
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == len(text.encode()) + 1


async def test_the_streaming_helper_puts_calls_together() -> None:
    said = 'I look.<tool_call>{"name": "weather", "arguments": {"city": "Rom"}}</tool_call>'
    async with talking(FakeEngine(says(said))) as client:
        tool = {"type": "function", "function": {"name": "weather", "parameters": {}}}
        async with client.chat.completions.stream(model="fake", messages=HELLO, tools=[tool]) as events:  # type: ignore[list-item]
            message = (await events.get_final_completion()).choices[0].message
        assert message.content == "I look."
        assert message.tool_calls is not None
        assert message.tool_calls[0].function.arguments == '{"city":"Rom"}'


async def test_completions_and_models() -> None:
    async with talking(FakeEngine(says("world"))) as client:
        assert (await client.completions.create(model="fake", prompt="hello")).choices[0].text == "world"
        assert [model.id async for model in client.models.list()] == ["fake"]
        assert (await client.models.retrieve("fake")).owned_by == "puna"


async def test_errors_arrive_as_the_packages_own() -> None:
    async with talking(FakeEngine()) as client:
        with pytest.raises(openai.NotFoundError) as missing:
            await client.chat.completions.create(model="other", messages=HELLO)
        assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
        with pytest.raises(openai.BadRequestError) as wrong:
            await client.chat.completions.create(model="fake", messages=HELLO, temperature=3)
        assert wrong.value.param == "temperature"
        with pytest.raises(openai.BadRequestError) as long:
            await client.chat.completions.create(model="fake", messages=[{"role": "user", "content": "x" * CONTEXT}])
        assert long.value.code == "context_length_exceeded"


async def test_an_engine_that_dies_in_mid_stream_is_an_error_and_the_next_request_works() -> None:
    engine = FakeEngine(says("abc"), dies_at=2)
    async with talking(engine) as client:
        chunks = await client.chat.completions.create(model="fake", messages=HELLO, stream=True)
        said: list[str | None] = []
        with pytest.raises(openai.APIError) as death:
            [said.append(chunk.choices[0].delta.content) async for chunk in chunks]  # type: ignore[func-returns-value]
        assert "".join(filter(None, said)) == "ab"
        assert death.value.code == "engine_error"
        engine.dies_at = None
        answer = await client.chat.completions.create(model="fake", messages=HELLO)
        assert answer.choices[0].message.content == "abc"


async def test_a_server_without_engine_says_so() -> None:
    async with talking(FakeEngine(fault=EngineError("the engine died again and again"))) as client:
        with pytest.raises(openai.InternalServerError, match="again and again"):
            await client.chat.completions.create(model="fake", messages=HELLO)
