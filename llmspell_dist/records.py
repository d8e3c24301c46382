"""The bytes of a record: a small binary header and the payload, together in one hash field.

Layout of format 1, big-endian (``docs/technical/state-architecture.md`` has the table)::

    0   1  format version, 1
    1   1  kind (high nibble) and state class (low nibble)
    2   1  flags: 1 created follows, 2 expiry follows, 4 zstd, 8 encrypted,
           16 came by a restore
    3   2  schema version of the value
    5  10  revision: 48-bit ms, 32-bit seq
    15  6  created, ms since the epoch      (flag 1; else created with this revision)
    ..  6  expires, ms since the epoch      (flag 2; else never)
    ..     payload

At most 27 bytes of header; a value written once and without a TTL has 15. The commit script
(``lua_scripts/lib/record.lua``) writes the same layout.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

from llmspell_dist.errors import CorruptRecordError, UnsupportedFormatError
from llmspell_dist.revision import Revision

FORMAT = 1
MIN_HEADER = 15
MAX_HEADER = 27

CREATED, EXPIRES, ZSTD, ENCRYPTED = 1, 2, 4, 8
RESTORED = 16
"""The record came by a restore; see `Op.RESTORED`."""
CODEC_FLAGS = ZSTD | ENCRYPTED


class Kind(IntEnum):
    """How a value lies in Redis; the user sees one key whatever the kind."""

    VALUE = 1
    NUMBER = 2
    LIST = 3
    MAP = 4
    BLOB = 5

    @property
    def composite(self) -> bool:
        """Whether the record is only a head and the elements lie in a sibling key."""
        return self >= Kind.LIST


class StoredRecord(NamedTuple):
    """A record as it lies in Redis, header read and payload still encoded."""

    kind: int
    state_class: int
    flags: int
    schema_version: int
    revision: Revision
    created_ms: int
    expires_ms: int
    """0: never."""
    payload: bytes


_HEAD = struct.Struct(">BBBHHII")
_WITH = {
    CREATED: struct.Struct(">HI"),
    EXPIRES: struct.Struct(">HI"),
    CREATED | EXPIRES: struct.Struct(">HIHI"),
}
_KINDS = frozenset(int(kind) for kind in Kind)


def unpack_record(raw: bytes, scope: str, key: str) -> StoredRecord:
    """Read a record; a damaged or newer one is a ``CorruptRecordError`` naming scope and key."""
    try:
        version, kind_class, flags, schema, high, low, seq = _HEAD.unpack_from(raw)
        if version != FORMAT:
            raise UnsupportedFormatError(
                scope, key, f"record format {version}, this reads {FORMAT}"
            )
        ms = (high << 32) | low
        created, expires, start = ms, 0, MIN_HEADER
        if optional := flags & 3:
            parts = _WITH[optional].unpack_from(raw, MIN_HEADER)
            if optional == CREATED:
                created, start = (parts[0] << 32) | parts[1], 21
            elif optional == EXPIRES:
                expires, start = (parts[0] << 32) | parts[1], 21
            else:
                created, expires = (parts[0] << 32) | parts[1], (parts[2] << 32) | parts[3]
                start = MAX_HEADER
    except struct.error:
        raise CorruptRecordError(scope, key, f"{len(raw)} bytes are no record") from None
    if kind_class >> 4 not in _KINDS:
        raise CorruptRecordError(scope, key, f"unknown kind {kind_class >> 4}")
    return StoredRecord(
        kind_class >> 4,
        kind_class & 15,
        flags,
        schema,
        Revision(ms, seq),
        created,
        expires,
        raw[start:],
    )


def pack_record(record: StoredRecord) -> bytes:
    """Write a record exactly as the commit script does (tests hold the two equal)."""
    flags = record.flags & (CODEC_FLAGS | RESTORED)
    tail = b""
    if record.created_ms != record.revision.ms:
        flags |= CREATED
        tail += record.created_ms.to_bytes(6, "big")
    if record.expires_ms:
        flags |= EXPIRES
        tail += record.expires_ms.to_bytes(6, "big")
    head = bytes((FORMAT, record.kind << 4 | record.state_class, flags))
    schema = record.schema_version.to_bytes(2, "big")
    return head + schema + record.revision.packed + tail + record.payload


class Head(NamedTuple):
    """The payload of a composite's record: how much lies in the sibling key of a generation."""

    count: int  # type: ignore[assignment] # nobody needs tuple.count
    size: int
    generation: str


_COMPOSITE = struct.Struct(">IHI")


def unpack_head(payload: bytes, scope: str, key: str) -> Head:
    """Read the head of a list, map or blob: 32-bit count, 48-bit bytes, generation as text."""
    try:
        count, high, low = _COMPOSITE.unpack_from(payload)
        return Head(count, (high << 32) | low, payload[10:].decode("ascii"))
    except (struct.error, UnicodeDecodeError):
        raise CorruptRecordError(scope, key, "its head is damaged") from None


class ScopeMeta(NamedTuple):
    """What the reserved field ``$$`` keeps about a scope."""

    revision: Revision | None
    """The last commit that changed the scope; it outlives a cleared scope."""
    count: int  # type: ignore[assignment] # nobody needs tuple.count
    size: int
    """Bytes of all records and elements."""
    fence: int
    """The highest fencing token seen."""
    schema_version: int
    flags: int
    policy: bytes


DEMANDS_LEASE = 1
"""A flag of the scope's record: every write needs the lease that the policy names."""
META_FIELD = b"$$"
"""Where a scope's own record lies in its hash."""
_META = struct.Struct(">B10sIHIQHB")
EMPTY_META = ScopeMeta(None, 0, 0, 0, 0, 0, b"")


def unpack_meta(raw: bytes | None, scope: str) -> ScopeMeta:
    """Read ``$$``; a scope that never existed has the empty one."""
    if raw is None:
        return EMPTY_META
    try:
        version, revision, count, high, low, fence, schema, flags = _META.unpack_from(raw)
    except struct.error:
        raise CorruptRecordError(scope, "$$", f"{len(raw)} bytes are no scope record") from None
    if version != FORMAT:
        raise UnsupportedFormatError(scope, "$$", f"scope format {version}, this reads {FORMAT}")
    size = (high << 32) | low
    return ScopeMeta(
        Revision.unpack(revision), count, size, fence, schema, flags, raw[_META.size :]
    )
