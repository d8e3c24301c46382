"""Finding and removing what nothing needs: objects that no manifest names, and other leftovers.

They come from backups, restores and prunings that were killed. Only what is older than a grace
period counts, and nothing that a backup that runs may use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.backup.claims import BATCH, Claims, batches, keys_in_use, used_by
from llmspell_dist.backup.errors import BackupInProgressError
from llmspell_dist.backup.inventory import read_segments
from llmspell_dist.backup.retention.newest import check_span
from llmspell_dist.backup.retention.units import say_size
from llmspell_dist.backup.targets.unfinished import KeepsUnfinished
from llmspell_dist.quantities import counted

if TYPE_CHECKING:
    from llmspell_dist.backup.repository import Repository
    from llmspell_dist.backup.targets.base import ObjectInfo

__all__ = ["DRILLS", "GRACE", "Collector", "Garbage"]

GRACE: Final = timedelta(hours=24)
DRILLS: Final = timedelta(days=90)
KEY_GRACE: Final = timedelta(days=7)
"""A data key is made before what it encrypts: the archive's is used for a day, maybe not at all."""


@dataclass(slots=True)
class Garbage:
    """What nothing needs."""

    objects: list[ObjectInfo] = field(default_factory=list)
    keys: list[ObjectInfo] = field(default_factory=list)
    """Wrapped data keys with which nothing is encrypted that is there."""
    notes: list[ObjectInfo] = field(default_factory=list)
    """Of backups that ended, or were killed."""
    drills: list[ObjectInfo] = field(default_factory=list)
    """Old results; never the newest."""
    unfinished: list[str] = field(default_factory=list)
    """Uploads that were never completed, by the name that they were to have."""
    kept_back: str = ""
    """Why objects and keys were not looked for, or not removed to the end."""
    removed: int = 0
    """How many of all these are gone."""

    @property
    def size(self) -> int:
        """Bytes of all that has a name; what unfinished uploads take is not known."""
        found = (*self.objects, *self.keys, *self.notes, *self.drills)
        return sum(info.size for info in found)

    def __len__(self) -> int:
        parts: tuple[Sized, ...] = (
            self.objects,
            self.keys,
            self.notes,
            self.drills,
            self.unfinished,
        )
        return sum(len(part) for part in parts)

    def as_data(self) -> dict[str, Any]:
        """Return it as plain data, for JSON."""
        return {
            "objects": [info.name for info in self.objects],
            "keys": [info.name for info in self.keys],
            "notes": [info.name for info in self.notes],
            "drills": [info.name for info in self.drills],
            "unfinished": list(self.unfinished),
            "bytes": self.size,
            "removed": self.removed,
            "kept_back": self.kept_back,
        }

    def __str__(self) -> str:
        back = f"; objects and keys are kept back: {self.kept_back}" if self.kept_back else ""
        return (
            f"{counted(len(self.objects), 'object')}, {counted(len(self.keys), 'key')}, "
            f"{counted(len(self.notes), 'note')}, "
            f"{counted(len(self.drills), 'result of drills', 'results of drills')} and "
            f"{counted(len(self.unfinished), 'unfinished upload')}, "
            f"{say_size(self.size)}; {self.removed} removed{back}"
        )


class Collector:
    """Finds garbage and removes it; all methods block. Arguments as those of `Pruner`."""

    def __init__(
        self,
        repository: Repository,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        holding: Callable[[], None] = lambda: None,
        running: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self._repository = repository
        self._target = repository.target
        self._now = now
        self._claims = Claims(repository, now, holding=holding, running=running)

    def collect(
        self,
        *,
        confirm: bool = False,
        grace: timedelta = GRACE,
        drills_after: timedelta = DRILLS,
    ) -> Garbage:
        """Return what nothing needs; removed only with `confirm`.

        What was put or begun less than `grace` ago is never garbage (a key, less than a week ago).
        While a backup may be running, objects and keys are kept back. A damaged manifest is an
        error, because nobody knows what it needs.
        """
        check_span("grace", grace)
        check_span("drills_after", drills_after)
        garbage = self._look(grace, drills_after)
        if confirm:
            self._remove(garbage, grace)
        return garbage

    def _look(self, grace: timedelta, drills_after: timedelta) -> Garbage:
        limit = self._now() - grace
        garbage = Garbage()
        # In this order: see Claims.
        notes = self._claims.notes()
        garbage.notes = [info for info in notes.stale if info.modified <= limit]
        if notes.running:
            garbage.kept_back = f"backup {notes.running[0]} may be running"
        else:
            digests, keys = used_by(self._repository.manifests())
            garbage.objects = list(self._orphans(digests, limit))
            garbage.keys = self._unused_keys(keys, min(limit, self._now() - KEY_GRACE))
        found = list(self._target.list(self._repository.layout.drills))
        newest = max((info.modified for info in found), default=limit)
        old = self._now() - drills_after
        garbage.drills = [info for info in found if info.modified <= old and info.modified < newest]
        if isinstance(self._target, KeepsUnfinished):
            garbage.unfinished = [
                one.name for one in self._target.unfinished() if one.started <= limit
            ]
        return garbage

    def _orphans(self, used: set[str], limit: datetime) -> Iterator[ObjectInfo]:
        layout = self._repository.layout
        for info in self._target.list(layout.objects):
            digest = info.name.rpartition("/")[2]
            # What has another kind of name is not ours to judge.
            if info.name == layout.object(digest) and digest not in used and info.modified <= limit:
                yield info

    def _unused_keys(self, used: set[str], limit: datetime) -> list[ObjectInfo]:
        layout = self._repository.layout
        found: dict[str, list[ObjectInfo]] = {}
        for info in self._target.list(layout.keys):
            key_id = info.name.removeprefix(layout.keys).partition("/")[0]
            if key_id not in used:
                found.setdefault(key_id, []).append(info)
        old = {
            key_id
            for key_id, infos in found.items()
            if all(info.modified <= limit for info in infos)
        }
        segments = [one.name for one in read_segments(self._repository)]
        unused = old - keys_in_use(self._repository, old, segments)
        return [info for key_id in sorted(unused) for info in found[key_id]]

    def _remove(self, garbage: Garbage, grace: timedelta) -> None:
        claims = self._claims
        claims.holding()
        if garbage.unfinished and isinstance(self._target, KeepsUnfinished):
            garbage.removed += self._target.abort_unfinished(grace)
        try:
            # Keys after what they encrypt.
            for found in (garbage.objects, garbage.keys):
                before = garbage.removed
                for gone in claims.remove([info.name for info in found]):
                    garbage.removed = before + gone
        except BackupInProgressError as error:
            garbage.kept_back = str(error)
        for batch in batches([info.name for info in (*garbage.notes, *garbage.drills)], BATCH):
            claims.holding()
            self._target.delete(batch)
            garbage.removed += len(batch)
