"""Removing backups by a policy: planned first, and safe to interrupt at any point.

A backup's manifest goes before its objects, and a backup that goes on from another before that
one. So at every moment what lists can be restored, and what is left over is named by no manifest:
`collecting` finds it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from llmspell_dist.backup.claims import BATCH, Claims, batches, keys_in_use, used_by
from llmspell_dist.backup.drills import keys_of_drills
from llmspell_dist.backup.errors import (
    BackupDamagedError,
    BackupInProgressError,
    BackupNeededError,
)
from llmspell_dist.backup.inventory import Inventory, read_inventory, read_segments, with_locks
from llmspell_dist.backup.removing import Removal, why_needed
from llmspell_dist.backup.retention.plan import PrunePlan, plan_prune
from llmspell_dist.backup.retention.units import say_size
from llmspell_dist.quantities import counted

if TYPE_CHECKING:
    from llmspell_dist.backup.repository import Repository
    from llmspell_dist.backup.retention.policy import RetentionPolicy

__all__ = ["PruneReport", "Pruner"]


@dataclass(slots=True)
class PruneReport:
    """What was removed."""

    backups: list[str] = field(default_factory=list)
    segments: int = 0
    objects: int = 0
    keys: int = 0
    freed: int = 0
    """Bytes."""
    left: str = ""
    """Why objects were left to `gc`; empty: none were."""

    def as_data(self) -> dict[str, Any]:
        """Return it as plain data, for JSON."""
        return {
            "backups": list(self.backups),
            "segments": self.segments,
            "objects": self.objects,
            "keys": self.keys,
            "freed_bytes": self.freed,
            "left": self.left,
        }

    def __str__(self) -> str:
        left = f"; objects are left to gc: {self.left}" if self.left else ""
        return (
            f"{counted(len(self.backups), 'backup')}, "
            f"{counted(self.segments, 'segment')} of the log, {counted(self.objects, 'object')} "
            f"and {counted(self.keys, 'key')} removed, {say_size(self.freed)}{left}"
        )


class Pruner:
    """Plans and removes; all methods block.

    `holding` is called before each step that removes something, and raises if this process is no
    longer the one that may. `running` tells whether a backup with this id is still being made; by
    default every one counts that began less than a day ago and has no manifest.
    """

    def __init__(
        self,
        repository: Repository,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        holding: Callable[[], None] = lambda: None,
        running: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self._repository = repository
        self._now = now
        self._claims = Claims(repository, now, holding=holding, running=running)

    def plan(self, policy: RetentionPolicy) -> PrunePlan:
        """Return what goes and what stays, and why; nothing is removed."""
        inventory, now = read_inventory(self._repository), self._now()
        plan = plan_prune(policy, inventory.backups, inventory.segments, now=now)
        known = with_locks(inventory, self._repository, plan.segments)
        if known is inventory:
            return plan
        return plan_prune(policy, known.backups, known.segments, now=now)

    def apply(self, plan: PrunePlan, report: PruneReport | None = None) -> PruneReport:
        """Remove what goes by a plan.

        Never more than the plan says; less, if there are backups by now that need some of it. What
        was removed is in `report` also if this raises; `gc` finds the objects that are left then.
        Raises `BackupInProgressError` while a backup may be running.
        """
        report = PruneReport() if report is None else report
        if plan.goes:
            # They are asked which keys must stay: what cannot be read is told before anything goes.
            keys_of_drills(self._repository)
        # A backup that runs may go on from one that is to go.
        self._claims.check()
        inventory = read_inventory(self._repository)
        plan = still_good(plan, inventory)
        layout, target = self._repository.layout, self._repository.target
        for backup in plan.goes:
            self._claims.holding()
            target.delete([layout.started(backup.id), layout.manifest(backup.id)])
            report.backups.append(backup.id)
        for batch in batches([one.name for one in plan.segments], BATCH):
            self._claims.holding()
            target.delete(batch)
            report.segments += len(batch)
        report.freed += sum(one.size for one in plan.segments)
        if plan.goes:
            try:
                self._remove_objects(inventory, report)
            except BackupInProgressError as error:
                report.left = str(error)
        return report

    def remove(self, backup_id: str, *, confirm: bool = False) -> Removal:
        """Remove one backup; without `confirm` only say what would go with it.

        Raises `BackupNeededError` if another one goes on from it, if it is locked, or if the
        archive would have no base left. Of one whose manifest is damaged only that goes: its
        objects are left to `gc`. May be interrupted as `apply` may.
        """
        if confirm:
            self._claims.check()
        damage = ""
        try:
            self._repository.manifest(backup_id)
        except BackupDamagedError as error:
            damage = str(error)
        inventory = read_inventory(self._repository, without=backup_id if damage else "")
        archived = bool(inventory.segments)
        reason = why_needed(backup_id, inventory.backups, archived=archived, now=self._now())
        if reason:
            raise BackupNeededError(backup_id, reason)
        if not confirm:
            sizes = {} if damage else _own_objects(inventory, backup_id)
            return Removal(backup_id, len(sizes), sum(sizes.values()), removed=False, left=damage)
        keys_of_drills(self._repository)  # as in `apply`
        layout, report = self._repository.layout, PruneReport(left=damage)
        self._claims.holding()
        self._repository.target.delete([layout.started(backup_id), layout.manifest(backup_id)])
        if not damage:
            report.backups.append(backup_id)
            try:
                self._remove_objects(inventory, report)
            except BackupInProgressError as error:
                report.left = str(error)
        return Removal(backup_id, report.objects, report.freed, removed=True, left=report.left)

    def _remove_objects(self, before: Inventory, report: PruneReport) -> None:
        """Remove what only the backups named that are gone now."""
        self._claims.check()
        used, used_keys = used_by(self._repository.manifests())
        gone = [before.manifests[backup_id] for backup_id in report.backups]
        layout = self._repository.layout
        sizes = {
            layout.object(ref.digest): ref.size
            for manifest in gone
            for ref in manifest.objects
            if ref.digest not in used
        }
        names = sorted(sizes)
        for done in self._claims.remove(names):
            report.freed += sum(sizes[name] for name in names[report.objects : done])
            report.objects = done
        keys = used_by(gone)[1] - used_keys
        segments = [one.name for one in read_segments(self._repository)]
        keys -= keys_in_use(self._repository, keys, segments)
        wrappings = [
            info.name
            for key in sorted(keys)
            for info in self._repository.target.list(f"{layout.keys}{key}/")
        ]
        for _ in self._claims.remove(wrappings):
            pass
        report.keys = len(keys)


def _own_objects(inventory: Inventory, backup_id: str) -> dict[str, int]:
    """Return the sizes of the objects that only this backup names."""
    others = [one for one in inventory.manifests.values() if one.backup_id != backup_id]
    used, _ = used_by(others)
    own = inventory.manifests[backup_id].objects
    return {ref.digest: ref.size for ref in own if ref.digest not in used}


def still_good(plan: PrunePlan, inventory: Inventory) -> PrunePlan:
    """Return a plan for what is there now that removes nothing that `plan` does not remove."""
    agreed = {one.id for one in plan.goes}
    names = {one.name for one in plan.segments}
    backups: Sequence[Any] = inventory.backups
    while True:
        fresh = plan_prune(plan.policy, backups, inventory.segments, now=plan.now)
        more = {one.id for one in fresh.goes} - agreed
        if not more:
            segments = tuple(one for one in fresh.segments if one.name in names)
            return replace(fresh, segments=segments)
        # What was not agreed to stays, and with it what it needs.
        backups = [replace(one, pinned=True) if one.id in more else one for one in backups]
