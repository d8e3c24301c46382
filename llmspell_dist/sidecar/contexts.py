"""The context in which a request changes state: who, on whose behalf, in which trace."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from llmspell_dist.context import context
from llmspell_dist.correlation.context import correlation
from llmspell_dist.correlation.headers import from_headers
from llmspell_dist.errors import InvalidArgumentError

if TYPE_CHECKING:
    from llmspell_dist.sidecar.call import Call

__all__ = ["CONTEXT_HEADERS", "context_of"]

CONTEXT_HEADERS: Final = (
    b"traceparent",
    b"tracestate",
    b"x-correlation-id",
    b"x-parent-id",
    b"x-root-id",
    b"x-causation-id",
    b"baggage",
)
ACTOR: Final = b"x-actor"


def context_of(call: Call) -> AbstractContextManager[Any]:
    """Return the context manager under which the handler runs.

    Who is authenticated is the actor, and a name that the client gives stands behind it. Where
    nobody has to say who they are, that name is all there is.
    """
    headers = call.headers
    said = headers.get(ACTOR)
    name = None if said is None else unquote(said.decode("latin-1"))
    if name is not None and not name.isprintable():
        raise InvalidArgumentError("x-actor", name, "must be printable")
    actor = name
    if not call.services.access.is_open:
        who = "anonymous" if call.principal.kind == "anonymous" else call.principal.name
        actor = who if name is None else f"{who}/{name}"
    if any(name in headers for name in CONTEXT_HEADERS):
        found = from_headers([(name, headers[name]) for name in CONTEXT_HEADERS if name in headers])
        if b"traceparent" not in headers:
            found = replace(found, traceparent=None)  # the log says what the request said
        return correlation(found, actor=actor)
    return context(actor=actor)
