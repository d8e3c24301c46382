"""What callers get to know about backups."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from llmspell_dist.backup.manifest import Manifest
from llmspell_dist.revision import Revision

if TYPE_CHECKING:
    from llmspell_dist.backup.manifest import BackupType, Stats

__all__ = ["BackupInfo", "Inexact"]


@dataclass(frozen=True, slots=True)
class Inexact:
    """A key whose value as of the moment is not known: the one that is kept may be older."""

    scope: str
    key: str
    """Empty: any key of the scope."""
    revision: Revision
    """The commit whose value is missing."""


@dataclass(frozen=True, slots=True, repr=False)
class BackupInfo:
    """One backup."""

    manifest: Manifest

    @property
    def id(self) -> str:
        """Its id; ids sort by time."""
        return self.manifest.backup_id

    @property
    def type(self) -> BackupType:
        """``full``, ``incremental`` or ``differential``."""
        return self.manifest.type

    @property
    def created(self) -> datetime:
        """When it was finished, by the clock of the process that made it."""
        return self.manifest.created_at

    @property
    def moment(self) -> datetime | None:
        """Of which moment it is, by the server's clock; None if nothing was ever committed."""
        revision = self.manifest.moment
        return None if revision is None else revision.time

    @property
    def revision(self) -> Revision | None:
        """The newest commit that it holds."""
        return self.manifest.moment

    @property
    def parent(self) -> str | None:
        """The backup that it goes on from."""
        return self.manifest.parent or None

    @property
    def stats(self) -> Stats:
        """How much it is."""
        return self.manifest.stats

    @property
    def encrypted(self) -> bool:
        """Whether its content is encrypted."""
        return bool(self.manifest.key)

    @property
    def empty(self) -> bool:
        """Whether it is a full one that holds no scope: of a selection that nothing is in, say."""
        return self.type == "full" and not (self.stats.scopes or self.stats.entries)

    @property
    def took(self) -> timedelta:
        """How long it took to make."""
        return timedelta(seconds=self.manifest.stats.seconds)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self}>"

    def __str__(self) -> str:
        size = self.stats.stored_bytes + self.stats.reused_bytes
        moment = "nothing yet" if self.moment is None else self.moment.isoformat()
        return f"{self.id}: {self.type} as of {moment}, {size:,} bytes"
