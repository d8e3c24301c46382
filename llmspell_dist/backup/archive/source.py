"""What the archive offers to restores: stretches of the log, and the objects that hold them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.backup.archive.reader import Kept, Piece, SegmentReader
from llmspell_dist.backup.items import (
    Continued,
    Elements,
    Extra,
    Item,
    Logged,
    Missing,
    Record,
    ScopeRecord,
    ScopeStart,
    Unresolved,
    pack_continued,
    pack_elements,
    pack_entry,
    pack_extra,
    pack_missing,
    pack_record,
    pack_scope,
    pack_scope_record,
    pack_unresolved,
)
from llmspell_dist.backup.planning import Stretch
from llmspell_dist.revision import Revision

if TYPE_CHECKING:
    from llmspell_dist.backup.repository import Repository

__all__ = ["SegmentSource"]

TOGETHER: Final = 500
"""Segments that are offered as one stretch: so few that little is read in vain."""
AHEAD: Final = 3


_Contents = Iterator[tuple[str, bytes]]


class SegmentSource:
    """Offers the archive of a repository, as `restores.ArchiveSource` wants it."""

    def __init__(self, repository: Repository) -> None:
        self._reader = SegmentReader(repository)

    async def stretches(self, timeline: str | None = None) -> dict[str, list[Stretch]]:
        """Return by shard what a timeline covers; None: the one that goes on now."""
        return await asyncio.to_thread(self._stretches, timeline)

    def _stretches(self, timeline: str | None) -> dict[str, list[Stretch]]:
        lineage = self._reader.lineage(timeline)
        if not lineage:
            return {}
        found: dict[str, list[Stretch]] = {}
        newest = lineage[0]
        shards = {shard for one in lineage for shard in self._reader.shards(one)}
        for shard in sorted(shards, key=int):
            for covered in self._reader.covered(newest, shard):
                whole = _each_once(covered.pieces)
                for first in range(0, len(whole), TOGETHER):
                    pieces = whole[first : first + TOGETHER]
                    upto = max(one.upto for one in pieces)
                    source = f"archive {newest}"
                    stretch = Stretch(source, pieces[0].after, upto, (), pieces)
                    found.setdefault(shard, []).append(stretch)
        return found

    async def read(self, stretch: Stretch) -> AsyncIterator[tuple[str, bytes]]:
        """Yield names and contents of the objects of a stretch, in order; some are read ahead."""
        waiting: list[asyncio.Future[tuple[tuple[str, bytes] | None, _Contents]]] = []
        after = stretch.after or Revision(0, 0)
        left = [one for one in stretch.origin if one.upto > after and one.after < stretch.upto]
        left.reverse()
        try:
            while left or waiting:
                while left and len(waiting) < AHEAD:
                    work = asyncio.to_thread(_next, self._contents(left.pop()))
                    waiting.append(asyncio.ensure_future(work))
                found, contents = await waiting.pop(0)
                while found is not None:  # what is attached may be much: one after the other
                    yield found
                    found, contents = await asyncio.to_thread(_next, contents)
        finally:
            await asyncio.gather(*waiting, return_exceptions=True)

    def _contents(self, piece: Piece) -> _Contents:
        whole = (piece.after, piece.upto) == (piece.segment.first, piece.segment.last)
        drop = None if whole else Kept(piece.after, piece.upto)
        for name, plain, items in self._reader.objects(piece.segment):
            yield name, plain if drop is None else b"".join(packed(drop.of(items)))


def _next(contents: _Contents) -> tuple[tuple[str, bytes] | None, _Contents]:
    return next(contents, None), contents


def _each_once(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """Return segments so that each begins where the one before it ended, not earlier.

    Repeating entries would undo values that are attached behind them.
    """
    found: list[Piece] = []
    for piece in pieces:
        done = found[-1].upto if found else piece.after
        found.append(piece._replace(after=max(piece.after, done)))
    return tuple(found)


def packed(items: Iterable[Item]) -> Iterator[bytes]:
    """Yield items as they are stored."""
    for item in items:
        yield _PACKED[type(item)](item)


def _unresolved(item: Any) -> bytes:
    return pack_unresolved(Revision.unpack(item.revision) or Revision(0, 0), item.key)


_PACKED: Final[dict[type, Any]] = {
    Logged: lambda item: pack_entry(*item),
    ScopeStart: lambda item: pack_scope(item.text),
    ScopeRecord: lambda item: pack_scope_record(item.raw),
    Record: lambda item: pack_record(item.key, item.raw),
    Elements: lambda item: pack_elements(item.kind, item.parts),
    Continued: lambda item: pack_continued(item.key),
    Missing: lambda _: pack_missing(),
    Unresolved: _unresolved,
    Extra: lambda item: pack_extra(item.name, item.data),
}
