"""Where shipping goes on: behind the last entry that is stored, if the log still has it.

Whether that entry is there, with the operation id that it had, tells three cases apart: all is
well; it was trimmed because the hold broke (a gap in the archive); the server has lost it, as after
a failover (a new timeline). A server that went back has an earlier position too, so the newest one
that this process or the target knows of is looked for.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from llmspell_dist.backup.archive.position import Look, Place, Position, PositionSteps
from llmspell_dist.backup.archive.timelines import Branch, Timeline, Timelines
from llmspell_dist.backup.errors import (
    BackupDamagedError,
    BackupFormatError,
    BackupInProgressError,
    BackupKeyError,
    ObjectMissingError,
    TargetPermissionError,
)
from llmspell_dist.revision import Revision

if TYPE_CHECKING:
    from llmspell_dist.backup.archive.reader import SegmentReader
    from llmspell_dist.backup.repository import Repository
    from llmspell_dist.state.driver import AsyncDriver

__all__ = ["Gap", "Start", "Whereabouts"]

logger = logging.getLogger("llmspell_dist.backup")

BEGINNING: Final = Revision(0, 0)
_REMEMBERED: Final = 256
_COMPARED: Final = 16
_HEADERS_READ: Final = 32


class Gap(NamedTuple):
    """Entries that are in no archive: backups from before it lead no further."""

    timeline: str
    shard: str
    after: Revision | None
    """The last entry before it; None: none that is known."""
    upto: Revision
    reason: str


class Start(NamedTuple):
    """From where a shard is shipped on."""

    seen: Position | None
    """What stands in the shard's settings."""
    position: Position
    look: Look
    gap: Gap | None = None


class Whereabouts:
    """Finds out, for each shard, from where to ship on; opens timelines."""

    def __init__(self, driver: AsyncDriver, repository: Repository, reader: SegmentReader) -> None:
        self._driver = driver
        self._steps = PositionSteps(driver.core)
        self._timelines = Timelines(repository.target, repository.layout)
        self._reader = reader
        self._known: dict[str, Position] = {}
        self._ends: dict[str, deque[Place]] = {}
        """The ends of the last segments of a shard, in its present timeline."""
        self._left: set[str] = set()
        """Timelines that nobody goes on with."""
        self._branched: Timeline | None = None
        self.timeline = ""
        self.branches = 0
        """How many timelines this process has opened because another one ended."""

    # --- what the shipper tells

    def arrived(self, shard: str, position: Position) -> None:
        """Take note of a position that was moved."""
        if position.timeline != self.timeline:
            self.timeline = position.timeline
        known = self._known.get(shard)
        if known is None or known.timeline != position.timeline:
            self._ends[shard] = deque(maxlen=_REMEMBERED)
        self._known[shard] = position
        self._ends[shard].append(position.place)

    def forget(self) -> None:
        """Look at everything anew: somebody else has shipped."""
        self._known.clear()
        self._ends.clear()

    # --- where to go on

    async def find(self, shard: str) -> Start:
        """Return from where a shard is to be shipped on; the log has that entry."""
        look = await self._driver.run(self._steps.look(shard))
        known = self._known.get(shard)
        if known is None:
            known = await self._from_target(shard, look)
        position = self._newest(look.position, known)
        if position is None:
            return await self._begin(shard, look)
        if self.timeline and position.timeline in self._left:
            return await self._switch(shard, look, position)
        if await self._has(shard, position, look):
            return Start(look.position, position, look)
        trimmed = await self._trimmed(shard, look, position)
        # What was lost, a server that went back does not know; what was trimmed, it does.
        if trimmed and look.position == position:
            return await self._after_gap(shard, look, position)
        return await self._diverged(shard, look, position)

    def _newest(self, stored: Position | None, known: Position | None) -> Position | None:
        """Return the later one of what the server says and what is known otherwise."""
        if stored is None or known is None or stored == known:
            return stored or known
        if stored.timeline == known.timeline:
            return max(stored, known, key=lambda one: one.place.revision)
        return known if stored.timeline in self._left else stored

    async def _has(self, shard: str, position: Position, look: Look) -> bool:
        """Whether the log has the entry of a position."""
        place = position.place
        if not place.operation:
            # The log was empty when the archive began: only the hold tells that it is whole.
            return look.held and look.position is not None and look.position.place == place
        return await self._first_present(shard, (place,)) is not None

    async def _trimmed(self, shard: str, look: Look, position: Position) -> bool:
        """Whether an entry that is not there was trimmed."""
        at = position.place.revision
        if look.first is not None:
            return look.first.revision > at
        return (await self._driver.run(self._steps.generated(shard))) > at

    async def _oldest(self, shard: str, look: Look) -> Place:
        """Return the place behind which the log is whole."""
        if look.first is not None:
            return look.first
        return Place(await self._driver.run(self._steps.generated(shard)), b"")

    # --- the target's word

    async def _from_target(self, shard: str, look: Look) -> Position | None:
        """Return the newest position that the target knows of; None if it knows none.

        Who may only write cannot know whether the server went back in the meantime. He opens a
        timeline, so that two histories cannot be mixed.
        """
        try:
            found = await asyncio.to_thread(self._newest_in_target, shard, look.position)
        except TargetPermissionError:
            return await self._blind(look)
        except (BackupDamagedError, BackupFormatError, BackupKeyError, ObjectMissingError) as error:
            logger.warning("archive: %s; a new timeline is opened", error)
            return await self._blind(look)
        return found

    def _newest_in_target(self, shard: str, stored: Position | None) -> Position | None:
        timelines = self._timelines.all()
        for place, timeline in reversed(list(enumerate(timelines))):
            since = None
            if stored is not None and stored.timeline == timeline.id:
                since = stored.place.revision
            name = self._reader.newest(timeline.id, shard, since)
            if name is None:
                continue
            self._left |= {one.id for one in timelines[:place]}
            header = self._reader.header(name)
            return Position(timeline.id, header.upto, name.digest)
        return None

    async def _blind(self, look: Look) -> Position | None:
        stored = look.position
        if stored is not None and stored.timeline not in self._left:
            reason = "the archive could not be read"
            await self._open(reason, stored.timeline, {})
        return stored

    # --- beginnings

    async def _begin(self, shard: str, look: Look) -> Start:
        """Begin the archive, with what the log has."""
        if not self.timeline:
            await self._open("the archive began", "", {})
        place = await self._oldest(shard, look)
        return Start(look.position, Position(self.timeline, place), look)

    async def _switch(self, shard: str, look: Look, position: Position) -> Start:
        """Go on in the timeline that this process has opened."""
        branch = None if self._branched is None else self._branched.shards.get(shard)
        place = position.place
        if branch is not None and branch.revision != place.revision:
            return await self._diverged(shard, look, position)
        if not await self._has(shard, position, look):
            return await self._diverged(shard, look, position)
        return Start(look.position, Position(self.timeline, place), look)

    async def _after_gap(self, shard: str, look: Look, position: Position) -> Start:
        """Go on behind what is gone."""
        place = await self._oldest(shard, look)
        reason = "the hold broke at the log's cap" if look.broken else "the log was trimmed"
        gap = Gap(position.timeline, shard, position.place.revision, place.revision, reason)
        return Start(look.position, position._replace(place=place), look, gap)

    async def _diverged(self, shard: str, look: Look, position: Position) -> Start:
        """Open a timeline behind the last entry that both histories have."""
        common = await self._common(shard, look, position)
        reason = f"the server has not got the commit {position.place.revision} any more"
        branches = {shard: _branch(common)}
        await self._open(reason, position.timeline, branches)
        if common is not None:
            self._ends[shard] = deque([common], maxlen=_REMEMBERED)
            return Start(look.position, Position(self.timeline, common), look)
        place = await self._oldest(shard, look)
        gap = Gap(self.timeline, shard, None, place.revision, reason)
        return Start(look.position, Position(self.timeline, place), look, gap)

    async def _common(self, shard: str, look: Look, position: Position) -> Place | None:
        """Return the newest end of a segment that the log still has.

        None is for good, a gap, so who cannot read earlier segments just now must not get it.
        """
        remembered = [one for one in reversed(self._ends.get(shard, ())) if one != position.place]
        stored = [] if look.position is None else [look.position.place]
        ends = sorted({*remembered, *stored}, reverse=True)
        common = await self._first_present(shard, ends)
        if common is not None:
            return common
        try:
            headers = await asyncio.to_thread(self._earlier_ends, position, shard)
        except (TargetPermissionError, BackupKeyError) as error:
            logger.warning("archive: earlier segments cannot be read: %s", error)
            return None
        return await self._first_present(shard, headers)

    async def _first_present(self, shard: str, places: Sequence[Place]) -> Place | None:
        for first in range(0, len(places), _COMPARED):
            some = places[first : first + _COMPARED]
            found = await self._driver.run(self._steps.present(shard, some))
            for place, there in zip(some, found, strict=True):
                if there is not None and there.operation == place.operation:
                    return place
        return None

    def _earlier_ends(self, position: Position, shard: str) -> list[Place]:
        ends = []
        since = position.place.revision
        for name in self._reader.newest_first(position.timeline, shard, _HEADERS_READ, since):
            try:
                ends.append(self._reader.header(name).upto)
            except (BackupDamagedError, ObjectMissingError):
                continue
        return ends

    async def _open(self, reason: str, parent: str, branches: dict[str, Branch]) -> None:
        """Write the note of a new timeline; every shard goes on in it."""
        for shard in self._driver.core.shards():
            if shard not in branches and parent:
                look = await self._driver.run(self._steps.look(shard))
                known = self._newest(look.position, self._known.get(shard))
                branches[shard] = _branch(None if known is None else known.place)
        info = self._driver.lanes.info
        server = "" if info is None else f"{info.version} {info.run_id}"
        timeline = Timeline.new(reason, parent, branches, server)
        await asyncio.to_thread(self._timelines.put, timeline)
        if parent:
            self._left.add(parent)
            self.branches += 1
            logger.warning("archive: timeline %s goes on from %s: %s", timeline.id, parent, reason)
        self._branched = timeline
        self.timeline = timeline.id

    # --- moving on

    async def moved(self, shard: str, start: Start, to: Position, *, heals: bool = False) -> int:
        """Move the position; who is not the only one to ship is a `BackupInProgressError`."""
        now_ms = await self._driver.run(self._steps.move(shard, start.seen, to, heals=heals))
        if now_ms is None:
            # Sent twice, the first one may have arrived.
            look = await self._driver.run(self._steps.look(shard))
            if look.position != to:
                self.forget()
                raise BackupInProgressError("the shipping of the archive")
            now_ms = 0
        self.arrived(shard, to)
        return now_ms

    async def unchanged(self, shard: str, places: Iterable[Place]) -> bool:
        """Whether the log still has all of some entries."""
        wanted = [place for place in places if place.operation]
        if not wanted:
            return True
        return list(await self._driver.run(self._steps.present(shard, wanted))) == wanted


def _branch(place: Place | None) -> Branch:
    if place is None:
        return Branch("")
    return Branch(str(place.revision), place.operation.hex())
