"""The manifest: what a backup consists of; written last, and without it there is no backup.

JSON, so that anyone can read it. Nothing in it is secret: scope names, keys and filters stand in
the index, which is encrypted like everything else. ``docs/design/backup-format.md`` has the fields.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from llmspell_dist.backup import fields
from llmspell_dist.backup.errors import BackupDamagedError, BackupFormatError, BackupKeyError
from llmspell_dist.revision import Revision

__all__ = ["IMPORTANCE", "BackupType", "Manifest", "ObjectRef", "ShardCut", "Stats"]

FORMAT: Final = 1
IMPORTANCE: Final = ("low", "standard", "important", "critical")


class BackupType(StrEnum):
    """What a backup holds."""

    FULL = "full"
    """Everything."""
    INCREMENTAL = "incremental"
    """What was done since the backup before."""
    DIFFERENTIAL = "differential"
    """What was done since the last full one."""


@dataclass(frozen=True, slots=True)
class ObjectRef:
    """One object of a backup."""

    digest: str
    """SHA-256 of what is stored, in hex: its name."""
    kind: str
    """``records``, ``segment``, ``extra`` or ``index``."""
    shard: str
    size: int
    plain_size: int
    key: str = ""
    """The id of the data key; empty: not encrypted."""


@dataclass(frozen=True, slots=True)
class ShardCut:
    """Which moment of a shard a backup is."""

    shard: str
    begin: str
    """The entries of its segment come after this revision; empty: from the beginning."""
    at: str
    """Its state is the one as of this revision; empty: nothing was ever committed."""
    operation: str
    """The operation id of that commit, in hex: whether a log is the one that was read."""

    @property
    def begin_revision(self) -> Revision | None:
        """`begin`, as a revision."""
        return Revision.parse(self.begin) if self.begin else None

    @property
    def revision(self) -> Revision | None:
        """`at`, as a revision."""
        return Revision.parse(self.at) if self.at else None


@dataclass(frozen=True, slots=True)
class Stats:
    """How much a backup is."""

    scopes: int = 0
    records: int = 0
    entries: int = 0
    """Log entries in its segments."""
    plain_bytes: int = 0
    stored_bytes: int = 0
    """What was stored for it; objects that were there already cost nothing."""
    reused_bytes: int = 0
    seconds: float = 0.0
    inexact: int = 0
    """Keys whose value as of the moment could not be had; the index names them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One backup."""

    backup_id: str
    type: BackupType
    namespace: str
    started: str
    """When, by the clock of the process that made it; ISO 8601, UTC."""
    created: str
    shards: tuple[ShardCut, ...]
    objects: tuple[ObjectRef, ...]
    parent: str = ""
    """The backup that this one goes on from."""
    base: str = ""
    """The full backup at the beginning of the chain."""
    timeline: str = ""
    filtered: bool = False
    """Whether it holds only some scopes or classes; the index says which."""
    sections: tuple[str, ...] = ()
    """What it holds beside state: ``events``, ``hooks``."""
    tags: dict[str, str] = field(default_factory=dict)
    importance: str = "standard"
    reason: str = "manual"
    """``manual``, ``schedule``, ``rollback`` or ``archive``."""
    compression: str = ""
    server: str = ""
    """Version and replication id."""
    writer: str = ""
    stats: Stats = field(default_factory=Stats)
    mac: str = ""
    """HMAC-SHA256 with a key derived from the backup's data key, if it has one."""

    @property
    def key(self) -> str:
        """The id of the backup's own data key; empty: not encrypted."""
        return next((one.key for one in self.objects if one.kind == "index"), "")

    @property
    def started_at(self) -> datetime:
        """`started`, as a datetime."""
        return datetime.fromisoformat(self.started)

    @property
    def created_at(self) -> datetime:
        """`created`, as a datetime."""
        return datetime.fromisoformat(self.created)

    @property
    def moment(self) -> Revision | None:
        """The newest revision of all shards that it holds."""
        found = [one.revision for one in self.shards if one.revision is not None]
        return max(found, default=None)

    def cut(self, shard: str) -> ShardCut | None:
        """Return which moment of a shard it is; None if it has no such shard."""
        return next((one for one in self.shards if one.shard == shard), None)

    def objects_of(self, kind: str, shard: str | None = None) -> list[ObjectRef]:
        """Return its objects of a kind, in order."""
        return [one for one in self.objects if one.kind == kind and shard in (None, one.shard)]

    # --- stored form

    def packed(self, mac_key: bytes | None = None) -> bytes:
        """Return the bytes to store."""
        facts = {"format": FORMAT, **asdict(self)}
        del facts["mac"]
        if mac_key is not None:
            facts["mac"] = hmac.new(mac_key, _canonical(facts), hashlib.sha256).hexdigest()
        facts["digest"] = hashlib.sha256(_canonical(facts)).hexdigest()
        return json.dumps(facts, indent=1, ensure_ascii=False).encode()

    @classmethod
    def unpack(cls, raw: bytes, name: str) -> Manifest:
        """Read a manifest; a damaged or newer one is an error that names it."""
        try:
            facts = fields.load(raw)
            version, digest = facts.pop("format"), facts.pop("digest")
            if type(version) is int and version != FORMAT:
                raise BackupFormatError(name, version, FORMAT)
            signed = {"format": version, **facts}
            if hashlib.sha256(_canonical(signed)).hexdigest() != digest:
                raise BackupDamagedError(name, "its digest is another one")
            if type(version) is not int:
                raise BackupDamagedError(name, "its format is no number")
            return cls(**fields.checked(facts, _FIELDS))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = f": {error}" if str(error).startswith("its ") else ""
            what = f"{type(error).__name__}{reason}"
            raise BackupDamagedError(name, f"it is no manifest: {what}") from None

    def authenticate(self, mac_key: bytes, name: str) -> None:
        """Check that whoever wrote it had the data key."""
        facts = {"format": FORMAT, **asdict(self)}
        del facts["mac"]
        right = hmac.new(mac_key, _canonical(facts), hashlib.sha256).hexdigest()
        if not hmac.compare_digest(right, self.mac):
            raise BackupKeyError(self.key, "it did not write this manifest", name)


def _canonical(facts: dict[str, Any]) -> bytes:
    return json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _list_of(one: Callable[..., Any], checks: dict[str, fields.Check]) -> fields.Check:
    def check(value: Any) -> tuple[Any, ...]:
        if type(value) is not list:
            raise ValueError(value)
        return tuple(one(**fields.checked(each, checks)) for each in value)

    return check


def _importance(value: Any) -> str:
    if value not in IMPORTANCE:
        raise ValueError(value)
    return str(value)


_ID: Final = r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}"
_SHA256: Final = r"[0-9a-f]{64}"
_OBJECT: Final[dict[str, fields.Check]] = {
    "digest": fields.matching(_SHA256),
    "kind": fields.matching("records|segment|extra|index"),
    "shard": fields.matching(r"[0-9]{1,5}|[a-z]{1,32}", empty=True),
    "size": fields.count,
    "plain_size": fields.count,
    "key": fields.matching(r"[0-9a-f]{32}", empty=True),
}
_CUT: Final[dict[str, fields.Check]] = {
    "shard": fields.matching(r"[0-9]{1,5}"),
    "begin": fields.revision,
    "at": fields.revision,
    "operation": fields.matching(r"([0-9a-f]{2})+", empty=True),
}
_STATS: Final[dict[str, fields.Check]] = {
    **dict.fromkeys(("scopes", "records", "entries", "inexact"), fields.count),
    **dict.fromkeys(("plain_bytes", "stored_bytes", "reused_bytes"), fields.count),
    "seconds": fields.number,
}
_FIELDS: Final[dict[str, fields.Check]] = {
    "backup_id": fields.matching(_ID),
    "type": BackupType,
    "started": fields.moment,
    "created": fields.moment,
    "shards": _list_of(ShardCut, _CUT),
    "objects": _list_of(ObjectRef, _OBJECT),
    "parent": fields.matching(_ID, empty=True),
    "base": fields.matching(_ID, empty=True),
    "filtered": fields.flag,
    "sections": fields.texts,
    "tags": fields.texts_by_name,
    "importance": _importance,
    "stats": lambda value: Stats(**fields.checked(value, _STATS)),
    "mac": fields.matching(_SHA256, empty=True),
    **dict.fromkeys(("namespace", "timeline", "reason"), fields.text),
    **dict.fromkeys(("compression", "server", "writer"), fields.text),
}
"""What each field must be; `docs/design/backup-format.md` says it too."""
