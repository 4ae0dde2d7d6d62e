"""GET /v1/puna/requests and /v1/puna/cache: what the engines are at. Answered also when the house is full."""

import asyncio
from collections.abc import Callable

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from engine.messages import CacheState, Report, RequestState
from quant.errors import EngineError
from server.errors import EngineDown
from server.recall import Miss
from server.served import Served, Store
from server.terms import client_of

Json = dict[str, object]

PATIENCE = 10.0  # seconds that an engine may take for the step it is at


def puna_routes(store: Store) -> APIRouter:
    routes = APIRouter()

    @routes.get("/v1/puna/requests")
    async def requests() -> Response:
        return await _of_all(store, lambda _, report: {"requests": [_request(one) for one in report.requests]})

    @routes.get("/v1/puna/cache")
    async def cache(request: Request) -> Response:
        client = client_of(request)
        return await _of_all(store, lambda served, report: _cache(served, report.cache, client))

    return routes


async def _of_all(store: Store, wire: Callable[[Served, Report], Json]) -> Response:
    """What there is to say of each model; 503 and an error besides when an engine does not answer."""
    models: Json = {}
    down: EngineDown | None = None
    for name, served in store.models.items():
        try:
            models[name] = wire(served, await asyncio.wait_for(served.engine.report(), PATIENCE))
        except (EngineError, TimeoutError) as error:
            down = EngineDown(f"{name}: {error or 'the engine does not answer'}")
            models[name] = None
    if down is None:
        return JSONResponse({"models": models})
    return JSONResponse({"models": models, **down.body}, down.status, down.headers)


def _request(state: RequestState) -> Json:
    return msgspec.to_builtins(state)  # type: ignore[no-any-return]  # of a struct it is a dict


def _cache(served: Served, state: CacheState, client: str) -> Json:
    rate = state.found / state.looked_up if state.looked_up else None
    misses = [_miss(miss, client) for miss in served.memory.misses]
    return {**msgspec.to_builtins(state), "hit_rate": rate, "misses": misses}


def _miss(miss: Miss, client: str) -> Json:
    """The words of a miss are its client's own; others are told where it was, and not what."""
    _, whose, name = miss.conversation
    told: Json = {"at": miss.at, "client": whose, "kind": miss.kind, "position": miss.position, "lost": miss.lost}
    if whose != client:
        return told
    return told | {"prompt_cache_key": name or None} | miss.wire
