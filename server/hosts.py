"""Under which names the server answers, and to which pages: a foreign name is DNS rebinding, a foreign page."""

from collections.abc import Sequence
from ipaddress import ip_address
from socket import gethostname
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import ForeignHost, RequestError, WrongContentType
from server.refusal import refuse


class Names:
    """The names that are ours: addresses, which nobody can rebind, this machine's own names, and those it was given."""

    def __init__(self, hosts: Sequence[str] = (), origins: Sequence[str] = ()) -> None:
        own = gethostname().lower()
        self._hosts = {"localhost", own, f"{own.removesuffix('.local')}.local", *(host.lower() for host in hosts)}
        self._origins = set(origins)

    def host(self, host: str) -> bool:
        """Whether a Host header, with or without a port, is one of ours."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name.removesuffix(".") in self._hosts or _is_address(name)

    def origin(self, origin: str) -> bool:
        scheme, _, host = origin.partition("://")
        return origin in self._origins or (scheme in ("http", "https") and self.host(host))


class NamesMiddleware:
    """Nothing behind it sees a foreign name, a foreign origin, or a body that a page could send without being asked."""

    def __init__(self, app: ASGIApp, names: Names) -> None:
        self._app = app
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        fault = self._fault(scope["method"], Headers(scope=scope)) if scope["type"] == "http" else None
        if fault is not None:
            await refuse(fault, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _fault(self, method: str, headers: Headers) -> RequestError | None:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._names.host(hosts[0]):
            told = ", ".join(hosts)[:100]
            return ForeignHost(f"not a name of this server: {told!r}; see --allow-host")
        origin = headers.get("origin")
        if origin is not None and not self._names.origin(origin):
            return ForeignHost(f"pages from {origin[:100]!r} may not use this server; see --allow-origin")
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if method == "POST" and kind != "application/json":
            return WrongContentType(f"the content type must be application/json, not {kind[:100]!r}")
        return None


def _is_address(name: str) -> bool:
    try:
        ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True
