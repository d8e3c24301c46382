"""Putting back what a backup holds beside state: events, the history of hooks, correlations.

Each key is laid down beside the live one; then all keys of a section take their places in one step,
and what came later goes. They are as they were when the full backup was made, whatever the moment.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Any, Final

import msgpack

from llmspell_dist.backup.errors import BackupDamagedError
from llmspell_dist.backup.items import Extra, Item
from llmspell_dist.backup.sections import SECTIONS, SHARD
from llmspell_dist.errors import SpellError
from llmspell_dist.redis.commands import Command, ScriptCall
from llmspell_dist.redis.resp import pack
from llmspell_dist.redis.scripts import load_script

if TYPE_CHECKING:
    from llmspell_dist.state.driver import AsyncDriver

__all__ = ["SectionRestore"]

STAGED_MS: Final = 3_600_000
KEPT_MS: Final = {"correlations": 7 * 86_400_000}
"""By section: for how long its keys are kept; others are for ever."""
AT_ONCE: Final = 500
"""Keys that change in one step."""
_ADDS: Final = {"hash": b"HSET", "list": b"RPUSH"}


class SectionRestore:
    """One section of one restore."""

    def __init__(self, target: AsyncDriver, restore_id: str, section: str) -> None:
        self._target = target
        self._section = section
        self._restore_id = restore_id
        keyspace = target.core.keyspace
        self._prefix = keyspace.prefix(SHARD)
        self._staged: dict[bytes, bytes] = {}
        """By key: where it is laid down."""

    async def load(self, items: Iterable[Item], name: str) -> None:
        """Lay down what the items of an object say."""
        for item in items:
            if not isinstance(item, Extra):
                raise BackupDamagedError(name, "it holds something else than a section")
            try:
                kind, part = msgpack.unpackb(item.data)
                await self._add(item.name, kind, part)
            except (ValueError, TypeError, KeyError, IndexError) as error:
                reason = f"it is damaged at {item.name!r}: {type(error).__name__}"
                raise BackupDamagedError(name, reason) from None

    async def _add(self, name: bytes, kind: str, part: list[Any]) -> None:
        key = self._place(name)
        if kind == "stream":
            for entry, fields in part:
                await self._send(pack(b"XADD", key, entry, *fields), "XADD")
        elif kind == "zset":
            pairs = [text for at in range(0, len(part), 2) for text in (part[at + 1], part[at])]
            await self._send(pack(b"ZADD", key, *pairs), "ZADD")
        else:
            await self._send(pack(_ADDS[kind], key, *part), kind)
        await self._send(pack(b"PEXPIRE", key, STAGED_MS), "PEXPIRE")

    def _place(self, name: bytes) -> bytes:
        final = self._prefix + name
        self._target.core.keyspace.parse(final)  # refuses a name that is none of ours
        staged = self._staged.get(final)
        if staged is None:
            place = f"{self._section}-{len(self._staged)}"
            staged = self._target.core.keyspace.staged(SHARD, self._restore_id, place)
            self._staged[final] = staged
        return staged

    async def _send(self, packed: bytes, name: str) -> Any:
        return await self._target.execute(Command(packed, name, bulk=True, write=True))

    async def put_in_place(self) -> int:
        """Put everything that was laid down in its place; how many keys there are."""
        pairs = [(staged, final, b"r") for final, staged in self._staged.items()]
        pairs += [(key, key, b"u") async for key in self._there() if key not in self._staged]
        done, kept = 0, b"%d" % KEPT_MS.get(self._section, 0)
        for first in range(0, len(pairs), AT_ONCE):
            some = pairs[first : first + AT_ONCE]
            keys = tuple(key for pair in some for key in pair[:2])
            arguments = (kept, *(what for _, _, what in some))
            call = ScriptCall(load_script("restore_section"), keys, arguments, bulk=True)
            done += await self._target.execute(call)
        if self._section == "events":
            await self._regroup()
        return done

    async def _there(self) -> AsyncIterator[bytes]:
        """Yield the keys that the section has now."""
        async for key in SECTIONS[self._section](self._target, self._target.core.keyspace):
            yield key

    async def _regroup(self) -> None:
        """Give queues their consumer group again: what was not handled is delivered anew."""
        keyspace = self._target.core.keyspace
        request = pack(b"HKEYS", keyspace.events(SHARD))
        for name in await self._target.execute(Command(request, "HKEYS")):
            queue = keyspace.event_queue(SHARD, name.decode())
            try:
                await self._send(
                    pack(b"XGROUP", b"CREATE", queue, b"q", b"0", b"MKSTREAM"), "XGROUP"
                )
            except SpellError as error:
                if "BUSYGROUP" not in str(error):
                    raise

    async def abandon(self) -> None:
        """Remove what was laid down."""
        if self._staged:
            await self._send(pack(b"UNLINK", *self._staged.values()), "UNLINK")
