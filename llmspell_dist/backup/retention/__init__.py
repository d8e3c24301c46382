"""Which backups stay and why: pure values that print themselves as a sentence, and a plan."""

from __future__ import annotations

from llmspell_dist.backup.retention.buckets import KeepPerPeriod, Period
from llmspell_dist.backup.retention.composite import AllOf, AnyOf
from llmspell_dist.backup.retention.marks import ImportanceAtLeast, Tagged
from llmspell_dist.backup.retention.model import (
    BackupType,
    Importance,
    StoredBackup,
    StoredSegment,
)
from llmspell_dist.backup.retention.newest import KeepLast, KeepYounger
from llmspell_dist.backup.retention.plan import Decision, PrunePlan, plan_prune
from llmspell_dist.backup.retention.policy import RetentionPolicy
from llmspell_dist.backup.retention.rule import Everything, Rule

__all__ = [
    "AllOf",
    "AnyOf",
    "BackupType",
    "Decision",
    "Everything",
    "Importance",
    "ImportanceAtLeast",
    "KeepLast",
    "KeepPerPeriod",
    "KeepYounger",
    "Period",
    "PrunePlan",
    "RetentionPolicy",
    "Rule",
    "StoredBackup",
    "StoredSegment",
    "Tagged",
    "plan_prune",
]
