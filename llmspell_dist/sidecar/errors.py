"""What the sidecar refuses by itself, before the library is asked."""

from __future__ import annotations

from llmspell_dist.errors import InvalidArgumentError, LimitError, SpellError, shorten

__all__ = [
    "BodyError",
    "BodyTooLargeError",
    "DrainingError",
    "EncodingError",
    "ForeignPageError",
    "HeadersTooLargeError",
    "IdempotencyConflictError",
    "IdempotencyPendingError",
    "MethodNotAllowedError",
    "NotAcceptableError",
    "NotFoundError",
    "PathTooLongError",
    "PreconditionRequiredError",
    "RepeatUnknownError",
    "RouteNotFoundError",
    "SlowRequestError",
    "TooManyRequestsError",
    "UnsupportedMediaTypeError",
]


class BodyError(SpellError, ValueError):
    """The body cannot be read, or does not have the shape that this route takes."""

    code = "BODY"

    def __init__(self, what: str, reason: str) -> None:
        self.what = what
        self.reason = shorten_reason(reason)
        super().__init__(f"the body is no {what} that this route takes: {self.reason}")


def shorten_reason(reason: str) -> str:
    """Return a reason on one line, short enough for a message."""
    text = " ".join(reason.split())
    return text if len(text) <= 300 else text[:299] + "…"


class BodyTooLargeError(LimitError):
    """The body is larger than this sidecar takes."""

    code = "BODY_TOO_LARGE"

    def __init__(self, actual: int | None, maximum: int) -> None:
        super().__init__("bytes of the body", actual, maximum, "")


class UnsupportedMediaTypeError(InvalidArgumentError):
    """The body is in a form that this sidecar does not read."""

    code = "UNSUPPORTED_MEDIA_TYPE"

    def __init__(self, media: str) -> None:
        super().__init__("content-type", media, "must be application/json or application/msgpack")


class EncodingError(InvalidArgumentError):
    """The body is packed in a way that this sidecar does not unpack."""

    code = "UNSUPPORTED_ENCODING"
    encodings = "gzip, zstd"

    def __init__(self, encoding: str) -> None:
        super().__init__("content-encoding", encoding, f"must be at most two of {self.encodings}")


class NotAcceptableError(InvalidArgumentError):
    """The client takes no form in which this sidecar answers."""

    code = "NOT_ACCEPTABLE"

    def __init__(self, accept: str) -> None:
        super().__init__("accept", accept, "must allow application/json or application/msgpack")


class RouteNotFoundError(SpellError):
    """There is no such path."""

    code = "ROUTE_NOT_FOUND"

    def __init__(self, path: str) -> None:
        self.path = shorten(path)
        super().__init__(f"there is no route {self.path}; see /openapi.json")


class PathTooLongError(LimitError):
    """The path is longer than any that means something."""

    code = "PATH_TOO_LONG"

    def __init__(self, actual: int, maximum: int) -> None:
        super().__init__("bytes of the path", actual, maximum, "")


class HeadersTooLargeError(LimitError):
    """The headers are larger than this sidecar takes."""

    code = "HEADERS_TOO_LARGE"

    def __init__(self, actual: int | None, maximum: int) -> None:
        super().__init__("bytes of the headers", actual, maximum, "")


class MethodNotAllowedError(SpellError):
    """The path is there, but not with this method."""

    code = "METHOD_NOT_ALLOWED"

    def __init__(self, method: str, allowed: list[str]) -> None:
        self.method = shorten(method)
        self.allowed = allowed
        super().__init__(f"the method {self.method} is not one of {', '.join(allowed)}")


class ForeignPageError(SpellError):
    """A page in a browser sent it from elsewhere: that needs credentials."""

    code = "FOREIGN_PAGE"

    def __init__(self, header: str, value: str) -> None:
        self.header = header
        self.value = shorten(value)
        super().__init__(
            f"the {header} {self.value} is not this machine: without credentials nobody is served "
            "under another name"
        )


class NotFoundError(SpellError):
    """There is nothing of that name."""

    code = "NOT_FOUND"

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(f"there is no {what}")


class SlowRequestError(SpellError):
    """The request did not arrive in time."""

    code = "REQUEST_TIMEOUT"
    retryable = True

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(f"the body did not arrive within {seconds:g} s")


class TooManyRequestsError(SpellError):
    """This client has more requests under way than its share."""

    code = "TOO_MANY_REQUESTS"
    retryable = True

    def __init__(self, limit: int, what: str = "requests of this client wait already") -> None:
        self.limit = limit
        super().__init__(f"{limit:,} {what}")


class DrainingError(SpellError):
    """The sidecar is stopping and takes nothing new that lasts."""

    code = "DRAINING"
    retryable = True


class PreconditionRequiredError(InvalidArgumentError):
    """A condition of the request contradicts another, or cannot be read."""

    code = "INVALID_PRECONDITION"


class IdempotencyConflictError(SpellError):
    """The idempotency key was used for another request."""

    code = "IDEMPOTENCY_KEY_REUSED"

    def __init__(self) -> None:
        super().__init__("this Idempotency-Key came with another request before")


class IdempotencyPendingError(SpellError):
    """The first request with this idempotency key has not been answered."""

    code = "IDEMPOTENCY_KEY_PENDING"
    retryable = True

    def __init__(self, message: str | None = None) -> None:
        super().__init__(
            message or "the first request with this Idempotency-Key is under way, or ended unknown"
        )


class RepeatUnknownError(SpellError):
    """Nobody here knows whether the first sending of this request was carried out."""

    code = "REPEAT_UNKNOWN"
