"""Reading the archive: which moments it covers, and what happened between two of them.

The names of segments say which revisions they cover, so gaps are found by listing. A segment that
was shipped twice (the shipper was killed in between) covers the same entries again: readers drop
them by revision. A timeline begins in its parent: up to the branch the parent's segments are read.
All methods block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from llmspell_dist.backup.archive.header import SegmentHeader
from llmspell_dist.backup.archive.timelines import Timeline, Timelines
from llmspell_dist.backup.container import ObjectKind, unseal
from llmspell_dist.backup.errors import (
    BackupDamagedError,
    BackupError,
    ObjectMissingError,
    PointNotCoveredError,
)
from llmspell_dist.backup.frames import frames_in
from llmspell_dist.backup.items import (
    Continued,
    Elements,
    Item,
    Logged,
    Missing,
    Record,
    ScopeRecord,
    ScopeStart,
    Unresolved,
    unpack_items,
)
from llmspell_dist.backup.names import SegmentName
from llmspell_dist.changes import Op
from llmspell_dist.records import RESTORED
from llmspell_dist.revision import MAX_SEQ, Revision

if TYPE_CHECKING:
    from llmspell_dist.backup.repository import Repository

__all__ = ["Covered", "Kept", "Piece", "SegmentReader"]

BEGINNING: Final = Revision(0, 0)
_LONGEST_MS: Final = 3_600_000
"""Segments are of seconds, unless nothing was written for long; a longer one is found by listing
all."""


class Piece(NamedTuple):
    """A segment, as far as it belongs to a timeline."""

    after: Revision
    upto: Revision
    """Of a parent's segment the branch, if that lies in it."""
    segment: SegmentName


class Covered(NamedTuple):
    """A range without a gap: everything after one revision, up to another."""

    timeline: str
    shard: str
    after: Revision
    upto: Revision
    pieces: tuple[Piece, ...]
    """In order; of the timeline and of those that it comes from."""


class SegmentReader:
    """Reads the segments of one namespace."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._layout = repository.layout
        self._target = repository.target
        self._timelines = Timelines(repository.target, repository.layout)

    # --- what is there

    def timelines(self) -> list[Timeline]:
        """Return all timelines, oldest first; the last one goes on now."""
        return self._timelines.all()

    def lineage(self, timeline: str | None = None) -> list[str]:
        """Return a timeline (None: the one that goes on now) and those that it comes from."""
        known = {one.id: one for one in self._timelines.all()}
        wanted = timeline or next(reversed(known), "")
        found: list[str] = []
        while wanted in known and wanted not in found:
            found.append(wanted)
            wanted = known[wanted].parent
        return found

    def shards(self, timeline: str) -> list[str]:
        """Return the shards of which a timeline has segments."""
        prefix = f"{self._layout.archive}{timeline}/"
        names = (self._layout.read_segment(info.name) for info in self._target.list(prefix))
        return sorted({name.shard for name in names if name is not None}, key=int)

    def segments(
        self, timeline: str, shard: str, since: Revision | None = None
    ) -> list[SegmentName]:
        """Return a timeline's own segments of a shard, by revision.

        `since`: only those that may have something after a revision. What holds more of what is
        attached to another segment is not among them.
        """
        if since is not None:
            first = Revision(max(0, since.ms - _LONGEST_MS), 0)
            behind = self._layout.segment(SegmentName(timeline, shard, first, first, ""))
            found = self._listed(timeline, shard, behind)
            # One that begins later tells nothing of what may reach over the revision.
            if found and found[0].first <= since:
                return found
        return self._listed(timeline, shard, None)

    def _listed(self, timeline: str, shard: str, behind: str | None) -> list[SegmentName]:
        found = []
        for info in self._target.list(self._layout.segments(timeline, shard), after=behind):
            name = self._layout.read_segment(info.name)
            if name is not None and name.first < name.last:
                found.append(name)
        return found

    def newest(
        self, timeline: str, shard: str, since: Revision | None = None
    ) -> SegmentName | None:
        """Return the segment that reaches furthest."""
        found = self.newest_first(timeline, shard, 1, since)
        return found[0] if found else None

    def newest_first(
        self, timeline: str, shard: str, most: int, since: Revision | None = None
    ) -> list[SegmentName]:
        """Return the segments that reach furthest; `since`: some revision that they reach."""
        found = self.segments(timeline, shard, since)
        if since is not None and len(found) < most:
            found = self.segments(timeline, shard)
        return sorted(found, key=lambda one: (one.last, one.first), reverse=True)[:most]

    def covered(self, timeline: str, shard: str, since: Revision | None = None) -> list[Covered]:
        """Return what a timeline covers of a shard, with what its parents had before it branched.

        Ascending; between two of them is a gap. `since`: only what may matter after a revision.
        """
        ranges: list[Covered] = []
        for piece in sorted(self._lineage(timeline, shard, since)):
            last = ranges[-1] if ranges else None
            if last is None or piece.after > last.upto:
                ranges.append(Covered(timeline, shard, piece.after, piece.upto, (piece,)))
            elif piece.upto > last.upto:
                pieces = (*last.pieces, piece)
                ranges[-1] = last._replace(upto=piece.upto, pieces=pieces)
        return ranges

    def _lineage(self, timeline: str, shard: str, since: Revision | None) -> Iterator[Piece]:
        """Yield the segments of a timeline, and of its parents what came before it."""
        limit: Revision | None = None
        seen: set[str] = set()
        while timeline and timeline not in seen:
            seen.add(timeline)
            for name in self.segments(timeline, shard, since):
                upto = name.last if limit is None else min(name.last, limit)
                if name.first < upto:
                    yield Piece(name.first, upto, name)
            try:
                note = self._timelines.get(timeline)
            except ObjectMissingError:
                return
            branch = note.shards.get(shard)
            if branch is None or branch.revision is None:
                return
            limit = branch.revision if limit is None else min(limit, branch.revision)
            timeline = note.parent

    # --- what is in it

    def items(
        self, timeline: str, shard: str, after: Revision | None, upto: Revision
    ) -> Iterator[Item]:
        """Yield what happened after one revision and up to another, in order.

        Entries of the log, and behind them what was attached to them. `PointNotCoveredError` if
        that is not all there. Attached values of a later moment are left out.
        """
        start = BEGINNING if after is None else after
        if start >= upto:
            return
        pieces = self._leading(timeline, shard, start, upto)
        done = start
        for piece in _shortest(pieces, start, upto):
            left = Kept(done, min(upto, piece.upto))
            for _, _, items in self.objects(piece.segment):
                yield from left.of(items)
            done = piece.upto

    def _leading(
        self, timeline: str, shard: str, start: Revision, upto: Revision
    ) -> Sequence[Piece]:
        """Return segments that lead from one revision to another."""
        found: list[Covered] = []
        for since in (start, None):
            found = self.covered(timeline, shard, since)
            for one in found:
                if one.after <= start and upto <= one.upto:
                    return one.pieces
        said = ", ".join(f"{one.after} to {one.upto}" for one in found) or "nothing"
        reason = f"timeline {timeline} of the archive covers {said} of shard {shard}"
        raise PointNotCoveredError(upto, f"{reason}, and not all from {start} on")

    def holds(self, timeline: str, shard: str, revision: Revision, operation: bytes) -> bool:
        """Whether a commit is of a timeline, as far as that covers it: else another one's."""
        before = Revision(max(0, revision.ms - 1), MAX_SEQ)
        for one in self.covered(timeline, shard, before):
            for piece in one.pieces:
                if piece.after < revision <= piece.upto:
                    _, items = self.content(piece.segment)
                    return any(
                        isinstance(item, Logged)
                        and item.revision == revision.packed
                        and item.operation == operation
                        for item in items
                    )
        return False

    def header(self, name: SegmentName) -> SegmentHeader:
        """Return what a segment says about itself."""
        return self.content(name)[0]

    def content(self, name: SegmentName) -> tuple[SegmentHeader, Iterator[Item]]:
        """Return a segment, every byte of it checked, and that it is the one that its name says."""
        full, plain = self._plain(name)
        items = unpack_items(plain, full)
        return self._checked(name, full, items), items

    def objects(self, name: SegmentName) -> Iterator[tuple[str, bytes, Iterator[Item]]]:
        """Yield name, content and items of a segment, and of what holds more of it."""
        full, plain = self._plain(name)
        items = unpack_items(plain, full)
        header = self._checked(name, full, items)
        yield full, plain, items
        for digest in header.parts:
            part = name._replace(first=name.last, digest=digest)
            full, plain = self._plain(part)
            items = unpack_items(plain, full)
            self._checked(part, full, items)
            yield full, plain, items

    def _plain(self, name: SegmentName) -> tuple[str, bytes]:
        full = self._layout.segment(name)
        try:
            data = self._target.get(full)
        except ObjectMissingError:
            raise BackupDamagedError(full, "it is not there") from None
        keys = self._repository.keystore.get
        kind = ObjectKind.SEGMENT
        return full, unseal(data, name=full, digest=name.digest, kind=kind, keys=keys)

    @staticmethod
    def _checked(name: SegmentName, full: str, items: Iterator[Item]) -> SegmentHeader:
        header = SegmentHeader.read(next(items, None), full)
        said = header.timeline, header.shard, header.after, header.upto.revision
        if said != (name.timeline, name.shard, name.first, name.last):
            raise BackupDamagedError(full, "its name is not the one that it was stored under")
        return header

    def problems(self, timeline: str, shard: str) -> Iterator[BackupError]:
        """Read every segment of a timeline, and yield what is wrong with it.

        Also that one is missing: each names the one before it.
        """
        names = self.segments(timeline, shard)
        digests = {name.digest for name in names}
        for name in names:
            try:
                header = self.header(name)
                for _, _, items in self.objects(name):
                    for _ in items:
                        pass
            except BackupError as error:
                yield error
                continue
            if header.previous and header.previous not in digests:
                full = self._layout.segment(name)
                yield BackupDamagedError(full, f"the segment before it, {header.previous}, is gone")


class Kept:
    """Leaves out of a segment what lies before one revision, or after another."""

    def __init__(self, after: Revision, upto: Revision) -> None:
        self._after = after.packed
        self._upto = upto.packed
        self._scope = b""
        self._restored_later: set[bytes] = set()
        """Scopes that were put back after `upto`: what is attached is of that later moment."""
        self._dropping = False
        """Whether the elements that come belong to a record that is left out."""

    def of(self, items: Iterator[Item]) -> Iterator[Item]:
        """Yield what is left."""
        for item in items:
            if isinstance(item, Logged):
                if item.revision > self._upto:
                    self._look_at_later(item)
                elif item.revision > self._after:
                    yield item
                continue
            if isinstance(item, ScopeStart):
                self._scope = item.text
            elif isinstance(item, Record):
                self._dropping = self._is_later(item)
            if isinstance(item, (Record, Elements, Continued, Missing)):
                left_out = self._dropping
            elif isinstance(item, ScopeRecord):
                left_out = item.raw[1:11] > self._upto
            else:
                left_out = isinstance(item, Unresolved) and item.revision > self._upto
            if not left_out:
                yield item

    def _look_at_later(self, item: Logged) -> None:
        for frame in frames_in(item.changes, str(Revision.unpack(item.revision))):
            if frame.op == Op.RESTORED and frame.scope:
                self._restored_later.add(frame.scope)

    def _is_later(self, item: Record) -> bool:
        if item.raw[5:15] > self._upto:
            return True
        return self._scope in self._restored_later and bool(item.raw[2] & RESTORED)


def _shortest(pieces: Sequence[Piece], after: Revision, upto: Revision) -> Iterator[Piece]:
    """Yield segments that lead from one revision to another, with as little twice as can be."""
    at, place = after, 0
    while at < upto:
        best: Piece | None = None
        while place < len(pieces) and pieces[place].after <= at:
            piece, place = pieces[place], place + 1
            if piece.upto > at and (best is None or piece.upto > best.upto):
                best = piece
        if best is None:
            raise PointNotCoveredError(upto, f"the archive has nothing after {at}")
        yield best
        at = best.upto
