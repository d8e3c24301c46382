"""Replay for code without an event loop: the same, carried out on the client's background loop.

Plain hooks run in threads of their own there, coroutine functions on the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from llmspell_dist.hooks.history import HookHistory
from llmspell_dist.hooks.replay_model import BatchReport, ReplayConfig, Replayed, ReplayMode
from llmspell_dist.hooks.replays import Replays as AsyncReplays
from llmspell_dist.leases.manager import Leases as AsyncLeases
from llmspell_dist.schedule import Missed
from llmspell_dist.state.manager import StateManager

if TYPE_CHECKING:
    from llmspell_dist.blocking.backstage import Backstage
    from llmspell_dist.blocking.hooks import Hooks
    from llmspell_dist.hooks.context import HookContext
    from llmspell_dist.hooks.debugging import (
        Breakpoint,
        CapturedState,
        Stop,
        TimelineEntry,
    )
    from llmspell_dist.hooks.debugging import DebugSession as AsyncDebugSession
    from llmspell_dist.hooks.recording import Execution
    from llmspell_dist.hooks.replaying import Progress
    from llmspell_dist.hooks.schedule_store import ScheduledReplay
    from llmspell_dist.hooks.schedules import ReplaySchedules as AsyncReplaySchedules
    from llmspell_dist.hooks.schedules import ScheduleStatus
    from llmspell_dist.schedule import Schedule
    from llmspell_dist.state.core import Core

__all__ = ["DebugSession", "ReplaySchedules", "Replays"]


class Replays:
    """Runs recorded hooks again; as `llmspell_dist.hooks.replays.Replays`, blocking."""

    def __init__(self, backstage: Backstage, hooks: Hooks) -> None:
        driver = backstage.driver

        def state_of(core: Core) -> StateManager:
            return StateManager(driver.over(core))

        leases = AsyncLeases(driver, backstage.hub, state_of)
        history = HookHistory(driver, hooks.history_steps, hooks.writer, hooks.writer.flush)
        self._backstage = backstage
        self._there = AsyncReplays(history, hooks.find, driver, leases)
        backstage.at_end(self._there.close)
        self.schedules = ReplaySchedules(backstage, self._there.schedules)
        """Replays once, at some moments, at intervals, by a cron expression."""

    def run(
        self,
        execution: str | Execution,
        *,
        mode: ReplayMode | str = ReplayMode.EXACT,
        config: ReplayConfig | None = None,
        hook: Callable[[HookContext], Any] | None = None,
    ) -> Replayed:
        """Replay one execution, given by its id, and say where it did otherwise."""
        there = self._there.run(execution, mode=mode, config=config, hook=hook)
        return self._backstage.run(there)

    def batch(
        self,
        executions: Iterable[str | Execution] | None = None,
        *,
        mode: ReplayMode | str = ReplayMode.EXACT,
        config: ReplayConfig | None = None,
        max_concurrent: int = 4,
        progress: Progress | None = None,
        **which: Any,
    ) -> BatchReport:
        """Replay several, at most `max_concurrent` at once; the report keeps their order."""
        there = self._there.batch(
            executions,
            mode=mode,
            config=config,
            max_concurrent=max_concurrent,
            progress=progress,
            **which,
        )
        return self._backstage.run(there)

    def debug(
        self,
        executions: Iterable[str | Execution] | None = None,
        *,
        breakpoints: Sequence[Breakpoint] = (),
        config: ReplayConfig | None = None,
        **which: Any,
    ) -> DebugSession:
        """Begin a session that runs executions step by step."""
        there = self._there.debug(executions, breakpoints=breakpoints, config=config, **which)
        return DebugSession(self._backstage, self._backstage.run(there))


class DebugSession:
    """Runs executions again one by one; as its asynchronous twin, blocking."""

    def __init__(self, backstage: Backstage, there: AsyncDebugSession) -> None:
        self._backstage = backstage
        self._there = there

    @property
    def breakpoints(self) -> list[Breakpoint]:
        """Where it stops; may be changed at any time."""
        return self._there.breakpoints

    @property
    def done(self) -> bool:
        """Whether there is nothing left to run."""
        return self._there.done

    @property
    def place(self) -> int:
        """Which execution runs next, from 0."""
        return self._there.place

    @property
    def states(self) -> tuple[CapturedState, ...]:
        """What was known after each execution, the oldest first; at most 1,000."""
        return self._there.states

    @property
    def dropped_states(self) -> int:
        """How many of the oldest states are gone."""
        return self._there.dropped_states

    @property
    def timeline(self) -> list[TimelineEntry]:
        """What it did so far."""
        return self._there.timeline

    @property
    def report(self) -> BatchReport:
        """What became of the executions so far."""
        return self._there.report

    def change(self, path: str, value: Any) -> None:
        """Tell the hook that runs next something else."""
        self._there.change(path, value)

    def skip(self) -> None:
        """Do not run the execution that is next."""
        self._there.skip()

    def next(self) -> Stop | None:
        """Run until the next breakpoint; None at the end."""
        return self._backstage.run(self._there.next())

    def step(self) -> Stop | None:
        """Run one execution, and stop before the next; None at the end."""
        return self._backstage.run(self._there.step())

    def finish(self) -> BatchReport:
        """Run all that is left, past every pause; return what became of all.

        Breakpoints that log, modify or skip do so.
        """
        return self._backstage.run(self._there.finish())


class ReplaySchedules:
    """What is to be replayed when; as its asynchronous twin, blocking."""

    def __init__(self, backstage: Backstage, there: AsyncReplaySchedules) -> None:
        self._backstage = backstage
        self._there = there

    def add(
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
        """Have executions replayed on a schedule; one of that name is replaced only if said so."""
        there = self._there.add(
            name,
            schedule,
            executions=executions,
            mode=mode,
            config=config,
            max_concurrent=max_concurrent,
            missed=missed,
            grace=grace,
            within=within,
            replace=replace,
            **which,
        )
        return self._backstage.run(there)

    def remove(self, name: str) -> None:
        """Forget a schedule; `ScheduleNotFoundError` if there is none."""
        self._backstage.run(self._there.remove(name))

    def enable(self, name: str, *, enabled: bool = True) -> None:
        """Let a schedule run, or keep it from running."""
        self._backstage.run(self._there.enable(name, enabled=enabled))

    def show(self, name: str) -> ScheduleStatus:
        """Return a schedule and how far it has come."""
        return self._backstage.run(self._there.show(name))

    def list(self) -> list[ScheduleStatus]:
        """Return every schedule, by name."""
        return self._backstage.run(self._there.list())

    def serve(self) -> None:
        """Have this process run schedules when it is its turn, until it closes or `stop`."""

        async def begin() -> None:
            self._there.serve()

        self._backstage.run(begin())

    @property
    def serving(self) -> bool:
        """Whether this process would run schedules."""
        return self._there.serving

    def stop(self) -> None:
        """Stop serving; a run that is under way is left to the next process."""
        self._backstage.run(self._there.stop())
