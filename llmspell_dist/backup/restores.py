"""Restores as a whole: which moment, from what, where to, and a way back."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Final, NamedTuple

from llmspell_dist.backup.archive.offering import Archive
from llmspell_dist.backup.archive.position import Place, PositionSteps
from llmspell_dist.backup.errors import (
    BackupError,
    PointNotCoveredError,
    RestoreRefusedError,
    TargetError,
)
from llmspell_dist.backup.manifest import Manifest
from llmspell_dist.backup.model import Inexact
from llmspell_dist.backup.planning import Plan, Stretch, plan
from llmspell_dist.backup.points import Point
from llmspell_dist.backup.progress import Observer, Phase, Tracker
from llmspell_dist.backup.recovering import Recovery, Segments
from llmspell_dist.backup.segments import LogReader
from llmspell_dist.backup.selection import Selection
from llmspell_dist.backup.way_back import WayBack, kept_alive
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.revision import Revision
from llmspell_dist.scope import Scope
from llmspell_dist.state.server_time import server_ms

if TYPE_CHECKING:
    from llmspell_dist.backup.repository import Repository
    from llmspell_dist.backup.running import Running
    from llmspell_dist.state.driver import AsyncDriver

__all__ = ["RestorePlan", "RestoreReport", "RestoreWish", "Restorer"]

_AT_ONCE: Final = 100
_CLOCKS_MS: Final = 1000
"""By so much the clock of who asks may be ahead of the server's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreWish:
    """What is to be restored, and where to."""

    point: Point
    selection: Selection
    key: str | None = None
    into: Scope | None = None
    remaining_ttl: bool = False
    force: bool = False
    rollback: bool = True
    timeline: str | None = None
    sections: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreReport:
    """What a restore did."""

    id: str
    moment: datetime | None
    """Of the last commit that it includes; None: nothing was ever committed."""
    revision: Revision | None
    sources: tuple[str, ...]
    """What it was put together from."""
    scopes: int
    """Scopes that were put back."""
    records: int
    """Keys that were put back, whether a backup or the log had them."""
    emptied: tuple[str, ...]
    """Scopes that came later, so they are empty now."""
    inexact: tuple[Inexact, ...]
    """Keys whose value as of the moment was not known."""
    rollback: str | None
    """The backup of what was there before; None if none was wanted, or nothing was changed."""
    namespace: str
    """Where it was restored to; its rollback point is one of that namespace."""
    seconds: float
    bytes: int


class RestorePlan(NamedTuple):
    """What a restore would be put together from."""

    moment: datetime | None
    """Of the last commit that it would include; None: nothing was ever committed."""
    sources: tuple[str, ...]


class Restorer:
    """Restores moments out of one repository."""

    def __init__(
        self,
        live: AsyncDriver,
        repository: Repository,
        running: Running,
    ) -> None:
        self._live = live
        self._repository = repository
        self._running = running
        self._archive = Archive(repository)

    @property
    def segments(self) -> Segments:
        """What reads a stretch of the archive."""
        return self._archive.read

    # --- the plan

    async def plan(self, point: Point, wanted: Selection, timeline: str | None = None) -> Plan:
        """Return how to come to a moment, by way of all that there is."""
        manifests, left_out = await asyncio.to_thread(self._repository.readable)
        chosen = await self._archive.chosen(timeline)
        if chosen is not None and not point.backup_id:
            manifests = await self._archive.bases(manifests, chosen)
        if timeline is None and not point.backup_id:
            manifests = await self._of_this_past(manifests)
        offered, ends = await self._offered(manifests, chosen, alone=timeline is not None)
        # A clock that was set back leaves commits behind that are of the future, too.
        known = [one.upto for some in offered.values() for one in some]
        await self._refuse_future(point, [*known, *(one.moment for one in manifests)])
        selections = await asyncio.to_thread(self._selections, manifests, left_out)
        refused: BackupError | None = None
        while True:
            try:
                found = plan(
                    point,
                    manifests,
                    offered=offered,
                    ends=ends,
                    selections=selections,
                    wanted=wanted,
                    label=self._repository.target.label,
                )
            except BackupError as error:
                raise refused or _said(point, error, left_out) from None
            foreign, problem = await asyncio.to_thread(self._authenticate, found, manifests)
            if problem is None:
                return found
            refused = refused or problem
            if point.backup_id or not foreign:
                raise refused
            # Whoever may write to the place can put one: it is in nobody's way.
            manifests = [one for one in manifests if one.backup_id != foreign]

    async def _refuse_future(self, point: Point, known: Sequence[Revision | None]) -> None:
        """Refuse a time that is still to come: it would mean now, and hardly what was meant."""
        wanted = point.revision
        if wanted is None or point.exact:
            return
        now_ms = await self._live.run(server_ms())
        if wanted.ms > max([now_ms, *(one.ms for one in known if one is not None)]) + _CLOCKS_MS:
            now = Revision(now_ms, 0).time.isoformat(timespec="milliseconds")
            raise PointNotCoveredError(point, f"it is in the future; the server has {now}")

    async def planned(
        self, point: Point, wanted: Selection, timeline: str | None = None
    ) -> RestorePlan:
        """Return what a restore would be put together from; raises what it would raise."""
        found = await self.plan(point, wanted, timeline)
        await self.wanted(wanted, found)
        moment = found.moment
        return RestorePlan(None if moment is None else moment.time, tuple(found.sources))

    def _selections(
        self, manifests: Sequence[Manifest], left_out: dict[str, BackupError]
    ) -> dict[str, Selection]:
        """Return what each filtered backup holds; one that does not tell is left out."""
        found = {}
        for one in manifests:
            if one.filtered:
                try:
                    stored = self._repository.index(one)["selection"]
                except BackupError as error:
                    left_out[one.backup_id] = error
                    continue
                found[one.backup_id] = Selection.of(stored["scopes"], stored["classes"])
        return found

    def _authenticate(
        self, found: Plan, manifests: Sequence[Manifest]
    ) -> tuple[str, BackupError | None]:
        """Return which backup of a plan nobody with the key wrote, if one is not encrypted."""
        used = {source.removeprefix("backup ") for source in found.sources}
        for one in manifests:
            if one.backup_id in used:
                try:
                    self._repository.authenticate(one)
                except BackupError as error:
                    return "" if one.key else one.backup_id, error
        return "", None

    async def _offered(
        self, manifests: Sequence[Manifest], timeline: str | None, *, alone: bool
    ) -> tuple[dict[str, list[Stretch]], dict[str, Revision | None]]:
        """Return what archive and live log offer, and where the live log ends."""
        offered: dict[str, list[Stretch]] = {}
        ends: dict[str, Revision | None] = {}
        if timeline is not None:
            offered.update(await self._archive.stretches(timeline))
        if alone:
            return offered, ends  # of another past than the live log's, perhaps
        for shard in self._live.core.shards():
            if not await self._is_same_history(shard, manifests):
                continue
            reader = LogReader(self._live, shard)
            (first, _), (last, _) = await reader.first(), await reader.last()
            ends[shard] = last
            if first is not None and last is not None:
                stretch = Stretch("log", first, last, origin=shard)
                offered.setdefault(shard, []).append(stretch)
        return offered, ends

    async def _of_this_past(self, manifests: list[Manifest]) -> list[Manifest]:
        """Return the backups that the live log may go on from: not those of what it has lost.

        If it has the last commit of none of them it is another server's, and tells nothing.
        """
        known, lost = False, set[str]()
        for shard in self._live.core.shards():
            first, _ = await LogReader(self._live, shard).first()
            cuts = [
                (one.backup_id, Place(at, bytes.fromhex(cut.operation)))
                for one in manifests
                if (cut := one.cut(shard)) is not None
                and (at := cut.revision) is not None
                and first is not None
                and at >= first
            ]
            for start in range(0, len(cuts), _AT_ONCE):
                some = cuts[start : start + _AT_ONCE]
                steps = PositionSteps(self._live.core).present(shard, [place for _, place in some])
                for (backup_id, place), there in zip(
                    some, await self._live.run(steps), strict=True
                ):
                    if there == place:
                        known = True
                    else:
                        lost.add(backup_id)
        return [one for one in manifests if one.backup_id not in lost] if known else manifests

    async def _is_same_history(self, shard: str, manifests: Sequence[Manifest]) -> bool:
        """Whether the live log has the commit at which the newest backup of the shard ends."""
        cuts = [cut for one in manifests if (cut := one.cut(shard)) is not None and cut.at]
        if not cuts:
            return bool(manifests)
        newest = max(cuts, key=lambda cut: cut.revision or Revision(0, 0))
        assert newest.revision is not None  # noqa: S101 - as chosen above
        _, operation = await LogReader(self._live, shard).entry(newest.revision)
        return operation.hex() == newest.operation

    # --- restoring

    async def restore(
        self,
        wish: RestoreWish,
        target: AsyncDriver,
        progress: Observer | None,
        *,
        ends: Phase = Phase.COMPLETED,
    ) -> RestoreReport:
        """Carry a restore out; `ends`: the phase that it is in when all is done."""
        began, tracker = monotonic(), Tracker(progress)
        tracker.update(Phase.PREPARING)
        tracker.update(Phase.VALIDATING_BACKUPS)
        found = await self.plan(wish.point, wish.selection, wish.timeline)
        for section in wish.sections:
            if section not in found.base.sections:
                reason = f"backup {found.base.backup_id} was made without {section}"
                raise RestoreRefusedError("", reason)
        wanted = await self.wanted(wish.selection, found)
        elsewhere = target is not self._live or wish.into is not None
        if wanted.classes and wish.key is None and not elsewhere:
            reason = "the backup holds only some classes: restoring it would remove the others"
            raise RestoreRefusedError("", reason)
        recovery = Recovery(
            self._repository,
            found,
            live=self._live,
            target=target,
            wanted=wanted,
            into=wish.into,
            key=wish.key,
            remaining_from_ms=await target.run(server_ms()) if wish.remaining_ttl else None,
            archive=self.segments,
            tracker=tracker,
        )
        namespace = target.core.keyspace.namespace
        scopes = (wish.into.text,) if wish.into is not None else wanted.scopes
        repository = self._repository.of(namespace)
        way_back = WayBack(target, repository, recovery.staging.id, scopes)
        try:
            async with AsyncExitStack() as stack:
                running = self._running.one_of_many(recovery.staging.id, "restore")
                await stack.enter_async_context(running)
                await self._running.clean_up_restores(target)
                await stack.enter_async_context(kept_alive(recovery.staging, target))
                await recovery.stage()
                before = partial(way_back.take, stack) if wish.rollback else None
                changed = await recovery.put_in_place(force=wish.force, before_change=before)
                if changed is not None:
                    await way_back.complete(changed)
                await recovery.put_sections(wish.sections)
        except BaseException:
            tracker.update(Phase.FAILED)
            await asyncio.shield(recovery.abandon())
            raise
        tracker.update(ends)
        done, moment = recovery.done, found.moment
        return RestoreReport(
            id=recovery.staging.id,
            moment=None if moment is None else moment.time,
            revision=moment,
            sources=tuple(found.sources),
            scopes=len(done.swapped) - len(done.emptied),
            records=done.keys,
            emptied=tuple(done.emptied),
            inexact=tuple(done.inexact),
            rollback=way_back.backup_id,
            namespace=namespace,
            seconds=round(monotonic() - began, 3),
            bytes=done.bytes,
        )

    async def wanted(self, asked: Selection, found: Plan) -> Selection:
        """Return what is restored: never more than a filtered backup holds.

        A scope that it does not hold would come back empty, so it is refused.
        """
        if not found.base.filtered:
            return asked
        stored = (await asyncio.to_thread(self._repository.index, found.base))["selection"]
        held = Selection.of(stored["scopes"], stored["classes"])
        for one in () if asked.scopes == held.scopes else asked.scopes:
            if not held.covers(one):
                raise RestoreRefusedError(one, f"the backup holds only {held}")
        return Selection.of(asked.scopes or held.scopes, asked.classes or held.classes, asked.keys)


def _said(point: Point, error: BackupError, left_out: Mapping[str, BackupError]) -> BackupError:
    """Return an error that names the manifests that could not be read too."""
    if not left_out:
        return error
    for one in left_out.values():
        if isinstance(one, TargetError):
            return one  # what was not read may cover the moment
    if point.backup_id:  # it is one of the chain, or may be
        return left_out.get(point.backup_id) or next(iter(left_out.values()))
    reason = error.reason if isinstance(error, PointNotCoveredError) else str(error)
    several = "" if len(left_out) == 1 else f" and {len(left_out) - 1} more"
    return PointNotCoveredError(
        point, f"{reason}; left out: {next(iter(left_out.values()))}{several}"
    )


def check_wish(wish: RestoreWish) -> None:
    """Refuse, before anything is read, what cannot be meant."""
    one = len(wish.selection.scopes) == 1 and wish.selection.exact is not None
    if wish.key is not None and not one:
        raise InvalidArgumentError("key", wish.key, "needs exactly one scope")
    if wish.into is not None and not one:
        raise InvalidArgumentError("into", wish.into.text, "needs exactly one scope to restore")
