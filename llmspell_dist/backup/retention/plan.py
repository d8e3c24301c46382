"""What goes and what stays by a policy, with the reason for each backup. Nothing is removed here.

`llmspell_dist.backup.pruning` carries a plan out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from llmspell_dist.backup.retention.archive import ArchivedLog, Cut
from llmspell_dist.backup.retention.chains import Chains
from llmspell_dist.backup.retention.model import BackupType, StoredBackup, StoredSegment
from llmspell_dist.backup.retention.policy import RetentionPolicy
from llmspell_dist.backup.retention.units import print_size, say_size, say_span
from llmspell_dist.quantities import counted
from llmspell_dist.revision import to_ms

__all__ = ["Decision", "PrunePlan", "plan_prune"]


class Decision(NamedTuple):
    """What becomes of one backup."""

    backup: StoredBackup
    stays: bool
    because: str
    """Why, as the end of a sentence."""

    def __str__(self) -> str:
        return f"{self.backup.id} {'stays' if self.stays else 'goes'}: {self.because}"


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """What a policy removes now."""

    policy: RetentionPolicy
    now: datetime
    decisions: tuple[Decision, ...]
    """One for each backup, the newest first."""
    goes: tuple[StoredBackup, ...]
    """In the order in which to remove them: the oldest first, none before one that needs it."""
    segments: tuple[StoredSegment, ...]
    """What goes of the archived log: no base that stays can use it."""
    freed: int
    """How many bytes that is; what backups that stay share is not in it."""

    @property
    def stays(self) -> tuple[StoredBackup, ...]:
        """Which backups stay, the newest first."""
        return tuple(one.backup for one in self.decisions if one.stays)

    def __bool__(self) -> bool:
        """Whether anything goes."""
        return bool(self.goes or self.segments)

    def as_data(self) -> dict[str, Any]:
        """Return it as plain data, for JSON."""
        return {
            "policy": self.policy.text,
            "sentence": str(self.policy),
            "now": self.now.astimezone(UTC).isoformat(),
            "backups": [
                {"id": one.backup.id, "stays": one.stays, "because": one.because}
                for one in self.decisions
            ],
            "goes": [one.id for one in self.goes],
            "segments": len(self.segments),
            "freed_bytes": self.freed,
        }

    def __str__(self) -> str:
        head = (
            f"{self.policy}: {len(self.goes)} of {counted(len(self.decisions), 'backup')} and "
            f"{counted(len(self.segments), 'segment')} of the log go, {say_size(self.freed)}"
        )
        return "\n".join([head, *map(str, self.decisions)])


def plan_prune(
    policy: RetentionPolicy,
    backups: Iterable[StoredBackup],
    segments: Iterable[StoredSegment] = (),
    *,
    now: datetime,
) -> PrunePlan:
    """Return what goes and what stays.

    What stays can be restored: every backup that it goes on from stays too. The last full backup
    of a series stays, and its newest `policy.minimum`. A backup whose parents are missing is left
    alone, and takes no place of another one. Of the archive goes what no base that stays can use.
    A plan that was carried out, made again with the same `now`, removes nothing.
    """
    to_ms(now)
    chains, log = Chains(backups), ArchivedLog(segments)
    return _Planner(policy, chains, log, now).plan()


class _Planner:
    def __init__(
        self, policy: RetentionPolicy, chains: Chains, log: ArchivedLog, now: datetime
    ) -> None:
        self.policy, self.chains, self.log, self.now = policy, chains, log, now
        self.reasons: dict[str, list[str]] = {}
        """Why backups stay by themselves, not for others."""
        self.staying: set[str] = set()
        self.objects: set[str] = set()
        self.size = 0
        self.cut: Cut = None
        """From where on the archive is needed."""

    def plan(self) -> PrunePlan:
        self._keep_in_any_case()
        over = self._keep_what_fits()
        decisions = tuple(self._decide(backup, over) for backup in self.chains.newest_first)
        goes = [one.backup for one in reversed(decisions) if not one.stays]
        goes.sort(key=self.chains.depth, reverse=True)
        segments = [
            segment
            for segment in self.log.useless(self.cut)
            if segment.locked_until is None or segment.locked_until <= self.now
        ]
        freed = self._weight(goes) + sum(one.size for one in segments)
        return PrunePlan(self.policy, self.now, decisions, tuple(goes), tuple(segments), freed)

    def _stay(self, backup: StoredBackup, reason: str) -> None:
        self.reasons.setdefault(backup.id, []).append(reason)
        new = self._needed(backup)
        self.staying.update(one.id for one in new)
        self.size += self._weight(new)
        self.objects.update(*(one.objects for one in new))
        if self.policy.pitr is None:
            self.cut = self.log.lower(self.cut, filter(self.chains.complete, new))

    def _needed(self, backup: StoredBackup) -> list[StoredBackup]:
        """Return what would have to stay with a backup and does not yet, itself included."""
        chain = self.chains.up(backup) if self.chains.complete(backup) else [backup]
        return [one for one in chain if one.id not in self.staying]

    def _weight(self, backups: list[StoredBackup]) -> int:
        """Return the bytes that these occupy beside what stays."""
        objects: dict[str, int] = {}
        for one in backups:
            objects.update(one.objects)
        shared = sum(size for name, size in objects.items() if name not in self.objects)
        return sum(one.size for one in backups) + shared

    def _keep_in_any_case(self) -> None:
        for backup in self.chains.newest_first:
            if not self.chains.complete(backup):
                missing = self.chains.first_missing(backup)
                said = f"it cannot be restored, as {missing} is missing: look into it"
                self._stay(backup, said)
            if backup.pinned:
                self._stay(backup, "pinned")
            if backup.locked_until is not None and backup.locked_until > self.now:
                until = backup.locked_until.astimezone(UTC)
                self._stay(backup, f"locked until {until:%Y-%m-%d %H:%M} UTC")
        least = self.policy.minimum
        for series in self.chains.series():
            newest = "the newest one" if least == 1 else f"among the newest {least:,}"
            for backup in series[:least]:
                self._stay(backup, f"{newest}, which always stay{'s' if least == 1 else ''}")
            full = next((one for one in series if one.type is BackupType.FULL), None)
            if full is not None:
                self._stay(full, "the last full one")
            if self.policy.pitr is not None:
                start = self.now - self.policy.pitr
                anchor = next((one for one in series if one.time <= start), series[-1])
                said = f"the base for any moment of the last {say_span(self.policy.pitr)}"
                self._stay(anchor, said)
                self.cut = self.log.lower(self.cut, [anchor])

    def _keep_what_fits(self) -> dict[str, str]:
        """Let stay what the rule keeps, by importance and age; return what the limits cut off."""
        wanted: dict[str, str] = {}
        for series in self.chains.series():
            wanted.update(self.policy.keep.judge(series, self.now))
        ranked = sorted(
            (self.chains.by_id[backup_id] for backup_id in wanted),
            key=lambda backup: (backup.importance, *backup.age_key),
            reverse=True,
        )
        for at, backup in enumerate(ranked):
            if limit := self._exceeded(self._needed(backup)):
                # No smaller one behind it takes its place: what is older than one that goes, goes.
                return {one.id: f"{wanted[one.id]}, but {limit}" for one in ranked[at:]}
            self._stay(backup, wanted[backup.id])
        return {}

    def _exceeded(self, new: list[StoredBackup]) -> str:
        """Return the limit that would be broken if these stayed too."""
        if not new:
            return ""
        count, size = self.policy.max_count, self.policy.max_size
        if count is not None and len(self.staying) + len(new) > count:
            return f"{count:,} are the most"
        if size is not None:
            cut = self.cut if self.policy.pitr is not None else self.log.lower(self.cut, new)
            total = self.size + self._weight(new) + self.log.size(cut)
            if total > size:
                return f"{print_size(size)} are the most"
        return ""

    def _decide(self, backup: StoredBackup, over: dict[str, str]) -> Decision:
        if reasons := self.reasons.get(backup.id):
            return Decision(backup, stays=True, because="; ".join(reasons))
        if backup.id in self.staying:
            child = next(
                one
                for one in self.chains.newest_first
                if one.parent == backup.id and one.id in self.staying
            )
            return Decision(backup, stays=True, because=f"{child.id} goes on from it")
        return Decision(backup, stays=False, because=over.get(backup.id, "no rule keeps it"))
