"""Events, queues and dead letters as JSON documents and table rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.cli.records import shorten_cell
from llmspell_dist.jsonable import to_json

if TYPE_CHECKING:
    from llmspell_dist.cli.output import Output
    from llmspell_dist.events import DeadLetter, Event, SubscriptionInfo

__all__ = [
    "EVENT_COLUMNS",
    "LETTER_COLUMNS",
    "QUEUE_COLUMNS",
    "event_document",
    "event_row",
    "letter_document",
    "letter_row",
    "queue_document",
    "queue_row",
]

EVENT_COLUMNS: Final = ("TIME", "TYPE", "SOURCE", "CORRELATION", "ID", "DATA")
QUEUE_COLUMNS: Final = (
    *("NAME", "PATTERN", "LAG", "PENDING", "HOLDING", "DEAD", "DROPPED"),
    *("CAPACITY", "OVERFLOW"),
)
LETTER_COLUMNS: Final = (
    *("ID", "BURIED", "REASON", "DELIVERIES", "CONSUMER", "ERROR"),
    *("EVENT ID", "EVENT"),
)
_BYTES_SHOWN: Final = 32


def event_document(event: Event) -> dict[str, Any]:
    """Return all of an event."""
    return {
        "id": event.id,
        "type": event.type,
        "data": to_json(event.data),
        "time": event.time.isoformat(),
        "sequence": event.sequence,
        "language": event.language,
        "correlation_id": event.correlation_id,
        "causation_id": event.causation_id,
        "traceparent": event.traceparent,
        "source": event.source,
        "target": event.target,
        "tags": list(event.tags),
        "priority": event.priority,
        "ttl_s": event.ttl,
        "schema_version": event.schema_version,
    }


def event_row(event: Event, output: Output) -> tuple[str, ...]:
    """Return an event as a line."""
    return (
        event.time.isoformat(timespec="milliseconds"),
        event.type,
        event.source or "-",
        event.correlation_id or "-",
        event.id,
        shorten_cell(output.dumps(to_json(event.data)), output),
    )


def queue_document(queue: SubscriptionInfo) -> dict[str, Any]:
    """Return a durable subscription as it stands."""
    return {
        "name": queue.name,
        "pattern": queue.pattern,
        "lag": queue.lag,
        "pending": queue.pending,
        "holding": queue.holding,
        "dead": queue.dead,
        "dropped": queue.dropped,
        "capacity": queue.capacity,
        "overflow": queue.overflow,
    }


def queue_row(queue: SubscriptionInfo) -> tuple[str, ...]:
    """Return a durable subscription as a line."""
    return tuple(map(str, queue_document(queue).values()))


def letter_document(letter: DeadLetter) -> dict[str, Any]:
    """Return a dead letter; of bytes that are no event all of them, in hexadecimal."""
    event = letter.event
    return {
        "id": letter.id,
        "buried": letter.buried_at.isoformat(),
        "reason": letter.reason,
        "error": letter.error,
        "deliveries": letter.deliveries,
        "consumer": letter.consumer,
        "event": None if event is None else event_document(event),
        "size": len(letter.raw),
        "bytes": letter.raw.hex() if event is None else None,
    }


def letter_row(letter: DeadLetter, output: Output) -> tuple[str, ...]:
    """Return a dead letter as a line; of bytes that are no event the first ones."""
    event = letter.event
    if event is None:
        cut = "…" if len(letter.raw) > _BYTES_SHOWN else ""
        shown = f"{len(letter.raw)} bytes: {letter.raw[:_BYTES_SHOWN].hex()}{cut}"
    else:
        shown = f"{event.type} {shorten_cell(output.dumps(to_json(event.data)), output)}"
    return (
        letter.id,
        letter.buried_at.isoformat(timespec="milliseconds"),
        letter.reason,
        str(letter.deliveries),
        letter.consumer or "-",
        shorten_cell(letter.error or "-", output),
        "-" if event is None else event.id,
        shown,
    )
