"""Stretches of the change log as items, with the values that the log itself does not hold.

An entry says what a commit did; for some state classes, for values over 512 KiB and for lists and
maps that were converted or copied it does so without the value. Such a key is *open* until a later
entry brings or removes its value. Its value is read from the server and attached behind the
entries, if it still has the revision that the entry gave it; if not, a later entry has changed it
and either brings its value or opens it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.backup.frames import Frame, OpenKeys, frames_in
from llmspell_dist.backup.items import pack_entry, pack_record, pack_unresolved
from llmspell_dist.backup.scanning import Elements, Scanner
from llmspell_dist.errors import CorruptRecordError
from llmspell_dist.records import (
    META_FIELD,
    Kind,
    StoredRecord,
    unpack_head,
    unpack_meta,
    unpack_record,
)
from llmspell_dist.records import RESTORED as BY_RESTORE
from llmspell_dist.redis.commands import Command, ScriptCall
from llmspell_dist.redis.resp import pack
from llmspell_dist.redis.scripts import load_script
from llmspell_dist.revision import Revision
from llmspell_dist.scope import Scope

if TYPE_CHECKING:
    from llmspell_dist.backup.selection import Selection
    from llmspell_dist.backup.writing import ObjectWriter
    from llmspell_dist.state.driver import AsyncDriver

__all__ = ["LogReader", "SegmentBuilder"]

PAGE_BYTES: Final = 64 * 1024
MOST_ENTRIES: Final = 64
"""What one call returns, about. Large commits may follow small ones: sixty of a megabyte take the
server less than ten milliseconds."""
MOST_OPEN: Final = 10_000
"""Keys that may be open before they are read."""
AT_ONCE: Final = 16


class LogReader:
    """Reads a shard's log page by page, each of about as many bytes."""

    def __init__(self, driver: AsyncDriver, shard: str) -> None:
        self._driver = driver
        self._log = driver.core.keyspace.log(shard)
        self._count = 8
        self._average = 512.0

    async def last(self, upto: Revision | None = None) -> tuple[Revision | None, bytes]:
        """Return the newest entry's revision and operation; of those up to a revision."""
        return await self._identity(b"last" if upto is None else str(upto).encode(), b"0")

    async def entry(self, revision: Revision) -> tuple[Revision | None, bytes]:
        """Return revision and operation of an entry, if it is there."""
        return await self._identity(str(revision).encode(), b"1")

    async def first(self) -> tuple[Revision | None, bytes]:
        """Return the oldest entry's revision and operation."""
        return await self._identity(b"first", b"0")

    async def _identity(self, place: bytes, exactly: bytes) -> tuple[Revision | None, bytes]:
        # By a script: an entry may have eight megabytes, of which nothing else is asked for.
        call = ScriptCall(load_script("log_entry"), (self._log,), (place, exactly))
        found = await self._driver.execute(call)
        return (Revision.parse(found[0]), found[1]) if found else (None, b"")

    async def is_whole(self) -> bool:
        """Whether nothing was ever trimmed; False if the server cannot tell (before Redis 7)."""
        if not await self._driver.execute(Command(pack(b"EXISTS", self._log), "EXISTS")):
            return True
        found = await self._driver.execute(Command(pack(b"XINFO", b"STREAM", self._log), "XINFO"))
        facts = (
            found if isinstance(found, dict) else dict(zip(found[::2], found[1::2], strict=True))
        )
        return bool(facts.get(b"entries-added") == facts[b"length"])

    async def pages(
        self, after: Revision | None, upto: Revision
    ) -> AsyncIterator[list[tuple[Revision, bytes, bytes, bytes]]]:
        """Yield entries after one revision and up to another: revision, changes, meta, operation.

        The next page is on its way while one is looked at.
        """
        end, count = str(upto), self._count
        asked = self._ask("-" if after is None else f"({after}", end, count)
        try:
            while found := await asked:
                page = [(Revision.parse(entry), *_fields(fields, entry)) for entry, fields in found]
                size = sum(len(changes) + len(meta) for _, changes, meta, _ in page)
                is_last = len(page) < count
                self._average += (size / len(page) - self._average) / 4
                fitting = int(PAGE_BYTES / max(1.0, self._average))
                self._count = count = max(1, min(MOST_ENTRIES, fitting, 2 * count))
                if not is_last:
                    asked = self._ask(f"({page[-1][0]}", end, count)
                yield page
                if is_last:
                    return
        finally:
            asked.cancel()

    def _ask(self, start: str, end: str, count: int) -> asyncio.Future[Any]:
        request = pack(b"XRANGE", self._log, start, end, b"COUNT", count)
        return self._driver.execute(Command(request, "XRANGE", bulk=True))


def _fields(fields: Sequence[bytes], entry: bytes) -> tuple[bytes, bytes, bytes]:
    if len(fields) == 6 and fields[::2] == [b"c", b"m", b"o"]:
        return fields[1], fields[3], fields[5]
    named = dict(zip(fields[::2], fields[1::2], strict=True))
    try:
        return named[b"c"], named[b"m"], named[b"o"]
    except KeyError:
        where = entry.decode()
        reason = f"entry {where} of the log is damaged"
        raise CorruptRecordError("log", where, reason) from None


class SegmentBuilder:
    """Writes log entries of a shard, and behind them the values that they do not hold."""

    def __init__(
        self,
        driver: AsyncDriver,
        shard: str,
        writer: ObjectWriter,
        selection: Selection,
        *,
        archiving: bool = False,
    ) -> None:
        self._driver = driver
        self._shard = shard
        self._writer = writer
        self._selection = selection
        self._open = OpenKeys(archiving=archiving)
        self.entries = 0
        self.bytes = 0
        self.inexact: list[tuple[str, str, Revision]] = []
        """Scope, key and revision of what could not be had; an empty key: any key of the scope."""

    @property
    def open(self) -> int:
        """How many keys wait for their value."""
        return len(self._open)

    @property
    def open_bytes(self) -> int:
        """About how many bytes the values have that `attach` is to read, if none is known yet."""
        return self._open.size

    def add(self, page: Sequence[tuple[Revision, bytes, bytes, bytes]]) -> None:
        """Write some entries."""
        whole = self._selection.everything
        for revision, changes, meta, operation in page:
            kept: list[bytes] = [b"\1"]
            named = b""
            for frame in frames_in(changes, str(revision)):
                if whole:
                    self._open.look(frame, revision)
                elif self._wants(frame):
                    self._open.look(frame, revision)
                    part = changes[frame.start : frame.end]
                    if named != frame.scope and not frame.names_scope:
                        part = _with_scope(part, frame.scope)
                    kept.append(part)
                    named = frame.scope
            if not whole:
                if len(kept) == 1:
                    continue
                changes = b"".join(kept)  # noqa: PLW2901 - only what is selected
            self._writer.add_plain(pack_entry(revision.packed, changes, meta, operation))
            self.entries += 1
            self.bytes += len(changes)

    def _wants(self, frame: Frame) -> bool:
        if not self._selection.wants_scope(frame.scope.decode()):
            return False
        return not frame.key or self._selection.wants(frame.key.decode(), frame.state_class)

    # --- values that the log does not hold

    async def attach(self, upto: Revision) -> AsyncIterator[None]:
        """Read what is open, and write what still is as it was at a revision or before.

        Yields now and then, when `writer.ready` may have something: what is attached may be more
        than memory holds.
        """
        for name in list(self._open.scopes):
            async for _ in self._attach_scope(name, upto):
                yield
        composites = []
        for name, keys in self._open.by_scope():
            for first in range(0, len(keys), AT_ONCE):
                composites += await self._attach_keys(name, keys[first : first + AT_ONCE], upto)
                yield
        # Behind all others: reading elements takes longest, and others may change meanwhile.
        for name, key, raw, stored in composites:
            self._writer.begin(name)
            async for _ in self._attach_composite(name, key, raw, stored):
                yield

    async def _attach_keys(
        self, name: bytes, keys: list[bytes], upto: Revision
    ) -> list[tuple[bytes, bytes, bytes, StoredRecord]]:
        """Write those keys of a scope whose value lies in the record; return the composite ones."""
        keyspace = self._driver.core.keyspace
        scope_hash = keyspace.scope(Scope.parse(name.decode()))
        waiting = [self._driver.execute(_record_of(scope_hash, key)) for key in keys]
        composites = []
        for key, reply in zip(keys, waiting, strict=True):
            raw = await reply
            if raw is None:
                continue
            try:
                stored = unpack_record(raw, name.decode(), key.decode())
            except CorruptRecordError:
                continue  # nobody can tell of which moment it is
            # What a restore put back came after the entry, although its revision is older.
            if stored.revision > upto or stored.flags & BY_RESTORE:
                continue
            if stored.kind >= Kind.LIST:
                composites.append((name, key, raw, stored))
                continue
            self._writer.begin(name)
            self._writer.add(pack_record(key, raw))
            self._open.close(name, key)
        return composites

    async def _attach_composite(
        self, name: bytes, key: bytes, raw: bytes, stored: StoredRecord
    ) -> AsyncIterator[None]:
        """Write a record and its elements, if they are those of its revision."""
        keyspace, scope = self._driver.core.keyspace, Scope.parse(name.decode())
        reader = Elements(self._driver, keyspace, scope)
        head = unpack_head(stored.payload, name.decode(), key.decode())
        self._writer.composite(key, raw)
        count = 0
        same = Scanner(self._driver, self._shard, self._writer, self._selection)
        async for parts in reader.pieces(stored.kind, head, same.check):
            self._writer.elements(key, stored.kind, parts)
            count += len(parts)
            yield
        whole = reader.complete(stored.kind, head, count)
        if whole and stored.kind == Kind.MAP:
            # Its fields change in place: only an unchanged record says that they did not.
            whole = raw == await self._driver.execute(_record_of(keyspace.scope(scope), key))
        if whole:
            self._open.close(name, key)
        else:
            self._writer.missing()

    async def _attach_scope(self, name: bytes, upto: Revision) -> AsyncIterator[None]:
        """Write a whole scope again that was put back by a restore."""
        before = await self._revision_of(name)
        scanner = Scanner(self._driver, self._shard, self._writer, self._selection)
        async for _ in scanner.scope(name):
            yield
        after = await self._revision_of(name)
        put_back = self._open.scopes.pop(name)
        if before != after or (before is not None and before > upto):
            # Some of its keys were changed since: what they had in between is not known.
            self._writer.begin(name)
            self._writer.add(pack_unresolved(put_back, b""))
            self.inexact.append((name.decode(), "", put_back))

    async def _revision_of(self, name: bytes) -> Revision | None:
        scope_hash = self._driver.core.keyspace.scope(Scope.parse(name.decode()))
        raw = await self._driver.execute(_record_of(scope_hash, META_FIELD))
        return unpack_meta(raw, name.decode()).revision

    def give_up(self) -> None:
        """Write the keys whose value could not be had."""
        for name, key, revision in self._open.drain():
            self._writer.begin(name)
            self._writer.add(pack_unresolved(revision, key))
            self.inexact.append((name.decode(), key.decode(), revision))


def _record_of(scope_hash: bytes, key: bytes) -> Command:
    return Command(pack(b"HGET", scope_hash, key), "HGET", bulk=True)


def _with_scope(part: bytes, scope: bytes) -> bytes:
    """Return a frame that names its scope."""
    return b"".join((part[:11], len(scope).to_bytes(2, "big"), part[13:39], scope, part[39:]))
