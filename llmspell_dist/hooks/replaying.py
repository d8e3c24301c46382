"""Runs a recorded execution again: the hook is told, and given, what it was the first time.

The engine knows no Redis: it takes an `Execution` and a function that finds the hook.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import timedelta
from inspect import isawaitable
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol

from llmspell_dist.context import current_context, entered
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.hooks.calling import called
from llmspell_dist.hooks.comparator import compare_outcomes
from llmspell_dist.hooks.errors import NotReplayableError, SimulatedWriteError
from llmspell_dist.hooks.inputs import LIVE, Injected
from llmspell_dist.hooks.kept import keep_error
from llmspell_dist.hooks.modifications import modified
from llmspell_dist.hooks.recording import Execution, rebuild_context
from llmspell_dist.hooks.replay_model import BatchReport, ReplayConfig, Replayed, ReplayMode
from llmspell_dist.hooks.running import AsyncRunner

if TYPE_CHECKING:
    from llmspell_dist.context import CommitContext
    from llmspell_dist.hooks.context import HookContext

__all__ = ["Replayer", "RunnableHook"]

_ANY_TIME_S: Final = 365.0 * 86_400
Progress = Callable[[int, int, Replayed], Any]


class RunnableHook(Protocol):
    """What is to be known of a hook that can be replayed."""

    @property
    def version(self) -> str:
        """What its code is called."""

    @property
    def call(self) -> Callable[[HookContext], Any]:
        """What is called with the context."""


Find = Callable[[str, str], RunnableHook | None]
"""Returns the hook of a name at a point, if it is here."""


class Replayer:
    """Replays executions with the hooks of this process."""

    def __init__(self, find: Find) -> None:
        self._find = find
        self._runner = AsyncRunner()

    async def one(
        self,
        execution: Execution,
        mode: ReplayMode,
        config: ReplayConfig,
        *,
        hook: Callable[[HookContext], Any] | None = None,
        context: dict[str, Any] | None = None,
    ) -> Replayed:
        """Replay one execution; what the hook raises is in the report, and not raised.

        `hook` is called instead of the registered one; `context` is told instead of the recorded
        one. Raises `NotReplayableError` if the hook is not here, is another version, or if what it
        was told was left out of the history.
        """
        if mode is ReplayMode.EXACT and any(
            one.enabled for one in _changes(config)
        ):  # refused, not ignored
            rule = "must be empty in an exact replay: use the mode modified"
            raise InvalidArgumentError("modifications", config.modifications, rule)
        call = self._callable(execution, mode) if hook is None else hook
        told = execution.context if context is None else context
        if told is None:
            reason = "what it was told is not in the history, or encrypted"
            raise NotReplayableError(execution.hook, execution.version, reason)
        told = modified(told, _changes(config))
        may_take = config.new_inputs == "take" and mode in (ReplayMode.MODIFIED, ReplayMode.DEBUG)
        inputs = Injected(execution.inputs, beyond=LIVE if may_take else None)
        refused: list[str] = []
        began = perf_counter()
        with _simulation(refused) if mode is ReplayMode.SIMULATE else entered(current_context()):
            ctx = rebuild_context(told)
            ctx.inputs = inputs
            limit_s = _ANY_TIME_S if config.timeout is None else config.timeout
            result, error = await called(self._runner, call, ctx, limit_s)
        took = perf_counter() - began
        inputs.finish()
        report = Replayed(
            execution,
            mode,
            result,
            error,
            duration=timedelta(seconds=took),
            divergence=inputs.divergence,
            refused_writes=tuple(refused),
            gaps=tuple(execution.gaps),
            tags=config.tags,
        )
        if not config.compare_results:
            return report
        recorded = (execution.result, execution.error)
        return replace(report, comparison=compare_outcomes(recorded, (result, error)))

    def _callable(self, execution: Execution, mode: ReplayMode) -> Callable[[HookContext], Any]:
        name, version = execution.hook, execution.version
        found = self._find(name, execution.point)
        if found is None:
            reason = f"no hook of that name is registered at {execution.point}"
            raise NotReplayableError(name, version, reason)
        if mode is ReplayMode.EXACT and found.version != version:
            reason = f"here it is version {found.version}"
            raise NotReplayableError(name, version, reason)
        return found.call

    async def batch(
        self,
        executions: Sequence[Execution],
        mode: ReplayMode,
        config: ReplayConfig,
        *,
        max_concurrent: int,
        progress: Progress | None = None,
    ) -> BatchReport:
        """Replay several, at most so many at once; the report has them in the given order."""
        if type(max_concurrent) is not int or max_concurrent < 1:
            rule = "must be an int of at least 1"
            raise InvalidArgumentError("max_concurrent", max_concurrent, rule)
        report = BatchReport(total=len(executions))
        found: dict[int, Replayed] = {}
        waiting = iter(enumerate(executions))

        async def work() -> None:
            for place, execution in waiting:
                if report.stopped:
                    return
                one = await self._one_of_many(execution, mode, config)
                found[place] = one
                if config.stop_on_error and _is_new_failure(one):
                    report.stopped = True
                if progress is not None:
                    said = progress(len(found), len(executions), one)
                    if isawaitable(said):
                        await said

        async with asyncio.TaskGroup() as group:
            for _ in range(min(max_concurrent, len(executions))):
                group.create_task(work())
        report.replays = [found[place] for place in sorted(found)]
        return report

    async def _one_of_many(
        self, execution: Execution, mode: ReplayMode, config: ReplayConfig
    ) -> Replayed:
        try:
            return await self.one(execution, mode, config)
        except (NotReplayableError, InvalidArgumentError) as error:
            return Replayed(execution, mode, error=keep_error(error), ran=False, tags=config.tags)

    async def close(self) -> None:
        """End what did not end in time."""
        await self._runner.close()


def _changes(config: ReplayConfig) -> Iterable[Any]:
    return config.modifications  # made a tuple when it was checked


def _is_new_failure(one: Replayed) -> bool:
    return not one.ran or (one.error is not None and not one.execution.failed)


def _simulation(refused: list[str]) -> AbstractContextManager[CommitContext]:
    """Refuse every commit made inside, in every task and thread begun inside; note its scopes."""

    def refuse(scopes: Iterable[str]) -> NoReturn:
        named = list(scopes)
        refused.extend(named)
        raise SimulatedWriteError(named)

    return entered(replace(current_context(), refuse=refuse))
