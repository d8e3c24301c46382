"""Changes of the log repeated on what was laid down.

A change says what its key is afterwards, so those that a record had seen already are repeated
without harm, in order: the end is the state at the last of them ("repeating history", as ARIES
does). What the log does not hold comes as a record read later, which stands behind the changes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from llmspell_dist.backup.errors import BackupDamagedError
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
)
from llmspell_dist.backup.restoring.batches import Changes, framed
from llmspell_dist.backup.restoring.composites import (
    ADD_ELEMENTS,
    REMOVE,
    Composites,
    pieces,
    split_whole,
)
from llmspell_dist.backup.restoring.rewriting import COMPOSITE
from llmspell_dist.changes import HEAD_BYTES, OMITTED, Op, raw_changes
from llmspell_dist.classes import StateClass
from llmspell_dist.errors import UnsupportedFormatError
from llmspell_dist.records import Kind

if TYPE_CHECKING:
    from llmspell_dist.backup.restoring.batches import Place
    from llmspell_dist.backup.restoring.rewriting import Rewriting
    from llmspell_dist.backup.restoring.staging import Shard, Staging
    from llmspell_dist.redis.commands import Command, ScriptCall
    from llmspell_dist.revision import Revision
    from llmspell_dist.state.steps import Steps

__all__ = ["apply"]

PUT_VALUE, TOUCH, APPEND, MERGE, CLEAR, SET_POLICY, SET_TAIL, PUT_WHOLE, ADOPT = (
    *(1, 3, 4, 5, 6, 7, 8, 9, 12),
)
"""Changes as `restore_apply` knows them; see `composites` for the others."""
TOGETHER: Final = 6
_META: Final = 21
_NONE: Final = bytes(10)
_NO_HEAD: Final = bytes(17)
_PUTS: Final = frozenset({Op.SET, Op.INCREMENT, Op.APPEND, Op.MERGE, Op.ADOPT, Op.TTL})


class _Frame(NamedTuple):
    """One change, as it lies in the log; `payload` None: it is not there."""

    op: int
    raw: bytes
    """The fixed part."""
    scope: bytes
    key: bytes
    payload: bytes | None

    @property
    def state_class(self) -> int:
        """The class that its value has."""
        return self.raw[1] & 15


def apply(staging: Staging, items: Iterable[Item], upto: Revision) -> Steps[int]:
    """Repeat the changes of a segment up to a revision, and put in what was read behind them.

    All segments of a source shard one after the other. Returns how many entries there were.
    """
    return (yield from _Applying(staging, upto).run(items))


class _Applying:
    """One run over the items of a segment."""

    def __init__(self, staging: Staging, upto: Revision) -> None:
        self.staging = staging
        self.upto = upto.packed
        self.changes: dict[str, Changes] = {}
        self.calls: list[Command | ScriptCall] = []
        self.told: list[list[tuple[str, bytes]]] = []
        self.only_classes = staging.placement.classes is not None

    def run(self, items: Iterable[Any]) -> Steps[int]:  # noqa: C901, PLR0912 - one case after the other
        staging, upto, takes = self.staging, self.upto, self.staging.takes
        composites = Composites(staging, fresh=True)
        place: Place | None = None
        source, entries = b"", 0
        changes: Any = None
        shard: Any = None
        for item in items:
            kind = type(item)
            if kind is Logged:
                composites.settle()
                if item.revision <= upto:
                    entries += 1
                    yield from self._entry(item)
            elif kind is ScopeStart:
                composites.leave()
                source = item.text
                place = staging.place(source)
                if place is not None:
                    shard = yield from staging.shard(place.shard)
                    changes = self._changes(place.shard, shard)
                    composites.use(changes, shard.rewriting)
            elif kind is Elements:
                if composites.current is not None and changes is not None:
                    for _ in composites.elements(item.parts):
                        yield from self._flush(changes, composites.current.place.shard)
            elif kind is Missing:
                if composites.current is not None:
                    composites.missing()
            elif place is None or changes is None:
                pass
            elif kind is Record:
                key, raw = item
                composites.settle()
                if raw[5:15] <= upto:
                    if takes is None or takes(key, raw[1] & 15):
                        self._record(composites, source, place, shard, item)
                    elif self.only_classes:
                        changes.add(REMOVE, place, _NO_HEAD, key, b"")
                    yield from self._flush(changes, place.shard)
            elif kind is Continued:
                composites.settle()
                composites.go_on(source, item.key)
            elif kind is ScopeRecord:
                changes.add(SET_TAIL, place, _NO_HEAD, b"", item.raw[_META:])
            elif kind is Unresolved and item.revision <= upto:
                staging.note_inexact(
                    place.scope.text, item.key, "its value at that moment was not kept"
                )
        composites.leave()
        for name, left in self.changes.items():
            self._take(left, name)
        yield from self._send()
        return entries

    def _record(
        self, composites: Composites, source: bytes, place: Place, shard: Shard, item: Record
    ) -> None:
        key, raw = item
        if len(raw) > 1 and raw[1] >= COMPOSITE:
            composites.begin(source, place, key, raw)
            return
        found = shard.rewriting.header(raw)
        if found is None:
            self.staging.note_inexact(place.scope.text, key, "its record is damaged")
            return
        changes = self._changes(place.shard, shard)
        changes.add(PUT_WHOLE, place, _NO_HEAD, key, found[0] + raw[found[2] :])

    # --- entries

    def _entry(self, item: Logged) -> Steps[None]:
        takes = self.staging.takes
        for frame in _frames(item):
            place = self.staging.place(frame.scope)
            if place is None:
                continue
            shard = yield from self.staging.shard(place.shard)
            changes = self._changes(place.shard, shard)
            op = frame.op
            if op in (Op.CLEAR, Op.RESTORED):
                cleared = self.staging.cleared.get(place.name, 0)
                changes.add(CLEAR, place, _NO_HEAD, b"", b"%d" % cleared)
                self.staging.cleared[place.name] = cleared + 1
            elif op == Op.POLICY:
                changes.add(SET_POLICY, place, _NO_HEAD, b"", frame.payload or b"")
            elif op == Op.BROKEN:
                continue
            elif op in (Op.DELETE, Op.EXPIRED):
                changes.add(REMOVE, place, _NO_HEAD, frame.key, b"")
            elif takes is not None and not takes(frame.key, frame.state_class):
                if self.only_classes:
                    changes.add(REMOVE, place, _NO_HEAD, frame.key, b"")
            elif op in _PUTS:
                self._put(frame, place, changes, shard.rewriting, item.revision)
            else:
                raise BackupDamagedError("log", f"operation {op} is unknown to this release")
            yield from self._flush(changes, place.shard)

    def _put(
        self,
        frame: _Frame,
        place: Place,
        changes: Changes,
        rewriting: Rewriting,
        revision: bytes,
    ) -> None:
        op, raw, payload = frame.op, frame.raw, frame.payload
        head = (
            raw[1:2]
            + bytes((rewriting.flags(raw[2]),))
            + raw[3:5]
            + (b"\1" if raw[13:23] == _NONE else b"\0")
            + revision[:6]
            + rewriting.expiry(raw[33:39])
        )
        if op == Op.TTL:
            changes.add(TOUCH, place, head, frame.key, b"")
        elif payload is None:
            self._unlogged(frame, place, changes)
        elif op == Op.ADOPT:
            cleared = self.staging.cleared.get(place.name, 0)
            generation = rewriting.generation(payload[1 : 1 + payload[0]], cleared)
            if not _adopt(changes, place, frame, head, generation):
                self._unlogged(frame, place, changes)
        elif op in (Op.APPEND, Op.MERGE):
            start = 5 + payload[4]
            cleared = self.staging.cleared.get(place.name, 0)
            generation = rewriting.generation(payload[5:start], cleared)
            said = payload[:4] + bytes((len(generation),)) + generation + payload[start:]
            what = APPEND if op == Op.APPEND else MERGE
            changes.add(what, place, head, frame.key, said)
        else:
            changes.add(PUT_VALUE, place, head, frame.key, payload)

    def _unlogged(self, frame: _Frame, place: Place, changes: Changes) -> None:
        # What was read behind the changes, or a later one, brings the value; if nothing can, a
        # cache miss is always right.
        if frame.state_class == StateClass.EPHEMERAL:
            changes.add(REMOVE, place, _NO_HEAD, frame.key, b"")

    # --- sending

    def _changes(self, shard: str, common: Shard) -> Changes:
        found = self.changes.get(shard)
        if found is None:
            found = self.changes[shard] = Changes(common.head, common.keys)
        return found

    def _flush(self, changes: Changes, shard: str) -> Steps[None]:
        if changes.full:
            self._take(changes, shard)
            if len(self.calls) >= TOGETHER:
                yield from self._send()

    def _take(self, changes: Changes, shard: str) -> None:
        serial = self.staging.serials.get(shard, 0) + 1
        taken = changes.take(serial)
        if taken is not None:
            self.staging.serials[shard] = serial
            self.calls.append(taken[0])
            self.told.append(taken[1])

    def _send(self) -> Steps[None]:
        calls, self.calls = self.calls, []
        told, self.told = self.told, []
        if not calls:
            return
        replies = yield from self.staging.send(calls)
        for reply, of in zip(replies, told, strict=True):
            for position in reply.split(b" ")[1:]:
                scope, key = of[int(position)]
                self.staging.note_inexact(scope, key, "elements before a change are missing")


def _adopt(changes: Changes, place: Place, frame: _Frame, head: bytes, name: bytes) -> bool:
    """Lay down the elements that an adoption was logged with; False if there are none."""
    payload = frame.payload or b"\0"
    stop = 1 + payload[0]
    kind, whole = frame.raw[1] >> 4, payload[stop + 10 :]
    parts = split_whole(whole, kind) if whole and kind != Kind.BLOB else None
    if parts is None:
        return False
    generation = bytes((len(name),)) + name
    changes.add(ADOPT, place, head, frame.key, generation)
    width, count = 2 if kind == Kind.MAP else 1, 0
    for piece in pieces(parts, width):
        said = generation + count.to_bytes(4, "big") + framed(piece)
        changes.add(ADD_ELEMENTS, place, _NO_HEAD, frame.key, said, elements=len(piece))
        count += len(piece) // width
    return True


def _frames(item: Logged) -> Iterator[_Frame]:
    """Read the changes of an entry; a damaged one is a `BackupDamagedError`."""
    raw = item.changes
    try:
        for head, scope, key, start, payload, end in raw_changes(raw, "log"):
            op, scope_size = head[0] % OMITTED, head[6]
            if scope_size or op != Op.RESTORED:  # else the mark of a restore
                fixed = raw[start : start + HEAD_BYTES]
                value = raw[payload:end] if head[0] < OMITTED else None
                yield _Frame(op, fixed, scope, key, value)
    except UnsupportedFormatError as error:
        raise BackupDamagedError("log", error.reason) from None
    except (struct.error, ValueError) as error:
        raise BackupDamagedError("log", f"an entry is damaged: {error}") from None
