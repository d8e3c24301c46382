"""What the archive covers, and which backups its timelines go on from."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmspell_dist.backup.archive.reader import SegmentReader
from llmspell_dist.backup.archive.source import SegmentSource
from llmspell_dist.backup.errors import PointNotCoveredError
from llmspell_dist.revision import Revision

if TYPE_CHECKING:
    from llmspell_dist.backup.archive.timelines import Timeline
    from llmspell_dist.backup.manifest import Manifest
    from llmspell_dist.backup.repository import Repository

__all__ = ["Archive", "ArchiveStatus", "TimelineStatus"]


@dataclass(frozen=True, slots=True)
class TimelineStatus:
    """What one timeline of the archive covers."""

    timeline: Timeline
    covered: Mapping[str, tuple[tuple[Revision, Revision], ...]]
    """By shard: ranges without a gap, after one revision and up to another; ascending."""

    @property
    def gaps(self) -> int:
        """How many stretches of the log are missing."""
        return sum(max(0, len(ranges) - 1) for ranges in self.covered.values())


@dataclass(frozen=True, slots=True)
class ArchiveStatus:
    """What the archive covers."""

    timelines: tuple[TimelineStatus, ...] = field(default=())
    """Oldest first; the last one goes on now."""
    lag_s: float | None = None
    """How old the oldest commit is that is not in the archive; None: there is no archive."""
    pending: int = 0
    """Commits that are not in it yet, at most 100 a shard are counted."""


class Archive(SegmentSource):
    """The archive of one repository, as restores and people see it."""

    def __init__(self, repository: Repository) -> None:
        super().__init__(repository)
        self._segments = SegmentReader(repository)

    async def timelines(self) -> list[Timeline]:
        """Return all timelines, oldest first."""
        return await asyncio.to_thread(self._segments.timelines)

    async def chosen(self, timeline: str | None) -> str | None:
        """Return the timeline that is meant; by default the one that goes on now."""
        known = await self.timelines()
        if timeline is None:
            return known[-1].id if known else None
        if timeline not in {one.id for one in known}:
            raise PointNotCoveredError(f"timeline {timeline}", "there is no such timeline")
        return timeline

    async def bases(self, manifests: Sequence[Manifest], timeline: str) -> list[Manifest]:
        """Return the backups that are of a timeline: not of what a failover has lost since."""
        known = await self.timelines()
        if len(known) < 2:
            return list(manifests)
        return await asyncio.to_thread(self._bases, manifests, timeline, known)

    def _bases(
        self, manifests: Sequence[Manifest], timeline: str, known: Sequence[Timeline]
    ) -> list[Manifest]:
        branches: dict[str, Revision] = {}
        for one in known:
            for shard, branch in one.shards.items():
                at = branch.revision
                if at is not None and (shard not in branches or at < branches[shard]):
                    branches[shard] = at
        return [one for one in manifests if self._is_of(one, timeline, branches)]

    def _is_of(self, manifest: Manifest, timeline: str, branches: Mapping[str, Revision]) -> bool:
        for cut in manifest.shards:
            at = cut.revision
            if at is None or (cut.shard in branches and at <= branches[cut.shard]):
                continue  # from before all branches: of every timeline
            operation = bytes.fromhex(cut.operation)
            if not self._segments.holds(timeline, cut.shard, at, operation):
                return False
        return True

    async def status(self) -> list[TimelineStatus]:
        """Return what each timeline covers."""
        return await asyncio.to_thread(self._status)

    def _status(self) -> list[TimelineStatus]:
        found = []
        for timeline in self._segments.timelines():
            shards = {
                shard
                for one in self._segments.lineage(timeline.id)
                for shard in self._segments.shards(one)
            }
            covered = {
                shard: tuple(
                    (one.after, one.upto) for one in self._segments.covered(timeline.id, shard)
                )
                for shard in sorted(shards, key=int)
            }
            found.append(TimelineStatus(timeline, covered))
        return found
