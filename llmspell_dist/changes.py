"""The bytes of a change log entry, and what stands in them.

An entry of the shard's stream has three fields: ``c`` the changes, ``m`` what the caller said about
them (MessagePack), ``o`` the operation id (8 bytes client, 6 bytes sequence). ``c`` starts with the
format version, 1; then one frame a change, big-endian::

    0   1  operation; 128 is added if the payload is left out
    1   1  kind (high nibble) and state class (low nibble)
    2   1  flags of the payload: 4 zstd, 8 encrypted
    3   2  schema version
    5   2  length of the key
    7   4  length of the payload (also if it is left out)
    11  2  length of the scope's text; 0: the scope of the frame before
    13 10  revision that the key had before, zeros: none
    23 10  revision that the scope had before, zeros: none
    33  6  expiry of the key after the change, ms since the epoch, 0: never
    39     scope, key, payload

``lua_scripts/lib/frame.lua`` writes it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Any, Final, NamedTuple

import msgpack

from llmspell_dist.errors import CorruptRecordError, UnsupportedFormatError
from llmspell_dist.revision import Revision

__all__ = [
    "LogEntry",
    "LoggedChange",
    "Op",
    "RawChange",
    "raw_changes",
    "unpack_entry",
    "unpack_parts",
]

FORMAT: Final = 1
OMITTED: Final = 128


class Op(IntEnum):
    """What a change does to its key."""

    SET = 1
    DELETE = 2
    EXPIRED = 3
    TTL = 4
    INCREMENT = 5
    APPEND = 6
    MERGE = 7
    ADOPT = 8
    CLEAR = 9
    COPY = 10
    """Only in requests: the log holds the set or adopt that it came to."""
    POLICY = 11
    """Which lease the writes of the scope need from now on; the payload is its printed name."""
    BROKEN = 12
    """A lease was taken from its holder; the payload (MessagePack) says whose, and why."""
    RESTORED = 13
    """A scope was put back as it was; the payload (MessagePack) says by which restore."""


class LoggedChange(NamedTuple):
    """One frame: what a commit did to one key."""

    op: int
    kind: int
    state_class: int
    flags: int
    schema_version: int
    scope: str
    key: str
    previous: Revision | None
    previous_in_scope: Revision | None
    expires_ms: int
    payload: bytes | None
    """None: the state class keeps payloads out of the log."""


class LogEntry(NamedTuple):
    """One commit, as the log has it."""

    revision: Revision
    changes: tuple[LoggedChange, ...]
    operation: str
    meta: dict[str, Any]


class RawChange(NamedTuple):
    """Where one change stands in an entry's bytes, and what its head says."""

    head: tuple[int, int, int, int, int, int, int, bytes, bytes, int, int]
    """Op (`OMITTED` more if its payload is not there), kind and class, flags, schema, sizes of key,
    value and scope, revisions of the key and of the scope before it, when it expires."""
    scope: bytes
    key: bytes
    start: int
    payload: int
    """Where the payload begins; the head takes `HEAD_BYTES` from `start`."""
    end: int


_FRAME: Final = struct.Struct(">BBBHHIH10s10sHI")
HEAD_BYTES: Final = _FRAME.size


def unpack_entry(entry_id: bytes, fields: Sequence[bytes]) -> LogEntry:
    """Read one entry as ``XRANGE`` returns it; a damaged one is a ``CorruptRecordError``."""
    revision = Revision.parse(entry_id)
    try:
        named = dict(zip(fields[::2], fields[1::2], strict=True))
        frames, packed, operation = named[b"c"], named[b"m"], named[b"o"]
    except (KeyError, ValueError) as error:
        raise _damaged(revision, error) from None
    return unpack_parts(revision, frames, packed, operation)


def unpack_parts(revision: Revision, frames: bytes, packed: bytes, operation: bytes) -> LogEntry:
    """Read one entry from its fields: changes, what the caller said, operation."""
    try:
        changes = tuple(_frames(frames, revision))
        meta = msgpack.unpackb(packed) if packed else {}
        text = f"{operation[:8].hex()}:{int.from_bytes(operation[8:], 'big')}"
    except (KeyError, ValueError, struct.error, msgpack.UnpackException) as error:
        raise _damaged(revision, error) from None
    return LogEntry(revision, changes, text, meta if isinstance(meta, dict) else {})


def _damaged(revision: Revision, error: Exception) -> CorruptRecordError:
    reason = f"entry {revision} of the log is damaged: {type(error).__name__}"
    return CorruptRecordError("log", str(revision), reason)


def raw_changes(raw: bytes, where: object) -> Iterator[RawChange]:
    """Yield the changes of an entry; ``struct.error`` or ``ValueError`` if it is damaged.

    One of another format is an `UnsupportedFormatError`, which names `where`.
    """
    if raw[:1] != bytes((FORMAT,)):
        reason = f"log format {raw[:1].hex() or 'none'}, this reads {FORMAT:02x}"
        raise UnsupportedFormatError("log", str(where), reason)
    at, end, scope = 1, len(raw), b""
    while at < end:
        start = at
        head = _FRAME.unpack_from(raw, at)
        op, _, _, _, key_size, size, scope_size, *_ = head
        at += HEAD_BYTES
        if scope_size:
            scope = raw[at : at + scope_size]
            at += scope_size
        key = raw[at : at + key_size]
        payload = at = at + key_size
        if op < OMITTED:
            at += size
        if at > end:
            raise ValueError("it is cut off")
        yield RawChange(head, scope, key, start, payload, at)


def _frames(raw: bytes, revision: Revision) -> Iterator[LoggedChange]:
    scope = ""
    for head, scope_name, key, _, payload, end in raw_changes(raw, revision):
        op, kind_class, flags, schema, _, _, scope_size, previous, in_scope, high, low = head
        if scope_size:
            scope = scope_name.decode()
        yield LoggedChange(
            op % OMITTED,
            kind_class >> 4,
            kind_class & 15,
            flags,
            schema,
            scope,
            key.decode(),
            Revision.unpack(previous),
            Revision.unpack(in_scope),
            (high << 32) | low,
            raw[payload:end] if op < OMITTED else None,
        )
