"""Every error as a response, in the API's shape: ours, the framework's, and the unforeseen."""

import logging
from collections.abc import Sequence

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from quant.errors import PunaError
from server.errors import InvalidRequest, RequestError, ServerFault, as_request_error

_log = logging.getLogger(__name__)
_MOST_TEXT = 500


def response_to(error: RequestError) -> Response:
    return JSONResponse(error.body, error.status, error.headers)


async def refuse(error: RequestError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answers for an ASGI app that is not going to."""
    await response_to(error)(scope, receive, send)


def tell_errors(app: FastAPI) -> None:
    """No error leaves the app in another shape."""

    @app.exception_handler(PunaError)
    async def ours(_: Request, error: PunaError) -> Response:
        return response_to(as_request_error(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return response_to(_as_invalid(error))

    @app.exception_handler(HTTPException)
    async def theirs(_: Request, error: HTTPException) -> Response:
        kind = "invalid_request_error" if error.status_code < 500 else "server_error"
        body = {"error": {"message": str(error.detail), "type": kind, "param": None, "code": None}}
        return JSONResponse(body, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def unforeseen(_: Request, error: Exception) -> Response:
        _log.error("%s while answering", type(error).__name__)
        return response_to(ServerFault("internal error"))


def _as_invalid(error: RequestValidationError) -> InvalidRequest:
    """The fault that lies deepest in the body: of a value that fits no form, it is that of the form it came nearest."""
    faults = [(_path(fault["loc"][1:], error.body, fault["type"] == "missing"), fault) for fault in error.errors()]
    path, fault = max(faults, key=lambda item: len(item[0]))
    text = str(fault["msg"]).removeprefix("Value error, ")[:_MOST_TEXT]
    param = ".".join(path)[:_MOST_TEXT]
    return InvalidRequest(f"{param}: {text}" if param else text, param or None)


def _path(where: Sequence[str | int], body: object, missing: bool) -> list[str]:
    """The steps that the body has, and the field that it lacks; not the validator's own names for forms of a value."""
    path: list[str] = []
    for step in where:
        match body:
            case dict() if step in body:
                body = body[step]
            case list() if isinstance(step, int) and step < len(body):
                body = body[step]
            case _:
                continue
        path.append(str(step))
    return [*path, str(where[-1])] if missing and where else path
