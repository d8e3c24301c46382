"""What is kept of a correlation beside its commits and events, as bytes: hook runs, links, leases.

An entry of the correlation's stream has the fields ``k``, its kind, and ``b``, its bytes; an event
or a lease also ``a``, the packed revision of the last commit before it, if there was one. Of the
kinds ``h``, ``l`` and ``x`` the bytes are a format version (1) and a MessagePack map; ``e`` is an
event's envelope (`llmspell_dist.events`).

===== ========= ====================================================================================
kind  is        map
===== ========= ====================================================================================
``h`` hook run  ``id point hook result duration_us time_us causation_id error``
``l`` link      ``from to relationship strength metadata``
``x`` lease     ``what scope name token owner mode causation_id actor reason``
===== ========= ====================================================================================

Readers take what they know of a map, so that later releases may add to it. The same thing may stand
there twice (a request that was sent again): readers keep one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import isfinite
from typing import Any, Final, TypeVar

import msgpack

from llmspell_dist.context import check_text
from llmspell_dist.errors import (
    CorruptRecordError,
    InvalidArgumentError,
    LimitError,
    UnsupportedFormatError,
)

__all__ = [
    "KIND_EVENT",
    "KIND_HOOK",
    "KIND_LEASE",
    "KIND_LINK",
    "EventLink",
    "EventRelationship",
    "HookRun",
    "LeaseEvent",
    "pack_hook_run",
    "pack_lease_event",
    "pack_link",
    "unpack_hook_run",
    "unpack_lease_event",
    "unpack_link",
]

T = TypeVar("T", "HookRun", "LeaseEvent")

FORMAT: Final = 1
KIND_EVENT, KIND_HOOK, KIND_LINK, KIND_LEASE = b"e", b"h", b"l", b"x"
_NUMBERS: Final = {"duration_us": int, "time_us": int, "token": int}
MAX_BYTES: Final = 64 * 1024
"""Most bytes of one hook run, link or lease event."""


class EventRelationship(StrEnum):
    """What one entry of a timeline (`from_id`) is to another one (`to_id`).

    The first of the two is always the one that came of the other: `from_id` was caused by, answers
    or follows `to_id`.
    """

    CAUSED_BY = "caused_by"
    PART_OF = "part_of"
    RELATED_TO = "related_to"
    RESPONSE_TO = "response_to"
    FOLLOWS_FROM = "follows_from"
    CONCURRENT_WITH = "concurrent_with"

    @property
    def causal(self) -> bool:
        """Whether `to_id` is a cause of `from_id`: depth, roots and chains follow these."""
        return self in _CAUSAL

    @classmethod
    def coerce(cls, value: object, argument: str = "relationship") -> EventRelationship:
        """Return the member of that value or name; else `InvalidArgumentError`."""
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            by_value = value.lower()
            for member in cls:
                if by_value in (member.value, member.value.replace("_", "")):
                    return member
        rule = f"must be one of {', '.join(member.value for member in cls)}"
        raise InvalidArgumentError(argument, value, rule)


_CAUSAL: Final = frozenset(
    {
        EventRelationship.CAUSED_BY,
        EventRelationship.RESPONSE_TO,
        EventRelationship.FOLLOWS_FROM,
    }
)


@dataclass(frozen=True, slots=True)
class EventLink:
    """One entry of a timeline and another one: stored once, with a direction."""

    from_id: str
    to_id: str
    relationship: EventRelationship
    strength: float = 0.8
    """From 0 (a guess) to 1 (known)."""
    metadata: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        check_text("from_id", self.from_id)
        check_text("to_id", self.to_id)
        if self.from_id == self.to_id:
            raise InvalidArgumentError("to_id", self.to_id, "must be another one than from_id")
        relationship = EventRelationship.coerce(self.relationship)
        object.__setattr__(self, "relationship", relationship)
        strength = self.strength
        if type(strength) not in (int, float) or not (isfinite(strength) and 0 <= strength <= 1):
            raise InvalidArgumentError("strength", strength, "must be a number from 0 to 1")
        if not isinstance(self.metadata, Mapping):
            raise InvalidArgumentError("metadata", self.metadata, "must be a mapping")


@dataclass(frozen=True, slots=True, kw_only=True)
class HookRun:
    """One run of a hook."""

    id: str
    point: str
    hook: str
    result: str
    duration_us: int = 0
    time_us: int | None = None
    """When it began, microseconds since the epoch, by the clock of the process that ran it."""
    causation_id: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseEvent:
    """A lease that was acquired, released, lost or broken."""

    what: str
    """``acquired``, ``released``, ``lost`` or ``broken``."""
    scope: str
    name: str
    token: int
    owner: str | None = None
    mode: str | None = None
    causation_id: str | None = None
    actor: str | None = None
    reason: str | None = None

    @property
    def id(self) -> str:
        """By what others name it as their cause: it is the same however often it is recorded."""
        return f"lease:{self.scope}:{self.name}:{self.token}:{self.what}"


def pack_hook_run(run: HookRun) -> bytes:
    """Return the bytes of a hook run; over 64 KiB is a `LimitError`."""
    return _pack(_said(run), "bytes of a hook run")


def unpack_hook_run(raw: bytes, place: str = "a hook run") -> HookRun:
    """Read a hook run; `CorruptRecordError` if it is damaged, `UnsupportedFormatError` if newer."""
    return _of(HookRun, _unpack(raw, place), place)


def pack_lease_event(event: LeaseEvent) -> bytes:
    """Return the bytes of a lease event."""
    return _pack(_said(event), "bytes of a lease event")


def unpack_lease_event(raw: bytes, place: str = "a lease event") -> LeaseEvent:
    """Read a lease event; `CorruptRecordError` if it is damaged."""
    return _of(LeaseEvent, _unpack(raw, place), place)


def pack_link(link: EventLink) -> bytes:
    """Return the bytes of a link; metadata must be what MessagePack knows."""
    said = {
        "from": link.from_id,
        "to": link.to_id,
        "relationship": link.relationship.value,
        "strength": link.strength,
        "metadata": dict(link.metadata),
    }
    return _pack(said, "bytes of a link")


def unpack_link(raw: bytes, place: str = "a link") -> EventLink:
    """Read a link; `CorruptRecordError` if it is damaged or links something with itself."""
    said = _unpack(raw, place)
    try:
        return EventLink(
            said["from"],
            said["to"],
            said["relationship"],
            said.get("strength", 0.8),
            said.get("metadata", {}),
        )
    except (KeyError, InvalidArgumentError) as error:
        raise CorruptRecordError("correlation", place, str(error)) from None


def _said(one: HookRun | LeaseEvent) -> dict[str, Any]:
    values = ((name, getattr(one, name)) for name in type(one).__slots__)
    return {name: value for name, value in values if value is not None}


def _pack(said: dict[str, Any], what: str) -> bytes:
    try:
        packed: bytes = bytes((FORMAT,)) + msgpack.packb(said)
    except (TypeError, ValueError, OverflowError) as error:
        rule = f"must be what MessagePack knows ({error})"
        raise InvalidArgumentError("metadata", said.get("metadata"), rule) from None
    if len(packed) > MAX_BYTES:
        raise LimitError(what, len(packed), MAX_BYTES)
    return packed


def _unpack(raw: bytes, place: str) -> dict[str, Any]:
    if raw[:1] != bytes((FORMAT,)):
        reason = f"format {raw[:1].hex() or 'none'}, this reads {FORMAT:02x}"
        raise UnsupportedFormatError("correlation", place, reason)
    try:
        said = msgpack.unpackb(raw[1:])
    except (ValueError, msgpack.UnpackException):
        said = None
    if type(said) is not dict:
        raise CorruptRecordError("correlation", place, "it is no MessagePack map")
    return said


def _of(kind: type[T], said: dict[str, Any], place: str) -> T:
    names: tuple[str, ...] = kind.__slots__
    known = {name: said[name] for name in names if said.get(name) is not None}
    for name, value in known.items():
        if type(value) is not _NUMBERS.get(name, str):
            raise CorruptRecordError("correlation", place, f"its {name} is of a wrong type")
    try:
        return kind(**known)
    except TypeError:
        raise CorruptRecordError("correlation", place, "parts of it are missing") from None
