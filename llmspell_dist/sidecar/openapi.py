"""The OpenAPI 3.1 document, made from the declared routes: it cannot drift from what is served."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from llmspell_dist.errors import (
    CodecError,
    ConflictError,
    InvalidArgumentError,
    LeaseRequiredError,
    LimitError,
    SpellError,
    StaleFencingTokenError,
    StoreAuthenticationError,
    StoreFullError,
    StorePermissionError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from llmspell_dist.hooks.errors import HookError, OperationCancelledError
from llmspell_dist.sidecar import errors as own
from llmspell_dist.sidecar.auth.errors import (
    ForbiddenError,
    KeysUnavailableError,
    UnauthenticatedError,
)
from llmspell_dist.sidecar.auth.grants import Verb
from llmspell_dist.sidecar.bodies import JSON, MESSAGEPACK
from llmspell_dist.sidecar.endpoint import VALUE, Endpoint, Registry
from llmspell_dist.sidecar.openapi_tagged import TAGGED, tag
from llmspell_dist.sidecar.problems import PROBLEM, PROBLEM_MESSAGEPACK, status_of

__all__ = ["openapi_document"]

_REF: Final = "#/components/schemas/{name}"
_PROBLEM_REF: Final = {"$ref": "#/components/schemas/Problem"}
_PROBLEM_CONTENT: Final = {
    media: {"schema": _PROBLEM_REF} for media in (PROBLEM, PROBLEM_MESSAGEPACK)
}
_EVERYWHERE: Final[tuple[type[SpellError], ...]] = (
    InvalidArgumentError,
    StoreUnavailableError,
    StoreTimeoutError,
    StoreAuthenticationError,
    StorePermissionError,
    own.TooManyRequestsError,
    own.NotAcceptableError,
    own.HeadersTooLargeError,
)
_CHANGES: Final = frozenset({Verb.WRITE, Verb.DELETE})
_PRIVATE: Final[tuple[type[SpellError], ...]] = (
    UnauthenticatedError,
    KeysUnavailableError,
    ForbiddenError,
    own.ForeignPageError,
)
_WITH_BODY: Final[tuple[type[SpellError], ...]] = (
    own.BodyError,
    own.BodyTooLargeError,
    own.UnsupportedMediaTypeError,
    own.EncodingError,
    own.SlowRequestError,
    CodecError,
    LimitError,
)
_VALUE_SCHEMA: Final = {
    "description": "Any value. In JSON, what JSON lacks is an object with one tag: "
    '{"$bytes": "aGk="}, {"$datetime": "2026-01-01T00:00:00+00:00"}, {"$set": [1, 2]}, '
    '{"$map": [[key, value]]}; in MessagePack it is an extension type.'
}
_PROBLEM_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "description": "RFC 9457 problem details. `code` is the library's stable name of the error.",
    "required": ["type", "title", "status", "detail", "code", "facts"],
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string"},
        "facts": {"type": "object"},
        "retryable": {"type": "boolean"},
        "may_have_happened": {"type": "boolean"},
    },
}
_EXAMPLES: Final = {"scope": "agent:alice", "key": "note"}
_ABOUT: Final = {
    "scope": "`global`, or `user:`, `session:`, `agent:`, `tool:`, `workflow:`, `hook:`, "
    "`custom:` and an id; a step of a workflow is `workflow:w1/step:plan`. Percent-encoded.",
    "key": "Of the value, percent-encoded.",
}
_CONDITIONS: Final = frozenset({"If-Match", "If-None-Match"})
_ETAG: Final = {
    "ETag": {
        "description": "The revision that the value has now, for `If-Match`.",
        "schema": {"type": "string"},
    }
}
_RETRY_AFTER: Final = {
    "Retry-After": {
        "description": "Seconds after which the same request may succeed.",
        "schema": {"type": "integer"},
    }
}
_ANSWER_HEADERS: Final = {
    401: {"WWW-Authenticate": {"description": "`Bearer`.", "schema": {"type": "string"}}},
    415: {
        "Accept-Encoding": {
            "description": "What a body may be packed with.",
            "schema": {"type": "string"},
        }
    },
    **dict.fromkeys((408, 429, 503, 504), _RETRY_AFTER),
}
_ABOUT_ALL: Final = (
    "State that many LLM agent processes share through Redis or Valkey.\n\n"
    "What changes state may carry `traceparent`, `baggage`, `X-Correlation-Id`, `X-Causation-Id` "
    "and `X-Actor`: they go into the change log, the events and the hooks. Every error is a "
    "problem document, 405 and 404 of paths that are not here too. HEAD is there wherever GET is."
)
_HEADERS: Final = {
    "If-Match": 'The revision that it must have, as an entity tag: "1732374145123-0"; * for any.',
    "If-None-Match": "For reads a revision that need not be sent again; for writes *: only if "
    "there is no value.",
    "Idempotency-Key": "The request again with the same key is answered as the first was, and "
    "changes nothing.",
    "LLMSpell-Lease": "The `handle` of a lease: the write is refused once the lease is over.",
    "Last-Event-ID": "Where the stream is to go on.",
}


def openapi_document(registries: Sequence[Registry], version: str) -> dict[str, Any]:
    """Return the document of all routes."""
    endpoints = [one for registry in registries for one in registry if not one.socket]
    shapes = {shape for one in endpoints for shape in _shapes(one)}
    _, components = msgspec.json.schema_components(
        sorted(shapes, key=lambda shape: shape.__name__), ref_template=_REF
    )
    _check_names(components)
    tag(components, shapes)
    components |= TAGGED
    components["Problem"] = _PROBLEM_SCHEMA
    components["Value"] = _VALUE_SCHEMA
    paths: dict[str, dict[str, Any]] = {}
    for one in endpoints:
        paths.setdefault(one.path, {})[one.method.lower()] = _operation(one)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "llmspell_dist sidecar",
            "version": version,
            "description": _ABOUT_ALL,
        },
        "tags": [{"name": one.tag, "description": one.about} for one in registries],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"bearer": []}],
    }


def _check_names(components: dict[str, Any]) -> None:
    """Refuse two shapes of one name: msgspec would name them by their modules."""
    twice = sorted(name for name in components if "." in name)
    if twice:
        raise ValueError(f"shapes of the same name: {', '.join(twice)}")


def _shapes(one: Endpoint) -> Iterable[type]:
    return [shape for shape in (one.body, one.returns) if shape is not None and shape is not VALUE]


def _operation(one: Endpoint) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": one.name,
        "tags": [one.tag],
        "summary": one.summary,
        "description": _described(one),
        "parameters": [*_path_parameters(one), *_query_parameters(one), *_headers(one)],
        "responses": _responses(one),
    }
    if one.public:
        operation["security"] = []
    if one.body is not None:
        schema = _schema(one.body)
        content = {media: {"schema": schema} for media in (JSON, MESSAGEPACK)}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _described(one: Endpoint) -> str:
    rights = [f"`{need.verb}` on `{need.target}`" for need in one.needs]
    if one.asks:
        rights.append(f"{_listed([f'`{verb}`' for verb in one.asks])} on what the request names")
    needed = f"Needs {' and '.join(rights)}." if rights else ""
    return "\n\n".join(part for part in (one.description, needed) if part)


def _listed(words: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)


def _path_parameters(one: Endpoint) -> list[dict[str, Any]]:
    names = [part[1:-1] for part in one.path.split("/") if part.startswith("{")]
    schema = {"type": "string", "minLength": 1}
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": schema | ({"examples": [_EXAMPLES[name]]} if name in _EXAMPLES else {}),
            "description": _ABOUT.get(name, ""),
        }
        for name in names
    ]


def _query_parameters(one: Endpoint) -> list[dict[str, Any]]:
    if one.query is None:
        return []
    (reference,), components = msgspec.json.schema_components([one.query], ref_template=_REF)
    shape = components[reference["$ref"].rpartition("/")[2]]
    required = set(shape.get("required", ()))
    found = []
    for name, schema in shape["properties"].items():
        parameter = {"name": name, "in": "query", "required": name in required}
        described = dict(_without_null(schema))
        text = described.pop("description", None)
        if text:
            parameter["description"] = text
        found.append(parameter | {"schema": described})
    return found


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a parameter: it is not there, or it is text, but never null."""
    schema = {name: part for name, part in schema.items() if (name, part) != ("default", None)}
    choices = [part for part in schema.get("anyOf", ()) if part != {"type": "null"}]
    if len(choices) == 1:
        return {**{name: part for name, part in schema.items() if name != "anyOf"}, **choices[0]}
    if choices:
        return {**schema, "anyOf": choices}
    return schema


def _headers(one: Endpoint) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "header",
            "required": False,
            "description": _HEADERS.get(name, ""),
            "schema": {"type": "string"},
        }
        for name in one.headers
    ]


def _schema(shape: type) -> dict[str, Any]:
    return {"$ref": _REF.format(name="Value" if shape is VALUE else shape.__name__)}


def _responses(one: Endpoint) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    if one.streams is not None:
        content = {one.streams: {"schema": {"type": "string"}}}
        text = "Server-sent events: `data` is one JSON document; `event: problem` ends the stream."
        responses["200"] = {"description": text, "content": content}
    elif one.returns is None and not one.public:
        responses["204"] = {"description": "Done."}
    elif one.returns is None:
        responses["200"] = {"description": "Text.", "content": {one.media: {"schema": {}}}}
    else:
        schema = _schema(one.returns)
        content = {media: {"schema": schema} for media in (JSON, MESSAGEPACK)}
        responses["200"] = {"description": "Done.", "content": content}
        if not _CONDITIONS.isdisjoint(one.headers):
            responses["200"]["headers"] = _ETAG
    for status, text in one.statuses.items():
        problem = status >= 400 and not one.public
        answer: dict[str, Any] = {"description": text}
        if problem:
            answer["content"] = _PROBLEM_CONTENT
        elif one.public:
            answer["content"] = responses["200"]["content"]
        responses[str(status)] = answer
    for status, errors in sorted(_errors(one).items()):
        if str(status) not in responses:
            codes = ", ".join(dict.fromkeys(f"`{error.code}`" for error in errors))
            responses[str(status)] = {"description": codes, "content": _PROBLEM_CONTENT}
            if status in _ANSWER_HEADERS:
                responses[str(status)]["headers"] = _ANSWER_HEADERS[status]
    return responses


def _verbs(one: Endpoint) -> set[Verb]:
    return {*one.asks, *(need.verb for need in one.needs)}


def _errors(one: Endpoint) -> dict[int, list[type[SpellError]]]:
    kinds: list[type[SpellError]] = [*one.errors]
    if not one.public:
        kinds += [*_EVERYWHERE, *_PRIVATE]
    kinds += _of_writing(one)
    if 412 in one.statuses:
        kinds = [kind for kind in kinds if kind is not ConflictError]  # it comes as that
    if not _CONDITIONS.isdisjoint(one.headers):
        kinds += [own.PreconditionRequiredError]
    if one.streams is not None:
        kinds += [own.DrainingError]
    kinds += _of_reading(one)
    found: dict[int, list[type[SpellError]]] = {}
    for kind in dict.fromkeys(kinds):
        found.setdefault(status_of(kind), []).append(kind)
    return found


def _of_writing(one: Endpoint) -> list[type[SpellError]]:
    """Return what can stand in the way of a change."""
    kinds: list[type[SpellError]] = []
    if "LLMSpell-Lease" in one.headers or not _CHANGES.isdisjoint(_verbs(one)):
        kinds += [LeaseRequiredError, OperationCancelledError, HookError, StoreFullError]
    if "LLMSpell-Lease" in one.headers:
        kinds += [StaleFencingTokenError]
    if "Idempotency-Key" in one.headers:
        kinds += [own.IdempotencyConflictError, own.IdempotencyPendingError]
    return kinds


def _of_reading(one: Endpoint) -> list[type[SpellError]]:
    """Return what can be wrong with a request's path, query and body."""
    kinds: list[type[SpellError]] = []
    if "{" in one.path:
        kinds += [own.RouteNotFoundError, own.PathTooLongError]
    if one.body is not None:
        kinds += _WITH_BODY
    elif one.method not in {"GET", "DELETE"} or "Idempotency-Key" in one.headers:
        kinds += [own.BodyError]
    if one.query is not None:
        kinds += [InvalidArgumentError]
    return kinds
