"""Which part of the archived log a set of backups can use."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate
from typing import TypeAlias

from llmspell_dist.backup.retention.model import StoredBackup, StoredSegment
from llmspell_dist.revision import Revision

__all__ = ["ArchivedLog", "Cut"]

Cut: TypeAlias = dict[str, Revision] | None
"""By shard the revision from which on the log is needed; None: no backup needs any of it."""


class ArchivedLog:
    """The segments of all timelines.

    A backup that ends at T can use what lies behind T, on whichever timeline. So what ends at or
    before the T of every base is of no use to any of them, and everything else may be.
    """

    def __init__(self, segments: Iterable[StoredSegment]) -> None:
        self._shards: dict[str, list[StoredSegment]] = {}
        for segment in segments:
            self._shards.setdefault(segment.shard, []).append(segment)
        for found in self._shards.values():
            found.sort(key=lambda segment: segment.last)
        self._lasts = {
            shard: [segment.last for segment in found] for shard, found in self._shards.items()
        }
        self._sums = {
            shard: [0, *accumulate(segment.size for segment in found)]
            for shard, found in self._shards.items()
        }

    def lower(self, cut: Cut, bases: Iterable[StoredBackup]) -> Cut:
        """Return the cut once more bases stay."""
        for base in bases:
            at = {shard: base.position(shard) for shard in self._shards}
            cut = at if cut is None else {shard: min(cut[shard], at[shard]) for shard in at}
        return cut

    def size(self, cut: Cut) -> int:
        """Return how many bytes are kept; without any base all are, to be on the safe side."""
        return sum(
            sums[-1] - (0 if cut is None else sums[bisect_right(self._lasts[shard], cut[shard])])
            for shard, sums in self._sums.items()
        )

    def useless(self, cut: Cut) -> list[StoredSegment]:
        """Return what no base can use, each shard's oldest first."""
        if cut is None:
            return []
        return [
            segment
            for shard, found in sorted(self._shards.items())
            for segment in found[: bisect_right(self._lasts[shard], cut[shard])]
        ]
