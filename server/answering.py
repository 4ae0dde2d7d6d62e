"""A reply as a response, whole or streamed; when it ends, however it does, no sequence of it runs on."""

from collections.abc import AsyncIterator
from typing import Protocol

from fastapi.responses import JSONResponse
from starlette.requests import Request
from starlette.responses import Response

from server.disconnect import unless_gone
from server.generation import Generation
from server.sse import KEEP_ALIVE, Stream

Json = dict[str, object]


class Reply(Protocol):
    """A generation in the API's shapes."""

    async def whole(self) -> Json: ...
    def chunks(self) -> AsyncIterator[Json]: ...
    @property
    def keep_alive(self) -> Json: ...


async def whole(request: Request, reply: Reply, generation: Generation) -> Response:
    try:
        return JSONResponse(await unless_gone(request, reply.whole()))
    finally:
        generation.close()


async def streamed(request: Request, reply: Reply, generation: Generation, *, may_expire: bool) -> Response:
    """One that may expire keeps its status open until it has had its turn, or the client wants to hear something."""
    if may_expire:
        try:
            await unless_gone(request, generation.begun(KEEP_ALIVE))
        except BaseException:
            generation.close()
            raise
    return Stream(reply.chunks(), reply.keep_alive, generation.close)
