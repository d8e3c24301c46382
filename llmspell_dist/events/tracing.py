"""The trace of an event: from who publishes it, in the event, to who handles it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llmspell_dist.context import current_context
from llmspell_dist.events.model import Event

if TYPE_CHECKING:
    from llmspell_dist.observation import Observer, Span

__all__ = ["processing", "publishing", "traced", "traced_all"]


def publishing(*events: Event) -> dict[str, Any]:
    """Return what a span says about events that are published."""
    said: dict[str, Any] = {
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
    }
    if len(events) == 1 and isinstance(events[0], Event):
        said["messaging.destination.name"] = events[0].type
        said["messaging.message.id"] = events[0].id
    else:
        said["messaging.batch.message_count"] = len(events)
    return said


def traced(event: Event, observer: Observer) -> Event:
    """Return an event that carries the active span, unless its publisher gave it another one."""
    if event.traceparent is not None and event.traceparent != current_context().traceparent:
        return event
    active = observer.traceparent()
    return event if active is None else replace(event, traceparent=active)


def traced_all(events: list[Event], observer: Observer) -> Iterator[Event]:
    """Yield events that carry the active span; what is no event is passed on, to be refused."""
    for event in events:
        yield traced(event, observer) if isinstance(event, Event) else event


def processing(event: Event, observer: Observer, name: str) -> AbstractContextManager[Span]:
    """Record that an event is handled, as a child of the span that published it."""
    said = {
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": event.type,
        "messaging.message.id": event.id,
        "messaging.consumer.group.name": name,
    }
    return observer.span("event.process", "consumer", said, parent=event.traceparent, covers=True)
