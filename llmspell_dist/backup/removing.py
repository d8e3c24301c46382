"""Removing one backup by its id, whatever a policy would say of it.

What others need is not removed. A backup whose manifest is damaged is: with it neither `prune` nor
`gc` know what may go.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from llmspell_dist.backup.manifest import BackupType
from llmspell_dist.backup.retention.model import StoredBackup
from llmspell_dist.backup.retention.units import say_size
from llmspell_dist.quantities import counted

__all__ = ["Removal", "why_needed"]


@dataclass(frozen=True, slots=True)
class Removal:
    """What goes with one backup, or went."""

    id: str
    objects: int
    """That no other backup uses."""
    freed: int
    """Their bytes."""
    removed: bool
    """False: it was only looked at."""
    left: str = ""
    """Why objects are left to `gc`; empty: none are."""

    def as_data(self) -> dict[str, Any]:
        """Return it as plain data, for JSON."""
        return {
            "id": self.id,
            "objects": self.objects,
            "freed_bytes": self.freed,
            "removed": self.removed,
            "left": self.left,
        }

    def __str__(self) -> str:
        left = f"; objects are left to gc: {self.left}" if self.left else ""
        what = "removed" if self.removed else "would go"
        objects = counted(self.objects, "object")
        return f"{self.id} with {objects}, {say_size(self.freed)}, {what}{left}"


def why_needed(
    backup_id: str, backups: Iterable[StoredBackup], *, archived: bool, now: datetime
) -> str:
    """Return why a backup cannot be removed; empty: nothing needs it.

    `archived`: whether there is an archive, which is of no use without a full backup. One that is
    not among `backups` cannot be read: only what goes on from it is known.
    """
    known = {one.id: one for one in backups}
    children = sorted(one.id for one in known.values() if one.parent == backup_id)
    if children:
        others = f" and {len(children) - 1} more go" if len(children) > 1 else " goes"
        return f"{children[0]}{others} on from it"
    one = known.get(backup_id)
    if one is None:
        return ""
    if one.locked_until is not None and one.locked_until > now:
        return f"it is locked until {one.locked_until.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    bases = {each.id for each in known.values() if each.type is BackupType.FULL and not each.series}
    if archived and bases == {backup_id}:
        return "the archive goes on from it alone"
    return ""
