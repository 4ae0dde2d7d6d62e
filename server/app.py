"""The web application over a store of models."""

from dataclasses import dataclass, field

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from server.chat import chat_routes
from server.completions import completion_routes
from server.drain import Door, DoorMiddleware
from server.heads import HeadMiddleware
from server.health import health_routes
from server.hosts import Names, NamesMiddleware
from server.limits import BodyLimits
from server.models_route import models_routes
from server.puna_routes import puna_routes
from server.refusal import tell_errors
from server.served import Store


@dataclass(frozen=True)
class Surroundings:
    """Who may ask, and how long a request may wait for its turn."""

    hosts: list[str] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)
    queue_time: float | None = None  # seconds


def make_app(store: Store, door: Door, surroundings: Surroundings) -> FastAPI:
    # The documentation pages load scripts from elsewhere; the description they show stays, at /openapi.json.
    app = FastAPI(title="Puna", docs_url=None, redoc_url=None)
    for routes in (
        chat_routes(store, door, surroundings.queue_time),
        completion_routes(store, door, surroundings.queue_time),
        models_routes(store),
        health_routes(store, door),
        puna_routes(store),
    ):
        app.include_router(routes)
    tell_errors(app)
    app.add_middleware(HeadMiddleware)
    app.add_middleware(BodyLimits)
    app.add_middleware(DoorMiddleware, door=door)
    # The last one added is met first: the names, before anything is counted or read.
    if surroundings.origins:
        app.add_middleware(CORSMiddleware, allow_origins=surroundings.origins, allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(NamesMiddleware, names=Names(surroundings.hosts, surroundings.origins))
    return app
