"""Events, queues and dead letters of a sidecar, back to what the library gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmspell_dist.events import DeadLetter, Event, SubscriptionInfo

__all__ = ["document_of", "event_of", "info_of", "letter_of"]

Document = Mapping[str, Any]


def document_of(event: Event) -> dict[str, Any]:
    """Return an event as a sidecar takes it."""
    document = {
        "type": event.type,
        "data": event.data,
        "id": event.id,
        "time": event.time,
        "tags": list(event.tags),
        "priority": event.priority,
        "language": event.language,
        "sequence": event.sequence,
        "schema_version": event.schema_version,
        "source": event.source,
        "target": event.target,
        "ttl": event.ttl,
        "correlation_id": event.correlation_id,
        "causation_id": event.causation_id,
        "traceparent": event.traceparent,
    }
    return {name: value for name, value in document.items() if value is not None}


def event_of(document: Document) -> Event:
    """Return an event that a sidecar gave, as it was published."""
    # Not by the constructor: it would fill in causes from the context that is in force here.
    event = object.__new__(Event)
    for name in Event.__slots__:
        object.__setattr__(event, name, document[name])
    object.__setattr__(event, "tags", tuple(document["tags"]))
    return event


def info_of(document: Document) -> SubscriptionInfo:
    """Return a durable subscription as it stands."""
    return SubscriptionInfo(**document)


def letter_of(document: Document) -> DeadLetter:
    """Return a dead letter."""
    event = document["event"]
    return DeadLetter(**{**document, "event": None if event is None else event_of(event)})
