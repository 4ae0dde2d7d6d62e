"""The prompt of a chat. With `truncation: "auto"` the oldest turns are left out until it fits, never otherwise."""

from collections.abc import Sequence

from server.errors import ContextTooLong
from server.honesty import Warnings, warning
from server.prompts import chat_prompt
from server.schema import ChatRequest, Message
from server.served import Served

_ROOM = 4  # a request that asks for no number of tokens gets room for a quarter of the context
_MOST_ROOM = 2  # and one that asks for very many does not drive its own conversation out: a half


def fitting_prompt(served: Served, body: ChatRequest, warnings: Warnings) -> list[int]:
    """The conversation's ids. What was left out is in the warnings. Slow on long texts: call it off the event loop."""
    if body.truncation != "auto":
        return chat_prompt(served, body, body.messages)
    turns = turns_of(body.messages)
    dropped = _fewest(served, body, turns)
    messages = _without(body.messages, turns[:dropped])
    if dropped:
        count = len(body.messages) - len(messages)
        why = f"auto: {count} of {len(body.messages)} messages were left out, the oldest, for the rest to fit"
        warnings.append(warning("truncation", why))
    return chat_prompt(served, body, messages)


def turns_of(messages: Sequence[Message]) -> list[list[int]]:
    """What may be left out, oldest first: whole turns, each the positions of its messages.

    A turn goes from one message of the user to before the next. Turns across which a tool's result reaches back to its
    call are one. The last is not among them, nor are the words of the system.
    """
    begins = [at for at, message in enumerate(messages) if message.role == "user"]
    joined = _reaching_back(messages)
    starts = [0, *(at for at in begins if at > 0 and not any(call < at <= result for call, result in joined))]
    ends = [*starts[1:], len(messages)]
    turns = [
        [at for at in range(start, end) if messages[at].role not in ("system", "developer")]
        for start, end in zip(starts, ends, strict=True)
    ]
    return [turn for turn in turns[:-1] if turn]


def _reaching_back(messages: Sequence[Message]) -> list[tuple[int, int]]:
    """Positions of calls, and of their results."""
    called: dict[str, int] = {}
    pairs = []
    for at, message in enumerate(messages):
        if message.role == "tool" and message.tool_call_id in called:
            pairs.append((called[message.tool_call_id], at))
        for call in message.tool_calls or []:
            if call.id is not None:
                called[call.id] = at
    return pairs


def _fewest(served: Served, body: ChatRequest, turns: list[list[int]]) -> int:
    """How many turns have to go. When none that stay leave the room that is wanted, a prompt that fits will do."""
    context = served.engine.ready.context
    _, asked = body.asked_tokens
    room = min(asked, context // _MOST_ROOM) if asked else context // _ROOM

    def fits(dropped: int) -> bool:
        try:
            return len(chat_prompt(served, body, _without(body.messages, turns[:dropped]))) + room <= context
        except ContextTooLong:
            return False

    few, many = 0, len(turns)
    while few < many:  # the fewest that fit are few to many
        middle = (few + many) // 2
        if fits(middle):
            many = middle
        else:
            few = middle + 1
    return few


def _without(messages: Sequence[Message], turns: Sequence[Sequence[int]]) -> list[Message]:
    gone = {at for turn in turns for at in turn}
    return [message for at, message in enumerate(messages) if at not in gone]
