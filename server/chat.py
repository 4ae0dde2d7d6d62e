"""POST /v1/chat/completions."""

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.answering import streamed, whole
from server.chat_prompt import fitting_prompt
from server.chat_reply import ChatReply
from server.drain import Door
from server.errors import InvalidRequest
from server.generation import Generation, begin
from server.honesty import CHAT
from server.sampling import answer_tokens, sampling_of, seed_of, seed_of_choice
from server.schema import ChatRequest
from server.served import Served, Store
from server.terms import Terms, terms_of


def chat_routes(store: Store, door: Door, queue_time: float | None) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        terms = terms_of(body, request, CHAT, queue_time)
        served = store.find(body.model)
        generation = await _begin(served, body, terms)
        door.watch(generation)
        reply = ChatReply(served, body, terms, generation)
        if body.stream:
            return await streamed(request, reply, generation, may_expire=terms.asker.patience is not None)
        return await whole(request, reply, generation)

    return routes


async def _begin(served: Served, body: ChatRequest, terms: Terms) -> Generation:
    if body.top_logprobs and not body.logprobs:
        raise InvalidRequest("top_logprobs: needs logprobs: true", "top_logprobs")
    prompt = await asyncio.to_thread(fitting_prompt, served, body, terms.warnings)
    name, asked = body.asked_tokens
    tokens = answer_tokens(name, asked, len(prompt), served, terms.warnings, "messages")
    seed = seed_of(body)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    sequences = [
        (
            prompt,
            sampling_of(body, served, max_tokens=tokens, logprobs=logprobs, seed=seed_of_choice(seed, choice)),
        )
        for choice in range(body.choices)
    ]
    return Generation(begin(served, sequences, body.stops, terms.asker, terms.conversation))
