# Written by tools/make_blocking.py from llmspell_dist/backup/service.py: change that.
# Written by tools/make_blocking.py from llmspell_dist/backup/archive/shipper.py: change that.
# Written by tools/make_blocking.py from llmspell_dist/backup/schedules.py: change that.
"""Backups, blocking: carried out in the client's background event loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmspell_dist.backup.archive.shipper import INTERVAL_S
from llmspell_dist.backup.collecting import DRILLS, GRACE
from llmspell_dist.backup.findings import Level
from llmspell_dist.backup.manifest import BackupType
from llmspell_dist.blocking.stopping import until
from llmspell_dist.closing import Closing

if TYPE_CHECKING:
    import os
    import threading
    from collections.abc import Iterable, Mapping
    from datetime import datetime, timedelta

    from llmspell_dist.backup.archive.offering import ArchiveStatus
    from llmspell_dist.backup.archive.shipper import Shipper as AsyncShipper
    from llmspell_dist.backup.archive.shipper import ShipperStats
    from llmspell_dist.backup.collecting import Garbage
    from llmspell_dist.backup.compression import Compression
    from llmspell_dist.backup.findings import VerifyReport
    from llmspell_dist.backup.model import BackupInfo, Inexact
    from llmspell_dist.backup.points import Point
    from llmspell_dist.backup.progress import Observer
    from llmspell_dist.backup.proving import Difference, DrillReport
    from llmspell_dist.backup.removing import Removal
    from llmspell_dist.backup.restores import RestorePlan, RestoreReport
    from llmspell_dist.backup.retention.policy import RetentionPolicy
    from llmspell_dist.backup.schedule_model import BackupSchedule
    from llmspell_dist.backup.schedules import ScheduledBackups as AsyncScheduledBackups
    from llmspell_dist.backup.schedules import ScheduleStatus
    from llmspell_dist.backup.service import Backups as AsyncBackups
    from llmspell_dist.backup.service import BackupStore as AsyncBackupStore
    from llmspell_dist.backup.targets import Target
    from llmspell_dist.backup.upkeep import Pruned
    from llmspell_dist.blocking.backstage import Backstage
    from llmspell_dist.classes import StateClass
    from llmspell_dist.revision import Revision
    from llmspell_dist.scope import Scope
    from llmspell_dist.security.keyring import KeyProvider

__all__ = ["BackupStore", "Backups", "ScheduledBackups", "Shipper"]


class Backups:
    """As its asynchronous twin `llmspell_dist.backup.service.Backups`, blocking.

    What is called back (`progress`) is called in the background.
    """

    def __init__(self, backstage: Backstage, there: AsyncBackups) -> None:
        self._backstage = backstage
        self._there = there

    def __repr__(self) -> str:
        return repr(self._there)

    def close(self) -> None:
        """Give back what is held; the client does it when it is closed."""
        self._backstage.run(self._there.close())

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
        return BackupStore(
            self._backstage,
            self._there.to(target, keys=keys, older_keys=older_keys, compression=compression),
        )


class BackupStore(Closing):
    """As its asynchronous twin `llmspell_dist.backup.service.BackupStore`, blocking.

    What is called back (`progress`) is called in the background.
    """

    def __init__(self, backstage: Backstage, there: AsyncBackupStore) -> None:
        self._backstage = backstage
        self._there = there

    def __repr__(self) -> str:
        return repr(self._there)

    @property
    def label(self) -> str:
        """Where the backups are, without secrets."""
        return self._there.label

    def create(
        self,
        *,
        type: BackupType | str = BackupType.FULL,  # noqa: A002 - the field's name
        scopes: Iterable[str | Scope] | str | Scope = (),
        classes: Iterable[StateClass | str] | StateClass | str = (),
        include: Iterable[str] = (),
        parent: str | None = None,
        tags: Mapping[str, str] | None = None,
        importance: str = "standard",
        keep_log: bool = False,
        reuse: bool = True,
        progress: Observer | None = None,
    ) -> BackupInfo:
        """Make a backup: the state as of one moment, transactions included, while writers go on.

        `type`: ``full`` (all state; objects that an earlier backup has are not stored again),
        ``incremental`` (what was done since `parent`, by default the newest backup) or
        ``differential`` (since the last full one). The last two read the change log only: if it no
        longer reaches back, that is a `BaseMissingError`. `scopes` (globs too; behind a ``!`` what
        is left out) and `classes` select; `include`: ``events``, ``hooks`` (their history),
        ``correlations``, for a full backup only. `tags`: at most 64, names and values of at most
        256 characters.

        With `keep_log` the change log is kept from the backup's moment on, up to the cap of its
        retention, so that the next one can be incremental; ``spell.log.release("backups")`` ends
        that. Without `reuse` a full backup stores all its objects anew: if a data key may have
        become known, say.

        The manifest is written last: a backup that is interrupted at any moment does not exist.
        Several may be made at once. Raises `BackupDivergedError` if the server lost writes in
        between (make it again), `BackupInProgressError` while somebody prunes.
        """
        return self._backstage.run(
            self._there.create(
                type=type,
                scopes=scopes,
                classes=classes,
                include=include,
                parent=parent,
                tags=tags,
                importance=importance,
                keep_log=keep_log,
                reuse=reuse,
                progress=progress,
            )
        )

    def rollback(
        self,
        restore: RestoreReport | str,
        *,
        force: bool = False,
        progress: Observer | None = None,
    ) -> RestoreReport:
        """Undo a restore: put back what it replaced, up to the very commit before it.

        `restore`: what `restore` returned, or the id of its rollback point. What was written since
        the restore is replaced, and can be had back in turn. Raises `RestoreRefusedError` if the
        restore had no rollback point.
        """
        return self._backstage.run(self._there.rollback(restore, force=force, progress=progress))

    def restore(
        self,
        at: Point | Revision | datetime | str | None = None,
        *,
        scopes: Iterable[str | Scope] | str | Scope = (),
        key: str | None = None,
        into: str | Scope | None = None,
        namespace: str | None = None,
        ttl: str = "absolute",
        force: bool = False,
        rollback: bool = True,
        timeline: str | None = None,
        include: Iterable[str] = (),
        progress: Observer | None = None,
    ) -> RestoreReport:
        """Put scopes back as they were at a moment; keys and scopes that came later go.

        `at`: a datetime, a revision, a backup's id, or the latest moment that there is. `scopes`:
        which (globs too, and ``!…`` for what is not; by default all); with `key` one key of one
        scope. `into`: another scope for the one that is restored; `namespace`: another namespace of
        this server. `ttl`: keys expire when they would have (``absolute``; what has expired since
        does not come back), or after as long as they had left then (``remaining``).

        Everything is fetched, verified and laid down first; then each scope changes in one step, so
        nobody ever sees half of one. Restored records have a new revision: whoever read them before
        gets a `ConflictError`. Watches begin anew with what is there now, caches drop the scope. A
        scope with a lease that is held is refused (`RestoreRefusedError`), unless `force` breaks
        it: then its holder writes no more. With `rollback` what is replaced is backed up first, up
        to the very commit before. `include`: ``events``, ``hooks``, ``correlations``, as they were
        when the full backup was made; what of them came later goes, and `rollback` does not cover
        it.

        Raises `PointNotCoveredError`, `BackupNotFoundError`, `RestoreRefusedError`; whatever is
        raised, each scope is either as it was or restored whole.
        """
        return self._backstage.run(
            self._there.restore(
                at,
                scopes=scopes,
                key=key,
                into=into,
                namespace=namespace,
                ttl=ttl,
                force=force,
                rollback=rollback,
                timeline=timeline,
                include=include,
                progress=progress,
            )
        )

    def plan(
        self,
        at: Point | Revision | datetime | str | None = None,
        *,
        scopes: Iterable[str | Scope] | str | Scope = (),
        timeline: str | None = None,
    ) -> RestorePlan:
        """Return which moment a restore would bring back, and what from; nothing is changed.

        It is quick: manifests are read, no data. Raises `PointNotCoveredError`,
        `BackupNotFoundError` and `RestoreRefusedError` where `restore` would. What a restore in
        place would change is said by `diff`.
        """
        return self._backstage.run(self._there.plan(at, scopes=scopes, timeline=timeline))

    def diff(
        self,
        at: Point | Revision | datetime | str | None = None,
        *,
        scopes: Iterable[str | Scope] | str | Scope = (),
        timeline: str | None = None,
        limit: int = 1000,
        progress: Observer | None = None,
    ) -> Difference:
        """Return what a restore in place would change: which keys come, change and go.

        The moment is restored into a scratch server for that (of the extra ``embedded``, or from
        PATH), and nothing is written to this one. At most `limit` keys are named.
        """
        return self._backstage.run(
            self._there.diff(at, scopes=scopes, timeline=timeline, limit=limit, progress=progress)
        )

    def verify(
        self,
        backup_id: str | None = None,
        *,
        level: Level | str = Level.HASHES,
        sample: float = 1.0,
        seed: int = 0,
        progress: Observer | None = None,
    ) -> VerifyReport:
        """Look whether backups are whole: one with all that it needs, or all and the archive.

        `level`: ``structure`` (manifests, chains, every object there with its size, no gap in the
        archive), ``hashes`` (every byte against its SHA-256; needs no key), ``full`` (decrypted,
        decoded, counted, the log's chains followed). `sample`: which part of the objects is read,
        drawn with `seed`. It goes on after a finding; the report names object and reason of each.
        That nothing is there at all is one.
        """
        return self._backstage.run(
            self._there.verify(backup_id, level=level, sample=sample, seed=seed, progress=progress)
        )

    def drill(
        self,
        at: Point | Revision | datetime | str | None = None,
        *,
        progress: Observer | None = None,
    ) -> DrillReport:
        """Prove a backup: restore it into a scratch server, and compare every key with the log.

        Keys that were not changed since must be as they are; of those that were, the log says what
        they were then. The result is kept beside the backups: see `drills` and `last_proof`.
        """
        return self._backstage.run(self._there.drill(at, progress=progress))

    def drills(self) -> tuple[DrillReport, ...]:
        """Return the results of all drills, oldest first."""
        return self._backstage.run(self._there.drills())

    def last_proof(self) -> datetime | None:
        """Return when a drill last found everything as it was; None if none ever did."""
        return self._backstage.run(self._there.last_proof())

    def prune(
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
        return self._backstage.run(self._there.prune(policy, confirm=confirm, plan=plan))

    def gc(
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
        return self._backstage.run(
            self._there.gc(confirm=confirm, grace=grace, drills_after=drills_after)
        )

    def archive_status(self) -> ArchiveStatus:
        """Return what the archive covers by timeline and shard, and how far behind it is."""
        return self._backstage.run(self._there.archive_status())

    def list(self) -> list[BackupInfo]:
        """Return all backups, oldest first; `verify` names those whose manifest cannot be read."""
        return self._backstage.run(self._there.list())

    def newest(self) -> BackupInfo | None:
        """Return the newest backup that can be read; None if there is none."""
        return self._backstage.run(self._there.newest())

    def info(self, backup_id: str) -> BackupInfo:
        """Return one backup; `BackupNotFoundError` if there is none with this id."""
        return self._backstage.run(self._there.info(backup_id))

    def inexact(self, backup_id: str) -> tuple[Inexact, ...]:
        """Return the keys whose value as of the backup's moment could not be had."""
        return self._backstage.run(self._there.inexact(backup_id))

    def close(self) -> None:
        """Give back connections to the place; twice is allowed."""
        self._backstage.run(self._there.close())

    def delete(self, backup_id: str, *, confirm: bool = False) -> Removal:
        """Remove one backup by its id, whatever a policy says; without `confirm` only tell.

        One of which others go on, one that is locked in the bucket, and the only full one that the
        archive goes on from are a `BackupNeededError`. Of one whose manifest is damaged the
        objects are left to `gc`. Parts of the archive that lead from it alone go with the next
        `prune`. Raises `BackupNotFoundError`, and `BackupInProgressError` as `prune` does.
        """
        return self._backstage.run(self._there.delete(backup_id, confirm=confirm))

    def on_schedule(self, schedule: BackupSchedule) -> ScheduledBackups:
        """Return what makes backups on a schedule: `run` it in each process of the fleet.

        Each moment is one process's, whichever runs then. Nothing is read or written yet.
        """
        return ScheduledBackups(self._backstage, self._there.on_schedule(schedule))

    def archive(self, *, interval: float | timedelta = INTERVAL_S) -> Shipper:
        """Return what ships the change log here every `interval` seconds; one process at a time.

        With it any moment since a full backup can be restored. ``await shipper.run(stop)`` ships
        until the event `stop` is set, ``await shipper.once()`` what there is now. The log is not
        trimmed past what has been shipped, up to the cap of its retention.
        """
        return Shipper(self._backstage, self._there.archive(interval=interval))

    def export(self, backup_id: str, path: str | os.PathLike[str]) -> int:
        """Write a backup, with all that it needs, into one file; how many bytes it has.

        An encrypted backup stays so: whoever imports it needs the key-encryption key.
        """
        return self._backstage.run(self._there.export(backup_id, path))

    def import_(self, path: str | os.PathLike[str]) -> BackupInfo:
        """Put an exported backup into this place, and return it; what is there stays as it is."""
        return self._backstage.run(self._there.import_(path))

    def rewrap(self) -> tuple[str, ...]:
        """Wrap every data key by the newest key of the provider; the ids of those that were not.

        No data is read or written. Afterwards older versions are no longer needed.
        """
        return self._backstage.run(self._there.rewrap())


class Shipper:
    """As its asynchronous twin `llmspell_dist.backup.archive.shipper.Shipper`, blocking.

    What is called back (`progress`) is called in the background.
    """

    def __init__(self, backstage: Backstage, there: AsyncShipper) -> None:
        self._backstage = backstage
        self._there = there

    def __repr__(self) -> str:
        return repr(self._there)

    @property
    def stats(self) -> ShipperStats:
        """See the twin."""
        return self._there.stats

    @property
    def lag_s(self) -> float:
        """At most so old is the oldest entry that is not stored; 0 just after all was."""
        return self._there.lag_s

    def once(self) -> ShipperStats:
        """Ship what the log has now, and return; whatever fails is raised."""
        return self._backstage.run(self._there.once())

    def run(self, stop: threading.Event) -> None:
        """Ship until `stop` is set, then what is left; what fails is tried again.

        If the server is away while it waits for its turn, or its turn is taken away, because the
        server lost its data for example, it waits again. Only errors that no waiting heals are
        raised, such as that of credentials which never were right.
        """
        self._backstage.run(until(stop, self._there.run))

    def forget(self) -> None:
        """End the archive: the log is no longer kept for it. What is stored stays."""
        self._backstage.run(self._there.forget())


class ScheduledBackups:
    """As its asynchronous twin `llmspell_dist.backup.schedules.ScheduledBackups`, blocking.

    What is called back (`progress`) is called in the background.
    """

    def __init__(self, backstage: Backstage, there: AsyncScheduledBackups) -> None:
        self._backstage = backstage
        self._there = there

    def __repr__(self) -> str:
        return repr(self._there)

    @property
    def schedule(self) -> BackupSchedule:
        """What is backed up when."""
        return self._there.schedule

    def status(self) -> ScheduleStatus:
        """Return how far it has come, whichever process runs it."""
        return self._backstage.run(self._there.status())

    def once(self) -> ScheduleStatus:
        """Make a backup if one is due and no other process runs the schedule; what fails is noted.

        For whoever is started now and then. The first call only notes that moments count from now.
        """
        return self._backstage.run(self._there.once())

    def run(self, stop: threading.Event) -> None:
        """Make backups when it is this process's turn, until `stop` is set and none is under way.

        What fails is tried again; only errors that no waiting heals are raised. A run that is
        cancelled gives up the backup that is under way, and the next process makes it anew.
        """
        self._backstage.run(until(stop, self._there.run))
