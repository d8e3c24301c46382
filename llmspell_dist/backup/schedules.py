"""Backups on a schedule: made by one process of the fleet, whoever that is.

Any number of processes may `run` a schedule of the same name. The one that holds its lease writes
what it is about to do, under the lease's fencing token, and does it; if it dies, the next one finds
that within the lease's time to live and begins anew, at most three times. A backup that was killed
does not exist, so nothing is there twice. Moments that passed while nobody ran it are made up
for by one backup. What is due is told by the server's clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from llmspell_dist.backup.errors import BackupDivergedError, BaseMissingError, TargetError
from llmspell_dist.backup.manifest import BackupType
from llmspell_dist.backup.running import SCOPE
from llmspell_dist.backup.schedule_model import BackupSchedule, Progress
from llmspell_dist.backup.waiting import until_set
from llmspell_dist.errors import (
    ClosedError,
    InvalidArgumentError,
    LeaseUnavailableError,
    SpellError,
    mask_secrets,
)
from llmspell_dist.schedule import FENCED_OUT, MAX_ATTEMPTS, gives_up, is_far_ahead, plan_runs
from llmspell_dist.state.manager import StateManager
from llmspell_dist.state.server_time import ServerTime

if TYPE_CHECKING:
    from llmspell_dist.backup.retention.policy import RetentionPolicy
    from llmspell_dist.leases.holding import Lease
    from llmspell_dist.leases.manager import Leases
    from llmspell_dist.state.driver import AsyncDriver

__all__ = ["ScheduleStatus", "ScheduledBackups", "Work"]

logger = logging.getLogger("llmspell_dist.backup")

LEASE_TTL_S: Final = 30.0
LOOK_EVERY_S: Final = 10.0
LOOK_FOR_LEASE_S: Final = 2.0
"""So long after it is stopped a process may still wait for the lease."""
RETRY_AFTER: Final = timedelta(minutes=1)


class Work(NamedTuple):
    """What a schedule does, given by the one who has the target."""

    taken: Callable[[], Awaitable[Iterable[tuple[BackupType, datetime]]]]
    """Return the whole backups that there are: type, and when it was begun."""
    create: Callable[[BackupType], Awaitable[str]]
    """Make a backup, and return its id."""
    prune: Callable[[RetentionPolicy], Awaitable[Any]]
    """Remove what a policy removes."""


@dataclass(frozen=True, slots=True)
class ScheduleStatus:
    """A schedule and how far it has come."""

    schedule: BackupSchedule
    progress: Progress

    @property
    def next(self) -> datetime | None:
        """When the next backup is due; None if none will be."""
        if self.progress.pending is not None:
            return self.progress.pending
        return self.schedule.moments.first_after(self.progress.done_until)


class ScheduledBackups:
    """One schedule, as one process runs it."""

    def __init__(
        self,
        driver: AsyncDriver,
        leases: Leases,
        schedule: BackupSchedule,
        work: Work,
        *,
        now: Callable[[], datetime] | None = None,
        lease_ttl: float = LEASE_TTL_S,
    ) -> None:
        if not isinstance(schedule, BackupSchedule):
            raise InvalidArgumentError("schedule", schedule, "must be a BackupSchedule")
        self._driver = driver
        self._leases = leases
        self._schedule = schedule
        self._work = work
        self._time = ServerTime(driver, now)
        self._lease_ttl = lease_ttl
        self._key = f"schedule/{schedule.name}"
        self._lease_name = f"schedule-{schedule.name}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._schedule}>"

    @property
    def schedule(self) -> BackupSchedule:
        """What is backed up when."""
        return self._schedule

    async def status(self) -> ScheduleStatus:
        """Return how far it has come, whichever process runs it."""
        now = await self._time.now()
        found = await StateManager(self._driver).get(SCOPE, self._key)
        return ScheduleStatus(self._schedule, Progress.of(found, now))

    async def once(self) -> ScheduleStatus:
        """Make a backup if one is due and no other process runs the schedule; what fails is noted.

        For whoever is started now and then. The first call only notes that moments count from now.
        """
        with contextlib.suppress(LeaseUnavailableError):
            async with self._holding(wait=0) as lease:
                await self._turn(lease)
        return await self.status()

    async def run(self, stop: asyncio.Event) -> None:
        """Make backups when it is this process's turn, until `stop` is set and none is under way.

        What fails is tried again; only errors that no waiting heals are raised. A run that is
        cancelled gives up the backup that is under way, and the next process makes it anew.
        """
        name = self._schedule.name
        while not stop.is_set():
            try:
                async with self._holding(wait=LOOK_FOR_LEASE_S) as lease:
                    while not stop.is_set():
                        soonest = await self._turn(lease)
                        await until_set(stop, self._time.left_s(soonest, LOOK_EVERY_S))
            except LeaseUnavailableError:
                continue
            except (InvalidArgumentError, ClosedError):
                raise
            except FENCED_OUT:
                logger.info("backup schedule %s is another process's now", name)
            except Exception as error:  # noqa: BLE001 - whatever it is, the next moment comes
                _log(name, error)
                await until_set(stop, LOOK_EVERY_S)

    def _holding(self, wait: float | None = None) -> contextlib.AbstractAsyncContextManager[Lease]:
        """Wait until this process is the one that runs the schedule."""
        return self._leases.acquire(
            SCOPE, name=self._lease_name, ttl=self._lease_ttl, wait=wait, label="backup schedule"
        )

    # --- one turn

    async def _turn(self, lease: Lease) -> datetime | None:
        """Do what is due, holding the lease; return when to look again, None: never."""
        state = StateManager(self._driver.over(lease.core))
        now = await self._time.now()
        found = await state.get(SCOPE, self._key)
        progress = Progress.of(found, now)
        if is_far_ahead(progress.done_until, now):
            said = (
                "backup schedule %s was decided up to %s, which is far ahead: it goes on from now"
            )
            logger.warning(said, self._schedule.name, progress.done_until)
            progress = replace(progress, done_until=now)
        plan = plan_runs(self._schedule.moments, progress.done_until, now)
        before = progress
        progress = replace(progress, done_until=plan.done_until)
        if plan.due:
            # A newer moment takes the place of one that failed so far.
            replaced = 0 if progress.pending is None else 1
            progress = replace(
                progress,
                pending=plan.due[-1],
                attempts=0,
                retry_at=None,
                missed=progress.missed + plan.left_out + replaced,
            )
        if progress.pending is None:
            if progress != before or found is None:
                await state.set(SCOPE, self._key, progress.as_data())
            return plan.next
        if progress.retry_at is not None and progress.retry_at > now:
            return _soonest(progress.retry_at, plan.next)
        progress = await self._attempt(state, lease, progress, progress.pending)
        return _soonest(progress.retry_at, plan.next)

    async def _attempt(
        self, state: StateManager, lease: Lease, progress: Progress, due: datetime
    ) -> Progress:
        if gives_up(progress.attempts):
            failed = progress.last_error or "its process died"
            said = f"given up after {MAX_ATTEMPTS} attempts: {failed}"
            logger.error("backup schedule %s: %s", self._schedule.name, said)
            progress = replace(
                progress, pending=None, attempts=0, retry_at=None, last_due=due, last_error=said
            )
            progress = replace(progress, missed=progress.missed + 1)
            await state.set(SCOPE, self._key, progress.as_data())
            return progress
        # Written before it begins: whoever comes after this process knows of it.
        attempts = progress.attempts + 1
        progress = replace(progress, attempts=attempts, retry_at=None, token=lease.token)
        await state.set(SCOPE, self._key, progress.as_data())
        try:
            backup_id, kind = await self._create(due, last=gives_up(attempts))
        except FENCED_OUT:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it counts as an attempt
            said = _log(self._schedule.name, error)
            retry_at = self._time.about_now() + RETRY_AFTER
            progress = replace(progress, last_error=said, retry_at=retry_at)
        else:
            progress = replace(
                progress,
                pending=None,
                attempts=0,
                runs=progress.runs + 1,
                last_due=due,
                last_ended=self._time.about_now(),
                last_backup=backup_id,
                last_type=str(kind),
                last_error="",
            )
        await state.set(SCOPE, self._key, progress.as_data())
        if progress.pending is None and self._schedule.policy is not None:
            progress = await self._prune(state, progress, self._schedule.policy)
        return progress

    async def _create(self, due: datetime, *, last: bool) -> tuple[str, BackupType]:
        """Make what is due; a full one instead if what lies there cannot be gone on from.

        So does the last attempt if the place does not let it be read: a full one needs nothing.
        """
        try:
            kind = self._schedule.type_of(await self._work.taken(), due)
            if kind is not BackupType.FULL:
                return await self._work.create(kind), kind
        except (BaseMissingError, BackupDivergedError, TargetError) as error:
            if isinstance(error, TargetError) and not last:
                raise
            logger.warning("backup schedule %s: %s", self._schedule.name, error)
        return await self._work.create(BackupType.FULL), BackupType.FULL

    async def _prune(
        self, state: StateManager, progress: Progress, policy: RetentionPolicy
    ) -> Progress:
        """Remove what is too much; if that fails, the next backup's pruning does it."""
        try:
            await self._work.prune(policy)
        except FENCED_OUT:
            raise
        except Exception as error:  # noqa: BLE001 - the backup is made all the same
            said = _log(f"{self._schedule.name}: pruning", error)
            progress = replace(progress, last_error=f"pruning: {said}")
            await state.set(SCOPE, self._key, progress.as_data())
        return progress


def _log(what: str, error: Exception) -> str:
    """Log what a schedule failed with, and return that; with where it was, if nobody foresaw it."""
    if isinstance(error, SpellError):
        logger.warning("backup schedule %s: %s", what, error)
        return str(error)
    logger.error("backup schedule %s", what, exc_info=error)
    return mask_secrets(f"{type(error).__name__}: {error}")


def _soonest(*moments: datetime | None) -> datetime | None:
    return min((one for one in moments if one is not None), default=None)
