"""POST /v1/completions."""

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import Response

from engine.messages import Sampling
from server.answering import streamed, whole
from server.completion_reply import CompletionReply
from server.drain import Door
from server.errors import InvalidRequest, Unsupported
from server.generation import Generation, begin
from server.honesty import COMPLETION
from server.prompts import checked_ids, text_prompt
from server.sampling import answer_tokens, sampling_of, seed_of, seed_of_choice
from server.schema import CompletionRequest
from server.served import Served, Store
from server.terms import Terms, terms_of

DEFAULT_TOKENS = 16  # the API's own default
MOST_SEQUENCES = 128


def completion_routes(store: Store, door: Door, queue_time: float | None) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/completions")
    async def complete(body: CompletionRequest, request: Request) -> Response:
        terms = terms_of(body, request, COMPLETION, queue_time)
        served = store.find(body.model)
        _check(body)
        prompts = await asyncio.to_thread(_prompts, served, body)
        generation = _begin(served, body, prompts, terms)
        door.watch(generation)
        reply = CompletionReply(served, body, terms, generation, _echoes(served, body, prompts))
        if body.stream:
            return await streamed(request, reply, generation, may_expire=terms.asker.patience is not None)
        return await whole(request, reply, generation)

    return routes


def _check(body: CompletionRequest) -> None:
    if len(body.prompts) * body.choices > MOST_SEQUENCES:
        raise InvalidRequest(f"n: {len(body.prompts)} prompts x {body.choices} is more than {MOST_SEQUENCES}", "n")
    if body.echo and body.logprobs is not None:
        raise Unsupported("echo: logprobs of the prompt are not supported yet", "echo")
    if body.truncation == "auto":
        raise Unsupported("truncation: auto leaves out messages of a chat; a prompt is one text", "truncation")


def _prompts(served: Served, body: CompletionRequest) -> list[list[int]]:
    prompts: list[list[int]] = []
    for number, prompt in enumerate(body.prompts):
        if isinstance(prompt, str):
            ids = text_prompt(served, prompt)
        else:
            where = "prompt" if len(body.prompts) == 1 else f"prompt.{number}"
            ids = checked_ids(served.card.tokenizer, prompt, where)
        if not ids:
            raise InvalidRequest("prompt: has no tokens, and the model has none to begin with", "prompt")
        prompts.append(ids)
    return prompts


def _begin(served: Served, body: CompletionRequest, prompts: list[list[int]], terms: Terms) -> Generation:
    """The choices in the API's order: n of the first prompt, n of the second."""
    seed = seed_of(body)
    sequences: list[tuple[list[int], Sampling]] = []
    for prompt in prompts:
        tokens = answer_tokens("max_tokens", body.max_tokens, len(prompt), served, terms.warnings, "prompt")
        if body.max_tokens is None:
            tokens = min(tokens, DEFAULT_TOKENS)
        for choice in range(body.choices):
            of_choice = seed_of_choice(seed, choice)
            how = sampling_of(body, served, max_tokens=tokens, logprobs=body.logprobs, seed=of_choice)
            sequences.append((prompt, how))
    return Generation(begin(served, sequences, body.stops, terms.asker, terms.conversation), len(prompts))


def _echoes(served: Served, body: CompletionRequest, prompts: list[list[int]]) -> list[str]:
    """What precedes each choice's text: its prompt, if the request wants it there."""
    if not body.echo:
        return [""] * (len(prompts) * body.choices)
    decode = served.card.tokenizer.decode
    texts = [said if isinstance(said, str) else decode(said) for said in body.prompts]
    return [text for text in texts for _ in range(body.choices)]
