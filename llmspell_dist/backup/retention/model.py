"""What a retention policy is told of a backup and of the archive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum

from llmspell_dist.backup.manifest import BackupType
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.revision import BEGINNING, Revision, to_ms

__all__ = ["BackupType", "Importance", "StoredBackup", "StoredSegment"]


class Importance(IntEnum):
    """How much a backup matters; ordered."""

    LOW = 1
    STANDARD = 2
    IMPORTANT = 3
    CRITICAL = 4

    def __str__(self) -> str:
        return self.name.lower()

    @classmethod
    def coerce(cls, value: Importance | str) -> Importance:
        """Return the importance of that name."""
        if isinstance(value, cls):
            return value
        try:
            return cls[str.upper(value)]  # type: ignore[arg-type]
        except (KeyError, TypeError):
            rule = f"must be one of {', '.join(str(one) for one in cls)}"
            raise InvalidArgumentError("importance", value, rule) from None


@dataclass(frozen=True, slots=True)
class StoredBackup:
    """A backup that exists: its manifest is there."""

    id: str
    time: datetime
    """When it was made; not before any moment that it holds. Aware."""
    type: BackupType = BackupType.FULL
    parent: str | None = None
    """The backup that it goes on from; None of a full one."""
    importance: Importance = Importance.STANDARD
    tags: frozenset[str] = frozenset()
    size: int = 0
    """Bytes that go when it goes; none of its parents, and none of `objects`."""
    pinned: bool = False
    """It stays whatever a policy says."""
    locked_until: datetime | None = None
    """Until then the object store itself refuses to remove it."""
    series: str = ""
    """What it covers: empty for everything, else the text of its filters.

    A policy is applied to each series alone, so that a backup of one scope never takes the place
    of one of everything.
    """
    positions: Mapping[str, Revision] = field(default_factory=dict, hash=False)
    """The last revision of each shard that is in it."""
    objects: Mapping[str, int] = field(default_factory=dict, hash=False, repr=False)
    """Bytes of what it may share with other backups, by name."""

    def __post_init__(self) -> None:
        to_ms(self.time)
        if self.locked_until is not None:
            to_ms(self.locked_until)
        if (self.parent is None) != (self.type is BackupType.FULL):
            rule = "must be None of a full backup, and the id of another one else"
            raise InvalidArgumentError("parent", self.parent, rule)
        if self.size < 0:
            raise InvalidArgumentError("size", self.size, "must not be negative")

    @property
    def age_key(self) -> tuple[int, str]:
        """What sorts backups by age: of the same millisecond the greater id is newer."""
        return to_ms(self.time), self.id

    def position(self, shard: str) -> Revision:
        """Return the revision from which on a shard's log is needed: from the first, if unknown."""
        return self.positions.get(shard, BEGINNING)


@dataclass(frozen=True, slots=True)
class StoredSegment:
    """A piece of the archived change log: the entries from `first` to `last`, both in it."""

    timeline: str
    shard: str
    first: Revision
    last: Revision
    size: int = 0
    name: str = ""
    """The object."""
    locked_until: datetime | None = None
