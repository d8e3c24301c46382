"""What a target holds of a namespace, as retention wants to know it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from llmspell_dist.backup.errors import BackupError
from llmspell_dist.backup.manifest import BackupType, Manifest
from llmspell_dist.backup.retention.model import Importance, StoredBackup, StoredSegment
from llmspell_dist.backup.targets.locks import locks_of
from llmspell_dist.revision import BEGINNING

if TYPE_CHECKING:
    from llmspell_dist.backup.repository import Repository

__all__ = [
    "PINNED",
    "Inventory",
    "made_at",
    "read_inventory",
    "read_segments",
    "with_locks",
]

PINNED: Final = "pinned"
"""A backup with a tag of this name stays whatever a policy says."""
_TICK: Final = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class Inventory:
    """The backups and the archive of a namespace."""

    manifests: dict[str, Manifest]
    """By id, the oldest first."""
    backups: tuple[StoredBackup, ...]
    segments: tuple[StoredSegment, ...]


def read_inventory(repository: Repository, *, without: str = "") -> Inventory:
    """Read all manifests with their locks, and the names of the archive.

    A damaged manifest is an error: nobody knows what it needs; that of `without` is passed over.
    Locks of segments are not looked at: see `with_locks`.
    """
    ids = [one for one in repository.backup_ids() if one != without]
    manifests = {one.backup_id: one for one in repository.manifests(ids)}
    names = {repository.layout.manifest(backup_id): backup_id for backup_id in manifests}
    # Nothing of a backup is locked for longer than its manifest, which is written last.
    locks = {names[name]: until for name, until in locks_of(repository.target, list(names)).items()}
    made = made_at(manifests.values())
    backups = tuple(
        _stored(one, made[backup_id], _series(one, repository), locks.get(backup_id))
        for backup_id, one in manifests.items()
    )
    return Inventory(manifests, backups, tuple(read_segments(repository)))


def with_locks(
    inventory: Inventory, repository: Repository, wanted: Iterable[StoredSegment]
) -> Inventory:
    """Return the inventory with the locks of some segments."""
    locks = locks_of(repository.target, [one.name for one in wanted])
    if not locks:
        return inventory
    segments = (replace(one, locked_until=locks.get(one.name)) for one in inventory.segments)
    return replace(inventory, segments=tuple(segments))


def made_at(manifests: Iterable[Manifest]) -> dict[str, datetime]:
    """Return by id when backups were made: each later than the one that it goes on from.

    Also if the clock of its process was behind: what is newest must not be taken for older.
    """
    known = {one.backup_id: one for one in manifests}
    made: dict[str, datetime] = {}
    for backup_id in known:
        chain: dict[str, Manifest] = {}
        at = backup_id
        while at in known and at not in made and at not in chain:
            chain[at] = known[at]
            at = known[at].parent
        for one in reversed(chain.values()):
            before, moment = made.get(one.parent), one.created_at
            made[one.backup_id] = moment if before is None else max(moment, before + _TICK)
    return made


def read_segments(repository: Repository) -> Iterator[StoredSegment]:
    """Yield the segments of the archive, by timeline, shard and first revision."""
    layout = repository.layout
    for info in repository.target.list(layout.archive):
        name = layout.read_segment(info.name)
        if name is not None:
            yield StoredSegment(
                name.timeline, name.shard, name.first, name.last, info.size, info.name
            )


def _stored(
    manifest: Manifest, made: datetime, series: str, locked_until: datetime | None
) -> StoredBackup:
    full = manifest.type is BackupType.FULL
    tags = {f"{name}:{value}" for name, value in manifest.tags.items()}
    return StoredBackup(
        manifest.backup_id,
        made,
        manifest.type,
        None if full else manifest.parent,
        Importance.coerce(manifest.importance),
        # As `name` and as `name:value`.
        frozenset(tags | manifest.tags.keys()),
        pinned=PINNED in manifest.tags,
        locked_until=locked_until,
        series=series,
        positions={one.shard: one.revision or BEGINNING for one in manifest.shards},
        objects={one.digest: one.size for one in manifest.objects},
    )


def _series(manifest: Manifest, repository: Repository) -> str:
    """Return what a backup covers; it stands in the encrypted index."""
    if manifest.reason == "rollback":
        return "rollback"  # of whatever scopes: the last ones stay, not the last of each
    if not manifest.filtered:
        return ""
    try:
        selection = repository.index(manifest)["selection"]
        return "; ".join(f"{name} {', '.join(selection[name])}" for name in sorted(selection))
    except (BackupError, KeyError, TypeError):
        # Without its key, or damaged: a series of its own, of which the last one stays.
        return f"only {manifest.backup_id}"
