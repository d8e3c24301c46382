"""Where this sidecar keeps backups, and the archive that it ships there if it is told to."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, cast

from llmspell_dist.backoff import Backoff
from llmspell_dist.backup.waiting import until_set
from llmspell_dist.sidecar.errors import NotFoundError

if TYPE_CHECKING:
    from llmspell_dist.backup.archive.shipper import Shipper
    from llmspell_dist.backup.service import BackupStore
    from llmspell_dist.sidecar.services import Services

__all__ = ["begin_archive", "shipper_of", "store_of"]

logger = logging.getLogger("llmspell_dist.sidecar")
_STOPPED_WITHIN_S = 10.0
_FIRST_WAIT_S = 1.0
_LONGEST_WAIT_S = 60.0
"""Before shipping begins again that has ended by an error."""


def store_of(services: Services) -> BackupStore:
    """Return the backups of this sidecar.

    The place is the settings' alone: a client that could name one would have the sidecar write
    wherever that leads, with the sidecar's credentials.
    """
    found = services.kept.get("backups")
    if found is None:
        settings = services.settings
        if settings.backups is None:
            raise NotFoundError("place for backups: this sidecar was started without one")
        found = services.spell.backups.to(
            settings.backups, keys=settings.backup_keys, older_keys=settings.backup_older_keys
        )
        services.kept["backups"] = found
        services.ending.append(found.close)
    return cast("BackupStore", found)


def begin_archive(services: Services) -> None:
    """Ship the change log until the sidecar ends, if its settings say so."""
    if not services.settings.archive:
        return
    shipper = store_of(services).archive()
    services.kept["shipper"] = shipper
    stop = asyncio.Event()
    task = asyncio.get_running_loop().create_task(_ship(shipper, stop))

    async def end() -> None:
        stop.set()  # what is left is shipped first
        _, late = await asyncio.wait((task,), timeout=_STOPPED_WITHIN_S)
        if late:
            task.cancel()
            await asyncio.wait((task,))

    services.ending.append(end)


async def _ship(shipper: Shipper, stop: asyncio.Event) -> None:
    """Ship until `stop` is set, then what is left; whatever ends it before, it begins again."""
    backoff = Backoff(first_s=_FIRST_WAIT_S, max_s=_LONGEST_WAIT_S)
    while True:
        try:
            await shipper.run(stop)
        except Exception:
            wait_s = backoff.next_s()
            logger.exception("the archive is not shipped; it begins again in %.1f s", wait_s)
        else:
            return
        await until_set(stop, wait_s)
        if stop.is_set():
            return  # the log keeps it for whoever ships next


def shipper_of(services: Services) -> Shipper | None:
    """Return what ships here; None if nothing does."""
    return cast("Shipper | None", services.kept.get("shipper"))
