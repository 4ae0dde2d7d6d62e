"""POST /v1/chat/completions."""

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from server.chat_reply import ChatReply
from server.disconnect import unless_gone
from server.drain import Door
from server.errors import InvalidRequest
from server.generation import Generation, begin
from server.honesty import CHAT, examine
from server.prompts import chat_prompt
from server.sampling import room_after, sampling_of, seed_of, seed_of_choice
from server.schema import ChatRequest
from server.served import Served, Store
from server.sse import Stream


def chat_routes(store: Store, door: Door) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        warnings = examine(body, CHAT)
        served = store.find(body.model)
        generation = await _begin(served, body)
        door.watch(generation)
        reply = ChatReply(served, body, warnings, generation)
        if body.stream:
            return Stream(reply.chunks(), reply.keep_alive, generation.close)
        try:
            return JSONResponse(await unless_gone(request, reply.whole()))
        finally:
            generation.close()

    return routes


async def _begin(served: Served, body: ChatRequest) -> Generation:
    if body.top_logprobs and not body.logprobs:
        raise InvalidRequest("top_logprobs: needs logprobs: true", "top_logprobs")
    prompt = await asyncio.to_thread(chat_prompt, served, body)
    room = room_after(len(prompt), served, "messages")
    asked = body.max_completion_tokens or body.max_tokens or room
    seed = seed_of(body)
    prompts = [
        (
            prompt,
            sampling_of(
                body,
                served,
                max_tokens=min(asked, room),
                logprobs=(body.top_logprobs or 0) if body.logprobs else None,
                seed=seed_of_choice(seed, choice),
            ),
        )
        for choice in range(body.choices)
    ]
    return Generation(begin(served, prompts, body.stops), len(prompt))
