"""An event: something that happened, said once, for whoever wants to know."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from math import isfinite
from typing import Any, Final

from llmspell_dist.context import MAX_BYTES, CommitContext, get_context
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.ids import new_id
from llmspell_dist.patterns import Pattern, check_type

__all__ = ["PRIORITIES", "SCHEMA_VERSION", "Event", "check_priority"]

SCHEMA_VERSION: Final = "1.0"
PRIORITIES: Final = (-100, 100)
MAX_TAGS: Final = 64
MAX_TTL_S: Final = 10 * 366 * 86_400
_MAX_SEQUENCE: Final = 2**63 - 1
_put: Final = object.__setattr__

_MOST_KNOWN: Final = 4096
_known_types: set[object] = set()
"""Types that were checked already; a program has few."""

_sequence = count(1)


def _restart() -> None:
    """Begin at 1 again in a forked child: it is another process."""
    global _sequence
    _sequence = count(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_restart)


def _next_sequence() -> int:
    return next(_sequence)


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Event:
    """One event; what is not given is filled in here, and the causes from the context in force.

    Every argument is checked: `InvalidArgumentError` names what is wrong. `data` is any value that
    the state can hold; whether it can be encoded is found when the event is published.
    """

    type: str
    """What happened: segments joined by dots, as ``state.agent.changed``."""
    data: Any = None
    id: str = field(default_factory=new_id, kw_only=True)
    language: str = field(default="python", kw_only=True)
    """The language of the program that published it."""
    time: datetime = field(default_factory=_now, kw_only=True)
    """When it was made, by its publisher's clock, in UTC."""
    sequence: int = field(default_factory=_next_sequence, kw_only=True)
    """Its number among the events of its process, from 1."""
    correlation_id: str | None = field(default=None, kw_only=True)
    """What it belongs to; by default that of the context."""
    causation_id: str | None = field(default=None, kw_only=True)
    """What caused it; by default that of the context."""
    traceparent: str | None = field(default=None, kw_only=True)
    """The W3C trace context; by default that of the context."""
    source: str | None = field(default=None, kw_only=True)
    """Who published it; by default the actor of the context."""
    target: str | None = field(default=None, kw_only=True)
    """Whom it is for; nothing is filtered by it."""
    tags: tuple[str, ...] = field(default=(), kw_only=True)
    priority: int = field(default=0, kw_only=True)
    """-100 to 100, lower first: see `DurableSubscription` for what it changes."""
    ttl: float | None = field(default=None, kw_only=True)
    """Seconds after `time` for which it is worth delivering; None: always."""
    schema_version: str = field(default=SCHEMA_VERSION, kw_only=True)

    def __post_init__(self) -> None:
        if type(self.type) is not str or self.type not in _known_types:
            _know(self.type)
        _check_text("id", self.id)
        if self.language != "python":
            _check_text("language", self.language)
        if self.schema_version != SCHEMA_VERSION:
            _check_text("schema_version", self.schema_version)
        said = get_context()
        if said is not None:
            _fill(self, said)
        _check_causes(self)
        if type(self.time) is not datetime or self.time.tzinfo is not UTC:
            _check_time(self)
        if self.tags != () or type(self.tags) is not tuple:
            _put(self, "tags", _checked_tags(self.tags))
        if type(self.priority) is not int or self.priority != 0:
            check_priority(self.priority)
        if self.ttl is not None:
            _put(self, "ttl", checked_ttl(self.ttl))
        if type(self.sequence) is not int or not 1 <= self.sequence <= _MAX_SEQUENCE:
            raise InvalidArgumentError("sequence", self.sequence, "must be an int of at least 1")

    def is_expired(self, now: datetime | None = None) -> bool:
        """Return whether its time to live is over, at `now` or by this machine's clock."""
        if self.ttl is None:
            return False
        return (now or datetime.now(UTC)) - self.time >= timedelta(seconds=self.ttl)

    def matches(self, pattern: str | Pattern) -> bool:
        """Return whether a pattern means its type: ``*``, ``state.*``, ``state.*.changed``."""
        wanted = pattern if isinstance(pattern, Pattern) else Pattern(pattern)
        return wanted.matches(self.type)

    def to_cloudevent(self) -> dict[str, Any]:
        """Return it as a CloudEvents 1.0 JSON object (https://cloudevents.io)."""
        from llmspell_dist.events import cloudevents  # noqa: PLC0415 - it needs this module

        return cloudevents.to_cloudevent(self)

    @classmethod
    def from_cloudevent(cls, said: dict[str, Any] | str | bytes) -> Event:
        """Return the event that a CloudEvents 1.0 JSON object says; see `to_cloudevent`."""
        from llmspell_dist.events import cloudevents  # noqa: PLC0415 - it needs this module

        return cloudevents.from_cloudevent(said)


def _know(event_type: object) -> None:
    known = check_type(event_type)
    if len(_known_types) < _MOST_KNOWN:
        _known_types.add(known)


def _fill(event: Event, said: CommitContext) -> None:
    if event.correlation_id is None:
        _put(event, "correlation_id", said.correlation_id)
    if event.causation_id is None:
        _put(event, "causation_id", said.causation_id)
    if event.traceparent is None:
        _put(event, "traceparent", said.traceparent)
    if event.source is None:
        _put(event, "source", said.actor)


def _check_causes(event: Event) -> None:
    if event.correlation_id is not None:
        _check_text("correlation_id", event.correlation_id)
    if event.causation_id is not None:
        _check_text("causation_id", event.causation_id)
    if event.traceparent is not None:
        _check_text("traceparent", event.traceparent)
    if event.source is not None:
        _check_text("source", event.source)
    if event.target is not None:
        _check_text("target", event.target)


def _check_text(name: str, value: object) -> None:
    # ASCII needs no encoding to be counted, and nearly all is that.
    if type(value) is str and value.isascii() and 0 < len(value) <= MAX_BYTES:
        return
    rule = f"must be text of 1 to {MAX_BYTES} bytes"
    if type(value) is not str:
        raise InvalidArgumentError(name, value, rule)
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        rule = "must be valid Unicode (no lone surrogates)"
        raise InvalidArgumentError(name, value, rule) from None
    if not 0 < size <= MAX_BYTES:
        raise InvalidArgumentError(name, value, rule)


def _check_time(event: Event) -> None:
    time = event.time
    if isinstance(time, datetime) and time.tzinfo is UTC:
        return
    if not isinstance(time, datetime) or time.utcoffset() is None:
        raise InvalidArgumentError("time", time, "must be a datetime with a time zone")
    _put(event, "time", time.astimezone(UTC))


def _checked_tags(tags: Iterable[str]) -> tuple[str, ...]:
    if isinstance(tags, (str, bytes)) or not isinstance(tags, Iterable):
        raise InvalidArgumentError("tags", tags, "must be several texts, not one")
    found = tuple(tags)
    if len(found) > MAX_TAGS:
        raise InvalidArgumentError("tags", len(found), f"must be at most {MAX_TAGS}")
    for tag in found:
        _check_text("tags", tag)
    return found


def check_priority(value: object, argument: str = "priority") -> int:
    """Return a priority; anything but an int from -100 to 100 is an `InvalidArgumentError`."""
    low, high = PRIORITIES
    if type(value) is not int or not low <= value <= high:
        raise InvalidArgumentError(argument, value, f"must be an int from {low} to {high}")
    return value


def checked_ttl(value: object) -> float:
    """Return a time to live in seconds; anything else is an `InvalidArgumentError`."""
    seconds = value.total_seconds() if type(value) is timedelta else value
    if type(seconds) not in (int, float) or not (
        isfinite(seconds) and 0 < seconds <= MAX_TTL_S  # type: ignore[arg-type, operator]
    ):
        rule = f"must be more than 0 and at most {MAX_TTL_S:,} seconds, or a timedelta"
        raise InvalidArgumentError("ttl", value, rule)
    return float(seconds)  # type: ignore[arg-type]
