"""From a moment to the objects that lead there: pure, over manifests and what the archive covers.

A chain begins at the newest full backup that is not later than the moment, and goes on with
stretches of the log: of incremental and differential backups, of the archive, and of the log that
the server still has. Each stretch begins where the one before ended, or earlier: applying entries
again does no harm.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llmspell_dist.backup.errors import BackupNotFoundError, PointNotCoveredError
from llmspell_dist.backup.manifest import BackupType, Manifest, ObjectRef, ShardCut
from llmspell_dist.backup.points import Point
from llmspell_dist.backup.selection import Selection
from llmspell_dist.revision import Revision

__all__ = ["Plan", "ShardPlan", "Stretch", "plan"]


@dataclass(frozen=True, slots=True)
class Stretch:
    """Part of a shard's log: the entries after one revision and up to another."""

    source: str
    """``backup <id>``, ``archive <timeline>`` or ``log``."""
    after: Revision | None
    upto: Revision
    objects: tuple[ObjectRef, ...] = ()
    origin: Any = None
    """What the one who offered it needs to read it."""

    @property
    def of_backup(self) -> bool:
        """Whether it is that of a backup, which is read as a whole."""
        return self.source.startswith("backup ")


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """How a shard is brought to the moment."""

    shard: str
    upto: Revision | None
    """Entries after it are left out; None: nothing was ever committed."""
    records: tuple[ObjectRef, ...]
    stretches: tuple[Stretch, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """How a moment is restored."""

    point: Point
    base: Manifest
    shards: tuple[ShardPlan, ...]

    @property
    def sources(self) -> list[str]:
        """What it is put together from, for people."""
        found = [f"backup {self.base.backup_id}"]
        for shard in self.shards:
            found += [one.source for one in shard.stretches if one.source not in found]
        return found

    @property
    def moment(self) -> Revision | None:
        """The newest revision that it includes."""
        return max((s.upto for s in self.shards if s.upto is not None), default=None)


def plan(
    point: Point,
    manifests: Sequence[Manifest],
    *,
    offered: Mapping[str, Iterable[Stretch]] | None = None,
    ends: Mapping[str, Revision | None] | None = None,
    selections: Mapping[str, Selection] | None = None,
    wanted: Selection | None = None,
    label: str = "the target",
) -> Plan:
    """Return how to restore a moment, with as little to read as can be.

    `offered`: by shard, stretches of the archive and of the live log. `ends`: by shard, the live
    log's newest revision, if that log is the one that the backups are of: a moment after it is
    covered, because nothing has happened since. `selections`: what filtered backups hold. `label`:
    where the backups are, for the error.

    Raises `PointNotCoveredError`, which says what is covered, and `BackupNotFoundError`.
    """
    search = _Search(point, manifests, offered or {}, ends or {})
    if point.backup_id and all(one.backup_id != point.backup_id for one in manifests):
        raise BackupNotFoundError(label, point.backup_id)
    failure: PointNotCoveredError | None = None
    for base in search.bases(selections or {}, wanted):
        try:
            return search.from_base(base)
        except PointNotCoveredError as error:
            failure = failure or error
    raise failure or PointNotCoveredError(point, _why_none(point, manifests))


class _Search:
    """Looks for a chain to one moment."""

    def __init__(
        self,
        point: Point,
        manifests: Sequence[Manifest],
        offered: Mapping[str, Iterable[Stretch]],
        ends: Mapping[str, Revision | None],
    ) -> None:
        self._point = point
        self._manifests = manifests
        self._by_id = {one.backup_id: one for one in manifests}
        self._offered = offered
        self._ends = ends

    def bases(
        self, selections: Mapping[str, Selection], wanted: Selection | None
    ) -> list[Manifest]:
        """Return the full backups from which the moment can be reached, the best first."""
        if self._point.backup_id:
            base = self._by_id[self._point.backup_id].base
            if base not in self._by_id:
                raise PointNotCoveredError(self._point, f"its full backup {base} is gone")
            return [self._by_id[base]]
        fitting = [
            one
            for one in self._manifests
            if one.type is BackupType.FULL
            and _not_after(one, self._point)
            and _holds(one, selections, wanted)
        ]
        return sorted(fitting, key=lambda one: one.moment or Revision(0, 0), reverse=True)

    def from_base(self, base: Manifest) -> Plan:
        """Return the chain that begins with a full backup."""
        shards = [self._shard(base, cut) for cut in base.shards]
        return Plan(self._point, base, tuple(shards))

    def _shard(self, base: Manifest, cut: ShardCut) -> ShardPlan:
        point, target = self._point, self._target(cut)
        own = tuple(base.objects_of("segment", cut.shard))
        name = f"backup {base.backup_id}"
        stretches = [Stretch(name, cut.begin_revision, _zero(cut.revision), own)] if own else []
        possible: list[Stretch] = []
        if point.backup_id != base.backup_id:
            possible += _of_backups(base, self._manifests, cut)
        if not point.backup_id:
            possible += self._offered.get(cut.shard, ())
        at = _walk(cut.revision, target, possible, stretches)
        if not _reached(cut.shard, at, target, self._ends):
            where = "nothing" if at is None else f"{at.time.isoformat()} (revision {at})"
            reason = f"from backup {base.backup_id} on, shard {cut.shard} reaches {where}"
            raise PointNotCoveredError(point, reason)
        upto = at if target is None or (at is not None and at < target) else target
        records = tuple(base.objects_of("records", cut.shard))
        return ShardPlan(cut.shard, upto, records, tuple(stretches))

    def _target(self, cut: ShardCut) -> Revision | None:
        """Return the last revision of a shard that is included; None: as far as it goes."""
        if self._point.backup_id:
            wanted = self._by_id[self._point.backup_id].cut(cut.shard)
            return None if wanted is None else wanted.revision
        return self._point.revision


def _not_after(base: Manifest, point: Point) -> bool:
    if point.revision is None:
        return True
    return base.moment is None or base.moment <= point.revision


def _holds(base: Manifest, selections: Mapping[str, Selection], wanted: Selection | None) -> bool:
    """Whether a filtered backup holds all that is wanted."""
    if not base.filtered:
        return True
    held = selections.get(base.backup_id)
    if held is None or wanted is None or not wanted.scopes:
        return False
    if held.classes and not (wanted.classes and wanted.classes <= held.classes):
        return False
    return wanted.scopes == held.scopes or all(map(held.covers, wanted.scopes))


def _walk(
    at: Revision | None,
    target: Revision | None,
    possible: Sequence[Stretch],
    stretches: list[Stretch],
) -> Revision | None:
    """Go on as far as the moment.

    Values that the log does not hold were read when a stretch was stored, so the sooner it was, the
    more of them are exact: the archive first, then backups, the live log last; and of those that
    lead to the moment the one that ends first.
    """
    while target is None or at is None or at < target:
        fitting = [
            one
            for one in possible
            if (one.after is None or (at is not None and one.after <= at))
            and (at is None or one.upto > at)
        ]
        if not fitting:
            return at
        first = min(map(_rank, fitting))
        fitting = [one for one in fitting if _rank(one) == first]
        enough = [one for one in fitting if target is not None and one.upto >= target]
        if enough:
            best = min(enough, key=lambda one: one.upto)
        else:
            best = max(fitting, key=lambda one: one.upto)
        if not best.of_backup and at is not None:
            best = replace(best, after=at)  # what is read entry by entry is read from there on
        stretches.append(best)
        at = best.upto
    return target


def _rank(one: Stretch) -> int:
    if one.of_backup:
        return 1
    return 2 if one.source == "log" else 0


def _reached(
    shard: str, at: Revision | None, target: Revision | None, ends: Mapping[str, Revision | None]
) -> bool:
    """Whether a chain that ends at a revision shows the moment."""
    if target is None or at == target:
        return True
    # If the live log ends there too, nothing has happened in between.
    return shard in ends and ends[shard] == at


def _of_backups(base: Manifest, manifests: Sequence[Manifest], cut: ShardCut) -> list[Stretch]:
    found = []
    for one in manifests:
        if one.base != base.backup_id or one.backup_id == base.backup_id:
            continue
        other = one.cut(cut.shard)
        if other is not None and other.revision is not None:
            objects = tuple(one.objects_of("segment", cut.shard))
            name = f"backup {one.backup_id}"
            found.append(Stretch(name, other.begin_revision, other.revision, objects))
    return found


def _zero(revision: Revision | None) -> Revision:
    return Revision(0, 0) if revision is None else revision


def _why_none(point: Point, manifests: Sequence[Manifest]) -> str:
    fulls = [one for one in manifests if one.type is BackupType.FULL]
    if not fulls:
        return "there is no full backup"
    first = min(fulls, key=lambda one: one.moment or Revision(0, 0))
    if first.moment is None or point.revision is None:
        return "no backup holds all that is wanted"
    if first.moment > point.revision:
        return f"the oldest full backup {first.backup_id} is of {first.moment.time.isoformat()}"
    return "no backup holds all that is wanted"
