"""What can be done with the backups in a place: by a client of the server, or through a sidecar.

Arguments are read here, once for both; who makes, restores and proves says how.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from llmspell_dist.backup.collecting import DRILLS, GRACE, Garbage
from llmspell_dist.backup.creating import Wish
from llmspell_dist.backup.errors import RestoreRefusedError
from llmspell_dist.backup.findings import Level, VerifyReport
from llmspell_dist.backup.making import sections_of, wish_of
from llmspell_dist.backup.manifest import BackupType
from llmspell_dist.backup.points import Point
from llmspell_dist.backup.restores import RestorePlan, RestoreReport, RestoreWish, check_wish
from llmspell_dist.backup.selection import Selection
from llmspell_dist.closing import AsyncClosing
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.scope import Scope

if TYPE_CHECKING:
    from llmspell_dist.backup.archive.offering import ArchiveStatus
    from llmspell_dist.backup.model import BackupInfo, Inexact
    from llmspell_dist.backup.progress import Observer
    from llmspell_dist.backup.proving import Difference, DrillReport
    from llmspell_dist.backup.retention.policy import RetentionPolicy
    from llmspell_dist.backup.upkeep import Pruned
    from llmspell_dist.classes import StateClass
    from llmspell_dist.revision import Revision


__all__ = ["StoredBackups"]


class StoredBackups(AsyncClosing):
    """The backups of one namespace in one place.

    Raised everywhere: `InvalidArgumentError` before anything is sent, `TargetError` and its
    children when the place fails for good, `StoreUnavailableError` and its children when the server
    does, `BackupKeyError` and `BackupDamagedError` when a backup cannot be read.
    """

    def __repr__(self) -> str:
        return f"<{type(self).__name__} in {self.label}>"

    @property
    @abstractmethod
    def label(self) -> str:
        """Where the backups are, without secrets."""

    # --- making

    async def create(
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
        selection = Selection.of(scopes, classes)
        wanted, wish = wish_of(
            type, selection, include, tags=tags, importance=importance, parent=parent
        )
        return await self._make(wanted, wish, parent, progress, keep_log=keep_log, reuse=reuse)

    # --- getting back

    async def rollback(
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
        point = restore.rollback if isinstance(restore, RestoreReport) else restore
        if point is None:
            raise RestoreRefusedError("", "the restore has no rollback point")
        namespace = restore.namespace if isinstance(restore, RestoreReport) else None
        return await self._undo(point, namespace, progress, force=force)

    async def restore(
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
        if ttl not in ("absolute", "remaining"):
            raise InvalidArgumentError("ttl", ttl, "must be absolute or remaining")
        wish = RestoreWish(
            point=Point.of(at),
            selection=Selection.of(scopes),
            key=key,
            into=None if into is None else Scope.coerce(into),
            remaining_ttl=ttl == "remaining",
            force=force,
            rollback=rollback,
            timeline=timeline,
            sections=sections_of(include),
        )
        check_wish(wish)
        return await self._restore(wish, namespace, progress)

    async def plan(
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
        return await self._plan(Point.of(at), Selection.of(scopes), timeline)

    # --- proving

    async def diff(
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
        point, selection = Point.of(at), Selection.of(scopes)
        return await self._diff(point, selection, timeline, limit, progress)

    async def verify(
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
        return await self._verify(backup_id, str(level), sample, seed, progress)

    async def drill(
        self,
        at: Point | Revision | datetime | str | None = None,
        *,
        progress: Observer | None = None,
    ) -> DrillReport:
        """Prove a backup: restore it into a scratch server, and compare every key with the log.

        Keys that were not changed since must be as they are; of those that were, the log says what
        they were then. The result is kept beside the backups: see `drills` and `last_proof`.
        """
        return await self._drill(Point.of(at), progress)

    @abstractmethod
    async def drills(self) -> tuple[DrillReport, ...]:
        """Return the results of all drills, oldest first."""

    async def last_proof(self) -> datetime | None:
        """Return when a drill last found everything as it was; None if none ever did."""
        return max((one.at for one in await self.drills() if one.ok), default=None)

    # --- keeping in order

    @abstractmethod
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

    @abstractmethod
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

    # --- looking

    @abstractmethod
    async def archive_status(self) -> ArchiveStatus:
        """Return what the archive covers by timeline and shard, and how far behind it is."""

    @abstractmethod
    async def list(self) -> list[BackupInfo]:
        """Return all backups, oldest first; `verify` names those whose manifest cannot be read."""

    async def newest(self) -> BackupInfo | None:
        """Return the newest backup that can be read; None if there is none."""
        found = await self.list()
        return found[-1] if found else None

    @abstractmethod
    async def info(self, backup_id: str) -> BackupInfo:
        """Return one backup; `BackupNotFoundError` if there is none with this id."""

    @abstractmethod
    async def inexact(self, backup_id: str) -> tuple[Inexact, ...]:
        """Return the keys whose value as of the backup's moment could not be had."""

    # --- how it is done

    @abstractmethod
    async def _make(
        self,
        kind: BackupType,
        wish: Wish,
        parent: str | None,
        progress: Observer | None,
        *,
        keep_log: bool,
        reuse: bool,
    ) -> BackupInfo: ...

    @abstractmethod
    async def _undo(
        self, point: str, namespace: str | None, progress: Observer | None, *, force: bool
    ) -> RestoreReport: ...

    @abstractmethod
    async def _restore(
        self, wish: RestoreWish, namespace: str | None, progress: Observer | None
    ) -> RestoreReport: ...

    @abstractmethod
    async def _plan(
        self, point: Point, selection: Selection, timeline: str | None
    ) -> RestorePlan: ...

    @abstractmethod
    async def _diff(
        self,
        point: Point,
        selection: Selection,
        timeline: str | None,
        limit: int,
        progress: Observer | None,
    ) -> Difference: ...

    @abstractmethod
    async def _verify(
        self,
        backup_id: str | None,
        level: str,
        sample: float,
        seed: int,
        progress: Observer | None,
    ) -> VerifyReport: ...

    @abstractmethod
    async def _drill(self, point: Point, progress: Observer | None) -> DrillReport: ...
