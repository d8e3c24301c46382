"""From what Redis keeps of a correlation to entries and links: pure, and quick for ten thousand."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from types import NoneType
from typing import TYPE_CHECKING, Any, Final

import msgpack

from llmspell_dist.changes import LogEntry, Op, unpack_entry
from llmspell_dist.context import MAX_BYTES
from llmspell_dist.correlated import (
    KIND_EVENT,
    KIND_HOOK,
    KIND_LEASE,
    KIND_LINK,
    EventLink,
    unpack_hook_run,
    unpack_lease_event,
    unpack_link,
)
from llmspell_dist.correlation.model import EntryKind, TimelineEntry
from llmspell_dist.errors import CorruptRecordError, SpellError
from llmspell_dist.events.wire import FORMAT as EVENT_FORMAT
from llmspell_dist.events.wire import unpack_event
from llmspell_dist.revision import NO_REVISION, Revision

if TYPE_CHECKING:
    from llmspell_dist.codec import Codec
    from llmspell_dist.events.model import Event

__all__ = ["Collected"]

_ID, _TYPE, _DATA, _LANGUAGE, _CAUSATION, _SOURCE, _TARGET, _TAGS = 0, 1, 2, 3, 7, 9, 10, 11
_PARTS: Final = 15
"""Places in an event's envelope: see `llmspell_dist.events.wire`."""
_TEXT, _OR_NONE = {str}, {str, NoneType}
_KINDS: Final = (
    (_ID, _TEXT),
    (_TYPE, _TEXT),
    (_DATA, {bytes}),
    (_LANGUAGE, _OR_NONE),
    (_CAUSATION, _OR_NONE),
    (_SOURCE, _OR_NONE),
    (_TARGET, _OR_NONE),
    (_TAGS, {list}),
)
_SURELY_SHORT: Final = MAX_BYTES // 4
"""Characters of an id that are no more than its most bytes, whichever they are."""
_LAST_MS: Final = 253_402_300_799_999
"""The last millisecond of the year 9999: ids of streams go further than a datetime."""
_RECORDED_WITHIN_US: Final = 60_000_000
_NO_OPERATION: Final = bytes(14)
_OP_NAMES: Final = {int(op): op.name.lower() for op in Op}


class _Reader:
    """Decodes events and their data."""

    __slots__ = ("_codec", "data")

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self.data = codec.decode

    def event(self, raw: bytes) -> Event:
        return unpack_event(raw, self._codec)


class Collected:
    """What has been read of one correlation so far."""

    def __init__(self, codec: Codec) -> None:
        self.entries: list[TimelineEntry] = []
        self.links: list[EventLink] = []
        self.unreadable = 0
        self._reader = _Reader(codec)

    # --- the stream

    def add_page(self, page: Sequence[Any]) -> None:
        """Take in entries of the correlation's stream, as ``XRANGE`` lists them."""
        raws = [fields[3] for _, fields in page if len(fields) >= 4 and fields[1] == KIND_EVENT]
        said = _envelopes(raws)
        if said is None and len(page) > 1:  # one of them is damaged: one by one
            for item in page:
                self.add_page([item])
            return
        events = iter(said or ())
        append, reader, kind = self.entries.append, self._reader, EntryKind.EVENT
        last, time_us = b"", 0
        for stream_id, fields in page:
            if said is None or len(fields) < 4 or fields[1] != KIND_EVENT:
                self._add_other(stream_id, fields)
                continue
            if stream_id[:14] != last:  # the id's milliseconds and dash: many share them
                ms, _, _ = stream_id.partition(b"-")
                last, time_us = ms + b"-", min(int(ms), _LAST_MS) * 1000
            event = next(events)
            append(
                TimelineEntry(
                    kind,
                    event[_ID],
                    event[_TYPE],
                    time_us,
                    event[_CAUSATION],
                    event[_SOURCE],
                    event[_TARGET],
                    event[_LANGUAGE],
                    event[_TAGS],
                    fields[3],
                    reader,
                    event[_DATA],
                    fields[5] if len(fields) == 6 else None,
                )
            )

    def _add_other(self, stream_id: bytes, fields: Sequence[bytes]) -> None:
        named = dict(zip(fields[::2], fields[1::2], strict=False))
        kind, raw = named.get(b"k", b"?"), named.get(b"b", b"")
        place, ms = stream_id.decode(), min(int(stream_id.partition(b"-")[0]), _LAST_MS)
        try:
            if kind == KIND_LINK:
                self.links.append(unpack_link(raw, place))
            elif kind == KIND_HOOK:
                self.entries.append(_hook_entry(raw, place, ms))
            elif kind == KIND_LEASE:
                self.entries.append(_lease_entry(raw, place, ms, named.get(b"a")))
            else:
                self._add_unknown(kind, raw, place, ms)
        except SpellError:
            self._add_unknown(kind, raw, place, ms)

    def _add_unknown(self, kind: bytes, raw: bytes, place: str, ms: int) -> None:
        """Show what cannot be read: a kind of a later release, or damaged bytes."""
        self.unreadable += 1
        name = kind.decode("ascii", "replace") if kind.isalnum() else "other"
        self.entries.append(
            TimelineEntry(
                EntryKind.UNKNOWN,
                f"unknown:{place}",
                f"unknown.{name}",
                ms * 1000,
                *(None, None, None, None, (), raw),
            )
        )

    # --- the log

    def add_changes(self, flat: Sequence[Any]) -> int:
        """Take in what ``correlation_changes`` answered; how many revisions it was."""
        for at in range(1, len(flat), 3):
            packed, changes, meta = flat[at : at + 3]
            if len(packed) != len(NO_REVISION):
                ms = self.entries[-1].time_us // 1000 if self.entries else 0
                self._add_unknown(b"change", packed, f"change:{packed.hex()}", ms)
            elif (revision := Revision.unpack(packed)) is not None:
                self.entries.append(_change_entry(revision, changes, meta))
        return int(flat[0])


def _envelopes(raws: Sequence[bytes]) -> list[list[Any]] | None:
    """Return what events say, their data undecoded; None if one of them cannot be read.

    One unpacker reads them all: an envelope's format byte, 1, is MessagePack's 1 as well.
    """
    unpacker = msgpack.Unpacker(max_buffer_size=0)
    try:
        unpacker.feed(b"".join(raws))
        flat = list(unpacker)
        said = flat[1::2]
        sound = set(flat[::2]) <= {EVENT_FORMAT} and len(flat) == 2 * len(raws) and _sound(said)
    except Exception:  # noqa: BLE001 - msgpack raises several, also plain ValueErrors
        return None
    return said if sound else None


def _sound(said: list[Any]) -> bool:
    """Return whether what a timeline needs of events is of the right kinds: quick, by columns."""
    if not said:
        return True
    if set(map(type, said)) - {list} or min(map(len, said)) < _PARTS:
        return False
    columns = list(zip(*said, strict=False))  # a later release may add parts
    if any(set(map(type, columns[place])) - kinds for place, kinds in _KINDS):
        return False
    if set(map(type, chain.from_iterable(columns[_TAGS]))) - {str}:
        return False
    lengths = set(map(len, columns[_ID]))
    if max(lengths) > _SURELY_SHORT and max(map(len, map(str.encode, columns[_ID]))) > MAX_BYTES:
        return False
    return min(lengths) > 0


def _hook_entry(raw: bytes, place: str, ms: int) -> TimelineEntry:
    run = unpack_hook_run(raw, place)
    if not run.id or (run.time_us or 0) < 0:
        raise CorruptRecordError("correlation", place, "it has no id, or a time that cannot be")
    recorded_us = ms * 1000 + 999
    # It cannot have begun after it was recorded, whatever its process's clock says.
    began = recorded_us if run.time_us is None else min(run.time_us, recorded_us)
    return TimelineEntry(
        EntryKind.HOOK,
        run.id,
        f"hook.{run.point}",
        began,
        run.causation_id,
        run.hook,
        *(None, None, (), run),
    )


def _lease_entry(raw: bytes, place: str, ms: int, after: bytes | None) -> TimelineEntry:
    event = unpack_lease_event(raw, place)
    time_us = ms * 1000
    # It is recorded a little after the grant. A token is the server's time of the grant, unless
    # tokens had run ahead of it.
    if event.what == "acquired" and time_us - _RECORDED_WITHIN_US < event.token < time_us:
        # To the millisecond, as commits are: those that were made under it stand behind it.
        time_us = event.token // 1000 * 1000
    return TimelineEntry(
        EntryKind.LEASE,
        event.id,
        f"lease.{event.what}",
        time_us,
        event.causation_id,
        event.actor or event.owner,
        event.scope if event.name == "main" else f"{event.scope} {event.name}",
        *(None, (), event),
        after=after,
    )


def _change_entry(revision: Revision, changes: bytes | None, meta: bytes | None) -> TimelineEntry:
    text, time_us = str(revision), min(revision.ms, _LAST_MS) * 1000
    if changes is None:
        entry = TimelineEntry(
            EntryKind.CHANGE,
            text,
            "state.change",
            time_us,
            *(None, None, None, None, (), None),
        )
        entry.trimmed = True
        return entry
    try:
        found = unpack_entry(text.encode(), (b"c", changes, b"m", meta or b"", b"o", _NO_OPERATION))
    except CorruptRecordError:
        return TimelineEntry(
            EntryKind.UNKNOWN,
            text,
            "unknown.change",
            time_us,
            *(None, None, None, None, (), changes),
        )
    said = found.meta
    return TimelineEntry(
        EntryKind.CHANGE,
        text,
        _change_type(found),
        time_us,
        _text(said.get("p")),
        _text(said.get("a")),
        _scopes(found),
        *(None, (), found),
    )


def _text(value: object) -> str | None:
    return value if type(value) is str else None


def _change_type(entry: LogEntry) -> str:
    ops = {change.op for change in entry.changes}
    if len(ops) != 1:
        return "state.commit"
    op = ops.pop()
    return f"state.{_OP_NAMES.get(op, 'change')}"


def _scopes(entry: LogEntry) -> str | None:
    scopes = list(dict.fromkeys(change.scope for change in entry.changes))
    return ", ".join(scopes) if scopes else None
