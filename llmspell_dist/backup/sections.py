"""What a backup can hold beside state: events, the history of hooks, correlations.

They are copied key by key as they are when they are read, near the backup's moment but not of
exactly that one: an event that was handled in between may be in it, or not. Each `N` item is named
like the Redis key, without namespace and shard, and holds a type and a part of its content.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import msgpack

from llmspell_dist.backup.items import pack_extra
from llmspell_dist.redis.commands import Command
from llmspell_dist.redis.resp import pack

if TYPE_CHECKING:
    from llmspell_dist.backup.writing import ObjectWriter
    from llmspell_dist.keys import KeySpace
    from llmspell_dist.state.driver import AsyncDriver

__all__ = ["SECTIONS", "SectionReader"]

SHARD: Final = "0"
"""Where all of it lies."""
_PAGE: Final = 200
_READS: Final[Mapping[bytes, Callable[[bytes, Any], bytes]]] = {
    b"hash": lambda key, cursor: pack(b"HSCAN", key, cursor, b"COUNT", _PAGE),
    b"zset": lambda key, cursor: pack(b"ZSCAN", key, cursor, b"COUNT", _PAGE),
    b"stream": lambda key, after: pack(b"XRANGE", key, after, b"+", b"COUNT", _PAGE),
    b"list": lambda key, start: pack(b"LRANGE", key, start, start + _PAGE - 1),
}


async def _event_keys(driver: AsyncDriver, keyspace: KeySpace) -> AsyncIterator[bytes]:
    yield keyspace.event_stats(SHARD)
    names = await driver.execute(Command(pack(b"HKEYS", keyspace.events(SHARD)), "HKEYS"))
    for name in names:
        yield keyspace.event_queue(SHARD, name.decode())
        yield keyspace.event_dead(SHARD, name.decode())
    yield keyspace.events(SHARD)


async def _hook_keys(_: AsyncDriver, keyspace: KeySpace) -> AsyncIterator[bytes]:
    yield keyspace.hooks(SHARD)
    yield keyspace.hook_index(SHARD)


async def _correlation_keys(driver: AsyncDriver, keyspace: KeySpace) -> AsyncIterator[bytes]:
    registry, cursor = keyspace.correlations(SHARD), b"0"
    while True:
        request = pack(b"ZSCAN", registry, cursor, b"COUNT", _PAGE)
        cursor, found = await driver.execute(Command(request, "ZSCAN", bulk=True))
        for name in found[::2]:
            stem = keyspace.prefix(SHARD) + b"corr:" + name
            yield stem
            yield stem + b":log"
        if cursor == b"0":
            break
    yield registry


SECTIONS: Final[Mapping[str, Callable[[Any, Any], AsyncIterator[bytes]]]] = {
    "events": _event_keys,
    "hooks": _hook_keys,
    "correlations": _correlation_keys,
}
"""By name: the keys of a section; what names the others comes last."""


class SectionReader:
    """Copies sections into an `ObjectWriter`."""

    def __init__(self, driver: AsyncDriver, writer: ObjectWriter) -> None:
        self._driver = driver
        self._writer = writer
        self._keyspace = driver.core.keyspace

    async def read(self, section: str) -> AsyncIterator[None]:
        """Copy a section; yields now and then, when `writer.ready` may have something."""
        prefix = self._keyspace.prefix(SHARD)
        async for key in SECTIONS[section](self._driver, self._keyspace):
            kind = await self._driver.execute(Command(pack(b"TYPE", key), "TYPE"))
            if kind not in _READS:
                continue
            async for part in self._parts(kind, key):
                data = msgpack.packb([kind.decode(), part])
                self._writer.add_plain(pack_extra(key.removeprefix(prefix), data))
                yield

    async def _parts(self, kind: bytes, key: bytes) -> AsyncIterator[Any]:
        at: Any = b"-" if kind == b"stream" else 0
        while True:
            command = Command(_READS[kind](key, at), kind.decode().upper(), bulk=True)
            reply = await self._driver.execute(command)
            if kind in {b"hash", b"zset"}:
                at, found = reply
                done = at == b"0"
            else:
                found = reply
                done = len(found) < _PAGE
                if found:
                    at = b"(" + found[-1][0] if kind == b"stream" else at + _PAGE
            if found:
                yield found
            if done:
                return
