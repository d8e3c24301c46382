"""Bringing scopes back: objects fetched, laid down beside the live scopes, checked, swapped in.

Nothing live changes before everything is there and every byte of it was verified; then each scope
changes in one step. A process that dies leaves either the old scope or the new one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.backup.errors import PointNotCoveredError, RestoreRefusedError
from llmspell_dist.backup.following import Follower
from llmspell_dist.backup.items import (
    unpack_items,
)
from llmspell_dist.backup.marks import mark_of, may_hold
from llmspell_dist.backup.model import Inexact
from llmspell_dist.backup.progress import Phase, Tracker
from llmspell_dist.backup.restoring.applying import apply
from llmspell_dist.backup.restoring.placement import Placement
from llmspell_dist.backup.restoring.sections import SectionRestore
from llmspell_dist.backup.restoring.staging import Staging
from llmspell_dist.backup.restoring.swapping import (
    Leased,
    Swap,
    Swapped,
    abandon,
    check,
    refuse_leased,
    survey,
    swap,
    take_key,
)
from llmspell_dist.backup.scanning import Scanner
from llmspell_dist.backup.segments import LogReader, SegmentBuilder
from llmspell_dist.backup.selection import Selection
from llmspell_dist.backup.waiting import clearing_up
from llmspell_dist.backup.writing import ObjectWriter
from llmspell_dist.redis.commands import Command
from llmspell_dist.redis.resp import pack
from llmspell_dist.revision import Revision
from llmspell_dist.scope import Scope
from llmspell_dist.state.reads import Reads
from llmspell_dist.state.scopes import Scopes

if TYPE_CHECKING:
    from llmspell_dist.backup.manifest import ObjectRef
    from llmspell_dist.backup.planning import Plan, Stretch
    from llmspell_dist.backup.repository import Repository
    from llmspell_dist.state.core import Core
    from llmspell_dist.state.driver import AsyncDriver

__all__ = ["Recovered", "Recovery", "Segments"]

AHEAD: Final = 3
"""Objects that are fetched while one is laid down."""
MOST_INEXACT: Final = 10_000
_BATCH: Final = 500
_SURVEYED: Final = 5000
_BEGINNING: Final = Revision(0, 0)
Segments = Callable[["Stretch"], AsyncIterator[tuple[str, bytes]]]
"""Reads a stretch of the archive: names and contents of objects."""


@dataclass(slots=True)
class Recovered:
    """What a restore did."""

    swapped: list[Swapped] = field(default_factory=list)
    emptied: list[str] = field(default_factory=list)
    records: int = 0
    """Read from records' objects so far; the log adds others, and takes some away."""
    keys: int = 0
    """Put back."""
    bytes: int = 0
    inexact: list[Inexact] = field(default_factory=list)


class Recovery:
    """One restore: `stage`, then `put_in_place`; `abandon` if it fails in between."""

    def __init__(
        self,
        repository: Repository,
        plan: Plan,
        *,
        live: AsyncDriver,
        target: AsyncDriver,
        wanted: Selection,
        into: Scope | None = None,
        key: str | None = None,
        remaining_from_ms: int | None = None,
        archive: Segments,
        tracker: Tracker,
    ) -> None:
        self._repository = repository
        self._plan = plan
        self._live = live
        self._target = target
        self._wanted = wanted
        self._into = into
        self._key = key
        self._archive = archive
        self._tracker = tracker
        self._sources: dict[str, Scope] = {}
        """By its printed name in the backup: where a scope goes."""
        moment = plan.moment
        self.staging = Staging(
            target.core,
            placement=Placement(
                keys=None if key is None else (key,),
                classes=frozenset(map(int, wanted.classes)) or None,
                mapping=self._place,
            ),
            backup=plan.base.backup_id,
            ttl="absolute" if remaining_from_ms is None else "remaining",
            moment_ms=0 if moment is None else moment.ms,
            now_ms=remaining_from_ms or 0,
            aside=key is not None,
        )
        self.done = Recovered()

    def _place(self, text: str) -> Scope | None:
        """Return where a scope of the backup goes."""
        if not self._wanted.wants_scope(text):
            return None
        scope = Scope.parse(text) if self._into is None else self._into
        self._sources[text] = scope
        return scope

    # --- laying down

    async def stage(self) -> None:
        """Lay everything down; nothing live changes."""
        self._tracker.update(Phase.RESTORING_DATA, total_bytes=self._total())
        marks = await self._marks()
        for shard in self._plan.shards:
            refs = [one for one in shard.records if self._may_hold(marks, one)]
            async for name, raw in self._contents(refs):
                items = unpack_items(raw, name)
                loaded = await self._target.run(self.staging.load(items))
                self.done.records += loaded.records
                self._advance(len(raw))
            upto = shard.upto or _BEGINNING
            follower = Follower(upto)
            for stretch in shard.stretches:
                follower.begin()
                async for name, raw in self._read(stretch, upto):
                    followed = follower.follow(unpack_items(raw, name))
                    await self._target.run(apply(self.staging, followed, upto))
                    self._advance(len(raw))
            for scope, key, revision in follower.open.drain():
                if self._wanted.wants_scope(scope.decode()):
                    self._note_inexact(scope.decode(), key.decode(), revision)
        for text, key_text in self.staging.inexact:
            self._note_inexact(text, key_text, _BEGINNING)

    async def _marks(self) -> dict[str, bytes]:
        """Return which scopes the objects hold, if not all of them are wanted."""
        if self._wanted.exact is None:
            return {}
        index = await asyncio.to_thread(self._repository.index, self._plan.base)
        marks: dict[str, bytes] = index.get("scopes", {})
        return marks

    def _may_hold(self, marks: dict[str, bytes], ref: ObjectRef) -> bool:
        wanted = self._wanted.exact
        if wanted is None:
            return True
        return may_hold(marks.get(ref.digest), frozenset(mark_of(one.encode()) for one in wanted))

    def _note_inexact(self, scope: str, key: str, revision: Revision) -> None:
        if len(self.done.inexact) < MOST_INEXACT:
            self.done.inexact.append(Inexact(scope, key, revision))

    def _total(self) -> int:
        return sum(
            ref.plain_size
            for shard in self._plan.shards
            for ref in (*shard.records, *(one for s in shard.stretches for one in s.objects))
        )

    def _advance(self, size: int) -> None:
        self.done.bytes += size
        self._tracker.update(
            bytes=self.done.bytes, records=self.done.records, scopes=len(self._sources)
        )

    async def _contents(self, refs: Sequence[ObjectRef]) -> AsyncIterator[tuple[str, bytes]]:
        """Yield the contents of objects in order; the next ones are fetched meanwhile."""
        waiting: list[tuple[ObjectRef, asyncio.Future[bytes]]] = []
        left = list(reversed(refs))
        try:
            while left or waiting:
                while left and len(waiting) < AHEAD:
                    ref = left.pop()
                    work = asyncio.to_thread(self._repository.load, ref)
                    waiting.append((ref, asyncio.ensure_future(work)))
                ref, fetched = waiting.pop(0)
                yield self._repository.layout.object(ref.digest), await fetched
        finally:
            await asyncio.gather(*(one for _, one in waiting), return_exceptions=True)

    def _read(self, stretch: Stretch, upto: Revision) -> AsyncIterator[tuple[str, bytes]]:
        stretch = replace(stretch, upto=min(upto, stretch.upto))
        if stretch.source == "log":
            return _read_log(self._live, stretch)
        if stretch.of_backup:  # of one that selects perhaps nothing of its stretch, so no object
            return self._contents(stretch.objects)
        return self._archive(stretch)

    # --- putting in place

    async def put_in_place(
        self,
        *,
        force: bool = False,
        before_change: Callable[[], Awaitable[None]] | None = None,
    ) -> Revision | None:
        """Check what was laid down, and put it in its place; what came later goes.

        `before_change` is called when everything else is done. Returns the revision of the first
        change; None if there was none.
        """
        self._tracker.update(Phase.VERIFYING_RESTORE)
        wishes = await (self._scopes() if self._key is None else self._scope_of_key())
        if not wishes:
            await self.abandon()
            return None
        leased = await self._survey()
        if not force:
            # All of them before the first is changed.
            await self._target.run(refuse_leased(self._target.core, wishes, leased))
        if before_change is not None:
            self._tracker.update(Phase.CREATING_ROLLBACK_POINT)
            await before_change()
        self._tracker.update(Phase.SWAPPING)
        revision: Revision | None
        if self._key is None:
            revision = await self._swap(wishes, leased, force=force)
        else:
            revision = await self._put_key(wishes[0], self._key)
        await self.abandon()  # only what the server remembers of a restore that is done
        return revision

    async def _scopes(self) -> list[Swap]:
        """Return what is to be swapped in or emptied."""
        wishes = await self._checked()
        if self._wanted.classes:
            await self._refuse_mixed(wishes)
        later = [scope async for scope in self._later()]
        self.done.emptied = [scope.text for scope in later]
        return [*wishes, *(Swap(scope, None) for scope in later)]

    async def _refuse_mixed(self, wishes: Sequence[Swap]) -> None:
        """Refuse scopes that have keys, of which only some classes would be put back."""
        for one in wishes:
            request = pack(b"EXISTS", self._target.core.keyspace.scope(one.scope))
            if await self._target.execute(Command(request, "EXISTS")):
                reason = "the backup holds only some classes of its keys: the others would go"
                raise RestoreRefusedError(one.scope.text, reason)

    async def _swap(
        self, wishes: Sequence[Swap], leased: dict[str, Leased], *, force: bool
    ) -> Revision:
        for first in range(0, len(wishes), _BATCH):
            if first and first % _SURVEYED == 0:
                leased = await self._survey()  # what was registered since is looked at each time
            some = wishes[first : first + _BATCH]
            try:
                steps = swap(self.staging, some, force=force, leased=leased)
                done = await self._target.run(steps)
                self.done.swapped += done
                self.done.keys += sum(one.keys for one in done)
            finally:  # also if nobody knows how many of them are done
                self._target.core.put_back(one.scope for one in some)
        return min(one.revision for one in self.done.swapped)

    async def _survey(self) -> dict[str, Leased]:
        core = self._target.core
        return {shard: await self._target.run(survey(core, shard)) for shard in core.shards()}

    async def _checked(self) -> list[Swap]:
        """Return what is to be swapped in, all of it as it was counted."""
        wishes: list[Swap] = []
        found = [Swap(scope, text.encode()) for text, scope in self._sources.items()]
        for first in range(0, len(found), _BATCH):
            some = found[first : first + _BATCH]
            counts = await self._target.run(check(self.staging, some))
            for one, (count, _) in zip(some, counts, strict=True):
                if count or await self._is_there(one):
                    wishes.append(one)
                else:
                    wishes.append(Swap(one.scope, None))
        return await self._without_empty(wishes)

    async def _is_there(self, one: Swap) -> bool:
        place = self.staging.place_of(one.scope, one.source or b"")
        return bool(await self._target.execute(Command(pack(b"EXISTS", place.key), "EXISTS")))

    async def _without_empty(self, wishes: list[Swap]) -> list[Swap]:
        """Leave out scopes that neither were there nor are."""
        keyspace = self._target.core.keyspace
        kept = []
        for one in wishes:
            if one.source is None:
                request = pack(b"EXISTS", keyspace.scope(one.scope))
                if not await self._target.execute(Command(request, "EXISTS")):
                    continue
            kept.append(one)
        return kept

    async def _later(self) -> AsyncIterator[Scope]:
        """Yield the live scopes that are selected and were not there at the moment."""
        if self._into is not None:
            return
        core: Core = self._target.core
        listing = Scopes(core, Reads(core))
        known = {scope.text for scope in self._sources.values()}
        for shard in core.shards():
            cursor: str | None = None
            while True:
                page = await self._target.run(
                    listing.scopes_page(shard, cursor, _BATCH, None, None)
                )
                for scope in page.items:
                    if scope.text not in known and self._wanted.wants_scope(scope.text):
                        known.add(scope.text)
                        yield scope
                cursor = page.cursor
                if cursor is None:
                    break

    async def put_sections(self, sections: Sequence[str]) -> None:
        """Put back what the full backup holds beside state."""
        for section in sections:
            put = SectionRestore(self._target, self.staging.id, section)
            try:
                refs = self._plan.base.objects_of("extra", section)
                async for name, raw in self._contents(refs):
                    await put.load(unpack_items(raw, name), name)
                await put.put_in_place()
            except BaseException:
                what = f"{section} of restore {self.staging.id}"
                await asyncio.shield(clearing_up(what, put.abandon()))
                raise

    async def _scope_of_key(self) -> list[Swap]:
        """Return the scope of the one key that is to be put back."""
        (text,) = self._wanted.scopes
        scope = Scope.parse(text) if self._into is None else self._into
        one = Swap(scope, text.encode())
        if self._wanted.classes:
            place = self.staging.place_of(scope, text.encode())
            request = pack(b"HEXISTS", place.key, (self._key or "").encode())
            if not await self._target.execute(Command(request, "HEXISTS")):
                reason = f"the backup of some classes does not say whether {self._key} was there"
                raise RestoreRefusedError(scope.text, reason)
        return [one]

    async def _put_key(self, one: Swap, key: str) -> Revision | None:
        """Put the key back, in an ordinary commit; one that was not there then is deleted."""
        source = one.source or b""
        place = self.staging.place_of(one.scope, source)
        request = pack(b"HEXISTS", place.key, key.encode())
        was_there = bool(await self._target.execute(Command(request, "HEXISTS")))
        revision = await self._target.run(take_key(self.staging, source, one.scope, key))
        self.done.keys = int(was_there)
        return revision

    async def abandon(self) -> None:
        """Remove what was laid down and not put in place."""
        what = f"restore {self.staging.id}"
        await clearing_up(what, self._target.run(abandon(self.staging)))


async def _read_log(live: AsyncDriver, stretch: Stretch) -> AsyncIterator[tuple[str, bytes]]:
    """Yield what the live log has of a stretch, with the values that it does not hold."""
    shard: Any = stretch.origin
    reader, writer = LogReader(live, shard), ObjectWriter()
    builder = SegmentBuilder(live, shard, writer, Selection())
    same = Scanner(live, shard, writer, Selection())
    await same.check()
    async for page in reader.pages(stretch.after, stretch.upto):
        builder.add(page)
        while writer.ready:
            yield f"the log of shard {shard}", writer.ready.pop(0)
    async for _ in builder.attach(stretch.upto):
        while writer.ready:
            yield f"the log of shard {shard}", writer.ready.pop(0)
    builder.give_up()
    writer.cut()
    while writer.ready:
        yield f"the log of shard {shard}", writer.ready.pop(0)
    await same.check()
    if stretch.after is not None and (await reader.entry(stretch.after))[0] is None:
        # Nothing tells that entries are missing at the beginning of what is read.
        reason = f"the log of shard {shard} was trimmed while it was read; archive it"
        raise PointNotCoveredError(stretch.upto, reason)
