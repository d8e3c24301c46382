"""Lists, maps and large values of a backup, laid down element by element."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

import msgpack

from llmspell_dist.backup.restoring.batches import BATCH_BYTES, framed
from llmspell_dist.backup.restoring.rewriting import GENERATION_AT
from llmspell_dist.records import Kind

if TYPE_CHECKING:
    from llmspell_dist.backup.restoring.batches import Changes, Place
    from llmspell_dist.backup.restoring.rewriting import Rewriting
    from llmspell_dist.backup.restoring.staging import Staging

__all__ = ["ADD_ELEMENTS", "REMOVE", "Composites", "split_whole"]

REMOVE, PUT_COMPOSITE, ADD_ELEMENTS = 2, 10, 11
"""Changes as `restore_apply` knows them."""
PIECE_ELEMENTS: Final = 500
_NO_HEAD: Final = bytes(17)


class _Composite:
    """A composite record and how many of its elements came."""

    __slots__ = ("begun", "count", "generation", "head", "key", "place", "source", "width")

    def __init__(
        self, source: bytes, place: Place, key: bytes, *, head: bytes, generation: bytes
    ) -> None:
        self.source = source
        self.place = place
        self.key = key
        self.head = head
        self.generation = bytes((len(generation),)) + generation
        self.width = 2 if head[1] >> 4 == Kind.MAP else 1
        self.count = 0
        self.begun = False


class Composites:
    """The composite that items are about at the time, if they are about one.

    `fresh`: what lay there under the same name is replaced; otherwise it stays and is added to.
    """

    def __init__(self, staging: Staging, *, fresh: bool) -> None:
        self._staging = staging
        self._head = bytes(4) + (b"\1" if fresh else b"\0") + bytes(12)
        self._changes: Changes | None = None
        self._rewriting: Rewriting | None = None
        self.current: _Composite | None = None

    def use(self, changes: Changes, rewriting: Rewriting) -> None:
        """Go on in a shard."""
        self._changes, self._rewriting = changes, rewriting

    def begin(self, source: bytes, place: Place, key: bytes, raw: bytes) -> None:
        """Take a composite record; its elements follow, or a note that they are missing."""
        assert self._rewriting is not None  # noqa: S101 - a scope was begun
        found = self._rewriting.header(raw)
        if found is None or len(raw) <= found[2] + GENERATION_AT or raw[1] >> 4 > Kind.BLOB:
            self._staging.note_inexact(place.scope.text, key, "its record is damaged")
            self._staging.opened(source, key, None)
            return
        generation = self._rewriting.generation(
            raw[found[2] + GENERATION_AT :], self._staging.cleared.get(place.name, 0)
        )
        self.current = _Composite(source, place, key, head=found[0], generation=generation)

    def elements(self, parts: Sequence[bytes]) -> Iterator[None]:
        """Lay down the next elements; it pauses where the batch may be sent."""
        one, changes = self.current, self._changes
        assert one is not None and changes is not None  # noqa: S101, PT018
        self._put(one)
        for piece in pieces(parts, one.width):
            payload = one.generation + one.count.to_bytes(4, "big") + framed(piece)
            changes.add(ADD_ELEMENTS, one.place, _NO_HEAD, one.key, payload, elements=len(piece))
            one.count += len(piece) // one.width
            yield

    def missing(self) -> None:
        """Lay nothing down: the elements were gone when they were read."""
        one, changes = self.current, self._changes
        assert one is not None and changes is not None  # noqa: S101, PT018
        if one.begun:
            changes.add(REMOVE, one.place, _NO_HEAD, one.key, b"")
        self.current = None

    def settle(self) -> None:
        """Something else follows: a composite of which no element came is empty."""
        one = self.current
        if one is not None:
            self._put(one)
            self.current = None

    def leave(self) -> None:
        """End with an object or a scope: another object may go on with the composite."""
        one = self.current
        if one is not None:
            self.settle()
            self._staging.opened(one.source, one.key, one)

    def go_on(self, source: bytes, key: bytes) -> None:
        """Go on with what an object before ended with."""
        self.current = self._staging.reopened(source, key)

    def _put(self, one: _Composite) -> None:
        if not one.begun:
            assert self._changes is not None  # noqa: S101 - a scope was begun
            one.begun = True
            payload = one.generation + one.head
            self._changes.add(PUT_COMPOSITE, one.place, self._head, one.key, payload)


def pieces(parts: Sequence[bytes], width: int) -> Iterator[list[bytes]]:
    """Cut elements into pieces that are not too large for one call; `width` stay together."""
    piece: list[bytes] = []
    weight = 0
    for at in range(0, len(parts), width):
        together = parts[at : at + width]
        piece += together
        weight += sum(map(len, together))
        if weight >= BATCH_BYTES // 2 or len(piece) >= PIECE_ELEMENTS:
            yield piece
            piece, weight = [], 0
    if piece:
        yield piece


def split_whole(whole: bytes, kind: int) -> list[bytes] | None:
    """Cut a MessagePack list or map into its encoded elements; None if it is none."""
    first = whole[0] if whole else 0
    small, sized = (0x90, 0xDC) if kind == Kind.LIST else (0x80, 0xDE)
    if first & 0xF0 == small:
        count, start = first & 15, 1
    elif first in (sized, sized + 1):
        start = 3 if first == sized else 5
        count = int.from_bytes(whole[1:start], "big")
    else:
        return None
    body = whole[start:]
    unpacker = msgpack.Unpacker(max_buffer_size=len(body) + 1)
    unpacker.feed(body)
    parts, at = [], 0
    try:
        for _ in range(count * (2 if kind == Kind.MAP else 1)):
            unpacker.skip()
            parts.append(body[at : unpacker.tell()])
            at = unpacker.tell()
    except (msgpack.UnpackException, ValueError):
        return None
    return parts if len(whole) >= start and at == len(body) else None
