"""What stands inside the objects of a backup, once decrypted and decompressed: a row of items.

Each item is a tag of one byte and its fields, big-endian; ``docs/design/backup-format.md`` has the
table. ``S`` names the scope of all that follow it, ``E`` belongs to the record before it.

======= ====================================================================================
``S``   2 length, the scope's printed name
``M``   2 length, what the scope's field ``$$`` holds
``R``   2 length of the key, 4 length, key, the record as it lies in Redis
``E``   1 kind (list 3, map 4, blob 5), 4 count, 4 bytes; then per element (of maps: field, then
        value) 4 length and bytes: elements of the composite record before it, in order
``C``   2 length, a key: the ``E`` that follow go on with this key's record of an object before
``X``   nothing: the elements of the record before it were gone when they were read; the log
        that belongs to the backup replaces or removes the key
``L``   10 revision, 4 and 4 and 4 lengths, then changes, metadata, operation of a log entry
``U``   10 revision, 2 length, a key: at that revision its value could not be had
``N``   4 length of a name, 4 length, name, bytes: what an extra section holds
======= ====================================================================================
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from llmspell_dist.backup.errors import BackupDamagedError
from llmspell_dist.revision import PACKED_BYTES, Revision

__all__ = [
    "Continued",
    "Elements",
    "Extra",
    "Item",
    "Logged",
    "Missing",
    "Record",
    "ScopeRecord",
    "ScopeStart",
    "Unresolved",
    "pack_continued",
    "pack_elements",
    "pack_entry",
    "pack_extra",
    "pack_missing",
    "pack_record",
    "pack_scope",
    "pack_scope_record",
    "pack_unresolved",
    "unpack_items",
]


class ScopeStart(NamedTuple):
    """From here on everything is of this scope."""

    text: bytes


class ScopeRecord(NamedTuple):
    """What the scope's field ``$$`` holds."""

    raw: bytes


class Record(NamedTuple):
    """A key with its record, as it lies in Redis."""

    key: bytes
    raw: bytes


class Elements(NamedTuple):
    """Some elements of a composite value."""

    kind: int
    parts: list[bytes]
    """Elements; of a map fields and values in turn."""


class Continued(NamedTuple):
    """The elements that follow are of this key, whose record stands in an earlier object."""

    key: bytes


class Missing(NamedTuple):
    """The elements of the record before it were gone already."""


class Logged(NamedTuple):
    """An entry of the change log."""

    revision: bytes
    changes: bytes
    meta: bytes
    operation: bytes


class Unresolved(NamedTuple):
    """A key whose value at a revision is not known."""

    revision: bytes
    key: bytes


class Extra(NamedTuple):
    """Something of a section that is no state."""

    name: bytes
    data: bytes


Item = (
    ScopeStart | ScopeRecord | Record | Elements | Continued | Missing | Logged | Unresolved | Extra
)

_SHORT: Final = struct.Struct(">cH")
_RECORD: Final = struct.Struct(">cHI")
_ELEMENTS: Final = struct.Struct(">cBII")
_ENTRY: Final = struct.Struct(">c10sIII")
_UNRESOLVED: Final = struct.Struct(">c10sH")
_EXTRA: Final = struct.Struct(">cII")
_LENGTH: Final = struct.Struct(">I")


def pack_scope(text: bytes) -> bytes:
    """Begin a scope."""
    return _SHORT.pack(b"S", len(text)) + text


def pack_scope_record(raw: bytes) -> bytes:
    """Write the scope's own record."""
    return _SHORT.pack(b"M", len(raw)) + raw


def pack_record(key: bytes, raw: bytes) -> bytes:
    """Write a key and its record."""
    return _RECORD.pack(b"R", len(key), len(raw)) + key + raw


def pack_elements(kind: int, parts: Sequence[bytes]) -> bytes:
    """Write elements of the record before."""
    framed = [b""]
    for part in parts:
        framed += (_LENGTH.pack(len(part)), part)
    body = b"".join(framed)
    return _ELEMENTS.pack(b"E", kind, len(parts), len(body)) + body


def pack_continued(key: bytes) -> bytes:
    """Go on with a record of an earlier object."""
    return _SHORT.pack(b"C", len(key)) + key


def pack_missing() -> bytes:
    """Say that the elements of the record before are not there."""
    return b"X"


def pack_entry(revision: bytes, changes: bytes, meta: bytes, operation: bytes) -> bytes:
    """Write an entry of the change log."""
    sizes = len(changes), len(meta), len(operation)
    return _ENTRY.pack(b"L", revision, *sizes) + changes + meta + operation


def pack_unresolved(revision: Revision, key: bytes) -> bytes:
    """Say that the value of a key at a revision is not known."""
    return _UNRESOLVED.pack(b"U", revision.packed, len(key)) + key


def pack_extra(name: bytes, data: bytes) -> bytes:
    """Write something of an extra section."""
    return _EXTRA.pack(b"N", len(name), len(data)) + name + data


def unpack_items(raw: bytes, name: str) -> Iterator[Item]:
    """Yield the items of an object; a damaged one is a `BackupDamagedError` that names it."""
    try:
        yield from _unpack(raw)
    except (struct.error, ValueError) as error:
        raise BackupDamagedError(name, f"its items are damaged: {error}") from None


def _unpack(raw: bytes) -> Iterator[Item]:
    at, end = 0, len(raw)
    while at < end:
        tag = raw[at]
        if tag == 82:  # R
            _, key_size, size = _RECORD.unpack_from(raw, at)
            at += 7
            middle, stop = at + key_size, at + key_size + size
            yield Record(raw[at:middle], _whole(raw[middle:stop], size))
            at = stop
        elif tag == 76:  # L
            _, revision, *sizes = _ENTRY.unpack_from(raw, at)
            at += _ENTRY.size
            parts = []
            for size in sizes:
                parts.append(_whole(raw[at : at + size], size))
                at += size
            yield Logged(revision, *parts)
        elif tag in {83, 77, 67}:  # S M C
            _, size = _SHORT.unpack_from(raw, at)
            at += 3
            text = _whole(raw[at : at + size], size)
            at += size
            if tag == 83:
                yield ScopeStart(text)
            else:
                yield ScopeRecord(text) if tag == 77 else Continued(text)
        elif tag == 69:  # E
            _, kind, count, size = _ELEMENTS.unpack_from(raw, at)
            at += _ELEMENTS.size
            yield Elements(kind, _parts(raw, at, count, at + size))
            at += size
        elif tag == 88:  # X
            at += 1
            yield Missing()
        elif tag == 85:  # U
            _, revision, size = _UNRESOLVED.unpack_from(raw, at)
            at += 3 + PACKED_BYTES
            yield Unresolved(revision, _whole(raw[at : at + size], size))
            at += size
        elif tag == 78:  # N
            _, name_size, size = _EXTRA.unpack_from(raw, at)
            at += 9
            middle = at + name_size
            yield Extra(raw[at:middle], _whole(raw[middle : middle + size], size))
            at = middle + size
        else:
            raise ValueError(f"unknown tag {tag} at byte {at}")


def _whole(part: bytes, size: int) -> bytes:
    if len(part) != size:
        raise ValueError(f"{size} bytes were promised, {len(part)} are there")
    return part


def _parts(raw: bytes, at: int, count: int, stop: int) -> list[bytes]:
    parts = []
    for _ in range(count):
        (size,) = _LENGTH.unpack_from(raw, at)
        at += 4 + size
        parts.append(_whole(raw[at - size : at], size))
    if at != stop:
        raise ValueError(f"elements end at byte {at} instead of {stop}")
    return parts
