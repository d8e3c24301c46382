"""A correlation as a timeline: what happened, in order, and what caused what."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from datetime import datetime, timedelta
from functools import cached_property
from typing import overload

from llmspell_dist.correlated import EventLink, EventRelationship
from llmspell_dist.correlation.graph import Edge, depths
from llmspell_dist.correlation.model import (
    CausalChain,
    EntryKind,
    Gap,
    TimelineConfig,
    TimelineEntry,
    TimelineStatistics,
)

__all__ = ["Timeline"]

_LONGEST_GAPS = 5


class Timeline(Sequence[TimelineEntry]):
    """The entries of a correlation in time order, with their causes, effects and links.

    Time is the server's; what it puts into the same moment stands in the order in which it came,
    and no entry before its cause. Causes are what entries say (causation ids) and the links of the
    causal relationships (``CAUSED_BY``, ``RESPONSE_TO``, ``FOLLOWS_FROM``) that are strong enough.
    They form no circle: of the edges in one, those that point back in time count for nothing.
    """

    def __init__(
        self,
        correlation_id: str,
        entries: list[TimelineEntry],
        links: list[EventLink],
        config: TimelineConfig,
        *,
        truncated: bool,
        strengths: dict[Edge, float],
        left_out: dict[str, int],
        unreadable: int,
    ) -> None:
        self.correlation_id = correlation_id
        self.entries = entries
        self.links = links
        """The links that count, each between two entries, those that were guessed too."""
        self.config = config
        self.truncated = truncated
        """Whether there are more entries than `TimelineConfig.max_entries`."""
        self._strengths = strengths
        self._left_out = left_out
        self._unreadable = unreadable

    def __repr__(self) -> str:
        more = ", truncated" if self.truncated else ""
        return f"<{type(self).__name__} of {self.correlation_id}: {len(self)} entries{more}>"

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[TimelineEntry]:
        return iter(self.entries)

    @overload
    def __getitem__(self, index: int) -> TimelineEntry: ...
    @overload
    def __getitem__(self, index: slice) -> list[TimelineEntry]: ...
    def __getitem__(self, index: int | slice) -> TimelineEntry | list[TimelineEntry]:
        return self.entries[index]

    def only(self, keep: Callable[[TimelineEntry], bool], why: str) -> Timeline:
        """Return it with the entries that `keep` accepts; `left_out` counts the others under `why`.

        Positions begin at 0 again, and what an entry that is left out caused has lost that cause.
        """
        kept = [entry for entry in self.entries if keep(entry)]
        if len(kept) == len(self.entries):
            return self
        places = {entry.position: place for place, entry in enumerate(kept)}
        copies = []
        for place, entry in enumerate(kept):
            one = copy(entry)
            one.position = place
            one.causes = tuple(places[at] for at in entry.causes if at in places)
            one.effects = tuple(places[at] for at in entry.effects if at in places)
            copies.append(one)
        found = depths(len(copies), [(at, one.position) for one in copies for at in one.causes])
        for one, depth in zip(copies, found, strict=True):
            one.depth = depth
        known = {one.id for one in copies}
        return Timeline(
            self.correlation_id,
            copies,
            [link for link in self.links if link.from_id in known and link.to_id in known],
            self.config,
            truncated=self.truncated,
            strengths={
                (places[a], places[b]): strength
                for (a, b), strength in self._strengths.items()
                if a in places and b in places
            },
            left_out=self._left_out | {why: len(self.entries) - len(kept)},
            unreadable=sum(entry.kind is EntryKind.UNKNOWN for entry in copies),
        )

    @property
    def strengths(self) -> Mapping[Edge, float]:
        """How strong a link says a cause is, by the positions of cause and effect.

        A causation id counts as 1.
        """
        return self._strengths

    # --- one entry

    @cached_property
    def by_id(self) -> dict[str, TimelineEntry]:
        """The entries by what others name them as their cause."""
        return {entry.id: entry for entry in self.entries}

    def relative_time(self, entry: TimelineEntry) -> timedelta:
        """Return how long after the first entry it happened."""
        return timedelta(microseconds=entry.time_us - self.entries[0].time_us)

    def causes(self, entry: TimelineEntry) -> list[TimelineEntry]:
        """Return the entries that caused it."""
        return [self.entries[position] for position in entry.causes]

    def effects(self, entry: TimelineEntry) -> list[TimelineEntry]:
        """Return the entries that it caused."""
        return [self.entries[position] for position in entry.effects]

    def concurrent(self, entry: TimelineEntry) -> list[TimelineEntry]:
        """Return what happened at the same time: within the window, or linked so.

        Without its direct causes and effects.
        """
        window = int(self.config.concurrency_window / timedelta(microseconds=1))
        times = self._times
        first = bisect_left(times, entry.time_us - window)
        last = bisect_right(times, entry.time_us + window)
        found = set(range(first, last)) | self._linked_concurrent.get(entry.position, set())
        found -= {entry.position, *entry.causes, *entry.effects}
        return [self.entries[position] for position in sorted(found)]

    @cached_property
    def _times(self) -> list[int]:
        return [entry.time_us for entry in self.entries]

    @cached_property
    def _linked_concurrent(self) -> dict[int, set[int]]:
        found: dict[int, set[int]] = {}
        for link in self.links:
            if link.relationship is EventRelationship.CONCURRENT_WITH:
                one, other = (self.by_id[end].position for end in (link.from_id, link.to_id))
                found.setdefault(one, set()).add(other)
                found.setdefault(other, set()).add(one)
        return found

    @cached_property
    def links_of(self) -> dict[str, list[EventLink]]:
        """The links of each entry, from both of its ends, by the entry's id."""
        found: dict[str, list[EventLink]] = {}
        for link in self.links:
            found.setdefault(link.from_id, []).append(link)
            found.setdefault(link.to_id, []).append(link)
        return found

    # --- all of them

    @property
    def roots(self) -> list[TimelineEntry]:
        """The entries that nothing in this timeline caused."""
        return [entry for entry in self.entries if not entry.causes]

    @property
    def leaves(self) -> list[TimelineEntry]:
        """The entries that caused nothing."""
        return [entry for entry in self.entries if not entry.effects]

    @cached_property
    def chains(self) -> list[CausalChain]:
        """A chain for every effect that caused nothing further, back over the strongest causes.

        Of equally strong ones the latest. Entries without cause and effect are no chain.
        """
        return [self._chain(leaf) for leaf in self.entries if leaf.causes and not leaf.effects]

    def _chain(self, leaf: TimelineEntry) -> CausalChain:
        positions, strength, entry = [leaf.position], 1.0, leaf
        while entry.causes and len(positions) <= self.config.max_depth:
            here = entry.position
            cause = max(entry.causes, key=lambda one: (self._strengths.get((one, here), 1.0), one))
            strength *= self._strengths.get((cause, here), 1.0)
            positions.append(cause)
            entry = self.entries[cause]
        duration = timedelta(microseconds=leaf.time_us - entry.time_us)
        return CausalChain(tuple(reversed(positions)), duration, strength, not entry.causes)

    @cached_property
    def statistics(self) -> TimelineStatistics:
        """The timeline in numbers."""
        entries = self.entries
        times = self._times
        gaps = sorted(
            ((times[place] - times[place - 1], -place + 1) for place in range(1, len(times))),
            reverse=True,
        )[:_LONGEST_GAPS]
        span = times[-1] - times[0] if times else 0
        known = self.by_id
        return TimelineStatistics(
            entries=len(entries),
            by_kind=dict(Counter(entry.kind.value for entry in entries)),
            by_type=dict(Counter(entry.type for entry in entries)),
            by_source=dict(Counter(e.source for e in entries if e.source is not None)),
            started=entries[0].time if entries else None,
            ended=entries[-1].time if entries else None,
            duration=timedelta(microseconds=span),
            average_gap=timedelta(microseconds=span / max(1, len(entries) - 1)),
            longest_gaps=tuple(Gap(-place, timedelta(microseconds=us)) for us, place in gaps if us),
            max_depth=max((entry.depth for entry in entries), default=0),
            roots=sum(not entry.causes for entry in entries),
            leaves=sum(not entry.effects for entry in entries),
            links_by_relationship=dict(Counter(link.relationship.value for link in self.links)),
            unresolved=sum(
                entry.causation_id is not None and entry.causation_id not in known
                for entry in entries
            ),
            trimmed=sum(entry.trimmed for entry in entries),
            unreadable=self._unreadable,
            left_out=self._left_out,
        )

    @property
    def started(self) -> datetime | None:
        """When its first entry happened."""
        return self.entries[0].time if self.entries else None
