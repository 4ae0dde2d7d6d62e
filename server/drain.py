"""The door: who is inside, how many may be, and how the last ones leave when the server stops."""

import asyncio
from weakref import WeakSet

from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import Busy, RequestError, ShuttingDown
from server.generation import Generation
from server.refusal import refuse


class Door:
    """Open: up to `capacity` requests are inside. Closed: nobody comes in; those inside may finish, until `expire`."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.inside = 0
        self.closed = False
        self._empty = asyncio.Event()
        self._generations: WeakSet[Generation] = WeakSet()

    def enter(self) -> None:
        """Raises when there is no entering."""
        if self.closed:
            raise ShuttingDown
        if self.inside >= self.capacity:
            raise Busy(f"{self.inside} requests are here already")
        self.inside += 1

    def leave(self) -> None:
        self.inside -= 1
        assert self.inside >= 0, "left twice"
        self._tell()

    def watch(self, generation: Generation) -> None:
        """The generation is among those that `expire` ends."""
        self._generations.add(generation)

    def close(self) -> None:
        self.closed = True
        self._tell()

    def expire(self) -> None:
        """Those who are still inside are told to end now."""
        for generation in list(self._generations):
            generation.fail(ShuttingDown())

    async def empty(self, within: float) -> bool:
        """Waits until the door is closed and nobody is inside, at most so many seconds; whether that came true."""
        try:
            async with asyncio.timeout(within):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True

    def _tell(self) -> None:
        if self.closed and self.inside == 0:
            self._empty.set()


class DoorMiddleware:
    """Requests that make the engine work go through the door; questions about the server do not."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app = app
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        try:
            self._door.enter()
        except RequestError as error:
            await refuse(error, scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            self._door.leave()
