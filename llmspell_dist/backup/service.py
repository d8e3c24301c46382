"""Backups, asynchronous: make them, look at them, get back what they hold."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from llmspell_dist.backup.archive.offering import Archive, ArchiveStatus
from llmspell_dist.backup.archive.position import archive_lag
from llmspell_dist.backup.archive.shipper import INTERVAL_S, Shipper
from llmspell_dist.backup.collecting import DRILLS, GRACE, Garbage
from llmspell_dist.backup.compression import Compression
from llmspell_dist.backup.creating import Wish
from llmspell_dist.backup.errors import (
    BackupDamagedError,
    BackupFormatError,
    BackupNotFoundError,
)
from llmspell_dist.backup.exporting import export_backup, import_backup
from llmspell_dist.backup.findings import VerifyReport
from llmspell_dist.backup.inventory import made_at
from llmspell_dist.backup.keys import provider_of
from llmspell_dist.backup.making import Maker
from llmspell_dist.backup.manifest import BackupType, Manifest
from llmspell_dist.backup.model import BackupInfo, Inexact
from llmspell_dist.backup.namespaces import in_namespace
from llmspell_dist.backup.notices import Notices, Publish
from llmspell_dist.backup.points import Point
from llmspell_dist.backup.progress import Observer, Phase
from llmspell_dist.backup.proving import Difference, DrillReport, Prover, Scratch
from llmspell_dist.backup.repository import Repository
from llmspell_dist.backup.restores import (
    RestorePlan,
    Restorer,
    RestoreReport,
    RestoreWish,
)
from llmspell_dist.backup.retention.policy import RetentionPolicy
from llmspell_dist.backup.running import Running
from llmspell_dist.backup.schedule_model import BackupSchedule
from llmspell_dist.backup.schedules import ScheduledBackups
from llmspell_dist.backup.selection import Selection
from llmspell_dist.backup.stored import StoredBackups
from llmspell_dist.backup.targets import Target, open_target
from llmspell_dist.backup.tracing import traced
from llmspell_dist.backup.upkeep import Pruned, Upkeep
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.revision import Revision
from llmspell_dist.state.points import NO_POINTS, Points

if TYPE_CHECKING:
    from llmspell_dist.backup.removing import Removal
    from llmspell_dist.leases.manager import Leases
    from llmspell_dist.security.keyring import KeyProvider
    from llmspell_dist.state.driver import AsyncDriver

__all__ = ["BackupStore", "Backups"]

logger = logging.getLogger("llmspell_dist.backup")


class Backups:
    """Backups of this namespace; `to` says where they are kept.

    `leases` are the library's own, which no hook looks at; they end with the client.
    """

    def __init__(
        self,
        driver: AsyncDriver,
        leases: Leases,
        scratch: Scratch,
        publish: Publish | None = None,
        points: Points = NO_POINTS,
    ) -> None:
        self._driver = driver
        self._leases = leases
        self._scratch = scratch
        self._publish = publish
        self._points = points

    def __repr__(self) -> str:
        core = self._driver.core
        return f"<{type(self).__name__} of {core.keyspace.namespace!r} on {core.server}>"

    async def close(self) -> None:
        """Give back what is held; the client does it when it is closed."""
        await self._leases.close()

    def to(
        self,
        target: str | Target | None = None,
        *,
        keys: KeyProvider | str | None = None,
        older_keys: Iterable[KeyProvider | str] = (),
        compression: Compression | str = "zstd",
    ) -> BackupStore:
        """Return the backups that are kept in a place; nothing is read or written yet.

        `target`: ``s3://bucket/prefix?endpoint=…&region=…``, ``file:///folder``, or a `Target` of
        your own (which is not closed); only through a sidecar, which has a place of its own, it is
        left out. `keys` wraps the key with which each backup is encrypted: a
        `KeyProvider`, or ``file:///folder``, ``env:VARIABLE``, ``aws-kms:KEY``; without it backups
        are not encrypted, and with it such are refused. `older_keys`: providers that were used
        before, to read what they wrapped (and to `rewrap` it). `compression`: ``zstd`` (``zstd:1``
        to ``zstd:19``), ``gzip``, ``lz4`` or ``none``; what is read may have any.
        """
        if target is None:
            rule = "must say where, as s3://bucket/prefix: only a sidecar has a place of its own"
            raise InvalidArgumentError("target", target, rule)
        older = [provider_of(one) for one in older_keys]
        provider = None if keys is None else provider_of(keys)
        if isinstance(compression, str):
            compression = Compression.parse(compression)
        own = isinstance(target, str)
        opened = open_target(target) if isinstance(target, str) else target
        namespace = self._driver.core.keyspace.namespace
        repository = Repository(
            opened, namespace, keys=provider, older_keys=older, compression=compression
        )
        notices = Notices(self._driver, self._publish, self._points)
        running = Running(self._driver, self._leases)
        return BackupStore(
            self._driver,
            repository,
            running,
            notices,
            scratch=self._scratch,
            own_target=own,
        )


class BackupStore(StoredBackups):
    """The backups of one namespace in one place; see `StoredBackups` for what is raised."""

    def __init__(
        self,
        driver: AsyncDriver,
        repository: Repository,
        running: Running,
        notices: Notices,
        *,
        scratch: Scratch,
        own_target: bool,
    ) -> None:
        self._driver = driver
        self._repository = repository
        self._running = running
        self._notices = notices
        self._own_target = own_target
        self._maker = Maker(driver, repository, running, notices)
        self._restorer = Restorer(driver, repository, running)
        self._prover = Prover(driver, repository, self._restorer, scratch)
        self._upkeep = Upkeep(repository, running, notices)

    @property
    def label(self) -> str:
        """Where the backups are, without secrets."""
        return self._repository.target.label

    async def close(self) -> None:
        """Give back connections to the place; twice is allowed."""
        await self._maker.close()
        if self._own_target:
            await asyncio.to_thread(self._repository.target.close)

    # --- making

    async def _make(
        self,
        kind: BackupType,
        wish: Wish,
        parent: str | None,
        progress: Observer | None,
        *,
        keep_log: bool,
        reuse: bool,
    ) -> BackupInfo:
        with traced(self._driver, "create", progress) as seen:
            return await self._maker.make(kind, wish, parent, seen, keep_log=keep_log, reuse=reuse)

    # --- getting back

    async def _undo(
        self, point: str, namespace: str | None, progress: Observer | None, *, force: bool
    ) -> RestoreReport:
        wish = RestoreWish(point=Point(backup_id=point), selection=Selection(), force=force)
        restorer, target = self._restorer, self._driver
        if namespace is not None and namespace != self._repository.namespace:
            target = await in_namespace(self._driver, namespace)
            repository = self._repository.of(namespace)
            restorer = Restorer(target, repository, self._running)
        with traced(self._driver, "rollback", progress) as seen:
            async with self._notices.of("rollback", self.label, point=point) as told:
                report = await restorer.restore(wish, target, seen, ends=Phase.ROLLED_BACK)
                told.update(id=report.id, scopes=report.scopes, records=report.records)
        return report

    async def _restore(
        self, wish: RestoreWish, namespace: str | None, progress: Observer | None
    ) -> RestoreReport:
        target = self._driver if namespace is None else await in_namespace(self._driver, namespace)
        with traced(self._driver, "restore", progress) as seen:
            async with self._notices.of("restore", self.label, at=str(wish.point)) as told:
                report = await self._restorer.restore(wish, target, seen)
                told.update(id=report.id, scopes=report.scopes, records=report.records)
        return report

    async def _plan(self, point: Point, selection: Selection, timeline: str | None) -> RestorePlan:
        return await self._restorer.planned(point, selection, timeline)

    # --- proving

    async def _diff(
        self,
        point: Point,
        selection: Selection,
        timeline: str | None,
        limit: int,
        progress: Observer | None,
    ) -> Difference:
        return await self._prover.diff(
            point, selection, timeline=timeline, limit=limit, progress=progress
        )

    async def _verify(
        self,
        backup_id: str | None,
        level: str,
        sample: float,
        seed: int,
        progress: Observer | None,
    ) -> VerifyReport:
        with traced(self._driver, "verify", progress) as seen:
            return await self._upkeep.verify(
                backup_id, level=level, sample=sample, seed=seed, progress=seen
            )

    async def _drill(self, point: Point, progress: Observer | None) -> DrillReport:
        with traced(self._driver, "drill", progress) as seen:
            async with self._notices.of("validation", self.label, at=str(point)) as told:
                report = await self._prover.drill(point, seen)
                told.update(id=report.id, ok=report.ok, records=report.records)
        return report

    async def drills(self) -> tuple[DrillReport, ...]:
        """Return the results of all drills, oldest first."""
        return tuple(await asyncio.to_thread(self._prover.drills))

    # --- keeping in order

    async def prune(
        self,
        policy: RetentionPolicy | str,
        *,
        confirm: bool = False,
        plan: Pruned | None = None,
    ) -> Pruned:
        """Return what goes by a policy, what stays, and why; remove it only with `confirm`.

        `policy`: a `RetentionPolicy`, or its short form such as ``last=10 daily=7 min=3``. `plan`:
        what was returned before; then nothing goes that was not in it. What a backup that stays
        needs stays, and the archive from the oldest one on. May be interrupted at any point: what
        is left then is whole backups, and objects that `gc` finds. Raises `BackupInProgressError`
        if somebody else works on the backups.
        """
        with traced(self._driver, "prune"):
            return await self._upkeep.prune(policy, confirm=confirm, plan=plan)

    async def delete(self, backup_id: str, *, confirm: bool = False) -> Removal:
        """Remove one backup by its id, whatever a policy says; without `confirm` only tell.

        One of which others go on, one that is locked in the bucket, and the only full one that the
        archive goes on from are a `BackupNeededError`. Of one whose manifest is damaged the
        objects are left to `gc`. Parts of the archive that lead from it alone go with the next
        `prune`. Raises `BackupNotFoundError`, and `BackupInProgressError` as `prune` does.
        """
        return await self._upkeep.remove(backup_id, confirm=confirm)

    async def gc(
        self,
        *,
        confirm: bool = False,
        grace: timedelta = GRACE,
        drills_after: timedelta = DRILLS,
    ) -> Garbage:
        """Return what nothing needs, left by processes that were killed; remove it with `confirm`.

        Objects and keys that no backup names, notes of backups that never ended, unfinished
        uploads, results of drills older than `drills_after`. What is younger than `grace` stays.
        """
        return await self._upkeep.collect(confirm=confirm, grace=grace, drills_after=drills_after)

    def on_schedule(self, schedule: BackupSchedule) -> ScheduledBackups:
        """Return what makes backups on a schedule: `run` it in each process of the fleet.

        Each moment is one process's, whichever runs then. Nothing is read or written yet.
        """
        work = self._maker.on_schedule(schedule, partial(self.prune, confirm=True))
        return ScheduledBackups(self._driver, self._running.leases, schedule, work)

    # --- the archive of the change log

    def archive(self, *, interval: float | timedelta = INTERVAL_S) -> Shipper:
        """Return what ships the change log here every `interval` seconds; one process at a time.

        With it any moment since a full backup can be restored. ``await shipper.run(stop)`` ships
        until the event `stop` is set, ``await shipper.once()`` what there is now. The log is not
        trimmed past what has been shipped, up to the cap of its retention.
        """
        if isinstance(interval, timedelta):
            interval = interval.total_seconds()
        return Shipper(
            self._driver,
            self._repository,
            interval_s=interval,
            guard=partial(self._running.shipping, self.label),
            on_gap=self._maker.begin_anew,
        )

    async def archive_status(self) -> ArchiveStatus:
        """Return what the archive covers by timeline and shard, and how far behind it is."""
        archive = Archive(self._repository)
        timelines = await archive.status()
        if not timelines:
            return ArchiveStatus()
        lag_s, pending = await archive_lag(self._driver)
        return ArchiveStatus(tuple(timelines), lag_s, pending)

    # --- looking

    async def list(self) -> list[BackupInfo]:
        """Return all backups, oldest first; `verify` names those whose manifest cannot be read."""
        return [
            BackupInfo(one) for one in await asyncio.to_thread(_all_manifests, self._repository)
        ]

    async def newest(self) -> BackupInfo | None:
        """Return the newest backup that can be read, without reading older ones; None if none."""
        found = await asyncio.to_thread(self._repository.newest)
        return None if found is None else BackupInfo(found)

    async def info(self, backup_id: str) -> BackupInfo:
        """Return one backup; `BackupNotFoundError` if there is none with this id."""
        return BackupInfo(await asyncio.to_thread(self._repository.manifest, backup_id))

    async def inexact(self, backup_id: str) -> tuple[Inexact, ...]:
        """Return the keys whose value as of the backup's moment could not be had."""

        def read() -> dict[str, Any]:
            return self._repository.index(self._repository.manifest(backup_id))

        index = await asyncio.to_thread(read)
        found = index["inexact"]
        return tuple(Inexact(scope, key, Revision.parse(at)) for scope, key, at in found)

    async def export(self, backup_id: str, path: str | os.PathLike[str]) -> int:
        """Write a backup, with all that it needs, into one file; how many bytes it has.

        An encrypted backup stays so: whoever imports it needs the key-encryption key.
        """
        return await asyncio.to_thread(export_backup, self._repository, backup_id, path)

    async def import_(self, path: str | os.PathLike[str]) -> BackupInfo:
        """Put an exported backup into this place, and return it; what is there stays as it is."""
        return await self.info(await asyncio.to_thread(import_backup, self._repository, path))

    async def rewrap(self) -> tuple[str, ...]:
        """Wrap every data key by the newest key of the provider; the ids of those that were not.

        No data is read or written. Afterwards older versions are no longer needed.
        """
        return tuple(await asyncio.to_thread(self._repository.keystore.rewrap))


def _all_manifests(repository: Repository) -> list[Manifest]:
    found = []
    for backup_id in repository.backup_ids():
        try:
            found.append(repository.manifest(backup_id))
        except BackupNotFoundError:
            continue  # pruned meanwhile
        except (BackupDamagedError, BackupFormatError) as error:
            logger.warning("a backup is left out of the list: %s", error)
    made = made_at(found)
    return sorted(found, key=lambda one: (made[one.backup_id], one.backup_id))
