"""Replays on a schedule: kept in Redis, run by one process of the fleet.

Any number of processes may `serve`; the one that holds the lease ``hook:replay`` runs what is due.
If it dies, the next in line goes on within the lease's time to live: a run that was under way is
run again from its start, at most three times. Replays change nothing, so twice does no harm.

What is due is told by the server's clock: whoever runs schedules next goes on where that left off.
What is kept here is written past the hooks of users: none can see or refuse it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.errors import InvalidArgumentError, SpellError
from llmspell_dist.fork import keep_forever, on_fork
from llmspell_dist.hooks.errors import ScheduleNotFoundError
from llmspell_dist.hooks.history_query import MAX_LIMIT, HistoryQuery
from llmspell_dist.hooks.replay_model import BatchReport, ReplayConfig, ReplayMode
from llmspell_dist.hooks.schedule_store import (
    SCOPE,
    Progress,
    ScheduledReplay,
    progress_key,
    schedule_key,
)
from llmspell_dist.ids import new_id
from llmspell_dist.schedule import (
    FENCED_OUT,
    MAX_ATTEMPTS,
    Missed,
    Schedule,
    gives_up,
    is_far_ahead,
    plan_runs,
)
from llmspell_dist.state.manager import StateManager
from llmspell_dist.state.server_time import ServerTime

if TYPE_CHECKING:
    from llmspell_dist.leases.holding import Lease
    from llmspell_dist.leases.manager import Leases
    from llmspell_dist.state.core import Core
    from llmspell_dist.state.driver import AsyncDriver

__all__ = ["ReplaySchedules", "ScheduleStatus"]

logger = logging.getLogger("llmspell_dist.hooks")

LEASE_NAME: Final = "schedules"
LEASE_TTL_S: Final = 10.0
LOOK_EVERY_S: Final = 1.0
"""How soon a new schedule is seen by the process that runs them."""

RunBatch = Callable[[ScheduledReplay, datetime], Awaitable[BatchReport]]


@dataclass(frozen=True, slots=True)
class ScheduleStatus:
    """A schedule and how far it has come."""

    replay: ScheduledReplay
    progress: Progress

    @property
    def name(self) -> str:
        """Its name."""
        return self.replay.name

    @property
    def next(self) -> datetime | None:
        """When it runs next; None if it does not."""
        if not self.replay.enabled:
            return None
        if self.progress.pending:
            return self.progress.pending[0]
        return self.replay.schedule.first_after(self.progress.done_until)


class ReplaySchedules:
    """What is to be replayed when, for the whole namespace."""

    def __init__(
        self,
        driver: AsyncDriver,
        leases: Leases,
        run: RunBatch,
        *,
        now: Callable[[], datetime] | None = None,
        lease_ttl: float = LEASE_TTL_S,
    ) -> None:
        self._driver = driver
        self._state = StateManager(driver)
        self._leases = leases
        self._run = run
        self._time = ServerTime(driver, now)
        self._last_fenced: tuple[Core | None, StateManager | None] = (None, None)
        self._lease_ttl = lease_ttl
        self._server: asyncio.Task[None] | None = None
        on_fork(self)

    # --- setting up

    async def add(
        self,
        name: str,
        schedule: Schedule,
        *,
        executions: Iterable[str] = (),
        mode: ReplayMode | str = ReplayMode.EXACT,
        config: ReplayConfig | None = None,
        max_concurrent: int = 4,
        missed: Missed | str = Missed.ONCE,
        grace: timedelta = timedelta(seconds=60),
        within: timedelta | None = None,
        replace: bool = False,
        **which: Any,
    ) -> ScheduledReplay:
        """Have executions replayed on a schedule; one of that name is replaced only if said so.

        `executions`: their ids; or arguments of `HookHistory.query`, which is asked at each run,
        with `within` for the time before it, and without `limit` for up to 10,000. `missed` says
        what becomes of runs whose moment passed while no process served: ``once`` makes up for all
        of them with one run, ``all`` for each of the last 100, ``skip`` leaves out those that are
        later than `grace`.
        """
        mode = ReplayMode.of_a_run(mode)
        if isinstance(schedule, type) or not callable(getattr(schedule, "first_after", None)):
            rule = "must be Once, At, Every or Cron"
            raise InvalidArgumentError("schedule", schedule, rule)
        ids = tuple(executions)
        if bool(ids) == bool(which or within is not None):
            rule = "must be ids of executions, or arguments of query, and not both"
            raise InvalidArgumentError("executions", ids, rule)
        try:
            missed = Missed(missed)
        except ValueError:
            rule = f"must be one of {', '.join(Missed)}"
            raise InvalidArgumentError("missed", missed, rule) from None
        config = ReplayConfig() if config is None else config
        changes: Iterable[Any] = config.modifications
        if mode is ReplayMode.EXACT and any(one.enabled for one in changes):
            rule = "must be empty in an exact replay: use the mode modified"
            raise InvalidArgumentError("modifications", config.modifications, rule)
        which.setdefault("limit", MAX_LIMIT)
        made = ScheduledReplay(
            name,
            new_id(),
            schedule,
            await self._time.now(),
            ids,
            None if ids else HistoryQuery(**which),
            within,
            mode,
            config,
            max_concurrent,
            missed,
            grace,
        )
        if replace:
            await self._state.set(SCOPE, schedule_key(name), made.as_data())
        elif not await self._state.set_if_absent(SCOPE, schedule_key(name), made.as_data()):
            rule = "must be new: there is such a schedule, which replace=True replaces"
            raise InvalidArgumentError("name", name, rule)
        return made

    async def remove(self, name: str) -> None:
        """Forget a schedule; `ScheduleNotFoundError` if there is none."""
        if not await self._state.delete(SCOPE, schedule_key(name)):
            raise ScheduleNotFoundError(name)
        await self._state.delete(SCOPE, progress_key(name))

    async def enable(self, name: str, *, enabled: bool = True) -> None:
        """Let a schedule run, or keep it from running; `ScheduleNotFoundError` if there is none."""

        def switched(data: Any) -> Any:
            if data is None:
                raise ScheduleNotFoundError(name)
            return replace(ScheduledReplay.from_data(data), enabled=enabled).as_data()

        await self._state.update(SCOPE, schedule_key(name), switched)

    async def show(self, name: str) -> ScheduleStatus:
        """Return a schedule and how far it has come."""
        found = await self._state.get_many(SCOPE, [schedule_key(name), progress_key(name)])
        data = found.get(schedule_key(name))
        if data is None:
            raise ScheduleNotFoundError(name)
        made = ScheduledReplay.from_data(data)
        return ScheduleStatus(made, Progress.of(made, found.get(progress_key(name))))

    async def list(self) -> list[ScheduleStatus]:
        """Return every schedule, by name; one that cannot be read is logged and left out."""
        everything = await self._state.get_all(SCOPE)
        found = []
        for key, data in sorted(everything.items()):
            if not key.startswith("schedule/"):
                continue
            try:
                made = ScheduledReplay.from_data(data)
                progress = Progress.of(made, everything.get(progress_key(made.name)))
            except SpellError as error:
                logger.warning("schedule %s is left out: %s", key, error)
                continue
            found.append(ScheduleStatus(made, progress))
        return found

    # --- running

    def serve(self) -> None:
        """Have this process run schedules when it is its turn, until it closes or `stop`."""
        if self._server is None or self._server.done():
            self._server = asyncio.create_task(self._serve(), name="llmspell-replay-schedules")

    @property
    def serving(self) -> bool:
        """Whether this process would run schedules."""
        return self._server is not None and not self._server.done()

    async def stop(self) -> None:
        """Stop serving; a run that is under way is left to the next process."""
        server, self._server = self._server, None
        if server is not None and server.get_loop() is asyncio.get_running_loop():
            server.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await server

    def forget(self) -> None:
        """In a forked child: the task is the parent's."""
        keep_forever(self._server)
        self._server = None

    async def _serve(self) -> None:
        while True:
            try:
                async with self._leases.acquire(
                    SCOPE, name=LEASE_NAME, ttl=self._lease_ttl, label="replay schedules"
                ) as lease:
                    while True:
                        next_run = await self.turn(lease)
                        await asyncio.sleep(self._time.left_s(next_run, LOOK_EVERY_S))
            except FENCED_OUT:
                logger.info("the lease on replay schedules is another process's now")
            except SpellError as error:
                logger.warning("replay schedules: %s", error)
                await asyncio.sleep(LOOK_EVERY_S)
            except Exception:
                logger.exception("replay schedules")
                await asyncio.sleep(LOOK_EVERY_S)

    async def turn(self, lease: Lease) -> datetime | None:
        """Run what is due, holding the lease; return when to look again, None if nothing waits."""
        next_run: datetime | None = None
        for status in await self.list():
            if not status.replay.enabled:
                continue
            try:
                soonest = await self._run_due(lease, status)
            except SpellError:
                raise
            except Exception:  # it must not keep those behind it from running
                logger.exception("replay schedule %s", status.name)
                continue
            if soonest is not None and (next_run is None or soonest < next_run):
                next_run = soonest
        return next_run

    async def _run_due(self, lease: Lease, status: ScheduleStatus) -> datetime | None:
        made, progress = status.replay, status.progress
        now = await self._time.now()
        if is_far_ahead(progress.done_until, now):
            said = "schedule %s was decided up to %s, which is far ahead: it goes on from now"
            logger.warning(said, made.name, progress.done_until)
            progress = replace(progress, done_until=now)
            await self._write(lease, made, progress)
        plan = plan_runs(made.schedule, progress.done_until, now, made.missed, made.grace)
        due = [*progress.pending, *plan.due]
        while due:
            begun = progress.attempts if due[0] in progress.pending else 0
            progress = replace(
                progress,
                done_until=plan.done_until,
                left_out=progress.left_out + plan.left_out,
                pending=tuple(due),
                attempts=begun + 1,
                token=lease.token,
            )
            plan = plan._replace(left_out=0)
            # Written before it begins: whoever comes after this process knows of it.
            if not await self._write(lease, made, progress):
                return None
            if gives_up(begun):
                said = f"given up after {MAX_ATTEMPTS} attempts that did not come to their end"
                progress = replace(progress, last_difference=said, last_failed=1)
            else:
                report = await self._run(made, due[0])
                progress = replace(
                    progress,
                    last_total=report.total,
                    last_identical=report.identical,
                    last_failed=report.failed,
                    last_difference=report.first_difference,
                )
            progress = replace(
                progress,
                runs=progress.runs + 1,
                pending=tuple(due[1:]),
                attempts=0,
                last_due=due[0],
                last_ended=self._time.about_now(),
            )
            due.pop(0)
            if not await self._write(lease, made, progress):
                return None
        if plan.left_out:
            progress = replace(
                progress,
                done_until=plan.done_until,
                left_out=progress.left_out + plan.left_out,
            )
            await self._write(lease, made, progress)
        return plan.next

    async def _write(self, lease: Lease, made: ScheduledReplay, progress: Progress) -> bool:
        """Write how far a schedule is; False if it was removed or replaced meanwhile.

        Whoever removes a schedule takes its progress away behind it. So one that is there after the
        progress was written will leave nothing behind either.
        """
        state = self._fenced(lease)
        await state.set(SCOPE, progress_key(made.name), progress.as_data())
        found = await self._state.get(SCOPE, schedule_key(made.name))
        if found is None:
            await state.delete(SCOPE, progress_key(made.name))
        return type(found) is dict and found.get("id") == made.id

    def _fenced(self, lease: Lease) -> StateManager:
        """Return the state with the lease in every commit; not `lease.state`, which has hooks."""
        core, state = self._last_fenced
        if core is not lease.core or state is None:
            core, state = lease.core, StateManager(self._driver.over(lease.core))
            self._last_fenced = core, state
        return state
