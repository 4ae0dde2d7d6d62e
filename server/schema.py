"""What a request may say: the parameters that are honoured, with their types and ranges.

Everything else arrives in `model_extra`, and server/honesty.py decides about it.
"""

from functools import cached_property
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from server.errors import sayable

LARGEST = 2**31 - 1
MOST_CHOICES = 8
MOST_PROMPTS = 64

# A list of a million wrong items is one fault, and not a million: they would be collected while every stream waits.
_FIRST_FAULT = Field(fail_fast=True)


def _few(entries: int) -> BeforeValidator:
    """The same for objects: they are counted before any entry is looked at."""

    def counted(value: object) -> object:
        if isinstance(value, dict) and len(value) > entries:
            raise ValueError(f"has {len(value)} entries; {entries} are the most")
        return value

    return BeforeValidator(counted)


class Body(BaseModel):
    """Types are strict: a number in quotes, or true for 1, is an error and not a number."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, hide_input_in_errors=True)


class TextPart(Body):
    type: Literal["text"]
    text: str


class Function(Body):
    name: str
    arguments: str


class CalledTool(Body):
    id: str | None = None
    type: Literal["function"] = "function"
    function: Function


class Message(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], _FIRST_FAULT] | None = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: Annotated[list[CalledTool], _FIRST_FAULT, Field(max_length=128)] | None = None
    tool_call_id: str | None = None

    @property
    def text(self) -> str:
        match self.content:
            case None:
                return ""
            case str():
                return self.content
            case parts:
                return "".join(part.text for part in parts)


class FunctionSpec(Body):
    name: Annotated[str, Field(min_length=1, max_length=128)]
    description: str | None = None
    parameters: dict[str, object] | None = None


class Tool(Body):
    type: Literal["function"]
    function: FunctionSpec


class StreamOptions(Body):
    include_usage: bool = False


def _stops(value: str | list[str]) -> str | list[str]:
    for stop in [value] if isinstance(value, str) else value:
        if sayable(stop) != stop:
            raise ValueError("has half of a surrogate pair, which is no character")
        if not 0 < len(stop) <= 500:
            raise ValueError(f"a stop string has 1 to 500 characters; this one has {len(stop)}")
    return value


def _biases(value: dict[str, float]) -> dict[str, float]:
    for token in value:
        if not (token.isascii() and token.isdigit() and len(token) < 10 and token == str(int(token))):
            raise ValueError(f"{token[:40]!r} is no token id")
    return value


def _sayable(value: str) -> str:
    if sayable(value) != value:
        raise ValueError("has half of a surrogate pair, which is no character")
    return value


Bias = Annotated[float, Field(ge=-100, le=100)]
Name = Annotated[str, Field(max_length=512), AfterValidator(_sayable)]


class GenerationRequest(Body):
    """What chat and completions share."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1, le=LARGEST)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=LARGEST)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    stop: Annotated[str | Annotated[list[str], _FIRST_FAULT, Field(max_length=16)], AfterValidator(_stops)] | None = (
        None
    )
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    logit_bias: Annotated[dict[str, Bias], _few(1024), AfterValidator(_biases)] | None = None
    service_tier: Literal["auto", "default", "flex", "priority", "fast", "scale"] | None = None
    cache_salt: Name | None = None
    prompt_cache_key: Name | None = None
    timeout: Annotated[float, Field(gt=0, le=86_400)] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    timings: bool | None = None

    @property
    def stops(self) -> list[str]:
        match self.stop:
            case None:
                return []
            case str():
                return [self.stop]
            case stops:
                return stops

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(GenerationRequest):
    messages: Annotated[list[Message], _FIRST_FAULT, Field(min_length=1, max_length=10_000)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=LARGEST)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], _FIRST_FAULT, Field(max_length=512)] | None = None
    tool_choice: object = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: Annotated[dict[str, str | int | float | bool | None], _few(64)] | None = None

    @field_validator("tool_choice")
    @classmethod
    def _known_choice(cls, value: object) -> object:
        if value not in (None, "auto", "none"):
            raise ValueError("only 'auto' and 'none' are supported: a call cannot be forced yet")
        return value

    @property
    def asked_tokens(self) -> tuple[str, int | None]:
        """The limit of the answer under the name that it was given; the newer name wins."""
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return "max_tokens", self.max_tokens

    @property
    def uses_tools(self) -> bool:
        return bool(self.tools) and self.tool_choice != "none"


Ids = Annotated[list[int], _FIRST_FAULT, Field(min_length=1)]
Texts = Annotated[list[str], _FIRST_FAULT]
ManyIds = Annotated[list[Ids], _FIRST_FAULT]


class CompletionRequest(GenerationRequest):
    prompt: str | Ids | Annotated[Texts | ManyIds, Field(min_length=1, max_length=MOST_PROMPTS)]
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @cached_property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, however many there are."""
        match self.prompt:
            case str() as text:
                return [text]
            case many:
                prompts = [item for item in many if not isinstance(item, int)]
                return [*prompts] or [[item for item in many if isinstance(item, int)]]
