"""Reading the scopes of a shard as they lie there, while writers go on.

What a scan sees of a key is its state at some moment of the scan, and every key that is there all
the time is seen: what HSCAN promises. The log entries of that time, applied again in their order,
make it one moment (`llmspell_dist.backup.segments`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from llmspell_dist.backup.errors import BackupDivergedError
from llmspell_dist.backup.selection import Selection
from llmspell_dist.errors import CorruptRecordError
from llmspell_dist.records import (
    EMPTY_META,
    META_FIELD,
    MIN_HEADER,
    Head,
    Kind,
    unpack_head,
    unpack_meta,
    unpack_record,
)
from llmspell_dist.redis.commands import Command, ScriptCall
from llmspell_dist.redis.resp import pack
from llmspell_dist.redis.scripts import load_script
from llmspell_dist.scope import Scope

if TYPE_CHECKING:
    from llmspell_dist.backup.writing import ObjectWriter
    from llmspell_dist.keys import KeySpace
    from llmspell_dist.state.driver import AsyncDriver

__all__ = ["Scanner"]

PAGE_BYTES: Final = 128 * 1024
"""What one call returns, about: well under a millisecond of the server."""
WHOLE_BYTES: Final = 256 * 1024
"""Scopes up to this are read whole."""
GROUP_BYTES: Final = 512 * 1024
"""So much is asked for at once: the server does it in one go, in about a millisecond."""
SCOPES_PAGE: Final = 200
MOST_FIELDS: Final = 1000
MOST_ELEMENTS: Final = 250
"""Of a list, whose large elements may stand side by side."""
TOGETHER: Final = 16
"""Composites whose elements are asked for at once."""
_COMPOSITE: Final = int(Kind.LIST) << 4
_FIELD_BYTES: Final = 64
"""What a field costs beside its bytes."""


class _Sized(NamedTuple):
    """A scope before it is read."""

    name: bytes
    fields: int
    size: int
    """Bytes of its records and elements, as its own record says; -1 if it says nothing."""


class Scanner:
    """Reads the scopes of one shard into an `ObjectWriter`."""

    def __init__(
        self,
        driver: AsyncDriver,
        shard: str,
        writer: ObjectWriter,
        selection: Selection,
        keyspace: KeySpace | None = None,
    ) -> None:
        self._driver = driver
        self._shard = shard
        self._writer = writer
        self._selection = selection
        self._keyspace = keyspace or driver.core.keyspace
        self._process = b""
        self.scopes = 0

    async def run(self) -> AsyncIterator[None]:
        """Read every scope; yields now and then, when `writer.ready` may have something.

        What is read lies between two calls that say which server process answers: plain commands
        cost the server a fifth of what scripts do.
        """
        waiting: list[tuple[_Sized, asyncio.Future[Any] | None]] = []
        try:
            async for group in self._groups():
                # The server works on this group while the one before is written.
                asked = [(one, self._whole(one)) for one in group]
                before, waiting = waiting, asked
                async for _ in self._write(before):
                    yield
            async for _ in self._write(waiting):
                yield
        finally:
            for _, reply in waiting:
                if reply is not None:
                    reply.cancel()
        await self.check()

    async def scope(self, name: bytes) -> AsyncIterator[None]:
        """Read one scope, whatever its size."""
        for one in await self._sizes([name]):
            self._writer.begin(name)
            async for _ in self._large(one):
                yield
        await self.check()

    async def check(self) -> None:
        """Make sure that the server process that answered first still does."""
        keys = (self._keyspace.ctl(self._shard),)
        call = ScriptCall(load_script("backup_process"), keys, (), bulk=True)
        self._same(await self._driver.execute(call))

    async def _names(self) -> AsyncIterator[list[bytes]]:
        """Yield the names of the shard's scopes, page by page; some may come twice."""
        cursor, script = b"0", load_script("scan_set")
        due = self._keyspace.due(self._shard)
        while True:
            arguments = (cursor, self._process, b"", b"%d" % SCOPES_PAGE)
            call = ScriptCall(script, (due,), arguments, bulk=True)
            cursor, process, *names = await self._driver.execute(call)
            self._same(process)
            yield names
            if cursor == b"0":
                return

    async def _groups(self) -> AsyncIterator[list[_Sized]]:
        """Yield scopes that are asked for together; a large one alone."""
        group: list[_Sized] = []
        size = 0
        async for names in self._names():
            wanted = [name for name in names if self._selection.wants_scope(name.decode())]
            for one in await self._sizes(wanted):
                if group and size + one.size > GROUP_BYTES:
                    yield group
                    group, size = [], 0
                group.append(one)
                size += max(256, one.size)
        if group:
            yield group

    async def _sizes(self, names: Sequence[bytes]) -> list[_Sized]:
        """Return what scopes say about themselves, in plain commands with a check behind them."""
        execute = self._driver.execute
        asked = [
            execute(Command(pack(b"HGET", self._hash(name), META_FIELD), "HGET", bulk=True))
            for name in names
        ]
        found = []
        for name, reply in zip(names, asked, strict=True):
            try:
                meta = unpack_meta(await reply, name.decode())
            except CorruptRecordError:
                meta = EMPTY_META
            if meta.revision is None:
                request = pack(b"HLEN", self._hash(name))
                fields = await execute(Command(request, "HLEN", bulk=True))
                found.append(_Sized(name, fields, -1))
            else:
                found.append(_Sized(name, meta.count, meta.size + _FIELD_BYTES * meta.count))
        if names:
            await self.check()
        return found

    def _whole(self, one: _Sized) -> asyncio.Future[Any] | None:
        if one.size > WHOLE_BYTES or (one.size < 0 and one.fields):
            return None
        request = pack(b"HGETALL", self._hash(one.name))
        return self._driver.execute(Command(request, "HGETALL", bulk=True))

    async def _write(
        self, group: Sequence[tuple[_Sized, asyncio.Future[Any] | None]]
    ) -> AsyncIterator[None]:
        for one, reply in group:
            self.scopes += 1
            if reply is not None:
                found = fields_of(await reply)
                self._writer.begin(one.name)
                await self._take(one.name, found)
                yield
                continue
            self._writer.begin(one.name)
            async for _ in self._large(one):
                yield

    async def _large(self, one: _Sized) -> AsyncIterator[None]:
        """Read a scope page by page: the next one is on its way while this one is written."""
        key, seen, size = self._hash(one.name), 0, 0
        # What it holds beside the hash is counted as well, so pages begin too small, if anything.
        count = _page(one.size / max(1, one.fields)) if one.size >= 0 else 1
        following = self._page(key, b"0", count)
        try:
            while True:
                cursor, flat = await following
                if cursor != b"0":
                    seen += len(flat)
                    size += sum(map(len, flat))
                    count = min(2 * count, _page(2 * size / max(1, seen)))
                    following = self._page(key, cursor, count)
                await self._take(one.name, fields_of(flat))
                yield
                if cursor == b"0":
                    return
        finally:
            following.cancel()

    def _page(self, key: bytes, cursor: bytes, count: int) -> asyncio.Future[Any]:
        request = pack(b"HSCAN", key, cursor, b"COUNT", count)
        return self._driver.execute(Command(request, "HSCAN", bulk=True))

    def _same(self, process: bytes) -> None:
        """Another server process may have lost what the one before showed."""
        if not self._process:
            self._process = process
        elif process != self._process:
            raise BackupDivergedError(self._shard, None, "another server process answers")

    def _hash(self, name: bytes) -> bytes:
        return self._keyspace.prefix(self._shard) + name

    # --- records

    async def _take(self, name: bytes, found: dict[bytes, bytes]) -> None:
        """Write a page of a scope."""
        meta = found.pop(META_FIELD, None)
        if meta is not None:
            self._writer.scope_record(meta)
        if not found:
            return
        if min(map(len, found.values())) < MIN_HEADER:
            key = next(key for key, raw in found.items() if len(raw) < MIN_HEADER)
            raise CorruptRecordError(name.decode(), key.decode(), f"{len(found[key])} bytes")
        if self._selection.classes or self._selection.keys:
            wants = self._selection.wants
            found = {k: raw for k, raw in found.items() if wants(k.decode(), raw[1] & 15)}
        composites = [item for item in found.items() if item[1][1] >= _COMPOSITE]
        for key, _ in composites:
            del found[key]
        if found:
            self._writer.records_of(found)
        for first in range(0, len(composites), TOGETHER):
            await self._composites(name, composites[first : first + TOGETHER])

    async def _composites(self, name: bytes, some: Sequence[tuple[bytes, bytes]]) -> None:
        reader = Elements(self._driver, self._keyspace, Scope.parse(name.decode()))
        heads = [(key, raw, *_head(name, key, raw)) for key, raw in some]
        # Small ones together; a large one alone, piece by piece.
        small = [head.size <= PAGE_BYTES // 2 for *_, head in heads]
        asked = [
            self._driver.execute(reader.whole(kind, head)) if is_small else None
            for (_, _, kind, head), is_small in zip(heads, small, strict=True)
        ]
        for (key, raw, kind, head), reply in zip(heads, asked, strict=True):
            self._writer.composite(key, raw)
            if reply is not None:
                found = await reply
                if kind == Kind.MAP:
                    parts = list(chain.from_iterable(fields_of(found).items()))
                else:
                    parts = found[: head.count]  # a list may have grown since
                if not reader.complete(kind, head, len(parts)):
                    self._writer.missing()
                elif parts:
                    self._writer.elements(key, kind, parts)
                continue
            count = 0
            async for parts in reader.pieces(kind, head, self.check):
                self._writer.elements(key, kind, parts)
                count += len(parts)
            if not reader.complete(kind, head, count):
                self._writer.missing()


def fields_of(reply: Any) -> dict[bytes, bytes]:
    """Return the fields of a hash, whichever protocol's reply it is."""
    return reply if type(reply) is dict else dict(zip(reply[::2], reply[1::2], strict=True))


def _page(average: float) -> int:
    """Return how many fields of a size a page has."""
    return max(1, min(MOST_FIELDS, int(PAGE_BYTES / max(1, average))))


def _head(name: bytes, key: bytes, raw: bytes) -> tuple[int, Head]:
    stored = unpack_record(raw, name.decode(), key.decode())
    return stored.kind, unpack_head(stored.payload, name.decode(), key.decode())


class Elements:
    """The elements of composite values of one scope."""

    def __init__(self, driver: AsyncDriver, keyspace: KeySpace, scope: Scope) -> None:
        self._driver = driver
        self._keyspace = keyspace
        self._scope = scope

    def whole(self, kind: int, head: Head) -> Command:
        """Return the request for all of them."""
        generation = self._keyspace.generation(self._scope, head.generation)
        if kind == Kind.MAP:
            return Command(pack(b"HGETALL", generation), "HGETALL", bulk=True)
        request = pack(b"LRANGE", generation, 0, max(0, head.count - 1))
        return Command(request, "LRANGE", bulk=True)

    async def pieces(
        self, kind: int, head: Head, check: Callable[[], Awaitable[None]]
    ) -> AsyncIterator[list[bytes]]:
        """Yield them piece by piece; fewer than there should be if they are replaced meanwhile.

        `check` fails if another server process answers than before.
        """
        generation = self._keyspace.generation(self._scope, head.generation)
        average = head.size / max(1, head.count)
        if kind == Kind.MAP:
            if head.size <= PAGE_BYTES:
                whole = fields_of(await self._driver.execute(self.whole(kind, head)))
                yield list(chain.from_iterable(whole.items()))
                return
            await check()
            cursor, count = b"0", _page(average)
            while True:
                request = pack(b"HSCAN", generation, cursor, b"COUNT", count)
                found = await self._driver.execute(Command(request, "HSCAN", bulk=True))
                cursor, parts = found
                if parts:
                    yield parts
                    count = _page(2 * sum(map(len, parts)) / len(parts))
                if cursor == b"0":
                    await check()
                    return
        step = min(MOST_ELEMENTS, _page(average))
        for start in range(0, head.count, step):
            last = min(start + step, head.count) - 1
            request = pack(b"LRANGE", generation, start, last)
            parts = await self._driver.execute(Command(request, "LRANGE", bulk=True))
            if parts:
                yield parts
            if len(parts) != last - start + 1:
                return

    @staticmethod
    def complete(kind: int, head: Head, parts: int) -> bool:
        """Whether all elements are there; of a map, which changes in place, whether any are."""
        if kind == Kind.MAP:
            return parts > 0 or head.count == 0
        return parts == head.count
