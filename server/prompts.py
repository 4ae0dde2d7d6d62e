"""From what a request says to the token ids that the model reads. Slow on long texts: call it off the event loop."""

from collections.abc import Callable, Sequence

import msgspec

from models.tokenizer import Tokenizer
from server.errors import ContextTooLong, InvalidRequest, Unsupported, sayable
from server.schema import CalledTool, ChatRequest, Message
from server.served import Served

# What a template is given by us; a request must not put its own in their place.
_OURS = frozenset({"messages", "tools", "add_generation_prompt", "bos_token", "eos_token", "chat_template", "tokenize"})
# Characters for each token of the context: of a longer text its beginning is read first, and often settles it.
_MUCH = 16
_ARGUMENTS = msgspec.json.Decoder(dict[str, object])


def chat_prompt(served: Served, body: ChatRequest, said: Sequence[Message]) -> list[int]:
    """What was said, as the model's template writes it, up to where the assistant begins to speak."""
    template = served.card.template
    if template is None:
        raise Unsupported("the model has no chat template; use /v1/completions", "messages")
    messages = [_plain(message, position) for position, message in enumerate(said)]
    tools = [tool.model_dump(exclude_none=True) for tool in body.tools or []] if body.uses_tools else None
    (messages, tools), mark = served.guard.mark((messages, tools))
    text = template.render(messages, tools, extra=_extra(body))
    _check(text, "messages")
    ids = _begun(served.card.tokenizer, _read(lambda part: served.guard.encode(part, mark), text, served, "messages"))
    if not ids:
        raise InvalidRequest("messages: the chat template writes nothing for them", "messages")
    return ids


def text_prompt(served: Served, text: str) -> list[int]:
    """The text's ids, control tokens read as such: its author writes what a template would."""
    _check(text, "prompt")
    tokenizer = served.card.tokenizer
    return _begun(tokenizer, _read(lambda part: tokenizer.encode(part, special=True), text, served, "prompt"))


def _read(encode: Callable[[str], list[int]], text: str, served: Served, param: str) -> list[int]:
    """The text's ids. A text that cannot fit by far is refused for its beginning: all of it may take gigabytes."""
    context = served.engine.ready.context
    beginning = text[: _MUCH * context]
    ids = encode(beginning)
    if len(beginning) == len(text):
        return ids
    if len(ids) > 2 * context:  # of these only the last few could be others, or none, in the whole text
        raise ContextTooLong(f"more than {2 * context}", context, param)
    return encode(text)


def _extra(body: ChatRequest) -> dict[str, object]:
    """What the request says to the template beside the conversation."""
    extra: dict[str, object] = dict(body.chat_template_kwargs or {})
    taken = min(_OURS & extra.keys(), default=None)
    if taken is not None:
        raise InvalidRequest(f"chat_template_kwargs: {taken} is the server's to give", f"chat_template_kwargs.{taken}")
    return extra


def _check(text: str, param: str) -> None:
    if sayable(text) != text:
        raise InvalidRequest(f"{param}: has half of a surrogate pair, which is no character", param)


def _begun(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """The ids after one BOS if the model wants it. Templates often write it themselves."""
    if tokenizer.add_bos and tokenizer.bos is not None and ids[:1] != [tokenizer.bos]:
        return [tokenizer.bos, *ids]
    return ids


def checked_ids(tokenizer: Tokenizer, ids: list[int], param: str) -> list[int]:
    for position, token in enumerate(ids):
        if not 0 <= token < tokenizer.size:
            where = f"{param}.{position}"
            raise InvalidRequest(f"{where}: token {token} is not in the vocabulary of {tokenizer.size}", where)
    return ids


def _plain(message: Message, position: int) -> dict[str, object]:
    """The message as templates know it: text joined, developers are the system, arguments are objects."""
    if message.content is None and not (message.role == "assistant" and message.tool_calls):
        where = f"messages.{position}.content"
        raise InvalidRequest(f"{where}: missing", where)
    plain: dict[str, object] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": message.text,
    }
    plain |= message.model_dump(include={"name", "reasoning_content", "tool_call_id"}, exclude_none=True)
    if message.tool_calls:
        calls = enumerate(message.tool_calls)
        plain["tool_calls"] = [_plain_call(call, f"messages.{position}.tool_calls.{number}") for number, call in calls]
    return plain


def _plain_call(call: CalledTool, where: str) -> dict[str, object]:
    try:
        arguments = _ARGUMENTS.decode(call.function.arguments or "{}")
    except (msgspec.DecodeError, RecursionError) as error:
        where = f"{where}.function.arguments"
        raise InvalidRequest(f"{where}: not a JSON object: {error}", where) from None
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}
