"""Backups through a sidecar: made, proved, restored and kept in order in the place that it has.

What takes long is an operation of the sidecar; see `llmspell_dist.remote.operations`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NoReturn

from llmspell_dist.backup.collecting import DRILLS, GRACE, Garbage
from llmspell_dist.backup.creating import Wish
from llmspell_dist.backup.errors import BackupNotFoundError
from llmspell_dist.backup.findings import VerifyReport
from llmspell_dist.backup.manifest import BackupType
from llmspell_dist.backup.names import is_backup_id
from llmspell_dist.backup.points import Point
from llmspell_dist.backup.restores import RestorePlan, RestoreReport, RestoreWish
from llmspell_dist.backup.retention.newest import check_span
from llmspell_dist.backup.retention.policy import RetentionPolicy
from llmspell_dist.backup.selection import Selection
from llmspell_dist.backup.stored import StoredBackups
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.remote.backup_documents import (
    PlannedPruning,
    archive_of,
    difference_of,
    drill_of,
    garbage_of,
    inexact_of,
    info_of,
    plan_of,
    prune_plan_of,
    prune_report_of,
    restored_of,
    verified_of,
)
from llmspell_dist.remote.errors import NotThroughSidecarError
from llmspell_dist.remote.operations import carry_out

if TYPE_CHECKING:
    from llmspell_dist.backup.archive.offering import ArchiveStatus
    from llmspell_dist.backup.compression import Compression
    from llmspell_dist.backup.model import BackupInfo, Inexact
    from llmspell_dist.backup.progress import Observer
    from llmspell_dist.backup.proving import Difference, DrillReport
    from llmspell_dist.backup.targets import Target
    from llmspell_dist.backup.upkeep import Pruned
    from llmspell_dist.remote.transport import Transport
    from llmspell_dist.security.keyring import KeyProvider

__all__ = ["ABSENT", "RemoteBackupStore", "RemoteBackups"]


ABSENT: Final[Mapping[str, str]] = {
    "delete": "a sidecar removes by a policy only: see prune; by its id, whoever keeps the place",
    "archive": "the sidecar ships the change log itself, if it was started with --archive",
    "export": "the file would be one of the sidecar's machine",
    "import_": "the file would be one of the sidecar's machine",
    "on_schedule": "a schedule needs a process that goes on: run `llmspell-dist backup schedule`",
    "rewrap": "the keys are the sidecar's, as its operator gave them",
}
"""What a `BackupStore` has and a client of a sidecar has not, and why."""


class RemoteBackups:
    """Backups of this namespace, through a sidecar; they are kept where its settings say."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def __repr__(self) -> str:
        return f"<{type(self).__name__} through {self._transport.server}>"

    async def close(self) -> None:
        """Nothing: nothing is held here."""

    def to(
        self,
        target: str | Target | None = None,
        *,
        keys: KeyProvider | str | None = None,
        older_keys: Iterable[KeyProvider | str] = (),
        compression: Compression | str = "zstd",
        plaintext: bool = False,
    ) -> RemoteBackupStore:
        """Return the backups that are kept in the sidecar's place; nothing is read or written yet.

        The place, what encrypts there and how it is compressed are settings of the sidecar: a
        client that could name a place would have it write wherever that leads, with its
        credentials. Given here, they are an `InvalidArgumentError`.
        """
        named = (("target", target), ("keys", keys), ("older_keys", list(older_keys) or None))
        for name, value in named:
            if value is not None:
                _refuse(f"backups.to({name}=…)", "the sidecar was given its place, with its keys")
        if plaintext:
            _refuse("backups.to(plaintext=True)", "the sidecar was given its place, with its keys")
        if compression != "zstd":
            _refuse("backups.to(compression=…)", "the sidecar compresses with zstd")
        return RemoteBackupStore(self._transport)


class RemoteBackupStore(StoredBackups):
    """The backups of one namespace in the place of a sidecar.

    Making, proving and restoring need the right to administer; one backup can be looked at with a
    right on ``backup:<id>``. Whoever is cancelled ends what he waits for. What the sidecar itself
    ended, or has forgotten because it was started anew, is an `OperationLostError`.
    """

    most_named: Final = 100_000
    """So many keys of a difference a sidecar names."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def __getattr__(self, name: str) -> Any:
        if name in ABSENT:
            _refuse(f"backups.to().{name}", ABSENT[name])
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def label(self) -> str:
        """Whose place it is: the sidecar's address. Where that is, only its operator is told."""
        return self._transport.server

    async def close(self) -> None:
        """Nothing: the connections to the place are the sidecar's."""

    async def _carry_out(self, name: str, wish: Any, progress: Observer | None = None) -> Any:
        return await carry_out(self._transport, ("v1", name), wish, progress)

    async def _get(self, *path: str, **query: Any) -> Any:
        return (await self._transport.request("GET", ("v1", *path), query=query)).document

    async def _post(self, name: str, wish: Any) -> Any:
        """Return what is answered at once."""
        answer = await self._transport.request("POST", ("v1", name), document=wish, idempotent=True)
        return answer.document

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
        document = {
            "type": kind.value,
            "scopes": list(wish.selection.scopes),
            "classes": wish.selection.stored["classes"],
            "include": list(wish.sections),
            "parent": parent,
            "tags": wish.tags,
            "importance": wish.importance,
            "keep_log": keep_log,
            "reuse": reuse,
        }
        return info_of(await self._carry_out("backups", document, progress))

    # --- getting back

    async def _undo(
        self,
        point: str,
        namespace: str | None,  # noqa: ARG002 - the point is of the sidecar's
        progress: Observer | None,
        *,
        force: bool,
    ) -> RestoreReport:
        document = {"point": point, "force": force}
        return restored_of(await self._carry_out("rollbacks", document, progress))

    async def _restore(
        self, wish: RestoreWish, namespace: str | None, progress: Observer | None
    ) -> RestoreReport:
        if namespace is not None:
            _refuse("restore(namespace=…)", "a sidecar works in one namespace")
        document = _moment(wish.point, wish.selection, wish.timeline) | {
            "key": wish.key,
            "into": None if wish.into is None else wish.into.text,
            "ttl": "remaining" if wish.remaining_ttl else "absolute",
            "force": wish.force,
            "rollback": wish.rollback,
            "include": list(wish.sections),
        }
        return restored_of(await self._carry_out("restores", document, progress))

    async def _plan(self, point: Point, selection: Selection, timeline: str | None) -> RestorePlan:
        document = _moment(point, selection, timeline)
        return plan_of(await self._post("restores", document | {"dry_run": True}))

    # --- proving

    async def _diff(
        self,
        point: Point,
        selection: Selection,
        timeline: str | None,
        limit: int,
        progress: Observer | None,
    ) -> Difference:
        _check_count("limit", limit, 1, self.most_named)
        document = _moment(point, selection, timeline) | {"limit": limit}
        return difference_of(await self._carry_out("backup-diffs", document, progress))

    async def _verify(
        self,
        backup_id: str | None,
        level: str,
        sample: float,
        seed: int,
        progress: Observer | None,
    ) -> VerifyReport:
        document = {"id": backup_id, "level": level, "sample": sample, "seed": seed}
        return verified_of(await self._carry_out("backup-verifications", document, progress))

    async def _drill(self, point: Point, progress: Observer | None) -> DrillReport:
        document = {"at": _said(point)}
        return drill_of(await self._carry_out("backup-drills", document, progress))

    async def drills(self) -> tuple[DrillReport, ...]:
        """Return the results of all drills, oldest first."""
        found = await self._get("backup-drills")
        return tuple([drill_of(one) for one in found["drills"]])

    # --- keeping in order

    async def prune(
        self,
        policy: RetentionPolicy | str,
        *,
        confirm: bool = False,
        plan: Pruned | None = None,
    ) -> Pruned:
        """Return what goes by a policy, what stays, and why; remove it only with `confirm`.

        `plan`: what was returned before, by any client of this sidecar; it can be carried out once,
        within an hour. Without one a plan is made, and nothing goes that is not in it.
        """
        wanted = _policy(policy)
        if plan is None or not confirm:
            found = await self._post("backup-prunings", {"policy": wanted.text, "details": True})
            plan = PlannedPruning(prune_plan_of(found, wanted), id=found["id"])
        if not confirm:
            return plan
        if not isinstance(plan, PlannedPruning) or plan.report is not None:
            rule = "must be what prune of a client of this sidecar has planned"
            raise InvalidArgumentError("plan", plan, rule)
        document = {"policy": wanted.text, "plan": plan.id}
        done = prune_report_of(await self._carry_out("backup-prunings", document))
        return PlannedPruning(plan.plan, done, plan.id)

    async def gc(
        self,
        *,
        confirm: bool = False,
        grace: timedelta = GRACE,
        drills_after: timedelta = DRILLS,
    ) -> Garbage:
        """Return what nothing needs, left by killed processes; remove it with `confirm`."""
        spans = {"grace": grace, "drills_after": drills_after}
        for name, value in spans.items():
            check_span(name, value)
        seconds = {name: value // timedelta(seconds=1) for name, value in spans.items()}
        document = {"confirm": confirm, **seconds}
        return garbage_of(await self._carry_out("backup-collections", document))

    # --- the archive of the change log

    async def archive_status(self) -> ArchiveStatus:
        """Return what the archive covers by timeline and shard, and how far behind it is."""
        return archive_of(await self._get("archive"))

    # --- looking

    async def list(self) -> list[BackupInfo]:
        """Return the backups that the caller may list, oldest first."""
        return [info_of(one) for one in (await self._get("backups"))["backups"]]

    async def info(self, backup_id: str) -> BackupInfo:
        """Return one backup; `BackupNotFoundError` if there is none with this id."""
        return info_of(await self._shown(backup_id, inexact=False))

    async def inexact(self, backup_id: str) -> tuple[Inexact, ...]:
        """Return the keys whose value as of the backup's moment could not be had."""
        return inexact_of((await self._shown(backup_id, inexact=True))["inexact"])

    async def _shown(self, backup_id: str, *, inexact: bool) -> Any:
        if not isinstance(backup_id, str):
            raise InvalidArgumentError("backup_id", backup_id, "must be the id of a backup")
        if not is_backup_id(backup_id):
            raise BackupNotFoundError(self.label, backup_id)
        return await self._get("backups", backup_id, inexact=inexact)


def _refuse(name: str, why: str) -> NoReturn:
    raise NotThroughSidecarError(name, why)


# --- what is asked for ----------------------------------------------------------------------------


def _moment(point: Point, selected: Selection, timeline: str | None) -> dict[str, Any]:
    return {"at": _said(point), "scopes": [*selected.scopes], "timeline": timeline}


def _said(point: Point) -> str:
    """Return a moment as a text that means the same again."""
    if point.backup_id:
        return point.backup_id
    if point.revision is None:
        return "latest"
    if point.exact:
        return str(point.revision)
    return point.revision.time.isoformat(timespec="milliseconds")


def _policy(given: RetentionPolicy | str) -> RetentionPolicy:
    if isinstance(given, str):
        return RetentionPolicy.parse(given)
    if not isinstance(given, RetentionPolicy):
        rule = "must be a policy, or its short form such as last=10 daily=7"
        raise InvalidArgumentError("policy", given, rule)
    if RetentionPolicy.parse(given.text) != given:  # a rule of the caller's own stays here
        raise InvalidArgumentError("policy", given, "must be one that its short form says whole")
    return given


def _check_count(argument: str, value: int, least: int, most: int) -> None:
    if not isinstance(value, int) or not least <= value <= most:
        raise InvalidArgumentError(argument, value, f"must be an int from {least} to {most:,}")
