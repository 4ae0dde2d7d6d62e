"""Work that is worth doing only as long as the client is there."""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.types import Receive

from server.errors import RequestError

T = TypeVar("T")


class ClientGone(RequestError):
    """Nobody reads this; the status is what proxies write in their logs."""

    status = 499
    code = "client_gone"


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of the work; when the client leaves first, the work is cancelled and ClientGone raised."""
    working = asyncio.create_task(work)
    watching = asyncio.create_task(gone(request.receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone("the client closed the connection")
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching


async def gone(receive: Receive) -> None:
    """Returns when the client has left. The body was read before."""
    while (await receive())["type"] != "http.disconnect":
        pass
