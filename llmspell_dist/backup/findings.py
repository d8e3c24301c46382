"""What verifying backups finds."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from llmspell_dist.backup.retention.units import say_size
from llmspell_dist.quantities import counted

__all__ = ["Finding", "Level", "VerifyReport"]


class Level(StrEnum):
    """How closely backups are looked at; each level includes the one before."""

    STRUCTURE = "structure"
    """Manifests, chains, and that every object is there with its size. Reads no object."""
    HASHES = "hashes"
    """Every byte of the objects against its SHA-256. Needs no key."""
    FULL = "full"
    """Objects decrypted, decompressed, decoded and counted, the log's chains followed."""


class Finding(NamedTuple):
    """Something that is wrong."""

    backup_id: str
    """The backup that it is about; empty: none of them."""
    name: str
    """The object; empty: the place as a whole."""
    reason: str

    @property
    def about(self) -> str:
        """The backup's id, ``archive`` or ``place``."""
        return self.backup_id or ("archive" if self.name else "place")

    def __str__(self) -> str:
        where = f"backup {self.backup_id}" if self.backup_id else self.about
        return ": ".join(filter(None, (where, self.name, self.reason)))


@dataclass(slots=True)
class VerifyReport:
    """What was verified, and what was found."""

    level: Level
    sample: float = 1.0
    seed: int = 0
    backups: list[str] = field(default_factory=list)
    objects: int = 0
    """Objects that had to be there."""
    read: int = 0
    """Of those, how many were read."""
    bytes: int = 0
    """Of what was read."""
    segments: int = 0
    """Of the archive."""
    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    @property
    def bad(self) -> set[str]:
        """The ids of the backups that something is wrong with."""
        return {one.backup_id for one in self.findings} - {""}

    def as_data(self) -> dict[str, Any]:
        """Return it as plain data, for JSON."""
        return {
            "ok": self.ok,
            "level": str(self.level),
            "sample": self.sample,
            "seed": self.seed,
            "backups": list(self.backups),
            "objects": self.objects,
            "read": self.read,
            "bytes": self.bytes,
            "segments": self.segments,
            "findings": [one._asdict() for one in self.findings],
        }

    def __str__(self) -> str:
        found = "nothing is wrong" if self.ok else counted(len(self.findings), "finding")
        head = (
            f"{self.level} of {counted(len(self.backups), 'backup')}: "
            f"{counted(self.objects, 'object')} and "
            f"{counted(self.segments, 'segment')} of the archive, {self.read:,} of them read "
            f"({say_size(self.bytes)}): {found}"
        )
        return "\n".join([head, *map(str, self.findings)])
