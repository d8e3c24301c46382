"""Single keys: get, set, delete, conditions by ``ETag``, expiry, partial updates, the past."""

from __future__ import annotations

from typing import Annotated, Any, Final

from msgspec import Meta, Struct, field

from llmspell_dist.ack import Ack
from llmspell_dist.errors import ConflictError, HistoryUnavailableError, WrongKindError
from llmspell_dist.revision import Revision
from llmspell_dist.sidecar.auth.grants import Verb
from llmspell_dist.sidecar.call import Call
from llmspell_dist.sidecar.endpoint import VALUE, Needs, Registry
from llmspell_dist.sidecar.entity_tags import Tags
from llmspell_dist.sidecar.errors import NotFoundError, PreconditionRequiredError
from llmspell_dist.sidecar.problems import problem_of
from llmspell_dist.sidecar.reply import NO_CONTENT, Reply, etag
from llmspell_dist.sidecar.routes.shapes import (
    ChangeDocument,
    Keeping,
    Revised,
    WriteOptions,
    change_document,
    keeping,
    parse_moment,
    record_document,
    write_options,
)
from llmspell_dist.state.writes import ANY

__all__ = ["routes"]

routes = Registry("keys", "Values by scope and key, each write atomic and in the change log.")

READ: Final = Needs(Verb.READ, "{scope}")
WRITE: Final = Needs(Verb.WRITE, "{scope}")
DELETE: Final = Needs(Verb.DELETE, "{scope}")
_KEY: Final = "/v1/state/{scope}/{key}"
_MISSING: Final = object()


class _Get(Struct, frozen=True, forbid_unknown_fields=True):
    record: Annotated[bool, Meta(description="With revision, times, class and expiry.")] = False
    at: Annotated[
        str | None, Meta(description="As it was at a revision, or an ISO time with an offset.")
    ] = None


@routes.route(
    "GET",
    _KEY,
    READ,
    query=_Get,
    returns=VALUE,
    errors=(NotFoundError, HistoryUnavailableError),
    headers=("If-Match", "If-None-Match"),
    statuses={
        304: "It is still at a revision of If-None-Match.",
        412: "It is at another revision than those of If-Match.",
    },
)
async def get_value(call: Call) -> Reply:
    """Get the value of a key; its revision is the ``ETag``.

    With `record` the answer is the value with all that is known about it. HEAD only tells whether
    there is a value, which is not read for that.
    """
    scope, key = call.parameters["scope"], call.parameters["key"]
    query: _Get = call.query
    if call.scope["method"] == "HEAD" and query.at is None:
        if await call.state.exists(scope, key):
            return Reply()
        raise _not_found(scope, key)
    if query.at is not None:
        return await _get_at(call, scope, key, query.at)
    found = await call.state.get_record(scope, key)
    if found is None:
        raise _not_found(scope, key)
    tag = etag(found.revision)
    match, none = call.if_match, call.if_none_match
    if match is not None and match != "*" and found.revision not in match:
        return _failed(_conflict(call, match, found.revision))
    if none is not None and (none == "*" or found.revision in none):
        return Reply(status=304, headers=[tag])
    return Reply(record_document(found) if query.record else found.value, headers=[tag])


async def _get_at(call: Call, scope: str, key: str, at: str) -> Reply:
    value = await call.state.get_at(scope, key, parse_moment(at), _MISSING)
    if value is _MISSING:
        raise _not_found(scope, key)
    return Reply(value)


def _not_found(scope: str, key: str) -> NotFoundError:
    return NotFoundError(f"value at {key!r} in {scope}")


@routes.route(
    "PUT",
    _KEY,
    WRITE,
    query=WriteOptions,
    body=VALUE,
    returns=Revised,
    errors=(ConflictError,),
    headers=("If-Match", "If-None-Match", "LLMSpell-Lease", "Idempotency-Key"),
    statuses={412: "Somebody changed it since."},
)
async def set_value(call: Call) -> Reply:
    """Set a key; the revision of the commit is the ``ETag``.

    With ``If-Match: "<revision>"`` only if it still is at that revision, or at one of several, with
    ``If-None-Match: *`` only if it has no value: else nothing is changed (412).
    """
    scope, key = call.parameters["scope"], call.parameters["key"]
    options = write_options(call.query)
    match = _condition(call)
    if match is ANY:
        return _revised(await call.state.set(scope, key, call.body, **options))
    try:
        expected = await _expected(call, match)
        revision = await call.state.compare_and_set(
            scope, key, call.body, expected=expected, **options
        )
    except ConflictError as error:
        return _failed(error)
    return _revised(revision)


def _condition(call: Call) -> Any:
    """Return what a write depends on: revisions, ``*`` for any, None for no value, or `ANY`."""
    match, none = call.if_match, call.if_none_match
    if match is not None and none is not None:
        raise _contradiction()
    if none is None:
        return ANY if match is None else match
    if none != "*":
        header = call.header(b"if-none-match")
        raise PreconditionRequiredError("if-none-match", header, "must be * for a write")
    return None


async def _expected(call: Call, match: Tags | None) -> Revision | None:
    """Return the revision that ``If-Match`` names; for ``*``, or several, that of now."""
    if match is None:
        return None
    if match != "*" and len(match) == 1:
        return next(iter(match))
    scope, key = call.parameters["scope"], call.parameters["key"]
    found = await call.state.get_record(scope, key)
    if found is None or (match != "*" and found.revision not in match):
        raise _conflict(call, match, None if found is None else found.revision)
    return found.revision


def _conflict(call: Call, match: Tags, actual: Revision | None) -> ConflictError:
    """Return what says that a key is at none of the revisions that ``If-Match`` names."""
    if match != "*" and len(match) == 1:
        expected: Any = next(iter(match))
    else:
        expected = call.header(b"if-match")
    place = call.parameters["scope"], call.parameters["key"]
    return ConflictError(expected, actual, [(*place, expected, actual)])


def _revised(revision: Revision) -> Reply:
    return Reply(Revised(str(revision)), headers=[etag(revision)])


def _failed(error: ConflictError) -> Reply:
    """Return the answer to a condition that does not hold: RFC 9110, 13.2."""
    problem = problem_of(error, status=412)
    return Reply(problem.document, status=412, headers=problem.headers, problem=True)


def _contradiction() -> PreconditionRequiredError:
    return PreconditionRequiredError("if-match", None, "cannot be combined with if-none-match")


class _Ack(Struct, frozen=True, forbid_unknown_fields=True):
    ack: str | None = None


@routes.route(
    "DELETE",
    _KEY,
    DELETE,
    query=_Ack,
    errors=(NotFoundError, ConflictError),
    headers=("If-Match", "If-None-Match", "LLMSpell-Lease", "Idempotency-Key"),
    statuses={412: "Somebody changed it since."},
)
async def delete_value(call: Call) -> Reply:
    """Remove a key; 404 if it had no value.

    With ``If-Match`` only at that revision, with ``If-None-Match: *`` only if it has no value: a
    check that it is gone.
    """
    scope, key = call.parameters["scope"], call.parameters["key"]
    ack = None if call.query.ack is None else Ack.parse(call.query.ack)
    match = _condition(call)
    try:
        expected: Any = ANY if match is ANY or match == "*" else await _expected(call, match)
        there = await call.state.delete(scope, key, expected=expected, ack=ack)
    except ConflictError as error:
        return _failed(error)
    if not there:
        raise _not_found(scope, key)
    return NO_CONTENT


# --- partial updates ------------------------------------------------------------------------------


class Increment(Keeping, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is added to a number."""

    by: int | float = 1
    ack: str | None = None


class Number(Struct, frozen=True):
    """The sum."""

    value: int | float


class Append(Keeping, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Elements for the end of a list."""

    items: list[Any]


class Length(Struct, frozen=True):
    """How long the list is now."""

    length: int


class Merge(Keeping, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Fields to set in a dict, and fields to remove from it."""

    fields: dict[Any, Any] = field(default_factory=dict)
    remove: list[Any] = field(default_factory=list)


class Fields(Struct, frozen=True):
    """How many fields the dict has now."""

    fields: int


class Expire(Struct, frozen=True, forbid_unknown_fields=True):
    """Seconds until it ends; null lets it stay."""

    ttl: float | None


class Found(Struct, frozen=True):
    """Whether it is there, or for null whether it had an expiry."""

    found: bool


_PARTIAL: Final[dict[str, Any]] = {
    "errors": (WrongKindError,),
    "headers": ("LLMSpell-Lease", "Idempotency-Key"),
}


@routes.route("POST", f"{_KEY}/increment", WRITE, body=Increment, returns=Number, **_PARTIAL)
async def increment_value(call: Call) -> Reply:
    """Add to a number on the server; a missing key counts as 0."""
    body: Increment = call.body
    options = keeping(body)
    if body.ack is not None:
        options["ack"] = Ack.parse(body.ack)
    value = await call.state.increment(
        call.parameters["scope"], call.parameters["key"], body.by, **options
    )
    return Reply(Number(value))


@routes.route("POST", f"{_KEY}/append", WRITE, body=Append, returns=Length, **_PARTIAL)
async def append_value(call: Call) -> Reply:
    """Add elements to the end of a list; only they travel, and it costs the same at any length."""
    body: Append = call.body
    length = await call.state.append(
        call.parameters["scope"], call.parameters["key"], *body.items, **keeping(body)
    )
    return Reply(Length(length))


@routes.route("POST", f"{_KEY}/merge", WRITE, body=Merge, returns=Fields, **_PARTIAL)
async def merge_value(call: Call) -> Reply:
    """Set and remove fields of a dict, without reading it."""
    body: Merge = call.body
    count = await call.state.merge(
        call.parameters["scope"],
        call.parameters["key"],
        body.fields,
        remove=body.remove,
        **keeping(body),
    )
    return Reply(Fields(count))


@routes.route(
    "POST", f"{_KEY}/expire", WRITE, body=Expire, returns=Found, headers=_PARTIAL["headers"]
)
async def expire_value(call: Call) -> Reply:
    """Let a key end after `ttl` seconds; null lets it stay."""
    scope, key = call.parameters["scope"], call.parameters["key"]
    ttl = call.body.ttl
    if ttl is None:
        return Reply(Found(await call.state.persist(scope, key)))
    return Reply(Found(await call.state.expire(scope, key, ttl)))


# --- lists and the past ---------------------------------------------------------------------------


class _Slice(Struct, frozen=True, forbid_unknown_fields=True):
    start: int = 0
    stop: int | None = None


@routes.route("GET", f"{_KEY}/slice", READ, query=_Slice, returns=VALUE, errors=(WrongKindError,))
async def get_slice(call: Call) -> Reply:
    """Get some elements of a list, without reading the others."""
    query: _Slice = call.query
    items = await call.state.get_slice(
        call.parameters["scope"], call.parameters["key"], query.start, query.stop
    )
    return Reply(items)


class _History(Struct, frozen=True, forbid_unknown_fields=True):
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 100


class Changes(Struct, frozen=True):
    """Changes of a key, newest first."""

    changes: list[ChangeDocument]


@routes.route("GET", f"{_KEY}/history", READ, query=_History, returns=Changes)
async def get_history(call: Call) -> Reply:
    """Tell who changed a key, and when, newest first, as far as the log reaches back."""
    scope, key = call.parameters["scope"], call.parameters["key"]
    changes = await call.state.history(scope, key, limit=call.query.limit)
    return Reply(Changes([change_document(change) for change in changes]))
