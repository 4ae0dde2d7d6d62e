"""How much a request may send, and how slowly."""

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import BodyTooLarge, RequestError, SlowBody
from server.refusal import refuse

LARGEST_BODY = 16 * 2**20  # bytes; a context of a million tokens is about 4 MB of text
SLOWEST_BODY = 30.0  # seconds from the head of a request to the end of its body


class BodyLimits:
    """The application behind gets a whole body of bounded size in bounded time, or the client gets an error."""

    def __init__(self, app: ASGIApp, largest: int = LARGEST_BODY, seconds: float = SLOWEST_BODY) -> None:
        self._app = app
        self._largest = largest
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            body = await self._body(Headers(scope=scope), receive)
        except RequestError as error:
            await refuse(error, scope, receive, send)
            return
        waiting = [body]

        async def receive_read() -> Message:
            return waiting.pop() if waiting else await receive()

        await self._app(scope, receive_read, send)

    async def _body(self, headers: Headers, receive: Receive) -> Message:
        """The body as one message, or the message that the client is gone."""
        told = headers.get("content-length", "")
        if told.isdecimal() and int(told) > self._largest:
            raise BodyTooLarge(self._largest)
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._seconds):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        return message
                    chunks.append(message.get("body", b""))
                    size += len(chunks[-1])
                    if size > self._largest:
                        raise BodyTooLarge(self._largest)
                    if not message.get("more_body", False):
                        return {"type": "http.request", "body": b"".join(chunks), "more_body": False}
        except TimeoutError:
            raise SlowBody(f"the body was not there after {self._seconds:g} s") from None
