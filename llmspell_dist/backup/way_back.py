"""While a restore goes on: that it is heard of, and a backup of what it replaces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

from llmspell_dist.backup.creating import Creator, Wish
from llmspell_dist.backup.errors import RestoreRefusedError
from llmspell_dist.backup.manifest import BackupType, Manifest
from llmspell_dist.backup.progress import Tracker
from llmspell_dist.backup.restoring.swapping import heard_of
from llmspell_dist.backup.selection import Selection
from llmspell_dist.backup.waiting import clearing_up
from llmspell_dist.errors import SpellError
from llmspell_dist.log import LogSteps
from llmspell_dist.revision import MAX_SEQ, Revision

if TYPE_CHECKING:
    from llmspell_dist.backup.repository import Repository
    from llmspell_dist.backup.restoring.staging import Staging
    from llmspell_dist.state.driver import AsyncDriver

__all__ = ["WayBack", "check_way_back", "kept_alive"]

REASON: Final = "rollback"
"""What such a backup is made for, as its manifest says."""
_TELL_S: Final = 10.0


@asynccontextmanager
async def kept_alive(staging: Staging, target: AsyncDriver) -> AsyncIterator[None]:
    """Tell all the time that a restore goes on, so that nobody takes it for a dead one."""

    async def tell() -> None:
        while True:
            await asyncio.sleep(_TELL_S)
            with suppress(SpellError):  # whatever it is, the restore itself meets it
                await target.run(heard_of(staging))

    telling = asyncio.create_task(tell())
    try:
        yield
    finally:
        telling.cancel()
        await asyncio.wait([telling])


def check_way_back(manifest: Manifest) -> None:
    """Refuse a backup that no restore made of what it replaced: that one would restore it all."""
    if manifest.reason != REASON:
        reason = f"{manifest.backup_id} is no way back of a restore: it was made for"
        raise RestoreRefusedError("", f"{reason} {manifest.reason!r}, and is restored as any other")


class WayBack:
    """The backup of what a restore replaces: up to the very commit before.

    It is one of all that was asked for, whether it is there or not: what a restore brings where
    nothing was goes again.
    """

    def __init__(
        self,
        target: AsyncDriver,
        repository: Repository,
        restore_id: str,
        scopes: tuple[str, ...],
    ) -> None:
        self._hold = f"restore:{restore_id}"
        self.backup_id: str | None = None
        self._target = target
        self._repository = repository
        self._selection = Selection.of(scopes)
        self._manifest: Manifest | None = None

    async def take(self, stack: AsyncExitStack) -> None:
        """Make the backup, and hold the log from it on until `stack` ends."""
        log = LogSteps(self._target.core)
        await self._target.run(log.hold(self._hold, None))

        async def release() -> None:
            await clearing_up(self._hold, self._target.run(log.release(self._hold)))

        stack.push_async_callback(release)
        self._manifest = await self._creator().full()
        self.backup_id = self._manifest.backup_id

    def _creator(self) -> Creator:
        wish = Wish(selection=self._selection, reason=REASON, importance="important")
        return Creator(self._target, self._repository, wish, Tracker(None))

    async def complete(self, changed: Revision) -> None:
        """Add what was committed between that backup and the first change of the restore."""
        if self._manifest is None:
            return
        before = (
            Revision(changed.ms, changed.seq - 1)
            if changed.seq
            else Revision(changed.ms - 1, MAX_SEQ)
        )
        manifest = await self._creator().following(
            BackupType.INCREMENTAL, self._manifest, self._manifest.backup_id, upto=before
        )
        self.backup_id = manifest.backup_id
