"""Scopes of a backup laid down beside the live ones, out of everybody's sight."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgpack

from llmspell_dist.backup.errors import BackupDamagedError, RestoreRefusedError
from llmspell_dist.backup.items import (
    Continued,
    Elements,
    Item,
    Missing,
    Record,
    ScopeRecord,
    ScopeStart,
)
from llmspell_dist.backup.restoring.batches import (
    BATCH_BYTES,
    BATCH_RECORDS,
    Changes,
    Place,
    Records,
    place_of,
    two_to_one,
)
from llmspell_dist.backup.restoring.composites import Composites
from llmspell_dist.backup.restoring.placement import Placement
from llmspell_dist.backup.restoring.rewriting import COMPOSITE, TTL_MODES, Rewriting
from llmspell_dist.changes import FORMAT, Op
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.ids import new_id
from llmspell_dist.redis.commands import Command, ScriptCall
from llmspell_dist.redis.scripts import load_script
from llmspell_dist.revision import Revision

if TYPE_CHECKING:
    from llmspell_dist.scope import Scope
    from llmspell_dist.state.core import Core
    from llmspell_dist.state.steps import Steps

__all__ = ["Loaded", "Staging"]

TOGETHER: Final = 6
"""So many calls leave together; the next are put together when these are answered."""
MOST_TOLD: Final = 1000
_PLACES_CACHED: Final = 8192
_MOST_OPEN: Final = 8192
_META: Final = 21
"""Where in a scope's own record the fence begins."""


class Loaded(NamedTuple):
    """What was laid down."""

    records: int
    size: int
    """Bytes of records, keys and elements as they are stored."""


class Shard(NamedTuple):
    """What the calls of one shard have in common."""

    rewriting: Rewriting
    keys: tuple[bytes, bytes]
    head: tuple[bytes, bytes]


class Staging:
    """One restore, as far as the server knows of it; all methods are steps.

    Give `load` the items of the record objects (those of one scope in order; several scopes may be
    loaded at the same time), then `Applying` those of the segments in order, then swap. `ttl` says
    whether keys expire when they would have (``absolute``) or after as long as they had left at
    `moment_ms` (``remaining``, from `now_ms`, the server's time). With `aside` the scopes are not
    meant to be swapped in: `Swapping.take_key` takes keys out of them.
    """

    def __init__(
        self,
        core: Core,
        restore_id: str | None = None,
        *,
        placement: Placement | None = None,
        backup: str = "",
        ttl: str = "absolute",
        moment_ms: int = 0,
        now_ms: int = 0,
        aside: bool = False,
    ) -> None:
        if ttl not in TTL_MODES:
            raise InvalidArgumentError("ttl", ttl, f"must be one of {', '.join(TTL_MODES)}")
        self.core = core
        self.id = new_id() if restore_id is None else restore_id
        placement = placement or Placement()
        self.placement = placement
        self.backup = backup
        self.aside = aside
        self.shift_ms = now_ms - moment_ms if ttl == "remaining" else None
        self.shards: dict[str, Shard] = {}
        self.serials: dict[str, int] = {}
        """By shard, the number of the last batch of changes."""
        self.cleared: dict[bytes, int] = {}
        """By the name of a staged scope, how often a repeated change cleared it."""
        self.inexact: dict[tuple[str, str], str] = {}
        """Keys of restored scopes whose value may not be that of the moment, and why; at most
        1,000 are named here, `inexact_count` counts all."""
        self.inexact_count = 0
        self.takes = placement.record_filter()
        self._places: dict[bytes, Place | None] = {}
        self._open: dict[bytes, tuple[bytes, Any]] = {}

    # --- beginning

    def begin(self, shard: str) -> Steps[Revision]:
        """Mark the restore in a shard's log; the revision that all its records get there."""
        found = yield from self.shard(shard)
        revision = Revision.unpack(found.rewriting.revision)
        assert revision is not None  # noqa: S101 - that of an entry
        return revision

    def shard(self, shard: str) -> Steps[Shard]:
        """Return what the calls of a shard have in common; the first time it is begun."""
        found = self.shards.get(shard)
        if found is not None:
            return found
        keyspace = self.core.keyspace
        restores, registry = keyspace.restores(shard), keyspace.restore(shard, self.id)
        said: bytes = msgpack.packb({"id": self.id, "b": self.backup})
        head = bytes((Op.RESTORED, 0, 0)) + bytes(4) + len(said).to_bytes(4, "big")
        frames = bytes((FORMAT,)) + head + bytes(28) + said
        revision = yield ScriptCall(
            load_script("restore_begin"),
            (keyspace.log(shard), restores, registry),
            (self.id.encode(), frames, self.core.meta()),
            bulk=True,
        )
        rewriting = Rewriting(revision, self.id, shift_ms=self.shift_ms, marked=not self.aside)
        found = Shard(rewriting, (restores, registry), (self.id.encode(), revision))
        return self.shards.setdefault(shard, found)

    def place(self, source: bytes) -> Place | None:
        """Return where the scope of this printed name is laid down; None: it is left out."""
        try:
            return self._places[source]
        except KeyError:
            pass
        scope = self.placement.mapping(source.decode())
        found = None if scope is None else self.place_of(scope, source)
        if len(self._places) >= _PLACES_CACHED:
            self._places.clear()
        self._places[source] = found
        return found

    def place_of(self, scope: Scope, source: bytes = b"") -> Place:
        """Return where a scope is laid down."""
        return place_of(self.core.keyspace, self.id, scope, source, aside=self.aside)

    # --- loading

    def load(self, items: Iterable[Item]) -> Steps[Loaded]:
        """Lay down what the items of a record object say; how many records there were."""
        return (yield from _Loading(self).run(items))

    def opened(self, source: bytes, key: bytes, composite: Any) -> None:
        """Remember the composite that a scope in an object ended with: the next may go on with it.

        `composite` None: it is left out.
        """
        self._open.pop(source, None)
        self._open[source] = key, composite
        if len(self._open) > _MOST_OPEN:
            del self._open[next(iter(self._open))]

    def reopened(self, source: bytes, key: bytes) -> Any:
        """Return the composite that an object before ended with; None if it is left out."""
        known, composite = self._open.pop(source, (None, None))
        if known == key:
            return composite
        if self.takes is None:
            reason = f"elements of {key!r} come before it"
            raise BackupDamagedError(source.decode("utf-8", "replace"), reason)
        return None

    # --- answers

    def send(self, calls: Sequence[Command | ScriptCall]) -> Steps[list[Any]]:
        """Send calls of `restore_load` and `restore_apply` together, and read what they say."""
        replies = yield list(calls)
        for reply in replies:
            if not reply.startswith(b"OK"):
                raise self.refusal(reply)
        return list(replies)

    def refusal(self, reply: bytes) -> RestoreRefusedError:
        """Return what is raised when the server no longer knows the restore as it was begun."""
        code, _, about = reply.partition(b" ")
        if code == b"MIXED":
            return two_to_one(about.partition(b"\n")[0].decode())
        if code == b"LATE":
            return RestoreRefusedError("", "a batch of changes was lost on the way")
        return RestoreRefusedError("", f"restore {self.id} was cleaned up, it must begin anew")

    def note_inexact(self, scope: str, key: bytes, why: str) -> None:
        """Remember that a key's value may not be that of the moment."""
        self.inexact_count += 1
        if len(self.inexact) < MOST_TOLD:
            self.inexact[scope, key.decode("utf-8", "replace")] = why


class _Loading:
    """One run over items of a record object."""

    def __init__(self, staging: Staging) -> None:
        self.staging = staging
        self.records: dict[str, Records] = {}
        self.changes: dict[str, Changes] = {}
        self.calls: list[Command | ScriptCall] = []
        self.told: list[list[tuple[str, bytes]]] = []

    def run(self, items: Iterable[Any]) -> Steps[Loaded]:  # noqa: C901, PLR0912, PLR0915 - in line, for it runs for every record
        staging, takes = self.staging, self.staging.takes
        composites = Composites(staging, fresh=False)
        place: Place | None = None
        source, count, size = b"", 0, 0
        section: Any = None
        header: Any = None
        records: Any = None
        changes: Any = None
        for item in items:
            kind = type(item)
            if kind is Record:
                if place is None:
                    continue
                key, raw = item
                composites.settle()
                if takes is not None and not takes(key, raw[1] & 15):
                    continue
                if len(raw) > 1 and raw[1] >= COMPOSITE:
                    composites.begin(source, place, key, raw)
                    count += 1
                    continue
                found = header(raw)
                if found is None:
                    staging.note_inexact(place.scope.text, key, "its record is damaged")
                    continue
                head, expires, start = found
                record = head + raw[start:]
                if section is None:
                    section = records.section(place)
                section.records[key] = record
                if expires:
                    section.expiries[key] = expires
                elif section.expiries:
                    section.expiries.pop(key, None)
                weight = len(key) + len(record)
                count, size = count + 1, size + weight
                records.count += 1
                records.weight += weight + 32
                if records.weight >= BATCH_BYTES or records.count >= BATCH_RECORDS:
                    section = None
                    yield from self._flush(records.take())
            elif kind is Elements:
                if composites.current is not None:
                    for _ in composites.elements(item.parts):
                        if changes.full:
                            yield from self._flush_changes(changes)
                    size += sum(map(len, item.parts))
            elif kind is ScopeStart:
                composites.leave()
                source, section = item.text, None
                place = staging.place(source)
                if place is None:
                    continue
                shard = yield from staging.shard(place.shard)
                header = shard.rewriting.header
                records = self._records(place.shard, shard)
                changes = self._changes(place.shard, shard)
                composites.use(changes, shard.rewriting)
                if records.full:
                    yield from self._flush(records.take())
            elif kind is ScopeRecord:
                if place is not None:
                    section = section or records.section(place)
                    section.tail = item.raw[_META:]
            elif kind is Continued:
                composites.settle()
                if place is not None:
                    composites.go_on(source, item.key)
            elif kind is Missing and composites.current is not None:
                count -= 1
                composites.missing()
        composites.leave()
        for records in self.records.values():
            yield from self._flush(records.take())
        for changes in self.changes.values():
            yield from self._flush_changes(changes)
        yield from self._send()
        return Loaded(count, size)

    def _records(self, shard: str, common: Shard) -> Records:
        found = self.records.get(shard)
        if found is None:
            found = self.records[shard] = Records(common.head, common.keys)
        return found

    def _changes(self, shard: str, common: Shard) -> Changes:
        found = self.changes.get(shard)
        if found is None:
            found = self.changes[shard] = Changes(common.head, common.keys)
        return found

    def _flush(self, call: ScriptCall | None) -> Steps[None]:
        if call is not None:
            self.calls.append(call)
            if len(self.calls) >= TOGETHER:
                yield from self._send()

    def _flush_changes(self, changes: Changes) -> Steps[None]:
        taken = changes.take(0)
        if taken is not None:
            yield from self._flush(taken[0])

    def _send(self) -> Steps[None]:
        calls, self.calls = self.calls, []
        if calls:
            yield from self.staging.send(calls)
