"""Making backups as the service offers them: from which parent, and with whom told."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.backoff import Backoff
from llmspell_dist.backup.creating import Creator, Wish
from llmspell_dist.backup.errors import (
    BaseMissingError,
    TargetError,
    TargetPermissionError,
)
from llmspell_dist.backup.manifest import IMPORTANCE, BackupType, Manifest
from llmspell_dist.backup.model import BackupInfo
from llmspell_dist.backup.progress import Observer, Tracker
from llmspell_dist.backup.running import KEPT_FOR_NEXT, Running
from llmspell_dist.backup.schedules import Work
from llmspell_dist.backup.sections import SECTIONS
from llmspell_dist.backup.selection import Selection
from llmspell_dist.errors import ClosedError, InvalidArgumentError, SpellError
from llmspell_dist.log import LogSteps

if TYPE_CHECKING:
    from llmspell_dist.backup.archive.whereabouts import Gap
    from llmspell_dist.backup.notices import Notices
    from llmspell_dist.backup.repository import Repository
    from llmspell_dist.backup.retention.policy import RetentionPolicy
    from llmspell_dist.backup.schedule_model import BackupSchedule
    from llmspell_dist.state.driver import AsyncDriver

__all__ = ["IMPORTANCE", "Maker", "sections_of", "wish_of"]

logger = logging.getLogger("llmspell_dist.backup")

_ANEW: Final = "llmspell-backups-anew"
_NOT_MADE: Final = "the archive has a gap, and no new full backup could be made"
_FIRST_WAIT_S: Final = 5.0
_LONGEST_WAIT_S: Final = 300.0
"""Between two tries to make a full backup after a gap."""
_MOST_TEXT: Final = 256
_MOST_TAGS: Final = 64


class Maker:
    """Makes the backups of one repository."""

    def __init__(
        self, driver: AsyncDriver, repository: Repository, running: Running, notices: Notices
    ) -> None:
        self._driver = driver
        self._repository = repository
        self._running = running
        self._notices = notices
        self._tasks: set[asyncio.Task[BackupInfo]] = set()

    async def make(
        self,
        wanted: BackupType,
        wish: Wish,
        parent: str | None = None,
        progress: Observer | None = None,
        *,
        keep_log: bool = False,
        reuse: bool = True,
    ) -> BackupInfo:
        """Make a backup; see `BackupStore.create`."""
        creator = Creator(self._driver, self._repository, wish, Tracker(progress))
        facts = {"id": creator.backup_id, "type": wanted.value}
        async with (
            self._notices.of("backup", self._repository.target.label, **facts) as told,
            self._running.one_of_many(creator.backup_id, "backup"),
        ):
            if wanted is BackupType.FULL:
                manifest = await creator.full(await self._known() if reuse else None)
            else:
                found = await self._parent(wanted, parent)
                manifest = await creator.following(wanted, found, found.base)
            if keep_log:
                await self._keep_log(manifest)
            told.update(records=manifest.stats.records, bytes=manifest.stats.stored_bytes)
        return BackupInfo(manifest)

    async def _keep_log(self, manifest: Manifest) -> None:
        """Keep the log from the backup's moment on, for the next one, if that can be."""
        log = LogSteps(self._driver.core)
        try:
            for cut in manifest.shards:
                await self._driver.run(log.hold_shard(cut.shard, KEPT_FOR_NEXT, cut.revision))
        except SpellError as error:
            said = "the log is not kept from backup %s on, the next may have to be full: %s"
            logger.warning(said, manifest.backup_id, error)

    async def _known(self) -> Manifest | None:
        """Return the backup whose objects need not be stored again."""
        try:
            return await self._newest(BackupType.FULL)
        except TargetError:
            return None  # who may only write stores everything, as does who cannot read just now

    async def _parent(self, wanted: BackupType, parent: str | None) -> Manifest:
        if parent is not None:
            chosen = await asyncio.to_thread(self._repository.manifest, parent)
            await asyncio.to_thread(self._repository.authenticate, chosen)
            return chosen
        found = await self._newest(BackupType.FULL if wanted is BackupType.DIFFERENTIAL else None)
        if found is None:
            # Those that are encrypted were passed over where no key is given.
            await asyncio.to_thread(self._repository.check_plaintext)
            raise BaseMissingError("", "there is none that can be read")
        return found

    async def _newest(self, wanted: BackupType | None) -> Manifest | None:
        """Return the newest whole backup of a type, if there is one."""

        def is_one(manifest: Manifest) -> bool:
            if manifest.filtered or (wanted is not None and manifest.type is not wanted):
                return False
            # Who may only write to the place must not choose what is gone on from.
            self._repository.authenticate(manifest)
            return True

        return await asyncio.to_thread(self._repository.newest, is_one)

    # --- by itself

    def on_schedule(
        self, schedule: BackupSchedule, prune: Callable[[RetentionPolicy], Awaitable[Any]]
    ) -> Work:
        """Return what a schedule does."""
        tags = {"schedule": schedule.name}
        full = Wish(sections=sections_of(schedule.include), tags=tags, reason="schedule")
        following = Wish(tags=tags, reason="schedule")

        async def taken() -> list[tuple[BackupType, datetime]]:
            return await asyncio.to_thread(_taken, self._repository)

        async def create(wanted: BackupType) -> str:
            wish = full if wanted is BackupType.FULL else following
            return (await self.make(wanted, wish, keep_log=True)).id

        async def check() -> None:
            await asyncio.to_thread(self._repository.check_plaintext)

        return Work(taken, create, prune, check)

    def begin_anew(self, gap: Gap) -> None:
        """Make a full backup in the background: those from before a gap lead no further.

        What fails is tried again until it is made, or this is closed.
        """
        if not self._tasks:
            wish = Wish(reason="archive", tags={"gap": gap.reason[:_MOST_TEXT]})
            task = asyncio.create_task(self._make_anew(wish), name=_ANEW)
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    async def _make_anew(self, wish: Wish) -> BackupInfo:
        backoff = Backoff(first_s=_FIRST_WAIT_S, max_s=_LONGEST_WAIT_S)
        while True:
            try:
                return await self.make(BackupType.FULL, wish)
            except (InvalidArgumentError, ClosedError):
                raise  # no waiting heals it
            except SpellError as error:
                logger.error("%s: %s; it is tried again", _NOT_MADE, error)  # noqa: TRY400
            await asyncio.sleep(backoff.next_s())

    def _ended(self, task: asyncio.Task[BackupInfo]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("%s: %s", _NOT_MADE, error)

    async def close(self) -> None:
        """End what goes on in the background."""
        for task in list(self._tasks):
            task.cancel()
            await asyncio.wait([task])


def _taken(repository: Repository) -> list[tuple[BackupType, datetime]]:
    """Return type and beginning of all whole backups; one that is damaged stops no other.

    Who may only write to the place knows of none.
    """
    manifests, left_out = repository.readable()
    for error in left_out.values():
        if isinstance(error, TargetError) and not isinstance(error, TargetPermissionError):
            raise error
    return [(one.type, one.started_at) for one in manifests if not one.filtered]


# --- what is asked for


def wish_of(
    backup_type: BackupType | str,
    selection: Selection,
    include: Iterable[str],
    *,
    tags: Mapping[str, str] | None,
    importance: str,
    parent: str | None = None,
) -> tuple[BackupType, Wish]:
    """Return what a caller asks for, checked."""
    wanted = _type(backup_type)
    if wanted is not BackupType.FULL and not selection.everything:
        rule = "cannot select: it holds what its parent holds"
        raise InvalidArgumentError("type", wanted.value, rule)
    if importance not in IMPORTANCE:
        raise InvalidArgumentError("importance", importance, f"must be {_any_of(IMPORTANCE)}")
    sections, found = sections_of(include), _tags(tags)
    if sections and wanted is not BackupType.FULL:
        raise InvalidArgumentError("include", sections, "only a full backup holds it")
    if parent is not None and wanted is BackupType.FULL:
        raise InvalidArgumentError("parent", parent, "a full backup has none")
    return wanted, Wish(selection=selection, sections=sections, tags=found, importance=importance)


def sections_of(include: Iterable[str]) -> tuple[str, ...]:
    """Return the sections that are meant."""
    sections = tuple(sorted({include} if isinstance(include, str) else set(include)))
    for one in sections:
        if one not in SECTIONS:
            raise InvalidArgumentError("include", one, f"must be {_any_of(SECTIONS)}")
    return sections


def _type(value: BackupType | str) -> BackupType:
    try:
        return BackupType(value)
    except ValueError:
        raise InvalidArgumentError("type", value, f"must be {_any_of(BackupType)}") from None


def _tags(tags: Mapping[str, str] | None) -> dict[str, str]:
    if tags is not None and not isinstance(tags, Mapping):
        raise InvalidArgumentError("tags", tags, "must be texts by name")
    found = dict(tags or {})
    if len(found) > _MOST_TAGS:
        raise InvalidArgumentError("tags", len(found), f"must be at most {_MOST_TAGS}")
    for name, value in found.items():
        fits = isinstance(name, str) and isinstance(value, str)
        if not fits or len(name) > _MOST_TEXT or len(value) > _MOST_TEXT:
            rule = f"must be texts by name, of at most {_MOST_TEXT} characters each"
            raise InvalidArgumentError("tags", {name: value}, rule)
    return found


def _any_of(names: Iterable[str]) -> str:
    return f"one of {', '.join(names)}"
