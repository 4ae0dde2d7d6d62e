"""GET /v1/models and /v1/models/{name}."""

from fastapi import APIRouter

from server.served import Served, Store

Json = dict[str, object]


def models_routes(store: Store) -> APIRouter:
    routes = APIRouter()

    @routes.get("/v1/models")
    async def models() -> Json:
        return {"object": "list", "data": [_wire(served) for served in store.models.values()]}

    @routes.get("/v1/models/{name:path}")
    async def model(name: str) -> Json:
        return _wire(store.find(name))

    return routes


def _wire(served: Served) -> Json:
    context = served.engine.ready.context
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "puna",
        "context_length": context,
    }
