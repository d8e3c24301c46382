"""Events, durable subscriptions and dead letters, as the routes take and give them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from msgspec import Meta, Struct, structs

from llmspell_dist.events import DeadLetter, Event, SubscriptionInfo
from llmspell_dist.events.pulling import Delivery
from llmspell_dist.sidecar.routes.shapes import Seconds

__all__ = [
    "DeadLetterDocument",
    "DeliveryDocument",
    "EventBody",
    "EventDocument",
    "SubscriptionDocument",
    "delivery_document",
    "event_document",
    "event_of",
    "letter_document",
    "subscription_document",
]


class EventBody(Struct, frozen=True, forbid_unknown_fields=True):
    """An event to publish; what is not given is filled in, causes from the request's headers."""

    type: Annotated[str, Meta(min_length=1)]
    data: Any = None
    id: str | None = None
    time: Annotated[datetime, Meta(tz=True)] | None = None
    source: str | None = None
    target: str | None = None
    tags: list[str] = []
    priority: Annotated[int, Meta(ge=-100, le=100)] = 0
    ttl: Seconds | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    traceparent: str | None = None
    language: str = "unknown"
    sequence: Annotated[int, Meta(ge=1)] | None = None
    schema_version: str | None = None


def event_of(body: EventBody) -> Event:
    """Return the event that a body says."""
    given = {name: value for name, value in structs.asdict(body).items() if value is not None}
    given["tags"] = tuple(body.tags)
    return Event(given.pop("type"), given.pop("data", None), **given)


class EventDocument(Struct, frozen=True):
    """An event."""

    id: str
    type: str
    data: Any
    time: datetime
    sequence: int
    language: str
    correlation_id: str | None
    causation_id: str | None
    traceparent: str | None
    source: str | None
    target: str | None
    tags: list[str]
    priority: int
    ttl: float | None
    schema_version: str


def event_document(event: Event) -> EventDocument:
    """Return all of an event."""
    return EventDocument(
        id=event.id,
        type=event.type,
        data=event.data,
        time=event.time,
        sequence=event.sequence,
        language=event.language,
        correlation_id=event.correlation_id,
        causation_id=event.causation_id,
        traceparent=event.traceparent,
        source=event.source,
        target=event.target,
        tags=list(event.tags),
        priority=event.priority,
        ttl=event.ttl,
        schema_version=event.schema_version,
    )


class DeliveryDocument(Struct, frozen=True):
    """An event that was handed out: whoever has it answers with the receipt."""

    receipt: str
    deliveries: int
    event: EventDocument


def delivery_document(one: Delivery) -> DeliveryDocument:
    """Return a delivery."""
    return DeliveryDocument(one.receipt, one.deliveries, event_document(one.event))


class SubscriptionDocument(Struct, frozen=True):
    """A durable subscription as it stands."""

    name: str
    pattern: str
    capacity: int
    overflow: str
    lag: int
    pending: int
    holding: int
    dead: int
    dropped: int


def subscription_document(one: SubscriptionInfo) -> SubscriptionDocument:
    """Return a durable subscription with what waits in it."""
    return SubscriptionDocument(
        name=one.name,
        pattern=one.pattern,
        capacity=one.capacity,
        overflow=one.overflow,
        lag=one.lag,
        pending=one.pending,
        holding=one.holding,
        dead=one.dead,
        dropped=one.dropped,
    )


class DeadLetterDocument(Struct, frozen=True):
    """An event that could not be handled; `raw` has the bytes, also of what is no event."""

    id: str
    subscription: str
    event: EventDocument | None
    reason: str
    error: str
    deliveries: int
    consumer: str
    buried_at: datetime
    raw: bytes


def letter_document(one: DeadLetter) -> DeadLetterDocument:
    """Return a dead letter."""
    return DeadLetterDocument(
        id=one.id,
        subscription=one.subscription,
        event=None if one.event is None else event_document(one.event),
        reason=one.reason,
        error=one.error,
        deliveries=one.deliveries,
        consumer=one.consumer,
        buried_at=one.buried_at,
        raw=one.raw,
    )
