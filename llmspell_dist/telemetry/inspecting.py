"""Looks at what only the server and the backups know, now and then, so that it can be exported.

How long the log is, which holds broke, what waits in queues, how old the newest backup is and when
one was last proved. One process of a fleet is enough for it; more do no harm.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.errors import InvalidArgumentError, SpellError
from llmspell_dist.redis.commands import Command
from llmspell_dist.redis.resp import pack
from llmspell_dist.retention import Retention
from llmspell_dist.state.driver import driver_of
from llmspell_dist.telemetry.readings import Labels, labels

if TYPE_CHECKING:
    from llmspell_dist.backup.service import BackupStore
    from llmspell_dist.telemetry.telemetry import Telemetry

__all__ = ["Inspector", "inspecting"]

logger = logging.getLogger("llmspell_dist.telemetry")

_SHARDS: Final = 16
"""So many shards are looked at one by one; a cluster's are too many for a metric each."""
Gauges = dict[tuple[str, Labels], float]


class Inspector:
    """Looks once, with `look`; `inspecting` does so again and again.

    A look replaces what the one before saw. What cannot be seen is left out, and counted: an alert
    on an age that nobody measures any more would stay green.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        client: Any,
        stores: Iterable[BackupStore] = (),
    ) -> None:
        self._telemetry = telemetry
        self._client = client
        self._stores = tuple(stores)
        self._mine: set[tuple[str, Labels]] = set()

    @property
    def _namespace(self) -> str:
        return str(self._client.namespace)

    async def look(self) -> None:
        """Look at everything."""
        found: Gauges = {}
        for what, part in (("server", self._server), ("log", self._log), ("events", self._events)):
            try:
                found.update(await part())
            except (SpellError, OSError) as error:
                self._failed(what, error)
        of_stores = ("backups", self._backups), ("drills", self._drills), ("archive", self._archive)
        for store in self._stores:
            for what, look in of_stores:
                try:
                    found.update(await look(store))
                except (SpellError, OSError) as error:
                    self._failed(what, error)
        gauges = self._telemetry.book.gauges
        merged = {key: value for key, value in gauges.items() if key not in self._mine}
        merged.update(found)
        self._mine = set(found)
        self._telemetry.book.gauges = merged

    def _failed(self, what: str, error: Exception) -> None:
        logger.warning("telemetry cannot look at the %s: %s", what, error)
        key = labels(llmspell__namespace=self._namespace)
        self._telemetry.book.count("llmspell.inspection.failures", key)

    def _key(self, **more: Any) -> Labels:
        return labels(llmspell__namespace=self._namespace, **more)

    def _key_of(self, store: BackupStore) -> Labels:
        return self._key(llmspell__backup__place=store.label)

    async def _server(self) -> Gauges:
        reply = await driver_of(self._client).run(_ask(Command(pack("INFO", "memory"), "INFO")))
        said = _fields(reply)
        limit = int(said.get("maxmemory", 0)) or int(said.get("total_system_memory", 0))
        found = {("llmspell.server.memory.used", self._key()): float(said.get("used_memory", 0))}
        if limit:
            found["llmspell.server.memory.limit", self._key()] = float(limit)
        return found

    async def _log(self) -> Gauges:
        driver = driver_of(self._client)
        core, found = driver.core, Gauges()
        stored = await driver.run(_ask(_get_retention(core)))
        cap = Retention.parse(stored).cap_entries
        for shard in core.shards()[:_SHARDS]:
            stat = await self._client.log.stat(shard=shard)
            key = self._key(llmspell__shard=shard)
            found["llmspell.log.length", key] = stat.entries
            found["llmspell.log.cap", key] = cap
            found["llmspell.log.holds", key] = len(stat.holds)
            found["llmspell.log.holds.broken", key] = len(stat.broken)
        return found

    async def _events(self) -> Gauges:
        found = Gauges()
        for queue in await self._client.events.subscriptions():
            key = self._key(llmspell__subscription=queue.name)
            found["llmspell.event.lag", key] = queue.lag
            found["llmspell.event.dead_letters", key] = queue.dead
        return found

    # What never happened is as old as the epoch, so that an alert on its age fires; infinity is no
    # value of a metric to OpenTelemetry.

    async def _backups(self, store: BackupStore) -> Gauges:
        newest = await store.newest()
        made = None if newest is None else newest.created
        return {("llmspell.backup.age", self._key_of(store)): _age(made)}

    async def _drills(self, store: BackupStore) -> Gauges:
        return {("llmspell.backup.proof.age", self._key_of(store)): _age(await store.last_proof())}

    async def _archive(self, store: BackupStore) -> Gauges:
        key, found = self._key_of(store), Gauges()
        status = await store.archive_status()
        if status.lag_s is not None:
            found["llmspell.archive.lag", key] = status.lag_s
            found["llmspell.archive.pending", key] = status.pending
            found["llmspell.archive.gaps", key] = status.timelines[-1].gaps
        return found


def _ask(command: Command) -> Any:
    return (yield command)


def _get_retention(core: Any) -> Command:
    return Command(pack(b"HGET", core.keyspace.ctl("0"), b"retention"), "HGET")


def _age(since: datetime | None) -> float:
    now = datetime.now(UTC)
    return now.timestamp() if since is None else max(0.0, (now - since).total_seconds())


def _fields(info: bytes | str | None) -> Mapping[str, str]:
    text = info.decode("utf-8", "replace") if isinstance(info, bytes) else info or ""
    lines = (line.partition(":") for line in text.splitlines())
    return {name: value.strip() for name, colon, value in lines if colon}


@asynccontextmanager
async def inspecting(
    telemetry: Telemetry,
    client: Any,
    stores: Iterable[BackupStore] = (),
    *,
    every: float = 30.0,
) -> AsyncIterator[Inspector]:
    """Look every so many seconds while the block runs; the first look is done when it begins.

    `client`: an open `Spell`. `stores`: what ``spell.backups.to(…)`` returned, if backups are to be
    watched. Nothing that goes wrong here ends the block.
    """
    if type(every) not in (int, float) or not 0.01 <= every <= 86_400:
        raise InvalidArgumentError("every", every, "must be 0.01 to 86,400 seconds")
    inspector = Inspector(telemetry, client, stores)
    await inspector.look()

    async def go_on() -> None:
        while True:
            await asyncio.sleep(every)
            try:
                await inspector.look()
            except Exception:
                logger.exception("telemetry could not look at the server")

    task = asyncio.create_task(go_on())
    try:
        yield inspector
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
