"""What a request can do wrong, each with its HTTP status, and the one shape in which every error is told.

RequestError
├── InvalidRequest          400  a parameter of the wrong type or value
├── Unsupported             400  a parameter that means something we do not do
├── ContextTooLong          400
├── BadTemplate             400  the model's template refuses the conversation, or is itself at fault
├── ForeignHost             403  a name or an origin that is not ours: DNS rebinding, cross-site requests
├── ModelNotFound           404
├── SlowBody                408
├── BodyTooLarge            413
├── WrongContentType        415
├── ClientGone              499  (server/disconnect.py)
├── ServerFault             500  ours, not the request's
│   └── EngineFailed        500
├── Busy                    503
├── EngineDown              503  a question about an engine that is not there to answer
├── QueueTimeout            503  its turn did not come within the time it would wait
└── ShuttingDown            503
"""

from collections.abc import Sequence

from models.library import UntokenisableText
from quant.errors import EngineError, NotEnoughMemory, PunaError, TemplateError


class RequestError(PunaError):
    """An error that knows its status and the parameter at fault."""

    status = 400
    kind = "invalid_request_error"
    code: str | None = None
    retry_after: int | None = None  # seconds

    def __init__(self, text: str, param: str | None = None) -> None:
        super().__init__(text)
        self.param = param

    @property
    def headers(self) -> dict[str, str]:
        """What clients read to decide when, or whether, to try again."""
        if self.retry_after is None:
            return {}
        return {"retry-after": str(self.retry_after), "retry-after-ms": str(self.retry_after * 1000)}

    @property
    def body(self) -> dict[str, object]:
        param = None if self.param is None else sayable(self.param)
        return {"error": {"message": sayable(str(self)), "type": self.kind, "param": param, "code": self.code}}


def sayable(text: str) -> str:
    """The text with a question mark for halves of surrogate pairs: JSON can spell them, and UTF-8 cannot."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


class InvalidRequest(RequestError):
    code = "invalid_value"


class Unsupported(RequestError):
    code = "unsupported_parameter"


class ContextTooLong(RequestError):
    code = "context_length_exceeded"

    def __init__(self, asked: int | str, limit: int, param: str) -> None:
        super().__init__(f"the prompt has {asked} tokens and needs room for an answer; the context is {limit}", param)


class ForeignHost(RequestError):
    status = 403
    code = "forbidden"


class ModelNotFound(RequestError):
    status = 404
    code = "model_not_found"

    def __init__(self, name: str, served: Sequence[str]) -> None:
        super().__init__(f"the model {name!r} is not served here; there is {', '.join(served)}", "model")


class SlowBody(RequestError):
    status = 408
    code = "timeout"


class BodyTooLarge(RequestError):
    status = 413
    code = "body_too_large"

    def __init__(self, limit: int) -> None:
        super().__init__(f"the body is larger than {limit} bytes")


class WrongContentType(RequestError):
    status = 415
    code = "unsupported_media_type"


class ServerFault(RequestError):
    status = 500
    kind = "server_error"
    code = "server_error"


class Busy(RequestError):
    status = 503
    kind = "server_error"
    code = "server_busy"
    retry_after = 1


class EngineDown(RequestError):
    status = 503
    kind = "server_error"
    code = "engine_down"
    retry_after = 5


class QueueTimeout(RequestError):
    status = 503
    kind = "server_error"
    code = "queue_timeout"
    retry_after = 5

    def __init__(self) -> None:
        super().__init__("the request's turn did not come within the time that it may wait in the queue", "timeout")


class ShuttingDown(RequestError):
    status = 503
    kind = "server_error"
    code = "shutting_down"
    retry_after = 5

    def __init__(self) -> None:
        super().__init__("the server is shutting down")


class EngineFailed(ServerFault):
    code = "engine_error"


class BadTemplate(RequestError):
    """A template refuses a conversation (its roles do not alternate), or is itself at fault."""

    code = "template_error"


def as_request_error(error: PunaError) -> RequestError:
    """How an error from any floor is told to a client."""
    match error:
        case RequestError():
            return error
        case TemplateError():
            return BadTemplate(str(error), "messages")
        case UntokenisableText():
            return InvalidRequest(str(error))
        case NotEnoughMemory() | EngineError():
            return EngineFailed(str(error))
        case _:
            return ServerFault(str(error))
