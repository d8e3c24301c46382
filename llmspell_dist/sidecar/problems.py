"""Errors as problem documents: RFC 9457, with the library's stable codes and facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import date, timedelta
from enum import Enum
from typing import Any, Final

from llmspell_dist.agents.errors import AgentNotFoundError, EffectError, IllegalTransitionError
from llmspell_dist.backup.errors import BackupError, BackupKeyUnavailableError
from llmspell_dist.errors import (
    CipherNotConfiguredError,
    ClassChangedError,
    ClosedError,
    CodecError,
    ConflictError,
    CrossShardError,
    HistoryDivergedError,
    HistoryUnavailableError,
    InvalidArgumentError,
    LeaseError,
    LeaseRequiredError,
    LimitError,
    OperationReusedError,
    SpellError,
    StagedElementsLostError,
    StoreAuthenticationError,
    StoreFullError,
    StorePermissionError,
    StoreTimeoutError,
    StoreUnavailableError,
    WrongKindError,
)
from llmspell_dist.events.errors import (
    EventError,
    PublishError,
    SubscriptionExistsError,
    SubscriptionNotFoundError,
)
from llmspell_dist.hooks.errors import (
    DuplicateHookError,
    ExecutionNotFoundError,
    HookError,
    HookNotFoundError,
    OperationCancelledError,
    ScheduleNotFoundError,
)
from llmspell_dist.revision import Revision
from llmspell_dist.security.errors import KeyProviderError, KeyProviderUnavailableError
from llmspell_dist.sidecar import errors as own
from llmspell_dist.sidecar.auth.errors import (
    ForbiddenError,
    KeysUnavailableError,
    UnauthenticatedError,
)
from llmspell_dist.sidecar.webhook_errors import WebhookError
from llmspell_dist.watch.errors import WaitTimeoutError

__all__ = [
    "PROBLEM",
    "PROBLEM_MESSAGEPACK",
    "Problem",
    "problem_of",
    "register_status",
    "status_of",
]

PROBLEM: Final = "application/problem+json"
PROBLEM_MESSAGEPACK: Final = "application/problem+msgpack"
_URN: Final = "urn:llmspell:error:"
_RETRY_AFTER_S: Final = 1

_STATUS: Final[dict[type[SpellError], int]] = {
    KeysUnavailableError: 503,
    UnauthenticatedError: 401,
    ForbiddenError: 403,
    own.ForeignPageError: 403,
    own.RouteNotFoundError: 404,
    own.MethodNotAllowedError: 405,
    own.NotFoundError: 404,
    own.NotAcceptableError: 406,
    own.SlowRequestError: 408,
    own.BodyTooLargeError: 413,
    own.EncodingError: 415,
    own.HeadersTooLargeError: 431,
    own.PathTooLongError: 414,
    own.UnsupportedMediaTypeError: 415,
    own.TooManyRequestsError: 429,
    own.DrainingError: 503,
    own.IdempotencyConflictError: 422,
    own.IdempotencyPendingError: 409,
    own.RepeatUnknownError: 409,
    own.BodyError: 400,
    own.PreconditionRequiredError: 400,
    AgentNotFoundError: 404,
    SubscriptionNotFoundError: 404,
    HookNotFoundError: 404,
    ExecutionNotFoundError: 404,
    ScheduleNotFoundError: 404,
    SubscriptionExistsError: 409,
    DuplicateHookError: 409,
    IllegalTransitionError: 409,
    EffectError: 409,
    ConflictError: 409,
    OperationReusedError: 409,
    ClassChangedError: 409,
    WrongKindError: 409,
    LeaseRequiredError: 423,
    LeaseError: 409,
    WaitTimeoutError: 408,
    OperationCancelledError: 422,
    CipherNotConfiguredError: 422,
    HookError: 424,
    WebhookError: 424,
    BackupError: 502,
    BackupKeyUnavailableError: 503,
    KeyProviderError: 502,
    KeyProviderUnavailableError: 503,
    HistoryUnavailableError: 410,
    HistoryDivergedError: 410,
    StagedElementsLostError: 503,
    CrossShardError: 400,
    LimitError: 400,
    CodecError: 400,
    InvalidArgumentError: 400,
    PublishError: 503,
    EventError: 400,
    StoreFullError: 507,
    StoreAuthenticationError: 502,
    StorePermissionError: 502,
    StoreTimeoutError: 504,
    StoreUnavailableError: 503,
    ClosedError: 503,
}
"""The nearest class of an error's ancestry decides. Whatever is not here is a 500."""

_TITLES: Final = {
    400: "Bad request",
    401: "Unauthenticated",
    403: "Forbidden",
    404: "Not found",
    405: "Method not allowed",
    406: "Not acceptable",
    408: "Timeout",
    409: "Conflict",
    410: "Gone",
    412: "Precondition failed",
    413: "Content too large",
    414: "Path too long",
    415: "Unsupported media type",
    422: "Unprocessable",
    424: "Failed dependency",
    423: "Locked",
    429: "Too many requests",
    431: "Headers too large",
    500: "Internal error",
    502: "Bad store",
    503: "Unavailable",
    504: "Store timeout",
    507: "Store full",
}


def register_status(error: type[SpellError], status: int) -> None:
    """Say which status the errors of a service have, if it is not that of their parents."""
    _STATUS[error] = status


def status_of(error: type[SpellError]) -> int:
    """Return the HTTP status of an error class."""
    for cls in error.__mro__:
        status = _STATUS.get(cls)
        if status is not None:
            return status
    return 500


@dataclass(slots=True)
class Problem:
    """An error on its way to the client."""

    status: int
    document: dict[str, Any]
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)


def problem_of(error: Exception, *, status: int | None = None) -> Problem:
    """Return the document of an error; of a bug nothing is told but that it is one."""
    if not isinstance(error, SpellError):
        document = _document(500, "INTERNAL", "the sidecar failed; its log says how", {})
        return Problem(500, document)
    if status is None:
        status = status_of(type(error))
    facts = {name: _fact(value) for name, value in error.facts.items()}
    code = error.code
    document = _document(status, code, str(error), facts)
    # The same request would meet the same conflict: what it was based on is to be read again.
    document["retryable"] = error.retryable and not isinstance(error, ConflictError)
    if isinstance(error, StoreUnavailableError):
        document["may_have_happened"] = error.may_have_happened
    problem = Problem(status, document)
    if status == 401 and isinstance(error, UnauthenticatedError):
        problem.headers.append((b"www-authenticate", error.challenge.encode("latin-1", "replace")))
    away = isinstance(error, StoreUnavailableError) and status in {503, 504}
    if away or (status in {408, 429, 503} and error.retryable):
        # Of a store that is away it says when to ask again, even of what must not be sent again.
        problem.headers.append((b"retry-after", b"%d" % _RETRY_AFTER_S))
    if isinstance(error, own.EncodingError):
        problem.headers.append((b"accept-encoding", error.encodings.encode()))
    if isinstance(error, own.MethodNotAllowedError):
        problem.headers.append((b"allow", ", ".join(error.allowed).encode()))
    return problem


def _document(status: int, code: str, detail: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": _URN + code,
        "title": _TITLES.get(status, "Error"),
        "status": status,
        "detail": detail,
        "code": code,
        "facts": dict(facts),
    }


def _fact(value: Any) -> Any:
    """Return a fact as plain data; what has no plain form is its text."""
    kind = type(value)
    if value is None or kind in {bool, int, float, str}:
        return value
    if kind in {list, tuple, set, frozenset}:
        return [_fact(part) for part in value]
    if kind is dict:
        return {str(name): _fact(part) for name, part in value.items()}
    if isinstance(value, Enum):
        return _fact(value.value)
    if isinstance(value, date):  # a datetime too
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Revision):
        return str(value)
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return _fact(value._asdict())
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: _fact(getattr(value, one.name)) for one in fields(value)}
    return str(value)
