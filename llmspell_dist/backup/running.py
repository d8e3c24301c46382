"""Who works on the backups of a namespace: many may make some, one alone removes.

A backup that runs has a share of the lease ``repository``, and its id is the owner; pruning has
that lease alone. So what a killed backup has left (its hold on the log) is told from one that still
runs, and is cleaned up by the next.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from llmspell_dist.backup.errors import BackupInProgressError
from llmspell_dist.backup.restoring.swapping import QUIET_MS, leftovers
from llmspell_dist.backup.selection import OWN_SCOPE
from llmspell_dist.errors import LeaseAlreadyHeldError, LeaseUnavailableError
from llmspell_dist.log import LogSteps

if TYPE_CHECKING:
    from llmspell_dist.leases.manager import Leases
    from llmspell_dist.state.driver import AsyncDriver

__all__ = ["KEPT_FOR_NEXT", "SCOPE", "Running"]

SCOPE: Final = OWN_SCOPE
_HOLDS: Final = frozenset(("backup", "restore"))
KEPT_FOR_NEXT: Final = "backups"
"""The hold that keeps the log for the next incremental backup."""
_REPOSITORY: Final = "repository"
_TTL_S: Final = 30.0


class Running:
    """The leases of everything that works on backups."""

    def __init__(self, driver: AsyncDriver, leases: Leases) -> None:
        self._driver = driver
        self._leases = leases
        self._log = LogSteps(driver.core)

    @property
    def leases(self) -> Leases:
        """What the leases are taken with."""
        return self._leases

    @asynccontextmanager
    async def one_of_many(self, run_id: str, label: str) -> AsyncIterator[None]:
        """Run beside others of this kind, and never beside one that removes."""
        try:
            async with self._leases.acquire(
                SCOPE,
                name=_REPOSITORY,
                mode="shared",
                owner=run_id,
                ttl=_TTL_S,
                wait=60.0,
                label=label,
            ):
                await self.clean_up()
                yield
        except LeaseUnavailableError as error:
            raise BackupInProgressError("pruning", str(error)) from None

    @asynccontextmanager
    async def alone(self, label: str) -> AsyncIterator[None]:
        """Run while nobody else works on the backups."""
        try:
            async with self._leases.acquire(
                SCOPE, name=_REPOSITORY, ttl=_TTL_S, wait=5.0, label=label
            ):
                yield
        except (LeaseUnavailableError, LeaseAlreadyHeldError) as error:
            raise BackupInProgressError("a backup, restore or pruning", str(error)) from None

    @asynccontextmanager
    async def shipping(self, label: str) -> AsyncIterator[None]:
        """Ship the log while nobody else does; waits for its turn."""
        async with self._leases.acquire(SCOPE, name="archive", ttl=_TTL_S, label=label[:64]):
            yield

    async def is_running(self, run_id: str) -> bool:
        """Whether a backup or restore is still at work."""
        found = await self._leases.show(SCOPE, name=_REPOSITORY)
        return any(holder.owner == run_id for holder in found.holders)

    async def clean_up_restores(self, driver: AsyncDriver) -> None:
        """Remove what restores into a namespace had laid down before they were killed."""
        for shard in driver.core.shards():
            await driver.run(leftovers(driver.core, shard, quiet_ms=QUIET_MS))

    async def clean_up(self) -> list[str]:
        """Give up what backups and restores have left that were killed; the ids of the backups."""
        await self.clean_up_restores(self._driver)
        gone: set[str] = set()
        for shard in self._driver.core.shards():
            stat = await self._driver.run(self._log.stat(shard))
            for name in (*stat.holds, *stat.broken):
                kind, _, run_id = name.partition(":")
                if kind not in _HOLDS or name in gone or await self.is_running(run_id):
                    continue
                await self._driver.run(self._log.release(name))
                gone.add(name)
        return sorted(name.partition(":")[2] for name in gone)
