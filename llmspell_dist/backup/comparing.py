"""Two states of a namespace, compared key by key: a restored one and the live one.

Bounded in memory: scopes are read page by page, and of each page's keys the other side is asked.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.backup.digest import RecordDigest
from llmspell_dist.backup.scanning import Elements
from llmspell_dist.backup.selection import Selection
from llmspell_dist.records import META_FIELD, Kind, StoredRecord, unpack_head, unpack_record
from llmspell_dist.redis.commands import Command, ScriptCall
from llmspell_dist.redis.resp import pack
from llmspell_dist.redis.scripts import load_script
from llmspell_dist.scope import Scope

if TYPE_CHECKING:
    from llmspell_dist.state.driver import AsyncDriver

__all__ = ["Comparison", "KeyDifference", "Side"]

PAGE_BYTES: Final = 128 * 1024
_SCOPES_PAGE: Final = 200


@dataclass(frozen=True, slots=True)
class KeyDifference:
    """A key that is not the same on both sides."""

    scope: str
    key: str
    what: str
    """``added``: only the restored side has it; ``changed``; ``removed``: only the live one."""


class Side:
    """One of the two states."""

    def __init__(self, driver: AsyncDriver, now_ms: int) -> None:
        self.driver = driver
        self._keyspace = driver.core.keyspace
        self._now_ms = now_ms
        """What expired before is not there, swept or not."""

    async def scopes(self, wanted: Selection) -> AsyncIterator[str]:
        """Yield the printed names of scopes; one may come twice."""
        for shard in self.driver.core.shards():
            cursor, process = b"0", b""
            while True:
                arguments = (cursor, process, b"", b"%d" % _SCOPES_PAGE)
                keys = (self._keyspace.due(shard),)
                call = ScriptCall(load_script("scan_set"), keys, arguments, bulk=True)
                cursor, process, *names = await self.driver.execute(call)
                for name in names:
                    if wanted.wants_scope(name.decode()):
                        yield name.decode()
                if cursor == b"0":
                    break

    async def pages(self, scope: str) -> AsyncIterator[dict[bytes, StoredRecord]]:
        """Yield the records of a scope, some at a time; a key may come twice."""
        key, cursor, process = self._keyspace.scope(Scope.parse(scope)), b"0", b""
        while True:
            arguments = (cursor, process, b"%d" % PAGE_BYTES)
            call = ScriptCall(load_script("backup_scan"), (key,), arguments, bulk=True)
            cursor, process, *flat = await self.driver.execute(call)
            page = {}
            for name, raw in zip(flat[::2], flat[1::2], strict=True):
                if name != META_FIELD:
                    stored = self._live(scope, name, raw)
                    if stored is not None:
                        page[name] = stored
            if page:
                yield page
            if cursor == b"0":
                return

    async def records(self, scope: str, keys: Sequence[bytes]) -> list[StoredRecord | None]:
        """Return the records of some keys."""
        request = pack(b"HMGET", self._keyspace.scope(Scope.parse(scope)), *keys)
        found = await self.driver.execute(Command(request, "HMGET", bulk=True))
        return [
            None if raw is None else self._live(scope, key, raw)
            for key, raw in zip(keys, found, strict=True)
        ]

    def _live(self, scope: str, key: bytes, raw: bytes) -> StoredRecord | None:
        stored = unpack_record(raw, scope, key.decode())
        return None if 0 < stored.expires_ms <= self._now_ms else stored

    async def digest(self, scope: str, key: bytes, stored: StoredRecord) -> int:
        """Return the digest of a key with all its elements."""
        # The log does not tell when the source of a copy was created.
        digest = RecordDigest(key, stored, created=False)
        if stored.kind >= Kind.LIST:
            reader = Elements(self.driver, self._keyspace, Scope.parse(scope))
            head = unpack_head(stored.payload, scope, key.decode())
            async for parts in reader.pieces(stored.kind, head, _any_process):
                digest.add(parts)
        return digest.value()


async def _any_process() -> None:
    """Accept whichever server process answers."""


@dataclass(slots=True)
class Comparison:
    """What two sides differ in."""

    most_named: int = 1000
    scopes: int = 0
    keys: int = 0
    """That were compared."""
    added: int = 0
    changed: int = 0
    removed: int = 0
    digest: int = 0
    """The sum of the digests of all keys of the restored side, modulo 2**256."""
    named: list[KeyDifference] = field(default_factory=list)
    _seen: set[str] = field(default_factory=set)

    @property
    def differences(self) -> int:
        """How many keys differ."""
        return self.added + self.changed + self.removed

    async def run(
        self,
        restored: Side,
        live: Side,
        wanted: Selection,
        *,
        excused: Callable[[str, bytes, StoredRecord | None], Awaitable[bool]] | None = None,
    ) -> None:
        """Compare all scopes that are wanted.

        `excused` is asked about keys that differ: with the scope, the key, and the live record;
        True: that is no difference.
        """
        async for scope in restored.scopes(wanted):
            if scope in self._seen:
                continue
            self._seen.add(scope)
            self.scopes += 1
            async for page in restored.pages(scope):
                await self._one_page(scope, page, restored, live, excused)
        async for scope in live.scopes(wanted):
            async for page in live.pages(scope):
                keys = list(page)
                there = await restored.records(scope, keys)
                for key, stored in zip(keys, there, strict=True):
                    if stored is None and await self._differs(scope, key, page[key], excused):
                        self.removed += 1
                        self._name(scope, key, "removed")

    async def _one_page(
        self,
        scope: str,
        page: dict[bytes, StoredRecord],
        restored: Side,
        live: Side,
        excused: Any,
    ) -> None:
        keys = list(page)
        others = await live.records(scope, keys)
        for key, other in zip(keys, others, strict=True):
            stored = page[key]
            digest = await restored.digest(scope, key, stored)
            self.keys += 1
            self.digest = (self.digest + digest) % 2**256
            if other is not None and digest == await live.digest(scope, key, other):
                continue
            if not await self._differs(scope, key, other, excused):
                continue
            if other is None:
                self.added += 1
                self._name(scope, key, "added")
            else:
                self.changed += 1
                self._name(scope, key, "changed")

    @staticmethod
    async def _differs(scope: str, key: bytes, live: StoredRecord | None, excused: Any) -> bool:
        return excused is None or not await excused(scope, key, live)

    def _name(self, scope: str, key: bytes, what: str) -> None:
        if len(self.named) < self.most_named:
            self.named.append(KeyDifference(scope, key.decode("utf-8", "replace"), what))
