"""Pruning, collecting garbage and verifying as the service offers them: leases, threads, notices.

What is removed is removed by a thread, which cannot be stopped. So it asks before each step whether
this process still is the only one that may.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from llmspell_dist.backup.collecting import DRILLS, GRACE, Collector, Garbage
from llmspell_dist.backup.errors import BackupInProgressError, BackupNotFoundError
from llmspell_dist.backup.findings import Level, VerifyReport
from llmspell_dist.backup.names import is_backup_id
from llmspell_dist.backup.progress import Observer, Progress, Tracker
from llmspell_dist.backup.pruning import Pruner, PruneReport
from llmspell_dist.backup.repository import new_backup_id
from llmspell_dist.backup.retention.policy import RetentionPolicy
from llmspell_dist.backup.verifying import Verifier
from llmspell_dist.backup.waiting import to_the_end
from llmspell_dist.errors import InvalidArgumentError

if TYPE_CHECKING:
    from llmspell_dist.backup.notices import Notices
    from llmspell_dist.backup.removing import Removal
    from llmspell_dist.backup.repository import Repository
    from llmspell_dist.backup.retention.model import StoredBackup
    from llmspell_dist.backup.retention.plan import Decision, PrunePlan
    from llmspell_dist.backup.running import Running

__all__ = ["Pruned", "Upkeep"]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Pruned:
    """What a policy removes, and what of that was removed."""

    plan: PrunePlan
    report: PruneReport | None = None
    """None: it was only planned."""

    @property
    def goes(self) -> tuple[StoredBackup, ...]:
        """The backups that go, or went."""
        return self.plan.goes

    @property
    def stays(self) -> tuple[StoredBackup, ...]:
        """The backups that stay, the newest first."""
        return self.plan.stays

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """What becomes of each backup, and why, the newest first."""
        return self.plan.decisions

    def __bool__(self) -> bool:
        """Whether anything goes."""
        return bool(self.plan)

    def as_data(self) -> dict[str, Any]:
        """Return it as plain data, for JSON: the plan, or what was removed."""
        return self.plan.as_data() if self.report is None else self.report.as_data()

    def __str__(self) -> str:
        return str(self.plan if self.report is None else self.report)


class Upkeep:
    """Keeps the backups of a repository in order."""

    def __init__(
        self,
        repository: Repository,
        running: Running,
        notices: Notices,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._repository = repository
        self._running = running
        self._notices = notices
        self._now = now

    async def prune(
        self,
        policy: RetentionPolicy | str,
        *,
        confirm: bool = False,
        plan: Pruned | PrunePlan | None = None,
    ) -> Pruned:
        """Plan what a policy removes, and remove it only with `confirm`.

        `plan`: one that was shown before; nothing goes that does not go by it. Raises
        `BackupInProgressError` if something else works on the backups.
        """
        if isinstance(policy, str):
            policy = RetentionPolicy.parse(policy)
        elif not isinstance(policy, RetentionPolicy):
            rule = "must be a policy, or its short form such as last=10 daily=7"
            raise InvalidArgumentError("policy", policy, rule)
        if isinstance(plan, Pruned):
            plan = plan.plan
        if plan is None or not confirm:
            pruner = Pruner(self._repository, now=self._now)
            plan = await asyncio.to_thread(pruner.plan, policy)
        if not confirm:
            return Pruned(plan)
        report, agreed = PruneReport(), plan
        facts = {"policy": policy.text, "backups": [one.id for one in plan.goes]}
        async with self._notices.of("cleanup", self._label, **facts) as told:
            await self._alone(
                "pruning",
                lambda holding, running: Pruner(
                    self._repository, now=self._now, holding=holding, running=running
                ).apply(agreed, report),
            )
            told.update(report.as_data())
        return Pruned(plan, report)

    async def remove(self, backup_id: str, *, confirm: bool = False) -> Removal:
        """Remove one backup, with `confirm`; see `Pruner.remove`."""
        if not is_backup_id(backup_id):
            raise BackupNotFoundError(self._label, backup_id)

        def work(holding: Callable[[], None], running: Callable[[str], bool]) -> Removal:
            pruner = Pruner(self._repository, now=self._now, holding=holding, running=running)
            return pruner.remove(backup_id, confirm=confirm)

        if not confirm:
            return await self._in_thread(work)
        async with self._notices.of("cleanup", self._label, backups=[backup_id]) as told:
            removal = await self._alone("removing a backup", work)
            told.update(objects=removal.objects, freed_bytes=removal.freed)
        return removal

    async def collect(
        self,
        *,
        confirm: bool = False,
        grace: timedelta = GRACE,
        drills_after: timedelta = DRILLS,
    ) -> Garbage:
        """Find what nothing needs, and remove it only with `confirm`; see `Collector.collect`."""

        def work(holding: Callable[[], None], running: Callable[[str], bool]) -> Garbage:
            collector = Collector(self._repository, now=self._now, holding=holding, running=running)
            return collector.collect(confirm=confirm, grace=grace, drills_after=drills_after)

        if not confirm:
            return await self._in_thread(work)
        async with self._notices.of("cleanup", self._label, what="garbage") as told:
            garbage = await self._alone("collecting garbage", work)
            told.update(removed=garbage.removed, bytes=garbage.size)
        return garbage

    async def verify(
        self,
        backup_id: str | None = None,
        *,
        level: Level | str = Level.HASHES,
        sample: float = 1.0,
        seed: int = 0,
        progress: Observer | None = None,
    ) -> VerifyReport:
        """Verify backups; see `Verifier.verify`. Nothing is pruned meanwhile."""
        loop = asyncio.get_running_loop()

        def tell(found: Progress) -> None:
            if progress is not None:
                loop.call_soon_threadsafe(progress, found)

        verifier = Verifier(self._repository, tracker=Tracker(tell))
        facts = {"level": str(level), **({"id": backup_id} if backup_id else {})}
        async with (
            self._notices.of("validation", self._label, **facts) as told,
            self._running.one_of_many(new_backup_id(), "verification"),
        ):
            report = await asyncio.to_thread(
                lambda: verifier.verify(backup_id, level=level, sample=sample, seed=seed)
            )
            told.update(ok=report.ok, findings=len(report.findings), objects=report.objects)
        return report

    @property
    def _label(self) -> str:
        return self._repository.target.label

    async def _alone(
        self, label: str, work: Callable[[Callable[[], None], Callable[[str], bool]], _T]
    ) -> _T:
        async with self._running.alone(label):
            return await self._in_thread(work)

    async def _in_thread(
        self, work: Callable[[Callable[[], None], Callable[[str], bool]], _T]
    ) -> _T:
        """Run work in a thread, which ends before this does; cancelled, it does no more steps."""
        loop, ended = asyncio.get_running_loop(), threading.Event()

        def holding() -> None:
            if ended.is_set():
                raise BackupInProgressError("something else, as the lease was lost")

        def running(backup_id: str) -> bool:
            asking = self._running.is_running(backup_id)
            return asyncio.run_coroutine_threadsafe(asking, loop).result()

        return await to_the_end(asyncio.to_thread(work, holding, running), ended.set)
