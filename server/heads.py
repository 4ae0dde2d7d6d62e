"""HEAD is GET wherever there is a GET; that no body follows is the web server's to see to."""

from starlette.types import ASGIApp, Receive, Scope, Send


class HeadMiddleware:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        heads = scope["type"] == "http" and scope["method"] == "HEAD"
        await self._app({**scope, "method": "GET"} if heads else scope, receive, send)
