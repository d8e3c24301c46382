"""Which backups need which: an incremental one is worth nothing without its parents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from llmspell_dist.backup.retention.model import StoredBackup
from llmspell_dist.errors import InvalidArgumentError

__all__ = ["Chains"]


class Chains:
    """The backups of a target and how they hang together."""

    def __init__(self, backups: Iterable[StoredBackup]) -> None:
        self.newest_first: Sequence[StoredBackup] = sorted(
            backups, key=lambda backup: backup.age_key, reverse=True
        )
        self.by_id: dict[str, StoredBackup] = {}
        for backup in self.newest_first:
            if backup.id in self.by_id:
                raise InvalidArgumentError("backups", backup.id, "must have different ids")
            self.by_id[backup.id] = backup
        self._depths: dict[str, int] = {}
        """How many backups each one needs, itself included; 0 if they are not all there."""
        for backup in self.newest_first:
            self._measure(backup)

    def _measure(self, backup: StoredBackup) -> None:
        path: list[str] = []
        on_path: set[str] = set()
        at: StoredBackup | None = backup
        depth = 0
        while at is not None:
            if at.id in self._depths:
                depth = self._depths[at.id]
                break
            if at.id in on_path:
                break
            path.append(at.id)
            on_path.add(at.id)
            if at.parent is None:
                path.pop()
                depth = self._depths[at.id] = 1
                break
            at = self.by_id.get(at.parent)
        for backup_id in reversed(path):
            depth = depth and depth + 1
            self._depths[backup_id] = depth

    def depth(self, backup: StoredBackup) -> int:
        """Return how many backups this one needs, itself included; 0 if one of them is missing."""
        return self._depths[backup.id]

    def complete(self, backup: StoredBackup) -> bool:
        """Tell whether all that a backup needs is there."""
        return self._depths[backup.id] > 0

    def up(self, backup: StoredBackup) -> Iterator[StoredBackup]:
        """Yield a complete backup and those that it needs, the full one last."""
        at: StoredBackup | None = backup
        while at is not None:
            yield at
            at = None if at.parent is None else self.by_id[at.parent]

    def first_missing(self, backup: StoredBackup) -> str:
        """Return the id at which the way to a full backup ends."""
        seen: set[str] = set()
        at = backup
        while at.parent is not None and at.parent in self.by_id and at.id not in seen:
            seen.add(at.id)
            at = self.by_id[at.parent]
        return at.parent or ""

    def series(self) -> Iterator[list[StoredBackup]]:
        """Yield the complete backups of each series, the newest first."""
        found: dict[str, list[StoredBackup]] = {}
        for backup in self.newest_first:
            if self.complete(backup):
                found.setdefault(backup.series, []).append(backup)
        yield from found.values()
