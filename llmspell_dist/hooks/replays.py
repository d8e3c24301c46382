"""Replay: recorded hooks run again, one, many, step by step, or on a schedule; asynchronous."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.hooks.debugging import Breakpoint, DebugSession
from llmspell_dist.hooks.errors import ExecutionNotFoundError
from llmspell_dist.hooks.recording import Execution
from llmspell_dist.hooks.replay_model import BatchReport, ReplayConfig, Replayed, ReplayMode
from llmspell_dist.hooks.replaying import Find, Progress, Replayer
from llmspell_dist.hooks.schedules import ReplaySchedules

if TYPE_CHECKING:
    from llmspell_dist.hooks.context import HookContext
    from llmspell_dist.hooks.history import HookHistory
    from llmspell_dist.hooks.schedule_store import ScheduledReplay
    from llmspell_dist.leases.manager import Leases
    from llmspell_dist.state.driver import AsyncDriver

__all__ = ["Replays"]

MAX_BATCH: Final = 10_000


class Replays:
    """Runs recorded hooks again, with the context, the clock, the ids and the answers of then.

    Exact replays use what was recorded and the recorded version of the hook; modified ones change
    the context first; simulated ones refuse every write to state; debugging goes step by step. No
    result of a replay is applied to anything: it is compared with the recorded one.

    `state` and `leases` are the library's own, which no hook looks at; `leases` ends with it.
    """

    def __init__(
        self, history: HookHistory, find: Find, driver: AsyncDriver, leases: Leases
    ) -> None:
        self._history = history
        self._leases = leases
        self._replayer = Replayer(find)
        self.schedules = ReplaySchedules(driver, leases, self._scheduled)
        """Replays once, at some moments, at intervals, by a cron expression."""

    async def run(
        self,
        execution: str | Execution,
        *,
        mode: ReplayMode | str = ReplayMode.EXACT,
        config: ReplayConfig | None = None,
        hook: Callable[[HookContext], Any] | None = None,
    ) -> Replayed:
        """Replay one execution, given by its id, and say where it did otherwise.

        `hook`: a function to call instead of the registered hook. What the hook raises is in the
        report. Raises `ExecutionNotFoundError`; `NotReplayableError` if the hook is not registered
        here, is another version than was recorded (exact replays), or if what it was told is not
        in the history; `InvalidArgumentError` for modifications in an exact replay.
        """
        mode, config = ReplayMode.of_a_run(mode), _config(config)
        found = await self._history.get(execution) if type(execution) is str else execution
        if not isinstance(found, Execution):
            rule = "must be an Execution or the id of one"
            raise InvalidArgumentError("execution", execution, rule)
        return await self._replayer.one(found, mode, config, hook=hook)

    async def batch(
        self,
        executions: Iterable[str | Execution] | None = None,
        *,
        mode: ReplayMode | str = ReplayMode.EXACT,
        config: ReplayConfig | None = None,
        max_concurrent: int = 4,
        progress: Progress | None = None,
        **which: Any,
    ) -> BatchReport:
        """Replay several, at most `max_concurrent` at once; the report keeps their order.

        `executions`: ids or executions; or arguments of `HookHistory.query`. `progress` is called,
        and awaited if it is a coroutine function, with how many are done, how many there are, and
        the last report. One that cannot be replayed is in the report and ends nothing, unless
        `ReplayConfig.stop_on_error` is set.
        """
        mode, config = ReplayMode.of_a_run(mode), _config(config)
        found, missing = await self._find(executions, which)
        report = await self._replayer.batch(
            found,
            mode,
            config,
            max_concurrent=max_concurrent,
            progress=progress,
        )
        report.missing = missing
        report.total += len(missing)
        return report

    async def debug(
        self,
        executions: Iterable[str | Execution] | None = None,
        *,
        breakpoints: Sequence[Breakpoint] = (),
        config: ReplayConfig | None = None,
        **which: Any,
    ) -> DebugSession:
        """Begin a session that runs executions step by step; arguments as of `batch`.

        Raises `ExecutionNotFoundError` if one of the ids is not there.
        """
        found, missing = await self._find(executions, which)
        if missing:
            raise ExecutionNotFoundError(missing[0])
        return DebugSession(self._replayer, found, breakpoints, config)

    async def _find(
        self, executions: Iterable[str | Execution] | None, which: dict[str, Any]
    ) -> tuple[list[Execution], list[str]]:
        if (executions is None) == (not which):
            rule = "must be given, or arguments of query, and not both"
            raise InvalidArgumentError("executions", executions, rule)
        if executions is None:
            which.setdefault("limit", MAX_BATCH)
            return await self._history.query(**which), []
        found: list[Execution] = []
        missing: list[str] = []
        for one in executions:
            if isinstance(one, Execution):
                found.append(one)
                continue
            try:
                found.append(await self._history.get(one))
            except ExecutionNotFoundError:
                missing.append(one)
        return found, missing

    async def _scheduled(self, made: ScheduledReplay, due: datetime) -> BatchReport:
        """Run what a schedule says."""
        if made.executions:
            executions, missing = await self._find(made.executions, {})
        else:
            assert made.query is not None  # noqa: S101 - a schedule has one of the two
            which = {name: getattr(made.query, name) for name in type(made.query).__slots__}
            if made.within is not None:
                which["since"] = due - made.within
            executions, missing = await self._history.query(**which), []
        report = await self._replayer.batch(
            executions, made.mode, made.config, max_concurrent=made.max_concurrent
        )
        report.missing = missing
        report.total += len(missing)
        return report

    async def close(self) -> None:
        """Stop serving schedules, and end hooks that did not end in time."""
        await self.schedules.stop()
        await self._replayer.close()
        await self._leases.leave()
        await self._leases.close()


def _config(config: ReplayConfig | None) -> ReplayConfig:
    if config is None:
        return ReplayConfig()
    if not isinstance(config, ReplayConfig):
        raise InvalidArgumentError("config", config, "must be a ReplayConfig or None")
    return config
