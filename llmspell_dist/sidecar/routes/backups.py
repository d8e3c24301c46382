"""Backups over HTTP: made, looked at, proved, restored, kept in order."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final

from msgspec import Meta, Struct

from llmspell_dist.backup.errors import (
    BackupDamagedError,
    BackupDivergedError,
    BackupFormatError,
    BackupInProgressError,
    BackupNotFoundError,
    BaseMissingError,
    PointNotCoveredError,
    RestoreRefusedError,
    TargetError,
)
from llmspell_dist.sidecar.auth.grants import Verb
from llmspell_dist.sidecar.backing import shipper_of, store_of
from llmspell_dist.sidecar.documents import as_document
from llmspell_dist.sidecar.endpoint import VALUE, Needs, Registry
from llmspell_dist.sidecar.errors import NotFoundError
from llmspell_dist.sidecar.operations import OperationDocument
from llmspell_dist.sidecar.problems import register_status
from llmspell_dist.sidecar.pruning import Plans, plan_details
from llmspell_dist.sidecar.reply import Reply
from llmspell_dist.sidecar.routes.operations import ADMIN, accepted

if TYPE_CHECKING:
    from llmspell_dist.backup.model import BackupInfo
    from llmspell_dist.sidecar.call import Call

__all__ = ["routes"]

routes = Registry(
    "backups", "Snapshots and the archive, in the one place that this sidecar was given."
)
for _error, _status in (
    (BackupNotFoundError, 404),
    (BackupInProgressError, 409),
    (BackupDivergedError, 409),
    (BaseMissingError, 409),
    (RestoreRefusedError, 409),
    (PointNotCoveredError, 404),
    (BackupDamagedError, 502),
    (BackupFormatError, 502),
    (TargetError, 502),
):
    register_status(_error, _status)

_BACKUP: Final = "/v1/backups/{id}"
_MOST_S: Final = 10_000_000_000
_LONG: Final[dict[str, Any]] = {
    "returns": OperationDocument,
    "errors": (BackupInProgressError, NotFoundError),
    "headers": ("Idempotency-Key",),
    "statuses": {202: "It has begun; `Location` says where to ask about it."},
}


def backup_document(info: BackupInfo) -> dict[str, Any]:
    """Return what is known of a backup; its objects are nobody's business here."""
    facts: dict[str, Any] = as_document(info.manifest)
    del facts["objects"], facts["mac"], facts["stats"]
    return facts | {
        "id": info.id,
        "moment": info.moment,
        "revision": None if info.revision is None else str(info.revision),
        "encrypted": info.encrypted,
        "key": info.manifest.key,
        "stats": asdict(info.stats),
    }


# --- making and looking ---------------------------------------------------------------------------


class BackupWish(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a backup is to hold."""

    type: str = "full"
    scopes: list[str] = []
    classes: list[str] = []
    include: list[str] = []
    parent: str | None = None
    tags: dict[str, str] = {}
    importance: str = "standard"
    keep_log: bool = False
    reuse: bool = True


@routes.route("POST", "/v1/backups", ADMIN, body=BackupWish, **_LONG)
async def create_backup(call: Call) -> Reply:
    """Make a backup: the state as of one moment, while writers go on."""
    store, wish = store_of(call.services), call.body

    async def work(tell: Any) -> Any:
        info = await store.create(
            type=wish.type,
            scopes=wish.scopes,
            classes=wish.classes,
            include=wish.include,
            parent=wish.parent,
            tags=wish.tags,
            importance=wish.importance,
            keep_log=wish.keep_log,
            reuse=wish.reuse,
            progress=tell,
        )
        return backup_document(info)

    return accepted(call, "backup", work)


@routes.route("GET", "/v1/backups", asks=(Verb.LIST,), returns=VALUE, errors=(NotFoundError,))
async def list_backups(call: Call) -> Reply:
    """List the backups that the caller may list (``backup:<id>``), oldest first."""
    found = await store_of(call.services).list()
    may = call.principal.may
    shown = [one for one in found if may(Verb.LIST, f"backup:{one.id}")]
    return Reply({"backups": [backup_document(one) for one in shown]})


class _Shown(Struct, frozen=True, forbid_unknown_fields=True):
    inexact: Annotated[
        bool, Meta(description="Name the keys that are not exact: that reads the backup's index.")
    ] = True


@routes.route(
    "GET",
    _BACKUP,
    Needs(Verb.READ, "backup:{id}"),
    query=_Shown,
    returns=VALUE,
    errors=(BackupNotFoundError,),
)
async def show_backup(call: Call) -> Reply:
    """Tell what a backup is of and how large, and which keys are not exact in it."""
    store, backup_id = store_of(call.services), call.parameters["id"]
    document = backup_document(await store.info(backup_id))
    if call.query.inexact:
        document["inexact"] = as_document(await store.inexact(backup_id))
    return Reply(document)


class VerifyWish(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How closely backups are looked at."""

    id: Annotated[str | None, Meta(description="One backup; by default all and the archive.")] = (
        None
    )
    level: str = "hashes"
    sample: float = 1.0
    seed: int = 0


@routes.route("POST", "/v1/backup-verifications", ADMIN, body=VerifyWish, **_LONG)
async def verify_backups(call: Call) -> Reply:
    """Look whether backups are whole; the result names every finding."""
    store, wish = store_of(call.services), call.body

    async def work(tell: Any) -> Any:
        report = await store.verify(
            wish.id, level=wish.level, sample=wish.sample, seed=wish.seed, progress=tell
        )
        return report.as_data()

    return accepted(call, "verification", work)


class BackupMoment(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which moment is meant: ``latest``, a backup's id, a revision, an ISO time with an offset."""

    at: str = "latest"


@routes.route("POST", "/v1/backup-drills", ADMIN, body=BackupMoment, **_LONG)
async def drill_backup(call: Call) -> Reply:
    """Prove a backup: restore it into a server of its own, and compare every key with the log."""
    store, at = store_of(call.services), call.body.at

    async def work(tell: Any) -> Any:
        report = await store.drill(at, progress=tell)
        return as_document(report) | {"ok": report.ok}

    return accepted(call, "drill", work)


@routes.route("GET", "/v1/backup-drills", ADMIN, returns=VALUE, errors=(NotFoundError,))
async def list_drills(call: Call) -> Reply:
    """List the results of all drills, and when the last one found everything as it was."""
    store = store_of(call.services)
    found = await store.drills()
    proof = max((one.at for one in found if one.ok), default=None)
    drills = [as_document(one) | {"ok": one.ok} for one in found]
    return Reply({"drills": drills, "last_proof": proof})


# --- getting back ---------------------------------------------------------------------------------


class DiffWish(BackupMoment, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is to be compared with what there is now."""

    scopes: list[str] = []
    timeline: str | None = None
    limit: Annotated[int, Meta(ge=1, le=100_000)] = 1000


@routes.route("POST", "/v1/backup-diffs", ADMIN, body=DiffWish, **_LONG)
async def diff_backup(call: Call) -> Reply:
    """Tell what a restore in place would change; nothing is changed."""
    store, wish = store_of(call.services), call.body

    async def work(tell: Any) -> Any:
        found = await store.diff(
            wish.at, scopes=wish.scopes, timeline=wish.timeline, limit=wish.limit, progress=tell
        )
        return as_document(found)

    return accepted(call, "diff", work)


class RestoreOrder(BackupMoment, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is to be put back, and how."""

    scopes: list[str] = []
    key: str | None = None
    into: str | None = None
    ttl: str = "absolute"
    force: bool = False
    rollback: bool = True
    timeline: str | None = None
    include: list[str] = []
    dry_run: Annotated[
        bool, Meta(description="Only say which moment it would be, and what from (200).")
    ] = False


@routes.route("POST", "/v1/restores", ADMIN, body=RestoreOrder, **_LONG)
async def restore_backup(call: Call) -> Reply:
    """Put scopes back as they were at a moment; each changes in one step.

    The result's `rollback` undoes it, by ``POST /v1/rollbacks``.
    """
    store, order = store_of(call.services), call.body
    if order.dry_run:
        plan = await store.plan(order.at, scopes=order.scopes, timeline=order.timeline)
        return Reply(as_document(plan))

    async def work(tell: Any) -> Any:
        report = await store.restore(
            order.at,
            scopes=order.scopes,
            key=order.key,
            into=order.into,
            ttl=order.ttl,
            force=order.force,
            rollback=order.rollback,
            timeline=order.timeline,
            include=order.include,
            progress=tell,
        )
        return as_document(report)

    return accepted(call, "restore", work)


class RollbackOrder(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which restore is to be undone: the `rollback` of its result."""

    point: str
    force: bool = False


@routes.route("POST", "/v1/rollbacks", ADMIN, body=RollbackOrder, **_LONG)
async def roll_back(call: Call) -> Reply:
    """Undo a restore: put back what it replaced."""
    store, order = store_of(call.services), call.body

    async def work(tell: Any) -> Any:
        report = await store.rollback(order.point, force=order.force, progress=tell)
        return as_document(report)

    return accepted(call, "rollback", work)


# --- keeping in order -----------------------------------------------------------------------------


class PruneOrder(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A policy, to be planned by; or the plan that is to be carried out."""

    policy: Annotated[str | None, Meta(description="Such as `last=10 daily=7 min=3`.")] = None
    plan: Annotated[str | None, Meta(description="The `id` of a plan that was given.")] = None
    details: Annotated[
        bool, Meta(description="Also what the plan knows of each backup and segment of the log.")
    ] = False


@routes.route("POST", "/v1/backup-prunings", ADMIN, body=PruneOrder, **_LONG)
async def prune_backups(call: Call) -> Reply:
    """Plan what goes by a policy (200), or carry out a plan (202): nothing goes that it has not."""
    store, order, plans = store_of(call.services), call.body, call.services.one(Plans)
    if order.plan is None:
        policy = plans.checked(order.policy)
        planned = await store.prune(policy)
        details = plan_details(planned.plan) if order.details else {}
        return Reply(planned.as_data() | details | {"id": plans.keep(policy, planned)})
    policy, planned = plans.take(order.plan, order.policy)

    async def work(_: Any) -> Any:
        return (await store.prune(policy, confirm=True, plan=planned)).as_data()

    return accepted(call, "pruning", work)


class GarbageOrder(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Whether what nothing needs is to be removed, or only named; seconds are of its age."""

    confirm: bool = False
    grace: Annotated[int, Meta(ge=1, le=_MOST_S, description="Younger stays: 24 h.")] | None = None
    drills_after: (
        Annotated[int, Meta(ge=1, le=_MOST_S, description="Older results of drills go: 90 days.")]
        | None
    ) = None


@routes.route("POST", "/v1/backup-collections", ADMIN, body=GarbageOrder, **_LONG)
async def collect_garbage(call: Call) -> Reply:
    """Find what no backup needs, left by processes that were killed; remove it with `confirm`."""
    store, order = store_of(call.services), call.body
    given = {"grace": order.grace, "drills_after": order.drills_after}
    spans = {name: timedelta(seconds=one) for name, one in given.items() if one is not None}

    async def work(_: Any) -> Any:
        return as_document(await store.gc(confirm=order.confirm, **spans))

    return accepted(call, "collection", work)


@routes.route("GET", "/v1/archive", ADMIN, returns=VALUE, errors=(NotFoundError,))
async def show_archive(call: Call) -> Reply:
    """Tell what the archive covers, how far behind it is, and whether this sidecar ships it."""
    status = await store_of(call.services).archive_status()
    shipper = shipper_of(call.services)
    shipped = None if shipper is None else as_document(shipper.stats)
    return Reply(as_document(status) | {"shipper": shipped})
