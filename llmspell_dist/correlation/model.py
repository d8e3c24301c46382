"""What a timeline is made of: entries, their order and their causes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final, Protocol

from llmspell_dist.errors import InvalidArgumentError

__all__ = [
    "CausalChain",
    "EntryKind",
    "EventReader",
    "Gap",
    "TimelineConfig",
    "TimelineEntry",
    "TimelineStatistics",
    "to_us",
]

MAX_ENTRIES: Final = 10_000
MAX_DEPTH: Final = 10_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def to_us(moment: datetime) -> int:
    """Turn an aware datetime into microseconds since the epoch, as entries have them."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


class EntryKind(StrEnum):
    """What an entry of a timeline is."""

    EVENT = "event"
    CHANGE = "change"
    """A commit: one entry, however many keys it changed."""
    HOOK = "hook"
    LEASE = "lease"
    UNKNOWN = "unknown"
    """Something that this release cannot read: shown, with its bytes as `TimelineEntry.detail`."""


class EventReader(Protocol):
    """Decodes what an event's entry holds, when somebody asks for it."""

    def event(self, raw: bytes) -> Any:
        """Return the event of an envelope."""

    def data(self, raw: bytes) -> Any:
        """Return an event's data."""


_UNREAD: Final = object()


class TimelineEntry:
    """One thing that happened in a correlation.

    `causes` and `effects` are positions in the timeline, in order; `depth` is the number of causes
    on the longest way back to an entry without one.
    """

    __slots__ = (
        "_data",
        "_detail",
        "_raw_data",
        "_reader",
        "after",
        "causation_id",
        "causes",
        "depth",
        "effects",
        "id",
        "kind",
        "language",
        "position",
        "source",
        "tags",
        "target",
        "time_us",
        "trimmed",
        "type",
    )

    def __init__(  # noqa: PLR0917 - ten thousand are made at once: by name it takes half as long again
        self,
        kind: EntryKind,
        entry_id: str,
        entry_type: str,
        time_us: int,
        causation_id: str | None,
        source: str | None,
        target: str | None,
        language: str | None,
        tags: Any,
        detail: Any,
        reader: EventReader | None = None,
        raw_data: bytes = b"",
        after: bytes | None = None,
    ) -> None:
        self.kind = kind
        self.id = entry_id
        """The event's id, the commit's revision, the hook run's id."""
        self.type = entry_type
        """The event's type; ``state.set``, ``hook.<point>``, ``lease.acquired``."""
        self.time_us = time_us
        """Microseconds since the epoch: server time, but for a hook run, whose process says it."""
        self.causation_id = causation_id
        """What it says caused it, also if that is no entry of this timeline."""
        self.source = source
        """Who did it: an event's source, a commit's actor, a hook's name, a lease's owner."""
        self.target = target
        """Whom or what it is about: an event's target, the scope of a change or lease."""
        self.after = after
        """Events and leases: the revision of the last commit before it, packed."""
        self.language = language
        self.tags = tags
        self.trimmed = False
        """Whether the log no longer has the commit: that it was is known, its details are gone."""
        self.position = 0
        self.causes: tuple[int, ...] = ()
        self.effects: tuple[int, ...] = ()
        self.depth = 0
        self._detail = detail
        self._reader = reader
        self._raw_data = raw_data
        self._data: Any = _UNREAD

    @property
    def time(self) -> datetime:
        """When it happened, aware, UTC."""
        return _EPOCH + timedelta(microseconds=self.time_us)

    @property
    def detail(self) -> Any:
        """All of it: `Event`, `LogEntry`, `HookRun`, `LeaseEvent`; None: trimmed; bytes: unknown.

        Decoded when it is first asked for; raises what decoding raises.
        """
        reader = self._reader
        if reader is not None and type(self._detail) is bytes:
            self._detail = reader.event(self._detail)
        return self._detail

    @property
    def raw(self) -> bytes | None:
        """The bytes of a detail that is not decoded yet, or cannot be; else None."""
        return self._detail if type(self._detail) is bytes else None

    @property
    def data(self) -> Any:
        """An event's data, decoded when first asked for; None for anything but an event."""
        if self._data is _UNREAD:
            reader = self._reader
            self._data = None if reader is None else reader.data(self._raw_data)
        return self._data

    def __repr__(self) -> str:
        return f"<{self.kind} {self.type} {self.id} at {self.position}, depth {self.depth}>"


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineConfig:
    """How a timeline is put together."""

    max_entries: int = MAX_ENTRIES
    """The first so many are read; `Timeline.truncated` says whether there are more."""
    concurrency_window: timedelta = timedelta(milliseconds=100)
    """Entries closer than this, of which none caused the other, count as concurrent."""
    min_strength: float = 0.5
    """Weaker links are left out."""
    max_depth: int = 100
    """Chains are followed back so far."""
    auto_link: bool = False
    """Link entries that say no cause by their distance in time; see `auto_links`."""

    def __post_init__(self) -> None:
        _check_int("max_entries", self.max_entries, 1, MAX_ENTRIES)
        _check_int("max_depth", self.max_depth, 1, MAX_DEPTH)
        window = self.concurrency_window
        if not isinstance(window, timedelta) or window < timedelta(0):
            rule = "must be a timedelta of at least 0"
            raise InvalidArgumentError("concurrency_window", window, rule)
        strength = self.min_strength
        if type(strength) not in (int, float) or not 0 <= strength <= 1:
            raise InvalidArgumentError("min_strength", strength, "must be a number from 0 to 1")
        if type(self.auto_link) is not bool:
            raise InvalidArgumentError("auto_link", self.auto_link, "must be a bool")


def _check_int(name: str, value: object, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise InvalidArgumentError(name, value, f"must be an int from {least} to {most:,}")


@dataclass(frozen=True, slots=True)
class CausalChain:
    """One way from a root cause to an effect that caused nothing further."""

    positions: tuple[int, ...]
    """Cause before effect."""
    duration: timedelta
    strength: float
    """The product of its links' strengths; a causation id counts as 1."""
    complete: bool
    """Whether it goes back to a root; False: it was followed `max_depth` far."""


@dataclass(frozen=True, slots=True)
class Gap:
    """A time in which nothing happened."""

    after: int
    """Position of the entry before it."""
    duration: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineStatistics:
    """A timeline in numbers."""

    entries: int
    by_kind: Mapping[str, int]
    by_type: Mapping[str, int]
    by_source: Mapping[str, int]
    started: datetime | None
    ended: datetime | None
    duration: timedelta
    average_gap: timedelta
    longest_gaps: tuple[Gap, ...]
    """At most five, the longest first."""
    max_depth: int
    roots: int
    leaves: int
    links_by_relationship: Mapping[str, int]
    unresolved: int
    """Entries whose causation id is no entry of this timeline."""
    trimmed: int
    unreadable: int
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Links that count for nothing, by why: ``weak``, ``dangling``, ``circular``, ``itself``; and
    ``duplicate`` entries."""
