"""What a sidecar tells of backups, back to the library's reports."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Final

from llmspell_dist.backup.archive.offering import ArchiveStatus, TimelineStatus
from llmspell_dist.backup.archive.timelines import Branch, Timeline
from llmspell_dist.backup.collecting import Garbage
from llmspell_dist.backup.comparing import KeyDifference
from llmspell_dist.backup.drills import DrillReport
from llmspell_dist.backup.findings import Finding, Level, VerifyReport
from llmspell_dist.backup.manifest import BackupType, Manifest, ShardCut, Stats
from llmspell_dist.backup.model import BackupInfo, Inexact
from llmspell_dist.backup.proving import Difference
from llmspell_dist.backup.pruning import PruneReport
from llmspell_dist.backup.restores import RestorePlan, RestoreReport
from llmspell_dist.backup.retention.model import Importance, StoredBackup, StoredSegment
from llmspell_dist.backup.retention.plan import Decision, PrunePlan
from llmspell_dist.backup.retention.policy import RetentionPolicy
from llmspell_dist.backup.targets.base import ObjectInfo
from llmspell_dist.backup.upkeep import Pruned
from llmspell_dist.remote.documents import revision_of
from llmspell_dist.revision import Revision

__all__ = [
    "PlannedPruning",
    "archive_of",
    "difference_of",
    "drill_of",
    "garbage_of",
    "inexact_of",
    "info_of",
    "plan_of",
    "prune_plan_of",
    "prune_report_of",
    "restored_of",
    "verified_of",
]

Document = Mapping[str, Any]


# --- backups --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _ToldManifest(Manifest):
    """A manifest without its objects: a sidecar names only the key of its index."""

    told_key: str = ""

    @property
    def key(self) -> str:
        """The id of the backup's own data key; empty: not encrypted."""
        return self.told_key


_NOT_TOLD: Final = frozenset({"objects", "mac", "told_key"})
_TOLD: Final = frozenset(one.name for one in fields(_ToldManifest)) - _NOT_TOLD


def info_of(document: Document) -> BackupInfo:
    """Return a backup."""
    facts = {name: value for name, value in document.items() if name in _TOLD}
    facts["type"] = BackupType(facts["type"])
    facts["shards"] = tuple([ShardCut(**one) for one in facts["shards"]])
    facts["sections"] = tuple(facts["sections"])
    facts["stats"] = Stats(**facts["stats"])
    return BackupInfo(_ToldManifest(**facts, objects=(), told_key=document["key"]))


def inexact_of(documents: Iterable[Document]) -> tuple[Inexact, ...]:
    """Return the keys that are not exact."""
    return tuple(
        [Inexact(one["scope"], one["key"], Revision.parse(one["revision"])) for one in documents]
    )


# --- reports --------------------------------------------------------------------------------------


def verified_of(document: Document) -> VerifyReport:
    """Return what verifying found."""
    facts = {name: value for name, value in document.items() if name != "ok"}
    facts["level"] = Level(facts["level"])
    facts["findings"] = [Finding(**one) for one in facts["findings"]]
    return VerifyReport(**facts)


def drill_of(document: Document) -> DrillReport:
    """Return what a drill proved."""
    facts = {name: value for name, value in document.items() if name != "ok"}
    facts["sources"], facts["named"] = tuple(facts["sources"]), _named(facts["named"])
    return DrillReport(**facts)


def difference_of(document: Document) -> Difference:
    """Return what a restore would change."""
    facts = dict(document)
    facts["sources"], facts["keys"] = tuple(facts["sources"]), _named(facts["keys"])
    facts["inexact"] = inexact_of(facts["inexact"])
    return Difference(**facts)


def _named(documents: Iterable[Document]) -> tuple[KeyDifference, ...]:
    return tuple([KeyDifference(**one) for one in documents])


def restored_of(document: Document) -> RestoreReport:
    """Return what a restore did."""
    facts = dict(document)
    facts["revision"] = revision_of(facts["revision"])
    facts["sources"], facts["emptied"] = tuple(facts["sources"]), tuple(facts["emptied"])
    facts["inexact"] = inexact_of(facts["inexact"])
    return RestoreReport(**facts)


def plan_of(document: Document) -> RestorePlan:
    """Return what a restore would be put together from."""
    return RestorePlan(document["moment"], tuple(document["sources"]))


# --- keeping in order -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PlannedPruning(Pruned):
    """What a policy removes; the sidecar keeps the plan for an hour, to be carried out once."""

    id: str = ""


def prune_plan_of(document: Document, policy: RetentionPolicy) -> PrunePlan:
    """Return what goes by a policy, and what stays."""
    decisions = tuple(
        [
            Decision(_stored_of(one["backup"]), one["stays"], one["because"])
            for one in document["decisions"]
        ]
    )
    backups = {one.backup.id: one.backup for one in decisions}
    return PrunePlan(
        policy,
        datetime.fromisoformat(document["now"]),
        decisions,
        tuple([backups[one] for one in document["goes"]]),
        tuple([_segment_of(one) for one in document["log_segments"]]),
        document["freed_bytes"],
    )


def _stored_of(document: Document) -> StoredBackup:
    positions = {shard: Revision.parse(at) for shard, at in document["positions"].items()}
    changes = {
        "type": BackupType(document["type"]),
        "importance": Importance(document["importance"]),
        "tags": frozenset(document["tags"]),
        "positions": positions,
    }
    return StoredBackup(**{**document, **changes})


def _segment_of(document: Document) -> StoredSegment:
    first, last = (Revision.parse(document[name]) for name in ("first", "last"))
    return StoredSegment(**{**document, "first": first, "last": last})


def prune_report_of(document: Document) -> PruneReport:
    """Return what was removed."""
    facts = dict(document)
    facts["freed"] = facts.pop("freed_bytes")
    return PruneReport(**facts)


def garbage_of(document: Document) -> Garbage:
    """Return what nothing needs."""
    facts = dict(document)
    for name in ("objects", "keys", "notes", "drills"):
        facts[name] = [ObjectInfo(**one) for one in facts[name]]
    return Garbage(**facts)


# --- the archive ----------------------------------------------------------------------------------


def archive_of(document: Document) -> ArchiveStatus:
    """Return what the archive covers."""
    timelines = tuple([_timeline_of(one) for one in document["timelines"]])
    return ArchiveStatus(timelines, document["lag_s"], document["pending"])


def _timeline_of(document: Document) -> TimelineStatus:
    facts = dict(document["timeline"])
    facts["shards"] = {shard: Branch(**one) for shard, one in facts["shards"].items()}
    covered = {
        shard: tuple([(Revision.parse(after), Revision.parse(upto)) for after, upto in ranges])
        for shard, ranges in document["covered"].items()
    }
    return TimelineStatus(Timeline(**facts), covered)
