"""Rules about what a backup was marked with when it was taken: its importance, its tags."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from llmspell_dist.backup.retention.model import Importance, StoredBackup
from llmspell_dist.errors import InvalidArgumentError

__all__ = ["ImportanceAtLeast", "Tagged"]

_TAG: Final = re.compile(r"[^\s,()=]{1,100}")


@dataclass(frozen=True, slots=True)
class ImportanceAtLeast:
    """Keeps those of this importance and above."""

    importance: Importance

    def __post_init__(self) -> None:
        object.__setattr__(self, "importance", Importance.coerce(self.importance))

    def judge(self, backups: Sequence[StoredBackup], now: datetime) -> dict[str, str]:  # noqa: ARG002
        """Keep what is important enough."""
        return {
            backup.id: f"of importance {backup.importance}"
            for backup in backups
            if backup.importance >= self.importance
        }

    @property
    def text(self) -> str:
        """The short form."""
        return f"importance={self.importance}"

    def as_data(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {"rule": "importance", "least": str(self.importance)}

    def __str__(self) -> str:
        if self.importance is Importance.CRITICAL:
            return "those of importance critical"
        return f"those of importance {self.importance} and above"


@dataclass(frozen=True, slots=True)
class Tagged:
    """Keeps those that have at least one of the tags; given as one text or several."""

    tags: Collection[str]
    """A frozenset, once made."""

    def __post_init__(self) -> None:
        tags = (self.tags,) if isinstance(self.tags, str) else tuple(self.tags)
        for tag in tags:
            if not isinstance(tag, str) or not _TAG.fullmatch(tag):
                rule = "must be up to 100 characters, none of them a blank or one of , ( ) ="
                raise InvalidArgumentError("tag", tag, rule)
        if not tags:
            raise InvalidArgumentError("tags", self.tags, "must be at least one")
        object.__setattr__(self, "tags", frozenset(tags))

    def judge(self, backups: Sequence[StoredBackup], now: datetime) -> dict[str, str]:  # noqa: ARG002
        """Keep what has one of the tags."""
        kept = {}
        for backup in backups:
            if found := sorted(backup.tags.intersection(self.tags)):
                kept[backup.id] = f"tagged {', '.join(found)}"
        return kept

    @property
    def text(self) -> str:
        """The short form."""
        return f"tag={','.join(sorted(self.tags))}"

    def as_data(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {"rule": "tag", "any": sorted(self.tags)}

    def __str__(self) -> str:
        return f"those tagged {' or '.join(sorted(self.tags))}"
