"""Correlation contexts as headers of a message or an HTTP request, out and in.

======================= ============================================================================
``traceparent``         W3C Trace Context; foreign garbage in it is ignored, as that demands
``tracestate``          passed on
``x-correlation-id``    the correlation; without it the trace id serves
``x-parent-id``         the correlation above it
``x-root-id``           the correlation that all began with, if it is another one
``x-causation-id``      the event or commit that caused the message
``baggage``             W3C Baggage: metadata and tags, if they are small
======================= ============================================================================

Ids are percent-encoded where a header's value cannot hold them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final
from urllib.parse import quote, unquote

from llmspell_dist.context import check_text
from llmspell_dist.correlation.context import MAX_METADATA, CorrelationContext
from llmspell_dist.correlation.traceparent import (
    active_traceparent,
    combine_tracestate,
    new_traceparent,
    parse_traceparent,
)
from llmspell_dist.errors import InvalidArgumentError

__all__ = ["from_headers", "to_headers"]

CORRELATION_ID: Final = "x-correlation-id"
PARENT_ID: Final = "x-parent-id"
ROOT_ID: Final = "x-root-id"
CAUSATION_ID: Final = "x-causation-id"
_OWN: Final = (CORRELATION_ID, PARENT_ID, ROOT_ID, CAUSATION_ID)
_TAGS: Final = "llmspell.tags"
_MAX_BAGGAGE: Final = 4096
_SAFE: Final = "!#$&'()*+./:;<=>?@[]^_`{|}~"
_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", re.ASCII)

Headers = Mapping[str, str] | Iterable[tuple[str | bytes, str | bytes]]


def to_headers(context: CorrelationContext, *, causation_id: str | None = None) -> dict[str, str]:
    """Return the headers that carry a context to another process.

    `causation_id` says what caused the message; by default what the context says. An active span
    of OpenTelemetry goes before the context's trace. Metadata over 4 KiB stays here.
    """
    own = context.trace
    trace = active_traceparent() or own
    headers = {CORRELATION_ID: quote(context.correlation_id, safe=_SAFE)}
    if trace is not None:
        headers["traceparent"] = str(trace)
        if context.tracestate is not None and own is not None and own.trace_id == trace.trace_id:
            headers["tracestate"] = context.tracestate  # of another trace it says nothing
    cause = causation_id if causation_id is not None else context.causation_id
    for name, value in ((PARENT_ID, context.parent_id), (CAUSATION_ID, cause)):
        if value is not None:
            headers[name] = quote(check_text(name, value), safe=_SAFE)
    if context.root_id != context.correlation_id:
        headers[ROOT_ID] = quote(context.root_id, safe=_SAFE)
    if baggage := _baggage(context):
        headers["baggage"] = baggage
    return headers


def from_headers(headers: Headers) -> CorrelationContext:
    """Return the context that a message came with; a new root if it came with none.

    Names are taken without regard to case. A foreign ``traceparent``, ``tracestate`` or ``baggage``
    that is malformed is ignored; an id of ours that is (empty, over 256 bytes, there twice) is an
    `InvalidArgumentError` that names the header. A message without a correlation keeps its cause,
    metadata and tags; parent and root mean nothing then.
    """
    found = _collected(headers)
    traces = found.get("traceparent", [])
    trace = parse_traceparent(traces[0]) if len(traces) == 1 else None
    ids = {name: _own_id(name, found[name]) for name in _OWN if name in found}
    correlation_id = ids.get(CORRELATION_ID) or (trace.trace_id if trace is not None else None)
    metadata, tags = _read_baggage(",".join(found.get("baggage", [])))
    if correlation_id is None:
        root = CorrelationContext.new_root(metadata=metadata, tags=tags)
        return replace(root, causation_id=ids.get(CAUSATION_ID))
    if ids.get(PARENT_ID) == correlation_id:
        raise InvalidArgumentError(PARENT_ID, ids[PARENT_ID], "must not be the correlation itself")
    return CorrelationContext(
        correlation_id=correlation_id,
        parent_id=ids.get(PARENT_ID),
        root_id=ids.get(ROOT_ID, correlation_id),
        metadata=metadata,
        tags=tags,
        traceparent=str(trace or active_traceparent() or new_traceparent()),
        # Without a valid traceparent it belongs to nothing.
        tracestate=combine_tracestate(found.get("tracestate", [])) if trace is not None else None,
        causation_id=ids.get(CAUSATION_ID),
    )


def _collected(headers: Headers) -> dict[str, list[str]]:
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    if not isinstance(pairs, Iterable) or isinstance(pairs, str | bytes):
        rule = "must be a mapping, or pairs of names and values"
        raise InvalidArgumentError("headers", headers, rule)
    found: dict[str, list[str]] = {}
    for name, value in pairs:
        found.setdefault(_text(name).lower(), []).append(_text(value))
    return found


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, str):
        return value
    raise InvalidArgumentError("headers", value, "must have names and values of text or bytes")


def _own_id(name: str, values: list[str]) -> str:
    if len(set(values)) > 1:
        raise InvalidArgumentError(name, values, "must be there once")
    try:
        return check_text(name, unquote(values[0].strip(" \t"), errors="strict"))
    except UnicodeDecodeError:
        rule = "must be percent-encoded UTF-8"
        raise InvalidArgumentError(name, values[0], rule) from None


# --- baggage --------------------------------------------------------------------------------------


def _baggage(context: CorrelationContext) -> str:
    """Return metadata and tags as W3C Baggage, nothing if they are too large for a header."""
    members = [
        f"{name}={quote(value, safe='')}"
        for name, value in context.metadata.items()
        if _TOKEN.fullmatch(name)
    ]
    if context.tags:
        tags = ",".join(quote(tag, safe="") for tag in sorted(context.tags))
        members.append(f"{_TAGS}={quote(tags, safe='')}")
    baggage = ",".join(members)
    return baggage if len(baggage) <= _MAX_BAGGAGE else ""


def _is_unicode(text: str) -> bool:
    """Return False for a surrogate: how servers hand out bytes that they cannot decode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_baggage(text: str) -> tuple[dict[str, str], frozenset[str]]:
    metadata: dict[str, str] = {}
    tags: frozenset[str] = frozenset()
    for member in text[: 2 * _MAX_BAGGAGE].split(","):
        name, equals, value = member.partition(";")[0].partition("=")
        name = name.strip(" \t")
        if not equals or not _TOKEN.fullmatch(name) or len(name) > 256 or not _is_unicode(value):
            continue
        said = unquote(value.strip(" \t"), errors="replace")
        if name == _TAGS:
            named = [unquote(tag, errors="replace") for tag in said.split(",")]
            tags = frozenset([tag for tag in named if 0 < len(tag.encode()) <= 256][:MAX_METADATA])
        elif len(metadata) < MAX_METADATA:
            metadata[name] = said
    return metadata, tags
