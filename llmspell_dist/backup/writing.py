"""Items collected into objects, cut where the same items are cut next time.

An object ends at a key whose checksum says so, once it is large enough (content-defined chunking:
Muthitacharoen et al., "A Low-bandwidth Network File System", SOSP 2001). So a stretch of a scan
that is as it was last time gives the same objects, which need not be stored again, whatever changed
before it.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Final
from zlib import crc32

from llmspell_dist.backup.items import (
    pack_continued,
    pack_elements,
    pack_missing,
    pack_record,
    pack_scope,
    pack_scope_record,
)

__all__ = ["ObjectWriter"]

LEAST_BYTES: Final = 1024 * 1024
MOST_BYTES: Final = 4 * 1024 * 1024
_CUT: Final = 1023
"""One key in 1,024 may end an object."""
_RECORD: Final = struct.Struct(">cHI").pack


class ObjectWriter:
    """Makes objects from items; `ready` has those that are full, in order."""

    def __init__(self) -> None:
        self.ready: list[bytes] = []
        self.scopes: list[frozenset[bytes]] = []
        """Of each object that was made: the names of its scopes."""
        self.records = 0
        self.bytes = 0
        """Of everything that was written, before compression."""
        self._parts: list[bytes] = []
        self._size = 0
        self._scope = b""
        self._named = False
        self._names: set[bytes] = set()

    def begin(self, scope: bytes) -> None:
        """Everything that follows is of this scope; nothing is written for one without content."""
        if scope != self._scope:
            self._scope, self._named = scope, False

    def add(self, item: bytes) -> None:
        """Write an item of the present scope."""
        self._name()
        self._parts.append(item)
        self._size += len(item)
        if self._size >= MOST_BYTES:
            self.cut()

    def add_plain(self, item: bytes) -> None:
        """Write an item that belongs to no scope: a log entry, or of an extra section."""
        self._parts.append(item)
        self._size += len(item)
        if self._size >= MOST_BYTES:
            self.cut()

    def scope_record(self, raw: bytes) -> None:
        """Write the scope's own record."""
        self.add(pack_scope_record(raw))

    def records_of(self, records: Mapping[bytes, bytes]) -> None:
        """Write keys with records whose values lie in the records themselves."""
        self._name()
        parts, pack = self._parts, _RECORD
        self.records += len(records)
        size = sum(map(len, records)) + sum(map(len, records.values())) + 7 * len(records)
        if self._size + size < LEAST_BYTES:
            for key, raw in records.items():
                parts += (pack(b"R", len(key), len(raw)), key, raw)
            self._size += size
            return
        size = self._size
        for key, raw in records.items():
            parts += (pack(b"R", len(key), len(raw)), key, raw)
            size += 7 + len(key) + len(raw)
            if size >= LEAST_BYTES and (size >= MOST_BYTES or not crc32(key) & _CUT):
                self._size = size
                self.cut()
                self._name()
                parts, size = self._parts, self._size
        self._size = size

    def composite(self, key: bytes, raw: bytes) -> None:
        """Write a record whose elements follow."""
        self.add(pack_record(key, raw))
        self.records += 1

    def elements(self, key: bytes, kind: int, parts: Sequence[bytes]) -> None:
        """Write elements of the record before; also if an object has ended in between."""
        if not self._parts:
            self.add(pack_continued(key))
        self.add(pack_elements(kind, parts))

    def missing(self) -> None:
        """Say that the elements of the record before were gone."""
        self.add(pack_missing())

    def cut(self) -> None:
        """End the object."""
        if self._parts:
            self.ready.append(b"".join(self._parts))
            self.scopes.append(frozenset(self._names))
            self._names.clear()
            self.bytes += self._size
            self._parts, self._size, self._named = [], 0, False

    def _name(self) -> None:
        if not self._named:
            item = pack_scope(self._scope)
            self._parts.append(item)
            self._size += len(item)
            self._named = True
            self._names.add(self._scope)
