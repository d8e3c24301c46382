"""Backups proved by restoring them: into a scratch server, compared with the live state.

A diff compares with the state of now: what a restore in place would change. A drill compares with
the state of the moment: a key that was changed since is looked up in the log as it was then.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic
from typing import TYPE_CHECKING, Final

from llmspell_dist.backup.comparing import Comparison, KeyDifference, Side
from llmspell_dist.backup.drills import DrillReport, read_drills, write_drill
from llmspell_dist.backup.progress import Observer, Phase, Tracker
from llmspell_dist.backup.recovering import Recovery
from llmspell_dist.backup.repository import new_backup_id
from llmspell_dist.backup.selection import Selection
from llmspell_dist.errors import (
    ClosedError,
    HistoryUnavailableError,
    SpellError,
    StoreUnavailableError,
)
from llmspell_dist.state.history import History
from llmspell_dist.state.reads import Reads
from llmspell_dist.state.server_time import server_ms

if TYPE_CHECKING:
    from llmspell_dist.backup.model import Inexact
    from llmspell_dist.backup.planning import Plan
    from llmspell_dist.backup.points import Point
    from llmspell_dist.backup.repository import Repository
    from llmspell_dist.backup.restores import Restorer
    from llmspell_dist.records import StoredRecord
    from llmspell_dist.state.driver import AsyncDriver

__all__ = ["Difference", "DrillReport", "Prover", "Scratch"]

Scratch = Callable[[], AbstractAsyncContextManager["AsyncDriver"]]
"""Starts an empty server of its own, and ends it."""
_MISSING: Final = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What a restore in place would change."""

    moment: datetime | None
    sources: tuple[str, ...]
    added: int
    """Keys that would come back."""
    changed: int
    removed: int
    """Keys that would go, because they came later."""
    keys: tuple[KeyDifference, ...]
    truncated: bool
    """Whether there are more than are named."""
    inexact: tuple[Inexact, ...]


class Prover:
    """Restores moments where they harm nobody, and looks at what came back."""

    def __init__(
        self,
        live: AsyncDriver,
        repository: Repository,
        restorer: Restorer,
        scratch: Scratch,
    ) -> None:
        self._live = live
        self._repository = repository
        self._restorer = restorer
        self._scratch = scratch

    @asynccontextmanager
    async def _restored(
        self, found: Plan, wanted: Selection, tracker: Tracker
    ) -> AsyncIterator[tuple[AsyncDriver, Recovery]]:
        """Restore a moment into a scratch server."""
        async with self._scratch() as target:
            recovery = Recovery(
                self._repository,
                found,
                live=self._live,
                target=target,
                wanted=wanted,
                archive=self._restorer.segments,
                tracker=tracker,
            )
            await recovery.stage()
            await recovery.put_in_place()
            tracker.update(Phase.VERIFYING_RESTORE)
            yield target, recovery

    async def diff(
        self,
        point: Point,
        wanted: Selection,
        *,
        timeline: str | None,
        limit: int,
        progress: Observer | None,
    ) -> Difference:
        """Return what a restore in place would change."""
        found = await self._restorer.plan(point, wanted, timeline)
        wanted = await self._restorer.wanted(wanted, found)
        async with self._restored(found, wanted, Tracker(progress)) as (target, recovery):
            now_ms = await self._live.run(server_ms())
            comparison = Comparison(limit)
            await comparison.run(Side(target, now_ms), Side(self._live, now_ms), wanted)
        moment = found.moment
        return Difference(
            moment=None if moment is None else moment.time,
            sources=tuple(found.sources),
            added=comparison.added,
            changed=comparison.changed,
            removed=comparison.removed,
            keys=tuple(comparison.named),
            truncated=comparison.differences > len(comparison.named),
            inexact=tuple(recovery.done.inexact),
        )

    async def drill(self, point: Point, progress: Observer | None) -> DrillReport:
        """Restore a moment, compare it with the live log as of then, and write the result."""
        began, tracker = monotonic(), Tracker(progress)
        found = await self._restorer.plan(point, Selection(), None)
        wanted = await self._restorer.wanted(Selection(), found)
        async with self._restored(found, wanted, tracker) as (target, recovery):
            inexact = {(one.scope, one.key) for one in recovery.done.inexact}
            past = _Past(self._live, target, found, inexact)
            now_ms, comparison = await self._live.run(server_ms()), Comparison(100)
            await comparison.run(
                Side(target, now_ms), Side(self._live, now_ms), wanted, excused=past.excuses
            )
        moment, drilled = found.moment, datetime.now(UTC)
        report = DrillReport(
            id=new_backup_id(drilled),
            at=drilled,
            backup=found.base.backup_id,
            moment=None if moment is None else moment.time,
            sources=tuple(found.sources),
            scopes=comparison.scopes,
            records=comparison.keys,
            unchecked=past.unchecked,
            mismatches=comparison.differences,
            named=tuple(comparison.named),
            inexact=len(inexact),
            digest=f"{comparison.digest:064x}",
            seconds=round(monotonic() - began, 3),
        )
        await asyncio.to_thread(write_drill, self._repository, report, found.base.key)
        tracker.update(Phase.COMPLETED)
        return report

    def drills(self) -> list[DrillReport]:
        """Return the results of drills, oldest first; blocks."""
        return list(read_drills(self._repository))


class _Past:
    """Looks up keys that differ from the live state as they were at the moment."""

    def __init__(
        self,
        live: AsyncDriver,
        target: AsyncDriver,
        found: Plan,
        inexact: set[tuple[str, str]],
    ) -> None:
        self.unchecked = 0
        self._live = live
        self._target = target
        self._inexact = inexact
        self._history = History(live.core, Reads(live.core))
        self._reads = Reads(target.core)
        self._upto = {shard.shard: shard.upto for shard in found.shards}

    async def excuses(self, scope: str, key: bytes, live: StoredRecord | None) -> bool:
        """Whether the key was changed since, and was then what was restored."""
        name = key.decode()
        core = self._live.core
        moment = self._upto.get(core.keyspace.shard(core.scope_key(scope).scope))
        if moment is None:
            return False
        if live is not None and live.revision <= moment:
            return False  # it was not changed since: it must be the same
        if (scope, name) in self._inexact or (scope, "") in self._inexact:
            self.unchecked += 1
            return True
        try:
            then = await self._live.run(self._history.get_at(scope, name, moment, _MISSING))
        except HistoryUnavailableError:
            self.unchecked += 1
            return True
        except (StoreUnavailableError, ClosedError):
            raise  # nothing was found out
        except SpellError:
            return False
        found = await self._target.run(self._reads.find(scope, name))
        restored = _MISSING if found is None else found.value
        if then is _MISSING or restored is _MISSING:
            return then is restored
        return bool(then == restored)
