"""GET /health: 200 when every model answers, 503 when one does not or the server is about to leave."""

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from starlette.responses import Response

from server.drain import Door
from server.served import Store


def health_routes(store: Store, door: Door) -> APIRouter:
    routes = APIRouter()

    @routes.get("/health")
    async def health() -> Response:
        models = {name: "ok" if served.engine.alive else "down" for name, served in store.models.items()}
        well = all(state == "ok" for state in models.values()) and not door.closed
        status = "draining" if door.closed else "ok" if well else "degraded"
        return JSONResponse({"status": status, "models": models, "requests": door.inside}, 200 if well else 503)

    return routes
