"""`puna run`: one prompt, answered on standard output as it comes."""

import sys
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from engine.client import NOBODY
from engine.messages import EngineSpec
from quant.errors import PunaError
from server.generation import Generation, begin
from server.loading import open_models
from server.prompts import chat_prompt, text_prompt
from server.sampling import room_after, sampling_of, seed_of
from server.schema import ChatRequest, Message
from server.served import Served


@dataclass(frozen=True)
class Asking:
    prompt: str
    raw: bool
    max_tokens: int | None
    temperature: float
    seed: int | None

    def body(self) -> ChatRequest:
        """The request that a client would send, held to the same ranges."""
        message = Message(role="user", content=self.prompt)
        try:
            return ChatRequest(
                messages=[message], temperature=self.temperature, max_tokens=self.max_tokens, seed=self.seed
            )
        except ValidationError as error:
            first = error.errors()[0]
            option = str(first["loc"][0]).replace("_", "-")
            raise PunaError(f"--{option}: {first['msg']}") from error


async def run(spec: EngineSpec, asking: Asking) -> None:
    """Returns when the answer is written."""
    body = asking.body()
    store = await open_models([Path(spec.path)], spec)
    try:
        async for piece in _begin(store.find(None), asking, body):
            print(piece.text, end="", flush=True)
        print(flush=True)
    finally:
        await store.close()


def _begin(served: Served, asking: Asking, body: ChatRequest) -> Generation:
    raw = asking.raw or served.card.template is None
    if raw and not asking.raw:
        print("puna: this model has no chat template; it continues the text", file=sys.stderr)
    prompt = text_prompt(served, asking.prompt) if raw else chat_prompt(served, body, body.messages)
    room = room_after(len(prompt), served, "prompt")
    tokens = min(asking.max_tokens or room, room)
    how = sampling_of(body, served, max_tokens=tokens, logprobs=None, seed=seed_of(body))
    return Generation(begin(served, [(prompt, how)], [], NOBODY, ("", "", "")))
