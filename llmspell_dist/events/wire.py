"""The bytes of an event, the same in every queue, on every channel and in a correlation's stream.

One byte for the format, then a MessagePack array: id, type, data (as the codec writes a value, in a
byte string of its own), language, time (microseconds since 1970), sequence, correlation id,
causation id, traceparent, source, target, tags, priority, time to live (seconds), schema version.
Later releases may add parts at its end. Every part that is optional can be nil.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from msgpack import packb, unpackb

from llmspell_dist.codec import Codec
from llmspell_dist.errors import CodecError, LimitError
from llmspell_dist.events.errors import UnreadableEventError
from llmspell_dist.events.model import PRIORITIES, Event

__all__ = ["FORMAT", "MAX_EVENT_BYTES", "pack_event", "unpack_event"]

FORMAT: Final = 1
MAX_EVENT_BYTES: Final = 1 << 20
"""What is larger belongs into the state or an artifact, and the event names it."""

_COPIED_BYTES: Final = 4096
"""Up to so many bytes a copy costs less than a view."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_FORMAT_BYTE: Final = bytes([FORMAT])
_NAMES: Final = (
    "id",
    "type",
    "data",
    "language",
    "time",
    "sequence",
    "correlation_id",
    "causation_id",
    "traceparent",
    "source",
    "target",
    "tags",
    "priority",
    "ttl",
    "schema_version",
)
_PARTS: Final = len(_NAMES)
_TEXTS: Final = tuple(_NAMES.index(name) for name in ("id", "type", "language", "schema_version"))
_OPTIONAL: Final = slice(6, 11)
_TEXT_OR_NONE: Final = frozenset({str, type(None)})
_sound: set[tuple[type, ...]] = set()
"""Types of the parts of events that were found sound; there are not a hundred combinations."""
_SETTERS: Final = tuple(getattr(Event, name).__set__ for name in _NAMES)
_new: Final = object.__new__


def pack_event(event: Event, codec: Codec) -> bytes:
    """Return the bytes of an event.

    Raises `CodecError` or `CircularReferenceError` for data that cannot be stored, `LimitError` for
    more than 1 MiB.
    """
    packed: bytes = _FORMAT_BYTE + packb(
        (
            event.id,
            event.type,
            codec.encode(event.data),
            event.language,
            (event.time - _EPOCH) // _MICROSECOND,
            event.sequence,
            event.correlation_id,
            event.causation_id,
            event.traceparent,
            event.source,
            event.target,
            event.tags,
            event.priority,
            event.ttl,
            event.schema_version,
        )
    )
    if len(packed) > MAX_EVENT_BYTES:
        raise LimitError("bytes of an event", len(packed), MAX_EVENT_BYTES)
    return packed


def unpack_event(packed: bytes, codec: Codec) -> Event:
    """Return the event of these bytes; `UnreadableEventError` if they are none."""
    if packed[:1] != _FORMAT_BYTE:
        said = f"format {packed[0]}, this release knows {FORMAT}" if packed else "there are none"
        raise UnreadableEventError(said)
    try:
        packed_parts = packed[1:] if len(packed) < _COPIED_BYTES else memoryview(packed)[1:]
        parts: Any = unpackb(packed_parts, use_list=True)
    except Exception as error:  # noqa: BLE001 - msgpack raises several, also plain ValueErrors
        raise UnreadableEventError(f"broken MessagePack ({type(error).__name__})") from None
    if type(parts) is not list or len(parts) < _PARTS:
        raise UnreadableEventError(f"not an array of at least {_PARTS} parts")
    del parts[_PARTS:]  # a later release may say more
    types = tuple(map(type, parts))
    if types not in _sound:
        _check_types(parts)
        _sound.add(types)
    tags = parts[11]
    parts[11] = _checked_tags(tags) if tags else ()
    if not PRIORITIES[0] <= parts[12] <= PRIORITIES[1]:
        raise UnreadableEventError("its priority is out of range")
    if parts[13] is not None and not parts[13] > 0:
        raise UnreadableEventError("its ttl is no time")
    try:
        parts[2] = codec.decode(parts[2])
        parts[4] = _EPOCH + timedelta(0, 0, parts[4])
    except (CodecError, LimitError) as error:
        raise UnreadableEventError(f"its data: {error}") from None
    except OverflowError:
        raise UnreadableEventError("its time is out of range") from None
    event = _new(Event)
    for put, part in zip(_SETTERS, parts, strict=True):
        put(event, part)
    return event


def _check_types(parts: list[Any]) -> None:
    """Refuse what the constructor would never have made; lengths were checked when it was made."""
    for place in _TEXTS:
        if type(parts[place]) is not str:
            raise UnreadableEventError(f"its {_NAMES[place]} is no text")
    if not _TEXT_OR_NONE.issuperset(map(type, parts[_OPTIONAL])):
        raise UnreadableEventError("one of its ids, its source or its target is no text")
    if type(parts[2]) is not bytes:
        raise UnreadableEventError("its data are no bytes")
    for place in (4, 5, 12):
        if type(parts[place]) is not int:
            raise UnreadableEventError(f"its {_NAMES[place]} is no number")
    if type(parts[11]) is not list:
        raise UnreadableEventError("its tags are no texts")
    if parts[13] is not None and type(parts[13]) not in (int, float):
        raise UnreadableEventError("its ttl is no time")


def _checked_tags(tags: list[Any]) -> tuple[str, ...]:
    if any(type(tag) is not str for tag in tags):
        raise UnreadableEventError("its tags are no texts")
    return tuple(tags)
